"""Zero-shot classification of labeled images while a model is trained, through the command."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import losses, on_two_processes
from helpers.mirror_writer import png_bytes
from helpers.pair_shards import write_shards
from safetensors.torch import load_file

from biomedclip.run_scripts.main import main


CLASSES = ("brain mri", "chest x-ray", "line chart")
STEPS = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = write_shards(tmp_path_factory.mktemp("shards"), image_size=(40, 30))
    return write_shards(folder, image_size=(40, 30), split="validation", shards=1)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory) -> Path:
    """Nineteen images of three classes, unevenly; of one the file is no image."""
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
def checkpoint(tmp_path_factory, small_processor) -> Path:
    """A small model with dropout, which a disturbed random state would show in."""
    from conftest import SMALL_CONFIG

    from biomedclip import BiomedCLIPConfig, BiomedCLIPModel

    folder = tmp_path_factory.mktemp("checkpoint") / "base"
    torch.manual_seed(0)
    config = BiomedCLIPConfig(**SMALL_CONFIG)
    config.text_config.hidden_dropout = 0.1
    BiomedCLIPModel(config).save_pretrained(folder)
    small_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(checkpoint, shards, tmp_path):
    """The command of a short run that saves and evaluates at each second step."""

    def of(folder: str, *options: str) -> list[str]:
        arguments = ["train", "--model-name-or-path", checkpoint, "--train-data", shards, "--output-dir"]
        arguments += [tmp_path / folder, "--max-steps", STEPS, "--batch-size", 16, "--logging-steps", 1]
        arguments += ["--learning-rate", "1e-2", "--save-steps", 2, "--report-to", "none", "--use-cpu", "true"]
        return [*map(str, arguments), *options]

    return of


@pytest.fixture
def run(arguments, tmp_path):
    def run(folder: str, *options: str) -> Path:
        assert main(arguments(folder, *options)) == 0
        return tmp_path / folder

    return run


EVALUATED = ["--eval-strategy", "steps", "--eval-steps", "2", "--per-device-eval-batch-size", "32"]


def figures(folder: Path, name: str) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def evaluated(model: Path, data: Path, folder: Path) -> dict:
    """What `biomedclip evaluate` says of a saved model."""
    options = ["--model", str(model), "--data", str(data), "--output-dir", str(folder)]
    assert main(["evaluate", "zero-shot", *options]) == 0
    return json.loads((folder / "results.json").read_text())["metrics"]


def test_figures_are_those_of_the_evaluation_of_the_saved_checkpoints(run, labeled, readable, tmp_path):
    folder = run("run", *EVALUATED, "--zero-shot-data", str(labeled), f"others={readable}")
    for step, place in ((2, 0), (4, 1)):
        expected = evaluated(folder / f"checkpoint-{step}", readable, tmp_path / "results")
        for name in ("some_kinds", "others"):
            for figure in ("accuracy", "balanced_accuracy"):
                logged = figures(folder, f"eval_zero_shot_{name}_{figure}")
                assert len(logged) == STEPS // 2 and logged[place] == pytest.approx(expected[figure])
    assert len(figures(folder, "eval_image_to_text_recall_at_1")) == STEPS // 2


def test_what_cannot_be_read_is_named_once(run, labeled, caplog):
    run("run", *EVALUATED, "--zero-shot-data", str(labeled))
    warnings = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert len(warnings) == 1 and "1 of 20 images" in warnings[0] and "torn.png" in warnings[0]


@pytest.mark.parametrize("mini_batch", [None, 4])
def test_training_goes_on_as_if_nothing_had_been_evaluated(run, labeled, mini_batch):
    options = ["--mini-batch-size", str(mini_batch)] if mini_batch else []
    plain = run("plain", *options, "--eval-strategy", "no")
    watched = run("watched", *options, *EVALUATED, "--zero-shot-data", str(labeled))
    assert losses(plain) == losses(watched)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (watched, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resumed_run_ends_with_the_figures_and_weights_of_an_undisturbed_one(run, labeled, tmp_path):
    options = [*EVALUATED, "--zero-shot-data", str(labeled), "--mini-batch-size", "4"]
    whole = run("whole", *options)
    shutil.copytree(whole / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    resumed = run("cut", *options, "--resume-from-checkpoint", "true")
    name = "eval_zero_shot_some_kinds_accuracy"
    assert figures(resumed, name) == figures(whole, name)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_processes_share_the_images(arguments, labeled, readable, tmp_path):
    command = arguments("run", "--mini-batch-size", "4", *EVALUATED, "--zero-shot-data", str(labeled))
    result = on_two_processes("-m", "biomedclip.run_scripts.main", *command)
    assert result.stderr.count("cannot be read") == 1
    expected = evaluated(tmp_path / "run", readable, tmp_path / "results")
    for figure in ("accuracy", "balanced_accuracy"):
        assert figures(tmp_path / "run", f"eval_zero_shot_some_kinds_{figure}")[-1] == pytest.approx(expected[figure])


def test_the_best_checkpoint_may_be_chosen_by_it(run, readable):
    folder = run(
        "run",
        *EVALUATED,
        *("--zero-shot-data", str(readable)),
        *("--metric-for-best-model", "zero_shot_set_balanced_accuracy", "--load-best-model-at-end", "true"),
    )
    best = max(figures(folder, "eval_zero_shot_set_balanced_accuracy"))
    assert json.loads((folder / "trainer_state.json").read_text())["best_metric"] == best


def one_class(folder: Path) -> Path:
    (folder / "one" / "alone").mkdir(parents=True)
    (folder / "one" / "alone" / "0.png").write_bytes(png_bytes(0, (40, 30)))
    return folder / "one"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--zero-shot-data", "{set}"], "there is none. Set --eval-strategy steps"),
        ([*EVALUATED, "--zero-shot-data", "{set}", "{set}"], "two sets are called 'some_kinds'. Call one otherwise"),
        ([*EVALUATED, "--zero-shot-data", "{one}"], "two classes at least"),
        ([*EVALUATED, "--zero-shot-data", "{one}/alone"], "needs labels"),
        ([*EVALUATED, "--zero-shot-data", "{set}", "--zero-shot-templates", "a scan"], "'a scan' has no {} for"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(arguments, labeled, options, message, tmp_path, capsys):
    names = {"{set}": str(labeled), "{one}": str(one_class(tmp_path))}
    for placeholder, path in names.items():
        options = [option.replace(placeholder, path) for option in options]
    of_the_data = message in ("two classes at least", "needs labels")
    assert main(arguments("run", *options)) == (1 if of_the_data else 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
