"""Training with several findings for each image, and with class weights."""

import numpy as np
import pytest
import torch
from helpers.training_runs import results, train, train_error
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from transformers import AutoConfig

from biomedclip.processing.collator import IGNORED_LABEL
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.weighted_losses import (
    balanced_class_weights,
    masked_cross_entropy,
    positive_weights,
    weighted_cross_entropy,
)


def test_balanced_weights_are_those_of_scikit_learn_and_the_loss_is_a_plain_weighted_mean():
    labels = ["b", "a", "b", "b", "c", "b"]
    weights = balanced_class_weights(labels, ["a", "b", "c"])
    assert weights.tolist() == pytest.approx(
        compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=labels)
    )
    assert np.mean([weights["abc".index(label)] for label in labels]) == pytest.approx(1)
    logits = torch.tensor(np.random.default_rng(0).normal(size=(4, 3)))
    numbers = [1, 0, IGNORED_LABEL, 2]
    plain = 0.0
    for row, number in zip(logits.tolist(), numbers, strict=True):
        if number != IGNORED_LABEL:
            plain += float(weights[number]) * (np.log(np.sum(np.exp(row))) - row[number])
    found = weighted_cross_entropy(weights)(logits, torch.tensor(numbers))
    assert float(found) == pytest.approx(plain / 4)


def test_the_loss_of_findings_ignores_nan_and_adds_up_over_accumulated_batches():
    generator = np.random.default_rng(0)
    logits = torch.tensor(generator.normal(size=(6, 3)), requires_grad=True)
    targets = (generator.random((6, 3)) < 0.4).astype(float)
    targets[0, 0] = targets[3, 2] = np.nan
    weights = positive_weights(np.array([[1, 0, 1], [0, 0, np.nan], [0, 0, 1], [0, np.nan, 1]]))
    assert weights.tolist() == [3, 1, 1]
    loss = masked_cross_entropy(weights)
    plain = 0.0
    for row in range(6):
        for column in range(3):
            chance = 1 / (1 + np.exp(-logits[row, column].item()))
            if targets[row, column] == 1:
                plain -= float(weights[column]) * np.log(chance)
            elif targets[row, column] == 0:
                plain -= np.log(1 - chance)
    whole = loss(logits, torch.tensor(targets))
    assert float(whole) == pytest.approx(plain / 18)
    (gradient,) = torch.autograd.grad(whole, logits)
    assert gradient[0, 0] == 0 and gradient[3, 2] == 0 and torch.isfinite(gradient).all()
    halves = [loss(logits[part], torch.tensor(targets)[part]) for part in (slice(0, 3), slice(3, 6))]
    (of_halves,) = torch.autograd.grad(sum(halves) / 2, logits)
    assert torch.allclose(of_halves, gradient)


@pytest.fixture(scope="module")
def options(small_checkpoint, tmp_path_factory) -> dict:
    """160 images of 40 patients: halves that are bright with `left` and with `right`. Some labels are unknown."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    lines = ["image,patient,left,right,never"]
    for number in range(160):
        left, right = generator.integers(2, size=2)
        pixels = generator.integers(0, 60, size=(32, 32), dtype=np.uint8)
        pixels[:, :16] += np.uint8(150 * left)
        pixels[:, 16:] += np.uint8(150 * right)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"{number}.png,p{number // 4},{left},{-1 if number % 8 == 0 else right},0")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    lines.append("broken.png,p39,1,1,0")
    (folder / "findings.csv").write_text("\n".join(lines), encoding="utf-8")
    return {
        "task": "image-classification",
        "config": "lora_classification",
        "train_data": folder / "findings.csv",
        "label_columns": ["left", "right", "never"],
        "model_name_or_path": small_checkpoint,
        "batch_size": None,
        "per_device_train_batch_size": 16,
        "learning_rate": 1e-2,
    }


@pytest.fixture(scope="module")
def classifier(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("findings") / "run"
    also = {"group_column": "patient", "validation_fraction": 0.3, "class_weights": "balanced", "max_steps": 40}
    return train(folder, **options, **also, merge_adapter="true")


def test_it_learns_findings_and_measures_them_over_patients(classifier):
    found = results(classifier)
    assert found["classes"] == ["left", "right", "never"] and found["problem_type"] == "multi_label_classification"
    assert found["uncertain"] == "ignore" and any("are uncertain. They are ignored" in note for note in found["notes"])
    validation = found["validation"]
    assert validation["auroc"] > 0.9 and validation["auroc_interval"][0] > 0.7
    assert validation["findings"]["right"]["ignored"] > 0 and validation["findings"]["left"]["auroc_interval"]
    assert list(validation["undefined"].values()) == [
        f"all {validation['findings']['never']['negatives']} labels are 0"
    ]
    assert found["groups"]["train"] + found["groups"]["validation"] == 40


def test_classify_gives_a_probability_for_each_finding(classifier, options, tmp_path):
    config = AutoConfig.from_pretrained(classifier / "config")
    assert config.problem_type == "multi_label_classification"
    folder = options["train_data"].parent
    images = [str(folder / f"{number}.png") for number in range(3)]
    for model in (classifier, classifier / "merged"):
        out = tmp_path / f"{model.name}.jsonl"
        assert main(["classify", *images, "--model", str(model), "--output", str(out)]) == 0
        assert "left" in out.read_text(encoding="utf-8")


def test_the_best_checkpoint_is_chosen_by_auroc(options, tmp_path):
    also = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    found = results(train(tmp_path / "run", **options | also, load_best_model_at_end="true"))
    assert found["saved_checkpoint"]["chosen"] == "best" and found["saved_checkpoint"]["metric"] == "auroc"


def test_class_weights_change_the_loss_of_images_with_one_label(options, tmp_path):
    single = {name: value for name, value in options.items() if name != "label_columns"} | {"label_column": "left"}
    losses = [
        results(train(tmp_path / weights, **single, class_weights=weights))["loss"] for weights in ("none", "balanced")
    ]
    assert losses[0] != losses[1]
    assert results(tmp_path / "balanced")["classes"] == ["0", "1"]


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"label_columns": ["left", "gone"]}, 1, "no column 'gone'. The columns are image, patient, left"),
        ({"label_columns": ["left", "patient"]}, 1, "findings.csv, line 2: patient is 'p0'. The label of a finding"),
        ({"group_column": "person"}, 1, "no column 'person'"),
        ({"label_columns": None, "uncertain": "one"}, 2, "--uncertain has no effect without --label-columns"),
        ({"label_column": "left"}, 2, "--label-column is for one label, and --label-columns for several"),
    ],
)
def test_data_and_options_that_do_not_fit_are_errors(options, tmp_path, capsys, changes, status, message):
    assert message in train_error(capsys, tmp_path / "run", status, **options | changes)
