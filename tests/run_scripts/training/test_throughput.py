"""The throughput of the data loader and of the training steps."""

import time

import pytest
from helpers.training_runs import results, train

from biomedclip import ContrastiveTrainer
from biomedclip.processing import ContrastiveCollator
from biomedclip.run_scripts.training.throughput import StepClock, name_limit


SLOW = 0.2  # seconds, more than a step or a batch of the small model takes


@pytest.fixture
def run(small_checkpoint, shards, tmp_path, capsys):
    """Train, and return the results and the output."""

    def run(**options) -> tuple[dict, str]:
        folder = train(tmp_path / "run", model_name_or_path=small_checkpoint, train_data=shards, **options)
        return results(folder), capsys.readouterr().out

    return run


def slow_down(monkeypatch, owner: type, method: str, seconds: float) -> None:
    plain = getattr(owner, method)

    def slowly(*arguments, **options):
        time.sleep(seconds)
        return plain(*arguments, **options)

    monkeypatch.setattr(owner, method, slowly)


@pytest.mark.parametrize(("fast", "remedy"), [("false", " or omit --fast-decode false"), ("true", "")])
def test_a_slow_loader_is_reported_with_remedies(run, monkeypatch, fast, remedy):
    slow_down(monkeypatch, ContrastiveCollator, "_read_or_none", SLOW / 16)
    found, printed = run(max_steps=4, fast_decode=fast, dataloader_num_workers=0)
    assert found["limit"] == f"the data loader is the bottleneck: raise --dataloader-num-workers{remedy}"
    assert found["limit"] in " ".join(printed.split()) and "loader samples per second" in printed
    assert found["waiting_share"] > 0.5
    assert found["loader_samples_per_second"] < min(16 / SLOW, found["step_samples_per_second"])


@pytest.mark.slow
def test_a_slow_model_is_reported_if_the_workers_are_fast_enough(run, monkeypatch):
    slow_down(monkeypatch, ContrastiveTrainer, "training_step", SLOW)
    found, printed = run(max_steps=4, dataloader_num_workers=2)
    assert found["limit"] == "the model is the bottleneck" and "the model is the bottleneck" in printed
    assert found["waiting_share"] < 0.1
    assert found["step_samples_per_second"] < min(16 / SLOW, found["loader_samples_per_second"])


def test_a_run_of_one_step_has_no_throughput(run):
    found, printed = run(max_steps=1)
    assert found["limit"] is found["waiting_share"] is None and "bottleneck" not in printed


def test_only_the_time_between_the_last_event_and_a_step_counts_as_waiting():
    moments = iter([10, 13, 17, 18, 25, 32, 34])
    clock = StepClock(now=lambda: next(moments))
    clock.on_log(None, None, None)  # ignored before the first step
    clock.on_step_begin(None, None, None)
    clock.on_step_end(None, None, None)  # at 10
    clock.on_step_begin(None, None, None)  # at 13, after 3 seconds of waiting
    clock.on_step_end(None, None, None)  # at 17
    clock.on_log(None, None, None)  # at 18
    clock.on_evaluate(None, None, None)  # at 25
    clock.on_step_begin(None, None, None)  # at 32, after 7 seconds of waiting
    clock.on_step_end(None, None, None)  # at 34
    assert (clock.steps, clock.waiting, clock.stepping) == (2, 3 + 7, 4 + 2)


def test_waiting_is_reported_from_a_tenth_of_the_time():
    assert name_limit(0.09, fast_decode=False) == "the model is the bottleneck"
    assert name_limit(0.1, fast_decode=False).startswith("the data loader is the bottleneck")
