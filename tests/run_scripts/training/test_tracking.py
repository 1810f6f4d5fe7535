"""Metrics of a training run in TensorBoard, trackio and W&B (offline), read back from their files."""

import json
import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import ROOT, biomedclip, losses
from helpers.mirror_writer import png_bytes
from helpers.training_runs import command, train, train_error
from transformers import TrainingArguments

from biomedclip import ContrastiveTrainingArguments
from biomedclip.run_scripts.cli.errors import UsageError
from biomedclip.run_scripts.cli.options import parse_options, write_recipe
from biomedclip.run_scripts.training import trackers
from biomedclip.run_scripts.training.zero_shot_validation import ZeroShotOptions


WATCHED = ("loss", "learning_rate", "eval_loss", "eval_image_to_text_recall_at_1", "eval_zero_shot_kinds_accuracy")


@pytest.fixture(scope="module")
def options(tmp_path_factory, small_checkpoint, shards) -> dict:
    """Options of a run of four steps with two evaluations, retrieval and zero-shot."""
    folder = tmp_path_factory.mktemp("tracking")
    for number in range(8):
        path = folder / "kinds" / ("brain mri", "chest x-ray")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(number, (40, 30)))
    options = {"model_name_or_path": small_checkpoint, "train_data": shards, "max_steps": 4}
    return options | {"eval_strategy": "steps", "eval_steps": 2, "zero_shot_data": folder / "kinds"}


def run_in_process(folder: Path, options: dict, **environment: str) -> None:
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    biomedclip(*command(folder, **options), environment=environment | {"PYTHONPATH": os.pathsep.join(paths)})


def assert_logged(folder: Path, logged: dict[str, list[tuple[int, float]]]) -> None:
    """Compare with the metrics in `trainer_state.json`. transformers groups those of training and evaluation."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    for name in WATCHED:
        expected = [(entry["step"], entry[name]) for entry in history if name in entry]
        found = logged[name.replace("eval_", "eval/", 1) if name.startswith("eval_") else f"train/{name}"]
        assert len(expected) >= 2 and [step for step, _ in found] == [step for step, _ in expected]
        # TensorBoard stores float32.
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)


def by_name(rows: list[dict]) -> dict[str, list[tuple[int, float]]]:
    names = {name for row in rows for name in row}
    return {name: sorted((row["train/global_step"], row[name]) for row in rows if name in row) for name in names}


def test_tensorboard_has_the_metrics_of_each_step(options, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path / "run", **options | {"report_to": "tensorboard"})
    (file,) = (tmp_path / "run" / "runs").rglob("events.out.tfevents.*")
    events = accumulator.EventAccumulator(str(file.parent)).Reload()
    scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert_logged(tmp_path / "run", scalars)


@pytest.mark.slow
def test_trackio_has_the_metrics_locally_together_with_another_tracker(options, tmp_path):
    pytest.importorskip("trackio")
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    reported = options | {"report_to": ["tensorboard", "trackio"], "project": "metrics"}
    run_in_process(folder, reported, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert len(losses(folder)) == 4 and list((folder / "runs").rglob("events.out.tfevents.*"))
    rows = sqlite3.connect(tmp_path / "trackio" / "metrics.db").execute("SELECT metrics FROM metrics").fetchall()
    assert_logged(folder, by_name([json.loads(row) for (row,) in rows]))


def wandb_history(file: Path) -> Iterator[dict[str, float]]:
    """Read the logged metrics of an offline run of W&B.

    The file is a log in the format of LevelDB: a header of 7 bytes, then blocks of 32 KiB. A record consists of
    fragments with a header each (checksum, length, kind), and kinds 1 (whole) and 4 (last) end a record.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, fragments = file.read_bytes(), 7, b""
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:  # a header is not split between blocks
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        fragments += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = Record.FromString(fragments)
            fragments = b""
            if record.WhichOneof("record_type") == "history":
                yield {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}


@pytest.mark.slow
def test_wandb_offline_has_the_metrics_of_each_step(options, tmp_path):
    pytest.importorskip("wandb")
    environment = {f"WANDB_{name}_DIR": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")}
    environment |= {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    run_in_process(tmp_path / "run", options | {"report_to": "wandb"}, **environment)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert_logged(tmp_path / "run", by_name(list(wandb_history(file))))


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    """Nobody has logged in to W&B."""
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["tensorboard", "wandb"])
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*names: str) -> None:
    if "wandb" in names:
        pytest.importorskip("wandb").teardown()  # forget the settings of earlier tests
    trackers.check_trackers(TrainingArguments(output_dir="run", use_cpu=True, report_to=list(names)))


