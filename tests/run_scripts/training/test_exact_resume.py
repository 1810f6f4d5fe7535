"""A run that is killed at any moment and resumed equals an uninterrupted run."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from helpers import training_runs
from helpers.commands import losses
from helpers.killed_training import KillableRuns, reads
from helpers.pair_shards import write_shards
from safetensors.torch import load_file
from transformers import TrainingArguments

from biomedclip import ContrastiveTrainer
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.runs import checkpoint_to_resume


STEPS, SAVED_EVERY, BATCH, PAIRS = 14, 2, 16, 180  # an epoch of 11 batches
RESUME = ["--resume-from-checkpoint", "true"]
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("pairs"), rows=PAIRS // 6, image_size=(40, 30))


@pytest.fixture(scope="module")
def runs():
    with KillableRuns() as runs:
        yield runs


def command(pairs: Path, folder: Path, *, dropout: float = 0.1, **more) -> list[str]:
    weights = {"initializer_range": 0.2}
    dropouts = {"hidden_dropout": dropout, "attention_dropout": dropout}
    model = {
        "projection_dim": 16,
        "vision_config": TOWER | weights | {"image_size": 32, "patch_size": 8},
        "text_config": TOWER | weights | dropouts | {"max_position_embeddings": 32},
    }
    options = {"model_config": model, "vocabulary_size": 300, "max_steps": STEPS, "batch_size": BATCH}
    options |= {"learning_rate": 1e-3, "save_strategy": "steps", "save_steps": SAVED_EVERY, "use_cpu": "true"}
    return training_runs.command(folder, train_data=pairs, **options | more)


def whole_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints with a valid `trainer_state.json`, which must be complete."""
    steps = []
    for state in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            step = json.loads(state.read_text())["global_step"]
        except ValueError:
            continue
        for path in state.parent.glob("*.pt*"):
            torch.load(path, weights_only=False)
        assert load_file(state.parent / "model.safetensors")
        assert (state.parent / "optimizer.pt").exists() and (state.parent / "scheduler.pt").exists()
        steps.append(step)
    return sorted(steps)


def expected_reads(first_step: int, rank: int, processes: int) -> list[list[int]]:
    """Return the rows that a process reads in each step from `first_step`."""
    share = BATCH // processes
    batches = [divmod(step, PAIRS // BATCH) for step in range(first_step, STEPS)]
    return [[epoch, low := batch * BATCH + rank * share, low + share] for epoch, batch in batches]


def train_through_kills(runs, arguments: list[str], folder: Path, logs: Path, moments, processes: int):
    """Kill and resume a run at each moment. Return the steps from which it was resumed, and incomplete checkpoints."""
    starts, torn, last = [], [], 0
    for number, moment in enumerate([*moments, {}]):
        log = logs / str(number)
        resume = RESUME if whole_steps(folder) or number else []
        statuses = runs.run([*arguments, *resume], log, processes=processes, **moment)
        # The run may end before the moment.
        assert statuses == [0] * processes or (moment and -9 in statuses), said(log)[-3000:]
        for rank in range(processes):
            rows = reads(log, rank)
            assert rows == expected_reads(last, rank, processes)[: len(rows)], "a pair is skipped or read again"
        starts.append(last)
        if (folder / "train_results.json").exists():
            return starts, torn
        whole = whole_steps(folder)
        assert not last or whole, "no checkpoint is left"
        torn += [path.name for path in folder.glob("checkpoint-*") if int(path.name.split("-")[1]) not in whole]
        last = max(whole, default=0)
        assert last >= starts[-1]
    raise AssertionError("the run has not ended")


def random_moments(seed: int, kills: int, processes: int, seconds: float) -> list[dict]:
    """Return moments that alternate between the nth event of a process and a time after the start.

    An event is reading rows, or a step of writing a checkpoint. `seconds` is the duration of an uninterrupted run.
    """
    draw = random.Random(seed)
    moments = []
    for kill in range(kills):
        rank = draw.randrange(processes)
        # All but the first process write one file of a checkpoint.
        event = {"kill_at_event": draw.randint(1, 8) if rank else draw.randint(5, 80), "rank": rank}
        moments.append({"kill_after": draw.uniform(0, 0.25 * seconds)} if kill % 2 else event)
    # Late enough for a checkpoint, however long the processes took to start.
    return [*moments[:-1], {"kill_at_event": draw.randint(40, 80), "rank": 0}]


def said(log: Path) -> str:
    """Return the output of all processes on one line."""
    return " ".join("".join(path.read_text() for path in log.glob("output.*")).split())


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "mini_batch", "kills"), [(1, None, 5), (2, 4, 3)])
def test_a_run_that_is_killed_many_times_equals_an_uninterrupted_one(
    runs, pairs, tmp_path, processes, mini_batch, kills
):
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    arguments = command(pairs, uninterrupted, mini_batch_size=mini_batch)
    assert runs.run(arguments, tmp_path / "log", processes=processes) == [0] * processes
    arguments = command(pairs, killed, mini_batch_size=mini_batch, save_total_limit=1)
    seconds = training_runs.results(uninterrupted)["seconds"]
    moments = random_moments(2 * processes + bool(mini_batch), kills, processes, seconds)
    starts, torn = train_through_kills(runs, arguments, killed, tmp_path / "logs", moments, processes)
    assert len(starts) > 2 and starts[-1] > 0 and torn, "choose another seed"
    # Also bitwise for two processes: the sum of two numbers has no order.
    training_runs.assert_equal_runs(killed, uninterrupted)
    assert len(losses(killed)) == STEPS
    assert [path.name for path in killed.glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]


