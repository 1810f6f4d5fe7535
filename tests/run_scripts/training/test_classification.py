"""Image classification through the command: from labeled images to a model that answers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import losses
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

from biomedclip.processing import read_image
from biomedclip.run_scripts.main import main


KINDS = ["AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT"]
SHORT = ["--max-steps", "6", "--save-strategy", "steps", "--save-steps", "3", "--logging-steps", "1"]


@pytest.fixture(scope="module")
def images(shared_data, tmp_path_factory) -> Path:
    """60 images of each kind."""
    folder = tmp_path_factory.mktemp("images")
    for kind in KINDS:
        (folder / kind).mkdir()
        for path in sorted((shared_data / "mednist" / kind).iterdir())[:60]:
            (folder / kind / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="module")
def train(small_checkpoint):
    """Trains on labeled images by the recipe `lora_classification`, with further options; returns the exit status."""

    def run(images: Path, output_dir: Path, *options: str, recipe: str | None = "lora_classification") -> int:
        arguments = ["train", "--task", "image-classification", *(["--config", recipe] if recipe else [])]
        arguments += ["--model-name-or-path", small_checkpoint, "--train-data", images, "--output-dir", output_dir]
        return main([*map(str, arguments), "--dataloader-num-workers", "0", "--learning-rate", "5e-3", *options])

    return run


@pytest.fixture(scope="module")
def classifier(train, images, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "run"
    assert train(images, folder, "--num-train-epochs", "6") == 0
    return folder


def results(folder: Path) -> dict:
    return json.loads((folder / "train_results.json").read_text())


def test_it_learns_to_tell_six_kinds_apart(classifier):
    found = results(classifier)
    assert found["classes"] == KINDS and found["chance"] == 1 / 6
    assert found["validation"]["images"] == 36, "a tenth of each class"
    # Chance is 0.17; on 36 images luck alone gives 0.5 less than once in a million draws.
    assert found["validation"]["accuracy"] > 0.5
    # Each class has six held-out images, so that the mean over classes is that over images.
    assert found["validation"]["balanced_accuracy"] == pytest.approx(found["validation"]["accuracy"])
    assert 0 < found["trainable_share"] < 1 and found["peak_memory_mib"] > 100


def test_the_merged_model_answers_through_the_pipeline(classifier, images):
    classify = pipeline("image-classification", model=str(classifier / "merged"), device="cpu")
    assert classify.model.config.id2label == dict(enumerate(KINDS))
    assert classify.model.config.label2id == {kind: number for number, kind in enumerate(KINDS)}
    hands = [read_image(path).convert("RGB") for path in sorted((images / "Hand").iterdir())[:10]]
    answers = [answer[0]["label"] for answer in classify(hands)]
    assert set(answers) <= set(KINDS) and answers.count("Hand") > 5


def test_the_adapter_holds_the_classifier_and_loads_with_peft_and_with_transformers(
    classifier, images, small_checkpoint
):
    tensors = load_file(classifier / "adapter_model.safetensors")
    assert {name.split(".")[-2] for name in tensors if "lora" not in name} == {"classifier"}
    assert not (classifier / "model.safetensors").exists() and not (classifier / "config.json").exists()
    config = AutoConfig.from_pretrained(classifier / "config")
    base = AutoModelForImageClassification.from_pretrained(small_checkpoint, config=config)
    models = [
        PeftModel.from_pretrained(base, str(classifier)),
        AutoModelForImageClassification.from_pretrained(classifier, config=config),
        AutoModelForImageClassification.from_pretrained(classifier / "merged"),
    ]
    pictures = [read_image(path) for path in sorted(images.glob("*/*"))[::60]]
    pixels = AutoImageProcessor.from_pretrained(classifier)(pictures, return_tensors="pt")
    with torch.no_grad():
        with_peft, with_transformers, merged = (model.eval()(**pixels).logits for model in models)
    assert torch.equal(with_peft, with_transformers)
    # Float32: (W + B A) x and W x + B (A x) differ by rounding, and logits are of the order of ten.
    torch.testing.assert_close(merged, with_peft, rtol=0, atol=1e-4)


def test_all_weights_are_trained_without_a_rank(train, images, tmp_path):
    assert train(images, tmp_path / "run", *SHORT, recipe=None) == 0
    assert results(tmp_path / "run")["trainable_share"] == 1
    classify = pipeline("image-classification", model=str(tmp_path / "run"), device="cpu")
    assert {answer["label"] for answer in classify(str(next((images / "CXR").iterdir())), top_k=6)} == set(KINDS)


def test_a_run_that_goes_on_from_a_checkpoint_equals_an_undisturbed_one(train, images, tmp_path, capsys):
    # Three batches of 96 are an epoch: the checkpoint lies in the middle of the second.
    options = [*SHORT, "--per-device-train-batch-size", "96", "--save-steps", "4"]
    assert train(images, tmp_path / "whole", *options) == 0
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "killed" / "checkpoint-4")
    assert train(images, tmp_path / "killed", *options, "--resume-from-checkpoint", "true") == 0
    assert len(losses(tmp_path / "whole")) == 6 and losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert results(tmp_path / "killed")["validation"] == results(tmp_path / "whole")["validation"]
    assert train(images, tmp_path / "killed", *options) == 1
    assert "--resume-from-checkpoint true" in capsys.readouterr().err


def test_accumulated_batches_give_the_losses_of_one_batch(train, images, tmp_path):
    options = [*SHORT, "--lora-dropout", "0", "--max-steps", "3"]
    assert train(images, tmp_path / "one", *options, "--per-device-train-batch-size", "32") == 0
    accumulated = ["--per-device-train-batch-size", "8", "--gradient-accumulation-steps", "4"]
    assert train(images, tmp_path / "four", *options, *accumulated) == 0
    # Float32: the mean of four means, and an optimizer that divides by small gradients.
    assert losses(tmp_path / "four") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    assert results(tmp_path / "four")["batch_size"] == 32


def test_a_set_with_splits_of_its_own_keeps_them_and_measures_the_test_split(train, images, tmp_path):
    for split, rows in (("train", slice(0, 20)), ("validation", slice(20, 25)), ("test", slice(25, 28))):
        for kind in KINDS[:2]:
            (tmp_path / "set" / split / kind).mkdir(parents=True)
            for path in sorted((images / kind).iterdir())[rows]:
                shutil.copyfile(path, tmp_path / "set" / split / kind / path.name)  # the original may be read-only
    damaged = next((tmp_path / "set" / "validation" / KINDS[0]).iterdir())
    damaged.write_bytes(damaged.read_bytes()[:500])
    damaged = next((tmp_path / "set" / "train" / KINDS[1]).iterdir())
    damaged.write_bytes(damaged.read_bytes()[:500])
    options = [*SHORT, "--per-device-train-batch-size", "40", "--eval-strategy", "no"]
    assert train(tmp_path / "set", tmp_path / "run", *options) == 0
    found = results(tmp_path / "run")
    assert found["validation"]["images"] == 10 and found["validation"]["unreadable_images"] == 1
    assert found["test"]["images"] == 6 and found["test"]["unreadable_images"] == 0
    assert found["substituted_rows"] == 6, "one image in each of six epochs"


@pytest.mark.parametrize(
    ("kinds", "options", "message"),
    [
        (KINDS[:1], [], "classification needs at least two classes"),
        (KINDS[:2], ["--per-device-train-batch-size", "64"], "A batch of 64 images does not fit: there are 8"),
        (KINDS[:2], ["--validation-share", "0"], "between 0 and 1"),
        (KINDS[:2], ["--label-column", "diagnosis"], "--label-column diagnosis has no effect on class folders"),
        (KINDS[:2], ["--image-column", "scan"], "--image-column scan has no effect on class folders"),
        (KINDS[:2], ["--lora-targets", "visual_projection"], "has no layer visual_projection. It has fc1, fc2"),
        (KINDS[:2], ["--model-name-or-path", "{classifier}"], "is an adapter. Start from its base model"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    kinds, options, message, train, images, classifier, tmp_path, capsys
):
    for kind in kinds:
        (tmp_path / "set" / kind).mkdir(parents=True)
        for path in sorted((images / kind).iterdir())[:5]:
            (tmp_path / "set" / kind / path.name).symlink_to(path)
    options = [option.replace("{classifier}", str(classifier)) for option in options]
    status = 2 if "--validation-share" in options else 1
    assert train(tmp_path / "set", tmp_path / "run", "--per-device-train-batch-size", "8", *options) == status
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_options_of_another_task_are_refused(train, images, tmp_path, capsys):
    assert train(images, tmp_path / "run", "--max-eval-pairs", "5") == 2
    assert "--max-eval-pairs" in capsys.readouterr().err
