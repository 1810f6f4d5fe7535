"""Image classification through the command: from labeled images to a model in a pipeline."""

import shutil
from pathlib import Path

import pytest
import torch
from helpers.commands import losses
from helpers.training_runs import results, train, train_error
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification, pipeline

from biomedclip.processing import read_image
from biomedclip.run_scripts.training.classification import LabeledData, read_splits


KINDS = ["AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT"]
SHORT = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}


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
def options(small_checkpoint, images) -> dict:
    """Options of the recipe `lora_classification`."""
    options = {"task": "image-classification", "config": "lora_classification", "train_data": images}
    options |= {"model_name_or_path": small_checkpoint, "dataloader_num_workers": 0, "learning_rate": 5e-3}
    return options | {"batch_size": None}


@pytest.fixture(scope="module")
def classifier(options, tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("classifier") / "run", **options, max_steps=None, num_train_epochs=6)


def test_it_learns_to_classify_six_kinds(classifier):
    found = results(classifier)
    assert found["classes"] == KINDS and found["chance"] == 1 / 6
    assert found["validation"]["images"] == 36, "a tenth of each class"
    # Chance is 0.17. The probability of 0.5 or more on 36 images by chance is below one in a million.
    assert found["validation"]["accuracy"] > 0.5
    # Each class has six held-out images, so the mean over classes is the mean over images.
    assert found["validation"]["balanced_accuracy"] == pytest.approx(found["validation"]["accuracy"])
    assert 0 < found["trainable_share"] < 1 and found["peak_memory_mib"] > 100


def test_the_merged_model_runs_in_the_pipeline(classifier, images):
    classify = pipeline("image-classification", model=str(classifier / "merged"), device="cpu")
    assert classify.model.config.id2label == dict(enumerate(KINDS))
    assert classify.model.config.label2id == {kind: number for number, kind in enumerate(KINDS)}
    hands = [read_image(path).convert("RGB") for path in sorted((images / "Hand").iterdir())[:10]]
    answers = [answer[0]["label"] for answer in classify(hands)]
    assert set(answers) <= set(KINDS) and answers.count("Hand") > 5


def test_the_adapter_contains_the_classifier_and_loads_with_peft_and_transformers(classifier, images, small_checkpoint):
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


def test_all_weights_are_trained_without_a_rank(options, images, tmp_path):
    folder = train(tmp_path / "run", **options | SHORT | {"config": None})
    assert results(folder)["trainable_share"] == 1
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    assert {answer["label"] for answer in classify(str(next((images / "CXR").iterdir())), top_k=6)} == set(KINDS)


def test_a_resumed_run_equals_an_uninterrupted_one(options, tmp_path, capsys):
    # Three batches of 96 are an epoch. The checkpoint is in the middle of the second.
    options = options | SHORT | {"per_device_train_batch_size": 96, "save_steps": 4}
    whole = train(tmp_path / "whole", **options)
    shutil.copytree(whole / "checkpoint-4", tmp_path / "killed" / "checkpoint-4")
    killed = train(tmp_path / "killed", **options, resume_from_checkpoint="true")
    assert len(losses(whole)) == 6 and losses(killed) == losses(whole)
    assert results(killed)["validation"] == results(whole)["validation"]
    assert "--resume-from-checkpoint true" in train_error(capsys, killed, 1, **options)


def test_accumulated_batches_have_the_losses_of_one_batch(options, tmp_path):
    options = options | SHORT | {"lora_dropout": 0, "max_steps": 3}
    one = train(tmp_path / "one", **options, per_device_train_batch_size=32)
    four = train(tmp_path / "four", **options, per_device_train_batch_size=8, gradient_accumulation_steps=4)
    # Float32: the mean of four means, and an optimizer that divides by small gradients.
    assert losses(four) == pytest.approx(losses(one), rel=1e-3)
    assert results(four)["batch_size"] == 32