@pytest.mark.slow
def test_a_checkpoint_is_complete_only_with_the_files_of_all_processes(runs, pairs, tmp_path):
    arguments = command(pairs, tmp_path / "run")
    # After its second batch, process 1 creates the folder for its random states.
    statuses = runs.run(arguments, tmp_path / "log", processes=2, rank=1, kill_at_event=3)
    assert statuses[1] == -9 and (tmp_path / "run" / "checkpoint-2" / "optimizer.pt").exists()
    assert not whole_steps(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_processes_continues_with_a_warning(runs, pairs, tmp_path, before, after):
    arguments = [command(pairs, tmp_path / name, dropout=0.0) for name in ("uninterrupted", "resumed")]
    assert runs.run(arguments[0], tmp_path / "log", processes=before) == [0] * before
    checkpoint = tmp_path / "uninterrupted" / "checkpoint-6"
    resume = [*arguments[1], "--resume-from-checkpoint", str(checkpoint)]
    assert runs.run(resume, tmp_path / "more", processes=after) == [0] * after, said(tmp_path / "more")[-3000:]
    for rank in range(after):
        assert reads(tmp_path / "more", rank) == expected_reads(6, rank, after)
    warning = f"random states of {before} processes, but this run has {after}."
    assert said(tmp_path / "more").count(warning) == 1
    # Float32 sums in another order, which AdamW propagates.
    assert losses(tmp_path / "resumed") == pytest.approx(losses(tmp_path / "uninterrupted"), rel=3e-6)
    weights = load_file(tmp_path / "uninterrupted" / "model.safetensors")
    for name, weight in load_file(tmp_path / "resumed" / "model.safetensors").items():
        # Softmax does not depend on the bias of the keys. Its gradient is rounding, which AdamW scales.
        tolerance = 1e-4 if name.endswith("k_proj.bias") else 1e-6
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=tolerance, msg=name)


def test_the_loss_of_a_resumed_run_is_the_mean_of_its_own_steps(pairs, tmp_path):
    assert main(command(pairs, tmp_path / "whole", dropout=0.0, max_steps=7)) == 0
    for logging_steps in (1, 4):
        folder = tmp_path / f"resumed_{logging_steps}"
        resumed = command(pairs, folder, dropout=0.0, max_steps=7, logging_steps=logging_steps)
        assert main([*resumed, "--resume-from-checkpoint", str(tmp_path / "whole" / "checkpoint-4")]) == 0
        for run, own in ((tmp_path / "whole", losses(tmp_path / "whole")), (folder, losses(tmp_path / "whole")[4:])):
            assert training_runs.results(run)["loss"] == pytest.approx(sum(own) / len(own), rel=1e-5)


