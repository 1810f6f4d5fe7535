"""Metrics of a training run in TensorBoard, trackio and W&B (offline): written by the packages and read back."""

import json
import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import ROOT, biomedclip, losses
from helpers.mirror_writer import png_bytes
from helpers.pair_shards import write_shards
from transformers import TrainingArguments

from biomedclip import ContrastiveTrainingArguments
from biomedclip.run_scripts.cli.errors import UsageError
from biomedclip.run_scripts.cli.options import parse_options, write_recipe
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training import trackers as checks
from biomedclip.run_scripts.training.zero_shot_validation import ZeroShotOptions


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


def wandb_history(file: Path) -> Iterator[dict[str, float]]:
    """Read the logged metrics of an offline run of W&B.

    The file is a log of LevelDB's format: a header of 7 bytes, then blocks of 32 KiB. A record consists of fragments
    with a header each (checksum, length, kind), and kinds 1 (whole) and 4 (last) end a record.
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


def test_wandb_offline_has_loss_recall_and_zero_shot_of_each_step(arguments, tmp_path):
    pytest.importorskip("wandb")
    folder = tmp_path / "run"
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(paths)}
    environment |= {f"WANDB_{name}_DIR": str(tmp_path / name) for name in ("CACHE", "CONFIG", "DATA")}
    biomedclip(*arguments, "--output-dir", folder, "--report-to", "wandb", environment=environment)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    logged = list(wandb_history(file))
    for name, values in expected(folder).items():
        found = [(entry["train/global_step"], entry[theirs(name)]) for entry in logged if theirs(name) in entry]
        assert len(values) >= 2 and found == values


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    """wandb is installed, as far as transformers can tell, and nobody has logged in."""
    monkeypatch.setattr(checks, "get_available_reporting_integrations", lambda: ["tensorboard", "wandb"])
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*trackers: str) -> None:
    checks.check_trackers(TrainingArguments(output_dir="run", use_cpu=True, report_to=list(trackers)))


def test_wandb_without_a_key_is_refused_before_anything_is_done(arguments, no_credentials, capsys):
    assert main([*arguments, "--output-dir", str(no_credentials / "run"), "--report-to", "wandb"]) == 1
    error = capsys.readouterr().err
    assert "--report-to wandb: no API key was found. Run `wandb login`, set WANDB_API_KEY, or" in error
    assert not (no_credentials / "run").exists()


@pytest.mark.parametrize(
    "variables", [{"WANDB_API_KEY": "k" * 40}, {"WANDB_MODE": "offline"}, {"WANDB_MODE": "disabled"}]
)
def test_wandb_starts_with_a_key_or_in_a_mode_that_needs_none(no_credentials, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check("wandb")


def test_wandb_starts_with_the_key_that_its_login_has_left(no_credentials, monkeypatch):
    netrc = no_credentials / ".netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password " + "k" * 40 + "\n")
    check("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.hospital.example")
    with pytest.raises(OSError, match="no API key"):
        check("wandb")
    netrc.write_text("machine wandb.hospital.example\n  login user\n  password " + "k" * 40 + "\n")
    check("wandb")


def test_wandb_starts_with_settings_that_keep_it_offline(no_credentials):
    settings = no_credentials / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nmode = offline\n")
    check("wandb")


@pytest.mark.parametrize("trackers", [["wandbb"], ["none", "tensorboard"], ["tensorboard", "all"]])
def test_a_tracker_that_does_not_exist_is_refused(no_credentials, trackers):
    with pytest.raises(UsageError, match="Choose from azure_ml, comet_ml.* or one of all and none"):
        check(*trackers)


@pytest.mark.parametrize("tracker", ["mlflow", "flyte", "clearml"])
def test_a_tracker_of_another_package_that_is_not_installed_is_named(no_credentials, tracker):
    with pytest.raises(ImportError, match=f"--report-to {tracker}: not installed"):
        check(tracker)


def test_all_means_the_trackers_that_are_installed(no_credentials):
    assert "tensorboard" in TrainingArguments(output_dir="run", use_cpu=True, report_to="all").report_to
    check("tensorboard")


def test_a_tracker_that_fails_is_named_without_a_traceback(arguments, tmp_path, capsys, monkeypatch):
    class ServerError(Exception):
        """An error that only the tracker knows."""

    def fail(*values, **named):
        raise ServerError("no answer")

    monkeypatch.setattr("transformers.integrations.integration_utils.TensorBoardCallback._init_summary_writer", fail)
    assert main([*arguments, "--output-dir", str(tmp_path / "run"), "--report-to", "tensorboard"]) == 1
    assert "--report-to tensorboard: ServerError: no answer" in capsys.readouterr().err


def test_the_recipe_of_a_run_contains_all_its_settings(tmp_path):
    options = {
        "report_to": ["tensorboard"],
        "run_name": "mine",
        "eval_strategy": "steps",
        "eval_steps": 5,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "seed": 7,
        "use_cpu": True,
        "torch_compile": True,
        "full_determinism": False,
        "ddp_bucket_cap_mb": 3,
        "accelerator_config": {"use_configured_state": True},
    }
    args = ContrastiveTrainingArguments(output_dir=str(tmp_path / "elsewhere"), **options)
    zero_shot = ZeroShotOptions(zero_shot_data=[f"kinds={tmp_path}/some", str(tmp_path)], zero_shot_templates=["a {}"])
    write_recipe(tmp_path / "run", [zero_shot, args])
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    assert str(tmp_path) not in text and "kinds=some" in text
    command = ["--config", str(tmp_path / "run" / "recipe.yaml"), "--output-dir", str(tmp_path / "elsewhere")]
    again, same = parse_options(
        "train", [ZeroShotOptions, ContrastiveTrainingArguments], command, description="", example=""
    )
    assert same.to_dict() == args.to_dict()
    assert again.zero_shot_templates == ["a {}"]


def test_what_is_not_installed_is_named_before_anything_is_done(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checks, "get_available_reporting_integrations", lambda: ["tensorboard"])
    options = ["--output-dir", str(tmp_path / "run"), "--report-to", "tensorboard", "wandb"]
    assert main([*arguments, *options]) == 1
    assert "--report-to wandb: not installed. Install it: pip install 'biomedclip[tracking]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