def test_existing_splits_are_used_and_unreadable_images_are_counted(options, images, tmp_path):
    for split, rows in (("train", slice(0, 20)), ("validation", slice(20, 25)), ("test", slice(25, 28))):
        for kind in KINDS[:2]:
            (tmp_path / "set" / split / kind).mkdir(parents=True)
            for path in sorted((images / kind).iterdir())[rows]:
                shutil.copyfile(path, tmp_path / "set" / split / kind / path.name)
    for split, kind in (("validation", KINDS[0]), ("train", KINDS[1])):
        damaged = next((tmp_path / "set" / split / kind).iterdir())
        damaged.write_bytes(damaged.read_bytes()[:500])
    changes = {"train_data": tmp_path / "set", "per_device_train_batch_size": 40}
    found = results(train(tmp_path / "run", **options | SHORT | changes))
    assert found["validation"]["images"] == 10 and found["validation"]["unreadable_images"] == 1
    assert found["test"]["images"] == 6 and found["test"]["unreadable_images"] == 0
    assert found["substituted_rows"] == 6, "one image in each of six epochs"


@pytest.mark.parametrize(
    ("status", "kinds", "changes", "message"),
    [
        (1, 1, {}, "Classification needs at least two classes"),
        (1, 2, {"per_device_train_batch_size": 64}, "has 8 images, fewer than a batch of 64"),
        (2, 2, {"validation_fraction": 0}, "greater than 0 and less than 1"),
        (1, 2, {"label_column": "diagnosis"}, "--label-column 'diagnosis' has no effect on class folders"),
        (1, 2, {"image_column": "scan"}, "--image-column 'scan' has no effect on class folders"),
        (1, 2, {"lora_targets": "visual_projection"}, "has no layer visual_projection. Its layers are fc1, fc2"),
        (1, 2, {"model_name_or_path": "{classifier}"}, "is an adapter. Use its base model"),
        (2, 2, {"max_eval_pairs": 5}, "--max-eval-pairs"),
    ],
)
def test_invalid_options_are_errors(status, kinds, changes, message, options, images, classifier, tmp_path, capsys):
    for kind in KINDS[:kinds]:
        (tmp_path / "set" / kind).mkdir(parents=True)
        for path in sorted((images / kind).iterdir())[:5]:
            (tmp_path / "set" / kind / path.name).symlink_to(path)
    if "model_name_or_path" in changes:
        changes = {"model_name_or_path": classifier}
    options = options | {"train_data": tmp_path / "set", "per_device_train_batch_size": 8} | changes
    assert message in train_error(capsys, tmp_path / "run", status, **options)


def test_one_image_for_each_class_is_an_error_before_training(options, images, tmp_path, capsys):
    for kind in KINDS[:2]:
        (tmp_path / "set" / kind).mkdir(parents=True)
        shutil.copy(next((images / kind).iterdir()), tmp_path / "set" / kind)
    options = options | {"train_data": tmp_path / "set", "per_device_train_batch_size": 1}
    assert "each class has a single image" in train_error(capsys, tmp_path / "run", 1, **options)


def test_classes_without_validation_images_are_named(images, tmp_path, caplog):
    rows = ["image,label,patient"]
    for kind in KINDS[:2]:
        shutil.copytree(images / kind, tmp_path / kind)
        files = sorted((tmp_path / kind).iterdir())[:6]
        rows += [f"{kind}/{path.name},{kind},{kind} {number % 2}" for number, path in enumerate(files)]
    (tmp_path / "set.csv").write_text("\n".join([*rows, ""]))
    data = LabeledData(
        train_data=str(tmp_path / "set.csv"),
        model_name_or_path="",
        group_column="patient",
        validation_fraction=0.25,
    )
    splits, _ = read_splits(data, 0)
    (held_out,) = set(splits["validation"].labels)
    (other,) = {*KINDS[:2]} - {held_out}
    assert f"no image of the validation split (3 images) is of the class {other!r}" in caplog.text
