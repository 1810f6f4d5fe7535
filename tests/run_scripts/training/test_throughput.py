"""Throughput of the loader beside that of the steps."""

import json
import time
from pathlib import Path

import pytest
from helpers.pair_shards import write_shards

from biomedclip import ContrastiveTrainer
from biomedclip.processing import ContrastiveCollator
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.throughput import StepClock, name_limit


SLOW = 0.2  # seconds; a step of the small model, and a batch of its images, take some hundredths


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """150 pairs in six shards."""
    return write_shards(tmp_path_factory.mktemp("shards"), image_size=(40, 30))


@pytest.fixture
def run(small_checkpoint, shards, tmp_path, capsys):
    """Trains for some steps with further options; returns the results and what was printed."""

    def run(*options: str) -> tuple[dict, str]:
        arguments = ["--model-name-or-path", small_checkpoint, "--train-data", shards, "--batch-size", 16]
        arguments += ["--save-strategy", "no", "--report-to", "none", "--output-dir", tmp_path / "run"]
        assert main(["train", *map(str, arguments), *options]) == 0
        return json.loads((tmp_path / "run" / "train_results.json").read_text()), capsys.readouterr().out

    return run


def slow_down(monkeypatch, owner: type, method: str) -> None:
    plain = getattr(owner, method)

    def slowly(*arguments, **options):
        time.sleep(SLOW)
        return plain(*arguments, **options)

    monkeypatch.setattr(owner, method, slowly)


@pytest.mark.parametrize(("fast", "remedy"), [("false", " or pass --fast-decode"), ("true", "")])
def test_a_slow_loader_is_named_with_what_helps(run, monkeypatch, fast, remedy):
    slow_down(monkeypatch, ContrastiveCollator, "_usable")
    results, printed = run("--max-steps", "4", "--fast-decode", fast)
    assert results["limit"] == f"the loader limits: raise --dataloader-num-workers{remedy}"
    assert results["limit"] in " ".join(printed.split()) and "loader samples per second" in printed
    assert results["waiting_share"] > 0.5
    assert results["loader_samples_per_second"] < 16 / SLOW
    assert results["loader_samples_per_second"] < results["step_samples_per_second"]


def test_a_slow_model_is_named_where_workers_keep_up(run, monkeypatch):
    slow_down(monkeypatch, ContrastiveTrainer, "training_step")
    results, printed = run("--max-steps", "4", "--dataloader-num-workers", "2")
    assert results["limit"] == "the model limits" and "the model limits" in printed
    assert results["waiting_share"] < 0.1
    assert results["step_samples_per_second"] < 16 / SLOW
    assert results["step_samples_per_second"] < results["loader_samples_per_second"]


def test_a_single_step_says_nothing_about_throughput(run):
    results, printed = run("--max-steps", "1")
    assert results["limit"] is results["waiting_share"] is None and "limits" not in printed


def test_only_the_time_before_a_step_that_nothing_else_took_is_waiting():
    moments = iter([10, 13, 17, 18, 25, 32, 34])
    clock = StepClock(now=lambda: next(moments))
    clock.on_log(None, None, None)  # before the first step nothing is counted
    clock.on_step_begin(None, None, None)
    clock.on_step_end(None, None, None)  # at 10
    clock.on_step_begin(None, None, None)  # at 13, after 3 seconds of waiting
    clock.on_step_end(None, None, None)  # at 17
    clock.on_log(None, None, None)  # at 18
    clock.on_evaluate(None, None, None)  # at 25
    clock.on_step_begin(None, None, None)  # at 32, after 7
    clock.on_step_end(None, None, None)  # at 34
    assert (clock.steps, clock.waiting, clock.stepping) == (2, 3 + 7, 4 + 2)


def test_a_tenth_of_waiting_is_noticeable():
    assert name_limit(0.09, fast_decode=False) == "the model limits"
    assert name_limit(0.1, fast_decode=False).startswith("the loader limits")
