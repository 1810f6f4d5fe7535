"""`--calibrate`, `--sensitivity`, `--specificity` and `--coverage`, and calibrations in `biomedclip classify`."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers.benchmark_files import draw_images, drawn_pixels
from helpers.model_results import read_results
from PIL import Image
from scipy.special import log_softmax, softmax
from sklearn.metrics import log_loss, recall_score
from transformers import AutoImageProcessor

from biomedclip import BiomedCLIPForImageClassification
from biomedclip.run_scripts.classification.calibrations import read_calibration
from biomedclip.run_scripts.evaluate import main as evaluate
from biomedclip.run_scripts.evaluation.calibration import fit_temperature
from biomedclip.run_scripts.evaluation.decisions import conformal_threshold
from biomedclip.run_scripts.evaluation.reliability import Scored, decide, notes_on
from biomedclip.run_scripts.main import main


CLASSES = ["benign", "malignant", "other"]
TEMPERATURE = 2.5
IMAGES = {"validation": 150, "test": 150}


@pytest.fixture(scope="module")
def overconfident(fine_tuned, tmp_path_factory) -> tuple[Path, Path, dict[str, np.ndarray]]:
    """A classifier, images whose labels are drawn at a temperature of 2.5, and the logits of each split."""
    folder = tmp_path_factory.mktemp("overconfident")
    model = BiomedCLIPForImageClassification.from_pretrained(fine_tuned[0]).eval()
    processor = AutoImageProcessor.from_pretrained(fine_tuned[0], backend="pil")
    pictures = [Image.fromarray(drawn_pixels(seed, 32, seed % 2 == 0)) for seed in range(sum(IMAGES.values()))]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixel_values=pixels).logits
        scale = 4 / logits.std(dim=0)
        model.classifier.weight.mul_(scale[:, None])
        model.classifier.bias.copy_(scale * (model.classifier.bias - logits.mean(dim=0)))
        logits = model(pixel_values=pixels).logits.double().numpy()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    generator = np.random.default_rng(0)
    found: dict[str, list] = {"validation": [], "test": []}
    for number, (picture, row) in enumerate(zip(pictures, logits, strict=True)):
        split = "validation" if number < IMAGES["validation"] else "test"
        label = CLASSES[generator.choice(3, p=softmax(row / TEMPERATURE))]
        path = folder / "data" / split / label / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        found[split].append((f"{split}/{label}/{number:04}.png", row, CLASSES.index(label)))
    ordered = {split: sorted(rows, key=lambda row: row[0]) for split, rows in found.items()}
    arrays = {split: np.array([row for _, row, _ in rows]) for split, rows in ordered.items()}
    truth = {f"{split} truth": np.array([label for *_, label in rows]) for split, rows in ordered.items()}
    return folder / "model", folder / "data", arrays | truth


@pytest.fixture
def case(overconfident, tmp_path):
    """A copy of the classifier, into which the command may write, with the images and the logits."""
    model, data, arrays = overconfident
    return Path(shutil.copytree(model, tmp_path / "model")), data, arrays


def run(model, data, out, *options):
    arguments = ["image-classification", "--model", model, "--data", data, *options, "--output-dir", out]
    evaluate(list(map(str, arguments)))
    return read_results(out)


def test_a_fitted_temperature_calibrates_the_test_images(case, tmp_path, capsys):
    model, data, arrays = case
    results = run(model, data, tmp_path / "out", "--calibrate")
    found = results["decisions"]
    truth = arrays["test truth"]
    assert found["temperature"] == pytest.approx(TEMPERATURE, rel=0.4)
    wanted = fit_temperature(arrays["validation"], arrays["validation truth"])
    assert found["temperature"] == pytest.approx(wanted, rel=1e-3)  # batches change the last bits of logits
    for name, temperature in (("before_calibration", 1), ("calibration", found["temperature"])):
        expected = log_loss(truth, softmax(arrays["test"] / temperature, axis=1), labels=[0, 1, 2])
        assert found[name]["nll"] == pytest.approx(expected, rel=1e-4)
    assert found["calibration"]["ece"] < found["before_calibration"]["ece"]
    plain = run(model, data, tmp_path / "plain")["metrics"]
    assert results["metrics"]["accuracy"] == plain["accuracy"], "a temperature changes no prediction"
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    scaled = log_softmax(arrays["test"] / found["temperature"], axis=1)
    assert np.log(rows[0]["probability_other"]) == pytest.approx(scaled[0, 2], abs=1e-3)
    output = capsys.readouterr().out
    assert "Calibration, temperature 2" in output and max(map(len, output.splitlines())) <= 80


def test_classify_uses_the_calibration_of_a_classifier_and_states_it(case, tmp_path, capsys):
    model, data, _ = case
    results = run(model, data, tmp_path / "out", "--calibrate")
    assert "Calibration in" in capsys.readouterr().out
    run(model, data, tmp_path / "again", "--calibrate")
    assert "(replaces an earlier one)" in " ".join(capsys.readouterr().out.split())
    temperature = results["decisions"]["temperature"]
    assert (model / "calibration.json").read_bytes() == (tmp_path / "out" / "calibration.json").read_bytes()
    images, output = data / "test" / "other", tmp_path / "rows.json"
    command = ["classify", images, "--model", model, "--wide", "--output", output]

    def classified(*options):
        assert main([*map(str, command), *map(str, options)]) == 0
        rows = json.loads(output.read_text())
        return np.log([[row[label] for label in CLASSES] for row in rows]), capsys.readouterr().err

    calibrated, message = classified()
    assert f"The probabilities are calibrated: temperature {temperature:.4g}" in message
    record = json.loads(output.with_name("rows.json.run.json").read_text())
    assert record["calibration"] == {"file": str(model / "calibration.json"), "temperature": temperature}
    plain, message = classified("--calibration", "none")
    assert "calibrated" not in message
    ratios = (plain[:, :1] - plain[:, 1:]) / (calibrated[:, :1] - calibrated[:, 1:])
    np.testing.assert_allclose(ratios, temperature, rtol=1e-3)
    command[3] = shutil.copytree(model, tmp_path / "shared")
    np.testing.assert_array_equal(classified()[0], calibrated)
    command[3] = model
    (model / "calibration.json").unlink()
    np.testing.assert_array_equal(classified("--calibration", tmp_path / "out")[0], calibrated)
    assert main([*map(str, command), "--calibration", "none"]) == 2
    assert "has no effect" in capsys.readouterr().err


def test_evaluate_applies_the_calibration_of_a_classifier_as_classify_does(case, tmp_path, capsys):
    model, data, _ = case
    calibrated = run(model, data, tmp_path / "out", "--calibrate")
    results = run(model, data, tmp_path / "again")
    found = results["decisions"]
    assert found["calibration_file"] == "calibration.json"
    for name in ("temperature", "before_calibration", "calibration"):
        assert found[name] == calibrated["decisions"][name]
    assert any(
        "The probabilities are calibrated, as in biomedclip classify" in note for note in results["data"]["notes"]
    )
    output = tmp_path / "rows.json"
    assert main(["classify", str(data / "test"), "--model", str(model), "--wide", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())
    predicted = pq.read_table(tmp_path / "again" / "predictions.parquet").to_pylist()
    classified = [[row[label] for label in CLASSES] for row in rows]
    np.testing.assert_allclose(
        [[row[f"probability_{label}"] for label in CLASSES] for row in predicted], classified, atol=1e-5
    )
    same = run(model, data, tmp_path / "same", "--split", "validation")
    assert any("fitted on the measured images" in note for note in same["data"]["notes"])
    content = json.loads((model / "calibration.json").read_text())
    (model / "calibration.json").write_text(json.dumps(content | {"weights": "other"}))
    results = run(model, data, tmp_path / "other")
    assert results["decisions"]["temperature"] is None
    assert any("was fitted for other weights and is not applied" in note for note in results["data"]["notes"])
    (model / "calibration.json").write_text(json.dumps(content | {"temperature": -1}))
    command = ["evaluate", "image-classification", "--model", model, "--data", data, "--output-dir", tmp_path / "bad"]
    assert main(list(map(str, command))) == 1
    assert "the field temperature is missing or wrong" in " ".join(capsys.readouterr().err.split())


def test_a_calibration_that_makes_the_test_images_worse_is_noted():
    """The labels of the validation images are drawn at a higher temperature than those of the test images."""
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=4, size=(400, 3))
    labels = [[generator.choice(3, p=softmax(row / scale)) for row in logits] for scale in (4, 1)]
    validation, test = (Scored(logits, np.array(truth)) for truth in labels)
    options = SimpleNamespace(calibrate=True, sensitivity=[], specificity=[], coverage=[], seed=0)
    decided = decide(test, validation, CLASSES, options)
    before, after = (log_loss(labels[1], softmax(logits / scale, axis=1)) for scale in (1, decided.temperature))
    (note,) = [note for note in notes_on(validation, options, decided) if "worse" in note]
    assert f"negative log-likelihood {before:.3f} before, {after:.3f} after" in note
    assert f"expected calibration error {decided.results['before_calibration']['ece']:.3f} before" in note
    right = decide(validation, validation, CLASSES, options)
    assert not any("worse" in note for note in notes_on(validation, options, right))


def test_thresholds_and_sets_are_chosen_on_validation_and_measured_on_test(case, tmp_path, capsys):
    model, data, arrays = case
    options = ["--sensitivity", 0.9, 0.8, "--specificity", 0.95, "--coverage", 0.9]
    results = run(model, data, tmp_path / "out", *options)
    found = results["decisions"]
    probabilities = {split: softmax(arrays[split], axis=1) for split in IMAGES}
    assert [(point["goal"], point["wanted"], point["class"]) for point in found["operating_points"]] == [
        (goal, wanted, label)
        for goal, wanted in (("sensitivity", 0.9), ("sensitivity", 0.8), ("specificity", 0.95))
        for label in CLASSES
    ]
    for point in found["operating_points"]:
        number = CLASSES.index(point["class"])
        truth = arrays["test truth"] == number
        called = probabilities["test"][:, number] >= point["threshold"]
        assert point["sensitivity"] == pytest.approx(recall_score(truth, called), abs=0.02)  # ties of rounded logits
        assert point["on_validation"] >= point["wanted"]
    (sets,) = found["prediction_sets"]
    threshold = conformal_threshold(probabilities["validation"], arrays["validation truth"], 0.9)
    assert sets["threshold"] == pytest.approx(threshold, rel=1e-3)
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    covered = [row["true"] in row["set_0.9"] for row in rows]
    assert sets["measured_coverage"] == np.mean(covered) > 0.8
    assert sets["mean_size"] == np.mean([len(row["set_0.9"]) for row in rows])
    assert any("fitted on 150 validation images" in note for note in results["data"]["notes"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_a_calibrated_zero_shot_classifier_brings_its_prompts(measure, small_checkpoint, tmp_path, capsys):
    data = tmp_path / "data"
    # Both classes look the same, or the temperature of two images that are easy to tell apart would be 0.
    for split, seed in (("validation", 0), ("test", 9)):
        draw_images(data / split, {"dark": 30, "light": 30}, seed)
        for number in range(0, 30, 3):
            other = data / split / "light" / f"{number:04}.png"
            moved = data / split / "dark" / f"{number:04}.png"
            first, second = other.read_bytes(), moved.read_bytes()
            other.write_bytes(second)
            moved.write_bytes(first)
    try:
        results = measure("zero-shot", data, "--calibrate", "--templates", "{} image", "a {}")
    except ValueError as error:
        pytest.skip(f"the random model cannot be calibrated: {error}")
    calibration = read_calibration(tmp_path / "out" / "calibration.json")
    assert calibration.prompts == {"dark": ["dark image", "a dark"], "light": ["light image", "a light"]}
    assert any("not zero-shot" in note for note in results["data"]["notes"])
    assert "leaked" in results["data"]["validation_leaks"]
    output = tmp_path / "rows.json"
    command = ["classify", data / "test", "--model", small_checkpoint, "--calibration", tmp_path / "out", "--wide"]
    assert main([*map(str, command), "--output", str(output)]) == 0
    assert not (small_checkpoint / "calibration.json").exists(), "a temperature belongs to its prompts"
    rows = json.loads(output.read_text())
    predicted = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    np.testing.assert_allclose([row["dark"] for row in rows], [row["probability_dark"] for row in predicted], atol=1e-5)
    capsys.readouterr()
    assert main([*map(str, command), "--labels", "dark", "light", "--output", str(output)]) == 1
    assert "was fitted for other prompts" in " ".join(capsys.readouterr().err.split())


def test_the_temperature_stays_1_if_all_validation_images_are_classified_right(case, tmp_path):
    model, data, arrays = case
    certain = tmp_path / "certain"
    best = arrays["validation"].argmax(axis=1)
    names = sorted(path for path in (data / "validation").rglob("*.png"))
    for path, number in zip(names, best, strict=True):
        place = certain / "validation" / CLASSES[number] / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    shutil.copytree(data / "test", certain / "test")
    results = run(model, certain, tmp_path / "out", "--calibrate")
    assert results["decisions"]["temperature"] == 1 == read_calibration(model / "calibration.json").temperature
    assert any("The temperature stays 1, because" in note for note in results["data"]["notes"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"temperature": 0}, "field temperature"),
        ({"temperature": "2"}, "field temperature"),
        ({"temperature": float("inf")}, "field temperature"),
        ({"labels": ["a"]}, "field labels"),
        ({"labels": ["a", "a"]}, "field labels"),
        ({"weights": None}, "field weights"),
        ({"prompts": {"a": ["x"]}}, "field prompts"),
        ({"prompts": {"a": "x", "b": "y"}}, "field prompts"),
        ({"schema": 7}, "field schema"),
    ],
)
def test_a_faulty_calibration_names_the_field(tmp_path, change, message):
    right = {"schema": 1, "temperature": 2, "labels": ["a", "b"], "weights": "00", "prompts": None, "fitted_on": {}}
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(right), encoding="utf-8")
    assert read_calibration(path).temperature == 2
    path.write_text(json.dumps(right | change), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_calibration(path)


@pytest.mark.parametrize("content", ["[1]", "no JSON", "", "[" * 100_000])
def test_a_file_that_is_no_calibration_is_refused(tmp_path, content):
    path = tmp_path / "calibration.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"calibration.json: (the field schema|not JSON)"):
        read_calibration(path)


def test_a_calibration_of_other_weights_is_refused(case, fine_tuned, tmp_path, capsys):
    model, data, _ = case
    run(model, data, tmp_path / "out", "--calibrate")
    command = ["classify", data / "test", "--model", fine_tuned[0], "--calibration", tmp_path / "out"]
    assert main(list(map(str, command))) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "was fitted for other weights. Fit it again" in error


@pytest.mark.parametrize(
    "options, message",
    [
        (["--calibrate", "--split", "validation"], "must be measured on another one"),
        (["--calibrate", "--split", "train"], "--calibrate cannot be measured on the training images"),
        (["--coverage", "1"], "--coverage must be above 0 and below 1, not 1.0"),
        (["--sensitivity", "0"], "--sensitivity must be above 0 and at most 1, not 0.0"),
        (["--coverage", "0.9", "0.8", "0.9"], "--coverage has 0.9 more than once"),
        (["--coverage", "0.9", "0.90000001"], "--coverage has 0.9 more than once"),
        (["--subgroup-column", "group"], "--subgroup-column group: the predictions have another column"),
        (["--subgroup-column", "set_0.9"], "--subgroup-column set_0.9: the predictions have another column"),
        (["--subgroup-column", "probability_x"], "--subgroup-column probability_x: the predictions have another"),
        (["--subgroup-column", "sex", "sex"], "--subgroup-column has sex more than once"),
    ],
)
def test_impossible_options_are_refused(case, tmp_path, capsys, options, message):
    model, data, _ = case
    command = ["evaluate", "image-classification", "--model", model, "--data", data, "--output-dir", tmp_path / "out"]
    assert main([*map(str, command), *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_class_without_validation_images_has_no_threshold_and_a_note_names_it(case, tmp_path):
    model, data, _ = case
    fewer = Path(shutil.copytree(data, tmp_path / "fewer"))
    shutil.rmtree(fewer / "validation" / "other")
    results = run(model, fewer, tmp_path / "out", "--sensitivity", 0.9, "--specificity", 0.9)
    found = [(point["goal"], point["class"]) for point in results["decisions"]["operating_points"]]
    assert found == [("sensitivity", name) for name in CLASSES[:2]] + [("specificity", name) for name in CLASSES]
    wanted = "--sensitivity: no threshold for 'other', because the validation split has no images of this class."
    assert any(wanted in note for note in results["data"]["notes"])


def test_a_rerun_leaves_no_files_of_options_that_it_does_not_have(case, tmp_path):
    model, data, _ = case
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("of a person")
    run(model, data, out)
    assert (out / "report.html").exists(), "biomedclip did not write it"
    run(model, data, out, "--calibrate", "--report")
    assert (out / "calibration.json").exists() and "<h1>" in (out / "report.html").read_text(encoding="utf-8")
    run(model, data, out)
    assert not (out / "calibration.json").exists() and not (out / "report.html").exists()
    assert (model / "calibration.json").exists(), "classify uses it"


def test_images_without_a_validation_split_are_named(case, tmp_path, capsys):
    model, data, _ = case
    command = ["evaluate", "image-classification", "--model", model, "--data", data / "test", "--calibrate"]
    assert main([*map(str, command), "--output-dir", str(tmp_path / "out")]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "--calibrate needs a validation split" in error and "Put them into folders" in error
    assert not (tmp_path / "out").exists()
