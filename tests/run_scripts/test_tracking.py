"""Figures of a training where people watch them: TensorBoard and trackio, written for real and read back."""

import json
import os
import sqlite3
from pathlib import Path

import pytest
from commands import ROOT, biomedclip, losses
from mirror_writer import png_bytes
from pair_shards import write_shards

from run_scripts import runs
from run_scripts.main import main


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, small_checkpoint) -> list[str]:
    """The command of a run of four steps with two evaluations, retrieval and zero-shot."""
    folder = tmp_path_factory.mktemp("tracking")
    write_shards(folder / "set", image_size=(40, 30))
    write_shards(folder / "set", image_size=(40, 30), split="validation", shards=1)
    for number in range(8):
        path = folder / "kinds" / ("brain mri", "chest x-ray")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(number, (40, 30)))
    arguments = ["train", "--model-name-or-path", small_checkpoint, "--train-data", folder / "set", "--max-steps", 4]
    arguments += ["--batch-size", 16, "--logging-steps", 1, "--save-strategy", "no", "--eval-strategy", "steps"]
    arguments += ["--eval-steps", 2, "--zero-shot-data", folder / "kinds"]
    return list(map(str, arguments))


WATCHED = ("loss", "learning_rate", "eval_loss", "eval_image_to_text_recall_at_1", "eval_zero_shot_kinds_accuracy")


def expected(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of some figures, as the run's own curves have them."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return {name: [(entry["step"], entry[name]) for entry in history if name in entry] for name in WATCHED}


def theirs(name: str) -> str:
    """transformers writes evaluation and training into groups."""
    return name.replace("eval_", "eval/", 1) if name.startswith("eval_") else f"train/{name}"


def test_tensorboard_has_loss_recall_and_zero_shot_of_each_step(arguments, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main([*arguments, "--output-dir", str(tmp_path / "run"), "--report-to", "tensorboard"]) == 0
    (file,) = (tmp_path / "run" / "runs").rglob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(file.parent)).Reload()
    for name, values in expected(tmp_path / "run").items():
        logged = [(event.step, event.value) for event in events.Scalars(theirs(name))]
        assert len(values) >= 2 and [step for step, _ in logged] == [step for step, _ in values]
        # TensorBoard keeps float32.
        assert [value for _, value in logged] == pytest.approx([value for _, value in values], rel=1e-6)


def test_trackio_has_them_on_this_machine_and_beside_another_one(arguments, tmp_path):
    pytest.importorskip("trackio")
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    biomedclip(
        *arguments,
        *("--output-dir", folder, "--report-to", "tensorboard", "trackio", "--project", "figures"),
        environment={"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert len(losses(folder)) == 4 and list((folder / "runs").rglob("events.out.tfevents.*"))
    rows = sqlite3.connect(tmp_path / "trackio" / "figures.db").execute("SELECT metrics FROM metrics").fetchall()
    logged = [json.loads(row) for (row,) in rows]
    for name, values in expected(folder).items():
        found = [(entry["train/global_step"], entry[theirs(name)]) for entry in logged if theirs(name) in entry]
        assert sorted(found) == values


def test_what_is_not_installed_is_named_before_anything_is_done(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runs, "get_available_reporting_integrations", lambda: ["tensorboard"])
    options = ["--output-dir", str(tmp_path / "run"), "--report-to", "tensorboard", "wandb"]
    assert main([*arguments, *options]) == 1
    assert "--report-to wandb: not installed. Do so by: pip install 'biomedclip[tracking]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