@pytest.mark.slow
def test_wandb_without_a_key_is_an_error_before_training(options, no_credentials, capsys):
    pytest.importorskip("wandb").teardown()
    error = train_error(capsys, no_credentials / "run", 1, **options | {"report_to": "wandb"})
    assert "--report-to wandb: no API key was found. Run `wandb login`, set WANDB_API_KEY, or" in error
    assert not (no_credentials / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value"), [("API_KEY", "k" * 40), ("MODE", "offline"), ("MODE", "disabled"), ("SETTINGS", "offline")]
)
def test_wandb_starts_with_a_key_or_in_a_mode_that_needs_none(no_credentials, monkeypatch, variable, value):
    if variable == "SETTINGS":
        settings = no_credentials / ".config" / "wandb" / "settings"
        settings.parent.mkdir(parents=True)
        settings.write_text("[default]\nmode = offline\n")
    else:
        monkeypatch.setenv(f"WANDB_{variable}", value)
    check("wandb")


@pytest.mark.slow
def test_wandb_starts_with_the_key_of_an_earlier_login_to_the_same_server(no_credentials, monkeypatch):
    password = "\n  login user\n  password " + "k" * 40 + "\n"
    (no_credentials / ".netrc").write_text(f"machine wandb.hospital.example{password}")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.hospital.example")
    check("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.other.example")
    with pytest.raises(OSError, match="no API key"):
        check("wandb")


@pytest.mark.parametrize("names", [["wandbb"], ["none", "tensorboard"], ["tensorboard", "all"]])
def test_an_unknown_tracker_is_an_error(no_credentials, names):
    with pytest.raises(UsageError, match="Choose from azure_ml, comet_ml.* or pass all or none"):
        check(*names)


@pytest.mark.parametrize("name", ["mlflow", "flyte", "clearml"])
def test_a_tracker_that_is_not_installed_is_an_error(no_credentials, name):
    with pytest.raises(ImportError, match=f"--report-to {name}: not installed"):
        check(name)


def test_a_missing_tracker_of_our_extra_is_named_before_training(options, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, "get_available_reporting_integrations", lambda: ["tensorboard"])
    error = train_error(capsys, tmp_path / "run", 1, **options | {"report_to": ["tensorboard", "wandb"]})
    assert "--report-to wandb: not installed. Install it: pip install 'biomedclip[tracking]'" in error
    assert not (tmp_path / "run").exists()


def test_all_selects_the_installed_trackers(no_credentials):
    assert "tensorboard" in TrainingArguments(output_dir="run", use_cpu=True, report_to="all").report_to
    check("tensorboard")


def test_a_tracker_that_fails_is_named(options, tmp_path, capsys, monkeypatch):
    class ServerError(Exception):
        """An error type of the tracker."""

    def fail(*values, **named):
        raise ServerError("no answer")

    monkeypatch.setattr("transformers.integrations.integration_utils.TensorBoardCallback._init_summary_writer", fail)
    error = train_error(capsys, tmp_path / "run", 1, **options | {"report_to": "tensorboard"})
    assert "--report-to tensorboard: ServerError: no answer" in error


def test_the_recipe_of_a_run_contains_all_its_settings(tmp_path):
    options = {"report_to": ["tensorboard"], "run_name": "mine", "eval_strategy": "steps", "eval_steps": 5, "seed": 7}
    options |= {"lr_scheduler_type": "constant", "use_cpu": True, "torch_compile": True, "full_determinism": False}
    options |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    options |= {"ddp_bucket_cap_mb": 3, "accelerator_config": {"use_configured_state": True}}
    args = ContrastiveTrainingArguments(output_dir=str(tmp_path / "elsewhere"), **options)
    zero_shot = ZeroShotOptions(zero_shot_data=[f"kinds={tmp_path}/some", str(tmp_path)], zero_shot_templates=["a {}"])
    write_recipe(tmp_path / "run", [zero_shot, args])
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    assert str(tmp_path) not in text and "kinds=some" in text
    arguments = ["--config", str(tmp_path / "run" / "recipe.yaml"), "--output-dir", str(tmp_path / "elsewhere")]
    same_zero_shot, same = parse_options("train", [ZeroShotOptions, ContrastiveTrainingArguments], arguments)
    assert same.to_dict() == args.to_dict()
    assert same_zero_shot.zero_shot_templates == ["a {}"]
