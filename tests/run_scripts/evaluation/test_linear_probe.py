"""The linear probe against scikit-learn used by hand, and its draws of the labels."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, recall_score, roc_auc_score

from biomedclip.processing.benchmarks.facts import facts_of
from biomedclip.run_scripts.cli.errors import UsageError
from biomedclip.run_scripts.evaluation import linear_probe as module
from biomedclip.run_scripts.evaluation.comparison import headline
from biomedclip.run_scripts.evaluation.linear_probe import LabeledFeatures, hold_out_validation, probe_with_scores
from biomedclip.run_scripts.evaluation.reliability import Scored, decide
from biomedclip.run_scripts.evaluation.statistics.fractions import show_probe


def split(images: int, classes: int, seed: int, apart: float = 1.0) -> LabeledFeatures:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=images)
    centres = np.random.default_rng(99).normal(size=(classes, 12))
    return LabeledFeatures(5 + apart * centres[labels] + generator.normal(size=(images, 12)), labels)


@pytest.mark.parametrize("classes", [2, 4])
def test_all_labels_give_what_scikit_learn_gives_by_hand(classes):
    train, validation, test = (split(200, classes, seed) for seed in range(3))
    names = [f"class {number}" for number in range(classes)]
    metrics, scores, classifier = probe_with_scores(train, validation, test, names, fractions=[1.0])
    (run,) = metrics["by_fraction"]["1"]["runs"]
    mean, deviation = train.features.mean(axis=0), train.features.std(axis=0)
    best = None
    for strength in module.STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=1000).fit((train.features - mean) / deviation, train.labels)
        accuracy = accuracy_score(validation.labels, fitted.predict((validation.features - mean) / deviation))
        if best is None or accuracy > best[0]:
            best = (accuracy, strength, fitted)
    assert run["C"] == best[1] and run["images"] == 200 and run["converged"]
    judged = (test.features - mean) / deviation
    # Fits that start elsewhere end within lbfgs' tolerance of each other: no answer changes here, an order might.
    assert metrics["accuracy"] == run["accuracy"] == accuracy_score(test.labels, best[2].predict(judged))
    chances = best[2].predict_proba(judged)
    area = roc_auc_score(test.labels, chances[:, 1] if classes == 2 else chances, multi_class="ovr")
    assert metrics["auroc"] == pytest.approx(area, abs=1e-3)
    assert metrics["accuracy_interval"][0] < metrics["accuracy"] < metrics["accuracy_interval"][1]
    decided = best[2].decision_function(judged)
    differences = scores - scores[:, :1] if classes == 2 else scores - scores.mean(axis=1, keepdims=True)
    assert differences[:, -1] == pytest.approx(decided if classes == 2 else decided[:, -1], abs=0.02)
    np.testing.assert_array_equal(classifier(test.features), scores)
    test.features[0, 0] = np.inf
    assert np.isnan(classifier(test.features)).all()


def test_shares_are_drawn_by_seed_and_summed_up():
    train, validation, test = split(300, 2, 0, 0.3), split(100, 2, 1, 0.3), split(200, 2, 2, 0.3)
    metrics = probe_with_scores(train, validation, test, ["a", "b"], fractions=[1.0, 0.1], draws=3, seed=7)[0]
    small, whole = metrics["by_fraction"]["0.1"], metrics["by_fraction"]["1"]
    assert [run["seed"] for run in small["runs"]] == [7, 8, 9] and len(whole["runs"]) == 1
    accuracies = [run["accuracy"] for run in small["runs"]]
    assert len(set(accuracies)) > 1, "the draws differ"
    assert small["accuracy"] == pytest.approx(np.mean(accuracies))
    assert small["accuracy_sd"] == pytest.approx(np.std(accuracies, ddof=1)) and whole["accuracy_sd"] is None
    assert metrics["accuracy"] == whole["accuracy"]
    again = probe_with_scores(train, validation, test, ["a", "b"], fractions=[0.1, 1.0], draws=3, seed=7)[0]
    assert again == metrics


def test_the_papers_value_stands_below_the_share_it_is_of(capsys):
    train, validation, test = split(300, 2, 0), split(100, 2, 1), split(200, 2, 2)
    metrics = probe_with_scores(train, validation, test, ["a", "b"], fractions=[0.1, 1.0], draws=2)[0]
    show_probe(metrics, facts_of("rsna")["paper_of_linear_probe"])
    lines = capsys.readouterr().out.splitlines()
    below = next(number for number, line in enumerate(lines) if "10%" in line)
    assert lines[below + 1].replace("│", " ").split() == ["paper", "0.83", "-", "-"]
    assert sum("paper" in line for line in lines) == 1
    measured, paper = (
        headline("linear-probe", metrics),
        headline("linear-probe", facts_of("rsna")["paper_of_linear_probe"]),
    )
    assert [*paper] == ["accuracy 10%"] and "accuracy 10%" in measured


def test_the_table_has_the_interval_of_all_labels_and_the_most_frequent_class(capsys):
    train, validation, test = split(300, 2, 0, 0.3), split(100, 2, 1, 0.3), split(200, 2, 2, 0.3)
    test = test.select([*np.flatnonzero(test.labels == 0), *np.flatnonzero(test.labels == 1)[:20]])
    metrics = probe_with_scores(train, validation, test, ["a", "b"], fractions=[1.0, 0.1], draws=2)[0]
    assert metrics["most_frequent_class"] == np.mean(test.labels == 0) > 0.8
    show_probe(metrics)
    output = capsys.readouterr().out
    low, high = metrics["accuracy_interval"]
    assert output.count("95 % interval") == 1 and f"[{low:.3f}, {high:.3f}]" in output
    assert "majority class" in output and max(map(len, output.splitlines())) <= 80


def test_separable_features_are_learned_and_noise_is_not():
    names = ["a", "b"]
    apart = [split(200, 2, seed, apart=20) for seed in range(3)]
    assert probe_with_scores(*apart, names, fractions=[0.01, 1.0], draws=2)[0]["by_fraction"]["0.01"]["accuracy"] == 1
    noise = [split(1000, 2, seed, apart=0) for seed in range(3)]
    # Three standard deviations of a share of 1,000 at a half are 0.047.
    assert abs(probe_with_scores(*noise, names, fractions=[1.0])[0]["accuracy"] - 0.5) < 0.05


def test_classes_that_training_lacks_are_never_answered():
    train = split(60, 3, 0, 20)
    present = np.flatnonzero(train.labels != 1)
    metrics = probe_with_scores(
        train.select(present), split(60, 3, 1, 20), split(60, 3, 2, 20), ["a", "b", "c"], fractions=[1.0]
    )[0]
    assert metrics["recall_of_class"]["b"] == 0 and metrics["recall_of_class"]["a"] == 1
    with pytest.raises(ValueError, match="of one class"):
        only = train.select(np.flatnonzero(train.labels == 0))
        probe_with_scores(only, only, only, ["a", "b", "c"])


def test_the_validation_split_that_is_held_out_has_patients_of_its_own():
    whole = split(100, 2, 0)
    grouped = replace(whole, groups=[f"p{number // 4}" for number in range(100)])
    train, validation, notes = hold_out_validation(grouped, ["a", "b"], 0, where="--data d")
    assert len(validation.labels) == 20 and not set(train.groups) & set(validation.groups)
    assert notes == [
        "No validation split: the regularization was chosen on 20% of the training images, in whole groups."
    ]
    train, validation, notes = hold_out_validation(whole, ["a", "b"], 0, where="--data d")
    assert len(validation.labels) == pytest.approx(20, abs=1) and len(train.labels) + len(validation.labels) == 100
    assert notes == ["No validation split: the regularization was chosen on 20% of the training images."]
    one = replace(whole, groups=["p"] * 100)
    with pytest.raises(ValueError, match="--data d: all 100 images belong to the group 'p'"):
        hold_out_validation(one, ["a", "b"], 0, where="--data d")


def test_a_class_whose_only_patient_is_held_out_is_named():
    whole = LabeledFeatures(np.zeros((20, 2)), np.array([0] * 10 + [1] * 10), ["p", "q"] * 5 + ["r"] * 10)
    seeds = (hold_out_validation(whole, ["a", "b"], seed, where="d")[2] for seed in range(20))
    assert not any("never predicted" in note for notes in seeds for note in notes), "half of the images are too many"
    few = replace(whole, labels=np.array([0] * 18 + [1] * 2), groups=[f"p{number // 2}" for number in range(20)])
    found = [hold_out_validation(few, ["a", "b"], seed, where="d") for seed in range(20)]
    for train, _, notes in found:
        assert ("never predicted" in " ".join(notes)) == (1 not in train.labels)
    assert any(1 not in train.labels for train, _, _ in found)


@pytest.fixture
def patients(tmp_path) -> str:
    """A table of 240 images of 120 patients in two classes that look alike, with the device of each image."""
    generator = np.random.default_rng(0)
    lines = ["image,label,patient,device"]
    (tmp_path / "data").mkdir()
    for number in range(240):
        light = int(generator.integers(2))
        pixels = generator.integers(0, 150, size=(32, 32), dtype=np.uint8) + np.uint8(20 * light + number % 7)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")
        label = ("dark", "light")[light if generator.random() < 0.8 else 1 - light]
        lines.append(f"{number}.png,{label},p{number // 2},{'ab'[number % 3 == 0]}")
    path = tmp_path / "data" / "table.csv"
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def test_the_probe_is_calibrated_and_decides_on_its_validation_images(measure, patients, tmp_path, capsys):
    options = ["--group-column", "patient", "--subgroup-column", "device", "--fractions", "0.2", "1", "--draws", "2"]
    plain = measure("linear-probe", patients, *options, out="plain")
    fitted = ["--calibrate", "--sensitivity", "0.9", "--coverage", "0.8", "--report"]
    results = measure("linear-probe", patients, *options, *fitted)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    found, rows = results["decisions"], pq.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    before = pq.read_table(tmp_path / "plain" / "predictions.parquet").to_pylist()
    truth = np.array([row["true"] == "light" for row in rows])
    scores, chances = (np.array([row["probability_light"] for row in table]) for table in (before, rows))
    log_odds = np.log(scores / (1 - scores))
    assert found["temperature"] != 1 and plain["decisions"]["temperature"] is None
    np.testing.assert_allclose(chances, expit(log_odds / found["temperature"]), rtol=1e-9)
    for name, probabilities in (("before_calibration", scores), ("calibration", chances)):
        assert found[name]["nll"] == pytest.approx(log_loss(truth, probabilities))
        assert found[name]["brier"] == pytest.approx(2 * brier_score_loss(truth, probabilities))
    assert plain["decisions"]["calibration"] == found["before_calibration"]
    (point,) = found["operating_points"]
    assert point["class"] == "light" and point["on_validation"] >= 0.9
    assert point["sensitivity"] == recall_score(truth, chances >= point["threshold"])
    (sets,) = found["prediction_sets"]
    assert sets["measured_coverage"] == np.mean([row["true"] in row["set_0.8"] for row in rows])
    assert results["metrics"]["accuracy"] == plain["metrics"]["accuracy"] and set(results["subgroups"]) == {"device"}
    notes = " ".join(results["data"]["notes"])
    assert "decisions are those of the classifier on 100% of the training labels." in notes
    assert "The regularization was chosen on the same validation images" in notes
    assert results["data"]["validation_leaks"]["same_group"] == 0 and "validation_leaks" not in plain["data"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Calibration, temperature" in page and "Prediction sets" in page and "By device" in page
    assert not (tmp_path / "out" / "calibration.json").exists(), "the probe is not saved, so classify cannot use it"


def test_the_temperature_of_a_probe_is_fitted_on_validation_images(monkeypatch):
    """Against a plain loop over many temperatures, on the scores of the classifier that the probe returns."""
    train, validation, test = split(300, 3, 0, 0.2), split(200, 3, 1, 0.2), split(200, 3, 2, 0.2)
    _, scores, classifier = probe_with_scores(train, validation, test, ["a", "b", "c"], fractions=[1.0])
    own = Scored(classifier(validation.features), validation.labels)
    options = SimpleNamespace(calibrate=True, sensitivity=[], specificity=[], coverage=[], seed=0)
    decided = decide(Scored(scores, test.labels), own, ["a", "b", "c"], options)
    losses = {}
    for temperature in np.geomspace(0.5, 2, 100):
        chances = [softmax(row / temperature) for row in own.logits]
        losses[temperature] = -np.mean([np.log(row[label]) for row, label in zip(chances, own.truth, strict=True)])
    assert decided.temperature == pytest.approx(min(losses, key=losses.get), rel=1.5e-2)


def test_decisions_of_the_protocol_without_validation_images_are_refused(measure, patients, capsys, no_model):
    with pytest.raises(UsageError, match="--calibrate needs --protocol logistic, which has a validation split"):
        measure("linear-probe", patients, "--protocol", "elevater", "--calibrate")