def test_an_epoch_that_ends_with_the_last_step_is_saved_once(pairs, tmp_path, monkeypatch):
    saved, save = [], ContrastiveTrainer._save_checkpoint

    def counted(trainer, *arguments):
        saved.append(trainer.state.global_step)
        save(trainer, *arguments)

    monkeypatch.setattr(ContrastiveTrainer, "_save_checkpoint", counted)
    whole_batches = {"batch_size": PAIRS // 10, "max_steps": 10}
    assert main(command(pairs, tmp_path / "run", save_strategy="epoch", save_steps=None, **whole_batches)) == 0
    assert saved == [10], "overwritten, it would be incomplete for a moment"


def test_an_older_checkpoint_is_removed_after_the_new_one_is_on_the_disk(pairs, tmp_path, monkeypatch):
    flushed, removals, sync, remove = set(), [], os.fsync, shutil.rmtree

    def fsync(descriptor):
        flushed.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def rmtree(folder, *arguments, **options):
        if Path(folder).name == "checkpoint-2" and Path(folder).exists():
            assert not (Path(folder) / "trainer_state.json").exists(), "if killed now, it would seem complete"
            removals.append(set(flushed))
        remove(folder, *arguments, **options)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert main(command(pairs, tmp_path / "run", max_steps=4, save_total_limit=1)) == 0
    files = {str(path) for path in (tmp_path / "run" / "checkpoint-4").iterdir()}
    assert len(removals) == 1 and files <= removals[0] and len(files) > 5


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_is_killed_after_its_last_step_saves_its_model(runs, pairs, tmp_path, processes):
    arguments = [*command(pairs, tmp_path / "run", max_steps=2), *RESUME]
    assert runs.run(arguments, tmp_path / "log", processes=processes) == [0] * processes
    model, history = tmp_path / "run" / "model.safetensors", losses(tmp_path / "run")
    weights = load_file(model)
    assert runs.run(arguments, tmp_path / "again", processes=processes)[0] == 1
    assert "has completed" in said(tmp_path / "again")
    for name in ("model.safetensors", "train_results.json", "trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    assert runs.run(arguments, tmp_path / "end", processes=processes) == [0] * processes, said(tmp_path / "end")
    assert not reads(tmp_path / "end") and losses(tmp_path / "run") == history
    assert all(torch.equal(weight, weights[name]) for name, weight in load_file(model).items())
    assert training_runs.results(tmp_path / "run")["steps"] == 2


@pytest.fixture
def folder(tmp_path) -> Path:
    """Checkpoints of steps 2 and 4, and three that are incomplete in different ways."""
    for step in (2, 4, 6, 8, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "checkpoint-6" / "trainer_state.json").write_text('{"global_step": 6, "log_hist')
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text("")
    (tmp_path / "checkpoint-10" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-best").mkdir()  # created by the user
    return tmp_path


def resume(folder: Path, wanted: str) -> str | None:
    return checkpoint_to_resume(TrainingArguments(output_dir=str(folder), resume_from_checkpoint=wanted, use_cpu=True))


def test_incomplete_checkpoints_are_removed_with_a_warning(folder, caplog):
    assert resume(folder, "true") == str(folder / "checkpoint-4")
    for step in (6, 8, 10):
        assert f"Removing the incomplete checkpoint {folder / f'checkpoint-{step}'}" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-best"]


def test_an_incomplete_checkpoint_that_is_named_is_an_error_and_kept(folder):
    with pytest.raises(FileNotFoundError, match=r"checkpoint-6: .*incomplete.* true for the last"):
        resume(folder, str(folder / "checkpoint-6"))
    with pytest.raises(FileExistsError, match="--resume-from-checkpoint true"):
        resume(folder, "false")
    assert len(list(folder.iterdir())) == 6


def test_machines_resume_from_the_last_checkpoint_that_all_of_them_have(folder, monkeypatch):
    others = {"checkpoint-2"}
    monkeypatch.setattr("biomedclip.run_scripts.training.runs.gather_object", lambda mine: [*mine, others])
    assert resume(folder, "true") == str(folder / "checkpoint-2")
    others.clear()
    with pytest.raises(FileNotFoundError, match="shared folder"):
        resume(folder, "true")
