"""Damaged articles and images are read or refused, and fuzzing finds faults."""

import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
from fuzzing import faults, panels
from fuzzing.fuzz import TARGETS, Target, main, make_input, picture_samples
from fuzzing.mutate import damage
from helpers.commands import ENVIRONMENT, ROOT

from biomedclip.processing.panels import SplitCaption
from biomedclip.processing.pmc.images import inspect_image


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc"),
]


@pytest.mark.parametrize(
    ("target", "inputs"), [("articles", 400), ("pictures", 400), ("panels", 60), ("captions", 150)]
)
def test_damaged_inputs_are_read_or_refused(target, inputs, tmp_path):
    # A new interpreter, because children may inherit the peak memory of their parent.
    script = [sys.executable, "tests/fuzzing/fuzz.py", "--target", target, "--inputs", str(inputs)]
    command = [*script, "--failures", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    (read,) = [int(line.split()[0]) for line in result.stdout.splitlines() if line.endswith("  read")]
    assert 0.2 < read / inputs < 0.8, "the damage is too light or too heavy"


def test_every_target_is_tested():
    assert {target.name for target in TARGETS} == {"articles", "pictures", "panels", "captions"}


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (SplitCaption("A CT.", {"A": "CT."}, "", "caption"), "labels"),
        (SplitCaption("CT (a), MRI (b).", {"A": "CT", "C": "MRI"}, "", "caption"), "labels"),
        (SplitCaption("CT (a), MRI (b).", {"A": "CT", "B": "PET"}, "", "caption"), "is not part of the caption"),
        (SplitCaption("PET.", {"A": "CT", "B": "MRI"}, "", "caption"), "is not from the caption"),
    ],
)
def test_wrong_splits_of_captions_are_found(monkeypatch, fault, problem):
    monkeypatch.setattr(panels, "split_caption", lambda text, labels=None: fault)
    with pytest.raises(AssertionError, match=problem):
        panels.split_and_check(b"CT (a), MRI (b).")


@pytest.mark.parametrize("box", [(0, 0, 0, 9), (0, 0, 900, 9), (-1, 0, 5, 9), (5, 9, 0, 0)])
def test_wrong_boxes_of_panels_are_found(monkeypatch, tmp_path, box):
    monkeypatch.setattr(panels, "cut_panels", lambda image: [box])
    with pytest.raises(AssertionError):
        panels.find_and_check(picture_samples(tmp_path)[-1])


@pytest.fixture(scope="module")
def fresh_process() -> Iterator[ProcessPoolExecutor]:
    """A new process, because children may inherit the peak memory of this one."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_every_kind_of_picture_is_read_before_it_is_damaged(tmp_path):
    modes = {inspect_image(content).mode for content in picture_samples(tmp_path)}
    assert modes >= {"RGB", "RGBA", "LA", "P", "CMYK", "I;16", "I;16B", "F", "1", "LAB", "YCbCr"}


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (faults.raise_error, "FAILED: KeyError"),
        (faults.hang, "FAILED: process ended by SIGALRM after 2 s"),
        (faults.crash, "FAILED: process ended by SIGKILL"),
        (faults.use_memory, "MiB"),
    ],
)
def test_faults_are_found_and_the_run_continues(fresh_process, fault, outcome):
    result, failed = fresh_process.submit(faults.fuzz_with, fault).result()
    assert 0 < len(failed) < 12
    assert [number for number, _ in result.failures] == failed
    assert [text for _, text in result.failures if outcome not in text] == []
    assert result.outcomes["read"] == 12 - len(failed)


def test_an_input_that_fails_is_saved_and_the_status_is_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fuzzing.fuzz.TARGETS", (Target("pictures", faults.raise_error, ValueError, damage),))
    assert main(["--inputs", "2", "--data", str(tmp_path), "--failures", str(tmp_path / "failures")]) == 1
    assert len(list((tmp_path / "failures").iterdir())) == 2
    assert "is saved as" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_inputs():
    target = TARGETS[0]
    samples = [b"<article><fig id='a'><caption><p>A</p></caption></fig></article>", b"<article/>"]
    inputs = [make_input(target, samples, 0, number) for number in range(50)]
    assert inputs == [make_input(target, samples, 0, number) for number in range(50)]
    assert inputs != [make_input(target, samples, 1, number) for number in range(50)]
    assert len(set(inputs)) > 40
