"""Damaged articles and pictures are read or refused; and what fuzzing is to find, it finds."""

import os
import signal
import subprocess
import sys
import time

import pytest
from commands import ENVIRONMENT, ROOT
from fuzzing.fuzz import TARGETS, Target, fuzz, main, make_input, picture_samples
from fuzzing.mutate import damage

from processing.pmc.pictures import inspect_picture


pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is read from /proc")


@pytest.mark.parametrize("target", [target.name for target in TARGETS])
def test_damaged_inputs_are_read_or_refused(target, tmp_path):
    """In a process of its own, because this one has used more memory than is allowed there."""
    command = [sys.executable, "tests/fuzzing/fuzz.py", "--inputs", "1000", "--target", target]
    result = subprocess.run(
        [*command, "--failures", str(tmp_path)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout
    read = next(int(line.split()[0]) for line in result.stdout.splitlines() if line.endswith("  read"))
    assert 200 < read < 800, "damage is too light, or too heavy, to show anything"


def test_every_kind_of_picture_is_read_before_it_is_damaged(tmp_path):
    modes = {inspect_picture(content).mode for content in picture_samples(tmp_path)}
    assert modes >= {"RGB", "RGBA", "LA", "P", "CMYK", "I;16", "I;16B", "F", "1", "LAB", "YCbCr"}


def _raise(content: bytes) -> None:
    raise KeyError("unexpected")


def _hang(content: bytes) -> None:
    time.sleep(60)


def _crash(content: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hoard(content: bytes) -> None:
    b"x" * (200 << 20)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (_raise, "FAILED: KeyError"),
        (_hang, "FAILED: process ended by SIGALRM after 2 s"),
        (_crash, "FAILED: process ended by SIGKILL"),
        (_hoard, "MiB"),
    ],
)
def test_faults_are_found_and_the_run_goes_on(fault, outcome):
    target = Target("faulty", lambda content: fault(content) if content else None, ValueError, damage)
    samples = [b"", b"", b"", b"x"]
    peak_mib = fuzz(target, [b""], inputs=1, seed=0).peak_mib + 100
    result = fuzz(target, samples, inputs=12, seed=0, seconds=2, peak_mib=peak_mib)
    failed = [number for number in range(12) if make_input(target, samples, 0, number)]
    assert 0 < len(failed) < 12
    assert [number for number, _ in result.failures] == failed
    assert [text for _, text in result.failures if outcome not in text] == []
    assert result.outcomes["read"] == 12 - len(failed)


def test_an_input_that_fails_is_saved_and_the_status_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fuzzing.fuzz.TARGETS", (Target("pictures", _raise, ValueError, damage),))
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
