"""Zero-shot classification of labeled images at each evaluation of a training."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL_CONFIG
from helpers.commands import biomedclip, logged
from helpers.mirror_writer import png_bytes
from helpers.training_runs import assert_equal_runs, command, train, train_error

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel
from biomedclip.run_scripts.main import main


CLASSES = ("brain mri", "chest x-ray", "line chart")
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 32}
METRICS = ("accuracy", "balanced_accuracy")


@pytest.fixture(scope="module")
def labeled(tmp_path_factory) -> Path:
    """19 images of three classes of different sizes, and a file that is not an image."""
    folder = tmp_path_factory.mktemp("labeled") / "some-kinds"
    for number in range(19):
        path = folder / CLASSES[number * 7 % 11 % 3] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(number, (40, 30)))
    (folder / CLASSES[2] / "torn.png").write_bytes(b"\x89PNG torn")
    return folder


@pytest.fixture(scope="module")
def readable(labeled, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readable") / "set"
    shutil.copytree(labeled, folder)
    (folder / CLASSES[2] / "torn.png").unlink()
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory, small_processor, shards) -> dict:
    """Options of a run of four steps. The model has dropout, which depends on the random state."""
    folder = tmp_path_factory.mktemp("checkpoint") / "base"
    torch.manual_seed(0)
    config = BiomedCLIPConfig(**SMALL_CONFIG)
    config.text_config.hidden_dropout = 0.1
    BiomedCLIPModel(config).save_pretrained(folder)
    small_processor.save_pretrained(folder)
    options = {"model_name_or_path": folder, "train_data": shards, "max_steps": 4, "learning_rate": 1e-2}
    return options | {"save_strategy": "steps", "save_steps": 2, "use_cpu": "true"}


@pytest.fixture(scope="module")
def watched(base, labeled, readable, tmp_path_factory) -> Path:
    """A run that classifies two datasets at steps 2 and 4."""
    folder = tmp_path_factory.mktemp("watched") / "run"
    return train(folder, **base, **EVALUATED, zero_shot_data=[labeled, f"others={readable}"])


def evaluated(model: Path, data: Path, folder: Path) -> dict:
    """Return the metrics of `biomedclip evaluate`."""
    options = ["--model", str(model), "--data", str(data), "--output-dir", str(folder)]
    assert main(["evaluate", "zero-shot", *options]) == 0
    return json.loads((folder / "results.json").read_text())["metrics"]


def test_metrics_equal_the_evaluation_of_the_saved_checkpoints(watched, readable, tmp_path):
    for step, place in ((2, 0), (4, 1)):
        expected = evaluated(watched / f"checkpoint-{step}", readable, tmp_path / "results")
        for name in (f"zero_shot_{data}_{metric}" for data in ("some_kinds", "others") for metric in METRICS):
            values = logged(watched, f"eval_{name}")
            assert len(values) == 2 and values[place] == pytest.approx(expected[name.partition("s_")[2]])
    assert len(logged(watched, "eval_image_to_text_recall_at_1")) == 2


@pytest.mark.parametrize("mini_batch_size", [None, 4])
def test_evaluation_does_not_change_the_training(base, watched, labeled, tmp_path, mini_batch_size):
    plain = train(tmp_path / "plain", **base, mini_batch_size=mini_batch_size)
    if mini_batch_size:
        options = EVALUATED | {"zero_shot_data": labeled, "mini_batch_size": mini_batch_size}
        watched = train(tmp_path / "watched", **base, **options)
    assert_equal_runs(watched, plain)


def test_unreadable_images_are_reported_once(base, labeled, tmp_path, caplog):
    train(tmp_path / "run", **base, **EVALUATED, zero_shot_data=labeled)
    (warning,) = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert "1 of 20 images" in warning and "torn.png" in warning


def test_a_resumed_run_has_the_metrics_and_weights_of_an_uninterrupted_one(base, watched, labeled, readable, tmp_path):
    shutil.copytree(watched / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    options = EVALUATED | {"zero_shot_data": [labeled, f"others={readable}"], "resume_from_checkpoint": "true"}
    resumed = train(tmp_path / "cut", **base, **options)
    name = "eval_zero_shot_some_kinds_accuracy"
    assert logged(resumed, name) == logged(watched, name)
    assert_equal_runs(resumed, watched)


@pytest.mark.slow
def test_two_processes_share_the_images(base, labeled, readable, tmp_path):
    options = EVALUATED | {"zero_shot_data": labeled, "mini_batch_size": 4}
    arguments = command(tmp_path / "run", **base, **options)
    result = biomedclip(*arguments, processes=2)
    assert result.stderr.count("cannot be read") == 1
    expected = evaluated(tmp_path / "run", readable, tmp_path / "results")
    for metric in METRICS:
        assert logged(tmp_path / "run", f"eval_zero_shot_some_kinds_{metric}")[-1] == pytest.approx(expected[metric])


def test_the_best_checkpoint_can_be_selected_by_a_zero_shot_metric(base, readable, tmp_path):
    metric = "zero_shot_set_balanced_accuracy"
    options = EVALUATED | {"zero_shot_data": readable, "metric_for_best_model": metric}
    folder = train(tmp_path / "run", **base, **options, load_best_model_at_end="true")
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["best_metric"] == max(logged(folder, f"eval_{metric}"))


@pytest.mark.parametrize(
    ("status", "options", "message"),
    [
        (2, {"eval_strategy": "no", "zero_shot_data": ["{set}"]}, "requires evaluation. Set --eval-strategy steps"),
        (2, {"zero_shot_data": ["{set}", "{set}"]}, "two datasets have the name 'some_kinds'. Rename one"),
        (1, {"zero_shot_data": ["{one}"]}, "At least two classes"),
        (1, {"zero_shot_data": ["{one}/alone"]}, "no class folders"),
        (2, {"zero_shot_data": ["{set}"], "zero_shot_templates": "a scan"}, "'a scan' does not contain {}"),
    ],
)
def test_invalid_options_are_errors_before_training(status, options, message, base, labeled, tmp_path, capsys):
    (tmp_path / "one" / "alone").mkdir(parents=True)
    (tmp_path / "one" / "alone" / "0.png").write_bytes(png_bytes(0, (40, 30)))
    data = [text.format(set=labeled, one=tmp_path / "one") for text in options["zero_shot_data"]]
    evaluated = {} if "eval_strategy" in options else EVALUATED
    options = base | evaluated | options | {"zero_shot_data": data}
    assert message in train_error(capsys, tmp_path / "run", status, **options)
    assert not (tmp_path / "run").exists()
