"""Calibration, beside scikit-learn, SciPy and plain loops in float64."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from biomedclip.run_scripts.evaluation.calibration import (
    adaptive_bins,
    error_of_calibrated,
    fit_temperature,
    fixed_bins,
    measure_calibration,
)
from biomedclip.run_scripts.evaluation.calibration import softmax as our_softmax


def drawn(images: int, classes: int, seed: int = 0, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes drawn with the probabilities of these logits at a temperature."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2, size=(images, classes))
    chances = softmax(logits / temperature, axis=1)
    return logits, np.array([generator.choice(classes, p=row) for row in chances])


def plain_error(confidence, right, bins: int) -> float:
    """The expected calibration error as its definition says: (low, high] for each bin."""
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        inside = [i for i, value in enumerate(confidence) if low < value <= high or (number == 0 and value == 0)]
        if inside:
            gap = sum(confidence[i] for i in inside) / len(inside) - sum(right[i] for i in inside) / len(inside)
            total += abs(gap) * len(inside) / len(confidence)
    return total


@pytest.mark.parametrize("images, classes", [(500, 2), (333, 5), (7, 3), (1, 2)])
def test_metrics_are_those_of_scikit_learn_and_of_a_plain_loop(images, classes):
    logits, truth = drawn(images, classes)
    probabilities = softmax(logits, axis=1)
    found = measure_calibration(probabilities, truth, resamples=50)
    labels = list(range(classes))
    assert found["nll"] == pytest.approx(log_loss(truth, probabilities, labels=labels), rel=1e-12)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    assert found["ece"] == pytest.approx(plain_error(confidence, right, 15), abs=1e-12)
    plain_brier = [
        sum((value - (number == label)) ** 2 for number, value in enumerate(row))
        for row, label in zip(probabilities.tolist(), truth, strict=True)
    ]
    assert found["brier"] == pytest.approx(math.fsum(plain_brier) / images, rel=1e-12)
    if classes == 2:  # scikit-learn's binary score counts one of the two classes
        assert found["brier"] == pytest.approx(2 * brier_score_loss(truth, probabilities[:, 1]), rel=1e-12)
    if images == 1:
        assert found["brier_interval"] is None
    else:
        assert found["brier_interval"][0] <= found["brier"] <= found["brier_interval"][1]


@pytest.mark.parametrize("strategy, ours", [("uniform", fixed_bins), ("quantile", adaptive_bins)])
def test_bins_are_those_of_scikit_learn(strategy, ours):
    logits, truth = drawn(600, 2)  # a multiple of the bins, so that quantiles and equal counts agree
    confidence = softmax(logits, axis=1).max(axis=1)
    right = logits.argmax(axis=1) == truth
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=15, strategy=strategy)
    found = ours(confidence, right)
    np.testing.assert_allclose(found.accuracy, accuracy, atol=1e-12)
    np.testing.assert_allclose(found.confidence, mean_confidence, atol=1e-12)
    assert found.images.sum() == 600


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    found = fixed_bins(np.array([0.0, 0.2, 0.4, 0.6, 1.0]), np.array([0, 0, 1, 1, 1]), bins=5)
    assert found.images.tolist() == [2, 1, 1, 1]


def test_adaptive_bins_hold_equal_numbers_of_images():
    found = adaptive_bins(np.repeat(0.5, 31), np.zeros(31))
    assert sorted(found.images) == [2] * 14 + [3] and found.error == 0.5
    assert adaptive_bins(np.array([0.3, 0.9]), np.array([1, 0])).images.tolist() == [1, 1]


def test_the_temperature_is_the_minimum_that_scipy_finds():
    for seed, true_temperature in enumerate([0.3, 1.0, 2.5]):
        logits, truth = drawn(2000, 4, seed, true_temperature)

        def loss(log_temperature, logits=logits, truth=truth):
            return -log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(len(truth)), truth].mean()

        found = fit_temperature(logits, truth)
        wanted = minimize_scalar(loss, bounds=(-4.6, 4.6), method="bounded", options={"xatol": 1e-10})
        assert found == pytest.approx(np.exp(wanted.x), rel=1e-5)
        assert found == pytest.approx(true_temperature, rel=0.2)


def test_a_temperature_calibrates_an_overconfident_model_and_changes_no_prediction():
    logits, truth = drawn(4000, 3, 0, temperature=3.0)
    temperature = fit_temperature(logits[:2000], truth[:2000])
    before, after = (
        measure_calibration(our_softmax(logits[2000:] / value), truth[2000:], resamples=20)
        for value in (1, temperature)
    )
    assert before["ece"] > 0.2 > 0.05 > after["ece"] and after["nll"] < before["nll"]
    assert before["ece"] > before["ece_if_calibrated"]["quantile_97_5"]
    assert after["ece"] < after["ece_if_calibrated"]["quantile_97_5"]


@pytest.mark.parametrize(
    "logits, truth, message",
    [
        ([[9.0, 0.0], [0.0, 9.0]], [0, 1], "all 2 validation images are classified right"),
        ([[np.nan, 0.0]], [0], "NaN or infinite"),
    ],
)
def test_an_impossible_temperature_is_an_error(logits, truth, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(np.array(logits), np.array(truth))


@pytest.mark.parametrize("logits", [[[1.0, 1.0], [2.0, 2.0]], [[5.0, 0.0], [0.0, 5.0]]])
def test_scores_that_say_nothing_give_nearly_equal_probabilities(logits):
    assert fit_temperature(np.array(logits), np.array([1, 0])) == 100


def test_a_calibrated_model_has_an_error_above_0_for_few_images():
    few, many = (error_of_calibrated(np.full(images, 0.8))["mean"] for images in (20, 20_000))
    # The mean absolute deviation of a binomial mean is sqrt(2 p q / (pi n)).
    assert few == pytest.approx(math.sqrt(2 * 0.16 / (math.pi * 20)), rel=0.15) and many < 0.003


def test_probabilities_of_extreme_and_of_missing_scores():
    found = our_softmax([[1000.0, 0.0], [-np.inf, 0.0], [np.nan, 0.0]])
    assert found[0].tolist() == [1.0, 0.0] and np.isnan(found[1:]).all()
    assert measure_calibration(found, np.array([0, 0, 0])) is None
