"""Classification metrics against scikit-learn and plain loops, and the modules that `evaluate` loads."""

import json
import warnings

import evaluate
import numpy as np
import pytest
from helpers.commands import ROOT, run_python
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score, roc_auc_score

from biomedclip.run_scripts.evaluation.classification import measure_classification


METRICS = ROOT / "run_scripts" / "evaluation" / "metrics"
NAMES = ("accuracy", "balanced_accuracy", "auroc")


def drawn_scores(classes: int, images: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Scores that favor the true class. They are multiples of 1/8, so that sums are exact and many images tie."""
    generator = np.random.default_rng(0)
    truth = generator.integers(classes, size=images)
    scores = np.round(8 * generator.normal(size=(images, classes))) / 8
    scores[np.arange(images), truth] += 0.5
    return scores, truth


@pytest.mark.parametrize("classes", [2, 5])
def test_classification_equals_scikit_learn(classes):
    scores, truth = drawn_scores(classes)
    measured = measure_classification(scores, truth, resamples=0)
    answers = scores.argmax(axis=1)
    assert measured["accuracy"] == accuracy_score(truth, answers)
    assert measured["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, answers), abs=1e-12)
    assert measured["recall_of_class"] == pytest.approx(recall_score(truth, answers, average=None))
    assert measured["confusion_matrix"] == confusion_matrix(truth, answers).tolist()
    if classes == 2:
        assert measured["auroc"] == pytest.approx(roc_auc_score(truth, scores[:, 1] - scores[:, 0]), abs=1e-12)
        other = measure_classification(scores, truth, positive=0, resamples=0)
        assert other["auroc"] == pytest.approx(measured["auroc"])
    else:
        # Rounding of exponentials breaks a few ties. Of 32,000 pairs of images, 1e-5 are three.
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        expected = roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")
        assert measured["auroc"] == pytest.approx(expected, abs=2e-5)


def test_auroc_equals_a_plain_loop_over_pairs_of_images():
    scores, truth = drawn_scores(2, images=60)
    margins = scores[:, 1] - scores[:, 0]
    wins = [(high > low) + (high == low) / 2 for high in margins[truth == 1] for low in margins[truth == 0]]
    assert measure_classification(scores, truth, resamples=0)["auroc"] == pytest.approx(np.mean(wins), abs=1e-12)


@pytest.mark.parametrize("classes", [3, 20])
def test_images_with_equal_log_odds_tie_for_every_class(classes):
    scores = np.round(2 * np.random.default_rng(0).normal(size=(300, classes)))
    truth = np.arange(300) % classes
    areas = []
    for number in range(classes):
        rest = np.exp(np.delete(scores, number, axis=1)).sum(axis=1)
        margins = np.round(scores[:, number] - np.log(rest), 9)  # equal in all digits that are not rounding errors
        areas.append(roc_auc_score(truth == number, margins))
    assert measure_classification(scores, truth, resamples=0)["auroc"] == pytest.approx(np.mean(areas), abs=1e-12)


def test_scores_whose_probabilities_all_round_to_one_are_still_ordered():
    scores = np.stack([np.zeros(4), [100.0, 200.0, 300.0, 400.0]], axis=1)
    assert measure_classification(scores, [0, 0, 1, 1], resamples=0)["auroc"] == 1


def test_a_perfect_model_scores_one_and_a_random_one_chance():
    truth = np.random.default_rng(0).integers(4, size=4000)
    perfect = measure_classification(np.eye(4)[truth], truth, resamples=100)
    for name in NAMES:
        assert perfect[name] == 1 and 0.999 < perfect[f"{name}_interval"][0] <= perfect[f"{name}_interval"][1] == 1
    assert perfect["accuracy_interval"] == pytest.approx(binomtest(4000, 4000).proportion_ci(), abs=1e-12)
    random = measure_classification(np.random.default_rng(1).normal(size=(4000, 4)), truth, resamples=200)
    # Three standard deviations of a fraction of 4,000 at a quarter are 0.02.
    assert abs(random["accuracy"] - 0.25) < 0.021 and abs(random["auroc"] - 0.5) < 0.02
    assert random["accuracy_interval"][0] < 0.25 < random["accuracy_interval"][1]


@pytest.mark.parametrize("patients", [200, 40])
def test_intervals_equal_a_plain_bootstrap_of_groups(patients):
    scores, truth = drawn_scores(2, images=200)
    groups = np.arange(200) if patients == 200 else np.random.default_rng(5).integers(patients, size=200)
    named = None if patients == 200 else [f"patient {group:02}" for group in groups]
    measured = measure_classification(scores, truth, groups=named, seed=3, resamples=200)
    generator, found = np.random.default_rng(3), {name: [] for name in NAMES}
    for _ in range(200):
        groups_drawn = generator.integers(patients, size=patients)
        drawn = np.concatenate([np.flatnonzero(groups == group) for group in groups_drawn])
        answers = scores[drawn].argmax(axis=1)
        found["accuracy"].append(accuracy_score(truth[drawn], answers))
        found["balanced_accuracy"].append(balanced_accuracy_score(truth[drawn], answers))
        found["auroc"].append(roc_auc_score(truth[drawn], scores[drawn, 1] - scores[drawn, 0]))
    for name, values in found.items():
        assert measured[f"{name}_interval"] == pytest.approx(np.quantile(values, [0.025, 0.975])), name


def test_intervals_widen_if_images_of_one_patient_are_equal():
    scores, truth = drawn_scores(2, images=200)
    four = (np.repeat(scores, 4, axis=0), np.repeat(truth, 4))
    single = measure_classification(*four)
    grouped = measure_classification(*four, groups=np.repeat(np.arange(200), 4))
    for name in NAMES:
        assert np.diff(grouped[f"{name}_interval"]) > 1.5 * np.diff(single[f"{name}_interval"]), name


def test_intervals_have_these_ends():
    """Published results must stay reproducible."""
    scores, truth = drawn_scores(3, images=60)
    measured = measure_classification(scores, truth)
    assert measured["accuracy_interval"] == pytest.approx([0.366666666666667, 0.616666666666667], abs=1e-12)
    assert measured["balanced_accuracy_interval"] == pytest.approx([0.369054397502708, 0.624955746187364], abs=1e-12)
    assert measured["auroc_interval"] == pytest.approx([0.562024302717496, 0.78102630752], abs=1e-12)
    assert measure_classification(scores, truth, seed=1) != measured


def test_an_interval_needs_bootstrap_samples_that_contain_every_class():
    """With one image for each of 10 classes, one sample in 2,755 contains them all."""
    measured = measure_classification(np.eye(10) + 0.1, np.arange(10))
    assert measured["balanced_accuracy"] == measured["auroc"] == 1
    assert measured["balanced_accuracy_interval"] is None and measured["auroc_interval"] is None
    assert measured["accuracy_interval"] == pytest.approx(binomtest(10, 10).proportion_ci(), abs=1e-12)


UNDEFINED_AUROC = {
    "one class alone": (np.eye(3)[[0, 1]], [0, 0], "all images are of one class"),
    "one class of two": (np.eye(2)[[0, 1, 0]], [1, 1, 1], "all images are of one class"),
    "one image": (np.eye(2)[[0]], [0], "all images are of one class"),
    "a class without images": (np.eye(3)[[0, 1, 1]], [0, 1, 0], "1 of 3 classes have no images"),
    "more classes than images": (np.eye(9)[[0, 1, 2]], [0, 1, 5], "6 of 9 classes have no images"),
    "constant scores and a class without images": (np.zeros((4, 3)), [0, 0, 1, 1], "1 of 3 classes have no images"),
}


@pytest.mark.parametrize(("scores", "truth", "reason"), UNDEFINED_AUROC.values(), ids=UNDEFINED_AUROC.keys())
def test_an_undefined_auroc_is_none_with_a_reason(scores, truth, reason):
    measured = measure_classification(scores, truth)
    assert measured["auroc"] is None and measured["auroc_interval"] is None
    assert measured["undefined"] == {"auroc": reason}
    answers, truth = scores.argmax(axis=1), np.asarray(truth)
    assert measured["accuracy"] == accuracy_score(truth, answers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of undefined metrics
        assert measured["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, answers))
    for number, recall in enumerate(measured["recall_of_class"]):
        hits = answers[truth == number] == number
        assert recall == (pytest.approx(hits.mean()) if len(hits) else None)
    json.dumps(measured, allow_nan=False)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("images", [1, 6])
def test_nan_scores_make_every_metric_undefined(value, images):
    scores = np.zeros((6, 3))
    scores[:images, 1] = value
    measured = measure_classification(scores, [0, 1, 2, 0, 1, 2])
    for name in NAMES:
        assert measured[name] is None and measured[f"{name}_interval"] is None
        assert measured["undefined"][name] == f"the scores of {images} of 6 images are NaN or infinite"
    assert measured["recall_of_class"] == [None] * 3 and measured["confusion_matrix"] is None
    json.dumps(measured, allow_nan=False)


def test_constant_scores_give_an_auroc_of_one_half():
    measured = measure_classification(np.zeros((30, 3)), [0, 1, 2] * 10, resamples=100)
    assert measured["auroc"] == 0.5 and measured["auroc_interval"] == [0.5, 0.5] and measured["undefined"] == {}


def test_unknown_classes_are_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        measure_classification([[0.0, 1.0]], [2])


@pytest.fixture
def load(tmp_path):
    return lambda name: evaluate.load(str(METRICS / name), cache_dir=str(tmp_path))


def test_the_loaded_classification_metric_gives_the_same_result(load):
    scores, truth = drawn_scores(3)
    found = load("classification").compute(predictions=scores, references=truth, resamples=50, seed=1)
    assert found == measure_classification(scores, truth, resamples=50, seed=1)


def test_the_loaded_retrieval_metric_equals_a_plain_loop(load):
    images, texts = np.random.default_rng(0).integers(-2, 3, size=(2, 50, 6)).astype(np.float32)
    measured = load("retrieval").compute(predictions=images, references=texts)
    scores = images.astype(float) @ texts.T
    for direction, matrix in (("image_to_text", scores), ("text_to_image", scores.T)):
        for k in (1, 5, 10):
            hits = []
            for query, row in enumerate(matrix):
                better, equal = (row > row[query]).sum(), (row == row[query]).sum()
                hits.append(np.mean([better + place < k for place in range(equal)]))  # each position in the tie
            assert measured[direction][f"recall_at_{k}"] == pytest.approx(np.mean(hits))
            low, high = measured[direction][f"recall_at_{k}_interval"]
            assert low <= np.mean(hits) <= high


@pytest.mark.slow
def test_metrics_load_without_a_network_from_another_folder(tmp_path):
    code = f"""
import socket
def refuse(*arguments): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import evaluate
for name in ("classification", "retrieval", "visual_question_answering"):
    print(evaluate.load(r"{METRICS}/" + name, keep_in_memory=True).name)
"""
    environment = {"HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "0"}
    result = run_python("-c", code, environment=environment, folder=tmp_path)
    names = ["classification", "retrieval", "visual_question_answering"]
    assert result.stdout.split() == names, result.stderr[-2000:]
