"""Thresholds, abstention and prediction sets, beside scikit-learn and plain loops."""

import math

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import precision_score, recall_score, roc_curve

from biomedclip.run_scripts.evaluation.decisions import (
    conformal_threshold,
    fewest_images,
    measure_abstention,
    measure_sets,
    measure_threshold,
    operating_point,
    threshold_for_sensitivity,
    threshold_for_specificity,
)


def scored(images: int, seed: int = 0, digits: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, higher for positive images."""
    generator = np.random.default_rng(seed)
    positive = generator.random(images) < 0.3
    return np.round(
        softmax(generator.normal(size=(images, 2)) + positive[:, None] * [0, 1.5], axis=1)[:, 1], digits
    ), positive


@pytest.mark.parametrize("wanted", [0.05, 0.5, 0.8, 0.9, 0.95, 1.0])
def test_thresholds_are_the_best_on_the_roc_curve_of_scikit_learn(wanted):
    scores, positive = scored(300)
    false_rate, true_rate, thresholds = roc_curve(positive, scores, drop_intermediate=False)
    assert threshold_for_sensitivity(scores, positive, wanted) == thresholds[true_rate >= wanted - 1e-12].max()
    found = threshold_for_specificity(scores, positive, wanted)
    usable = thresholds[1 - false_rate >= wanted - 1e-12]
    assert found == usable.min() or (found > scores.max() and usable.tolist() == [np.inf])


def test_a_threshold_above_all_scores_calls_no_image_positive():
    threshold = threshold_for_specificity(np.array([0.2, 0.9]), np.array([True, False]), 1.0)
    assert threshold > 0.9 and not (np.array([0.2, 0.9]) >= threshold).any()


def test_the_metrics_of_a_threshold_are_those_of_scikit_learn():
    scores, positive = scored(400, 1)
    groups = np.arange(400) // 4
    found = measure_threshold(scores, positive, 0.6, groups=groups)
    called = scores >= 0.6
    assert found["sensitivity"] == pytest.approx(recall_score(positive, called))
    assert found["specificity"] == pytest.approx(recall_score(~positive, ~called))
    assert found["positive_predictive_value"] == pytest.approx(precision_score(positive, called))
    assert found["negative_predictive_value"] == pytest.approx(precision_score(~positive, ~called))
    low, high = found["sensitivity_interval"]
    assert low < found["sensitivity"] < high
    assert measure_threshold(scores, positive, 2.0)["positive_predictive_value"] is None


@pytest.mark.parametrize("goal", ["sensitivity", "specificity"])
def test_an_operating_point_is_chosen_on_validation_images_and_measured_on_others(goal):
    validation, test = scored(300), scored(400, 1)
    found = operating_point(goal, 0.9, validation, test, seed=3)
    called, positive = validation[0] >= found["threshold"], validation[1]
    value = recall_score(positive, called) if goal == "sensitivity" else recall_score(~positive, ~called)
    assert (found["goal"], found["wanted"], found["on_validation"]) == (goal, 0.9, pytest.approx(value))
    assert found | measure_threshold(*test, found["threshold"], seed=3) == found


def test_classes_without_images_are_an_error():
    with pytest.raises(ValueError, match="positive images"):
        threshold_for_sensitivity(np.array([0.5]), np.array([False]), 0.9)
    with pytest.raises(ValueError, match="negative images"):
        threshold_for_specificity(np.array([0.5]), np.array([True]), 0.9)


def test_abstention_is_the_mean_over_all_orders_of_equal_confidences():
    confidence = np.array([0.9, 0.5, 0.5, 0.7, 0.5])
    right = np.array([1, 1, 0, 0, 0])
    risks = np.zeros(5)
    generator = np.random.default_rng(0)
    draws = 20_000
    for _ in range(draws):
        order = np.lexsort([generator.random(5), -confidence])
        wrong = 0
        for place, image in enumerate(order):
            wrong += 1 - right[image]
            risks[place] += wrong / (place + 1) / draws
    found = measure_abstention(confidence, right)
    assert found["aurc"] == pytest.approx(risks.mean(), abs=0.005)
    np.testing.assert_allclose(1 - np.array(found["curve"]["accuracy"]), risks, atol=0.01)
    assert found["accuracy_at_coverage"] == pytest.approx(
        {"1": 0.4, "0.9": 0.4, "0.8": 5 / 12, "0.7": 5 / 12, "0.5": 4 / 9}
    )
    assert found["aurc_of_random_order"] == 0.6
    assert found["aurc_of_perfect_order"] == pytest.approx((0 + 0 + 1 / 3 + 2 / 4 + 3 / 5) / 5)


def test_the_threshold_of_sets_is_the_quantile_of_a_plain_loop():
    generator = np.random.default_rng(3)
    probabilities = softmax(generator.normal(size=(50, 4)), axis=1)
    truth = generator.integers(4, size=50)
    for coverage in (0.5, 0.8, 0.9, 0.95):
        scores = sorted(1 - probabilities[image, label] for image, label in enumerate(truth))
        wanted = scores[math.ceil(51 * coverage) - 1]
        assert 1 - conformal_threshold(probabilities, truth, coverage) == pytest.approx(wanted, abs=1e-15)


def test_too_few_images_give_sets_with_all_classes():
    assert fewest_images(0.9) == 9 and fewest_images(0.95) == 19 and fewest_images(0.5) == 1
    for images, usable in ((8, False), (9, True)):
        threshold = conformal_threshold(np.full((images, 2), 0.5), np.zeros(images, dtype=int), 0.9)
        assert (threshold > -math.inf) is usable


@pytest.mark.parametrize("coverage", [0.8, 0.9])
def test_prediction_sets_have_the_stated_coverage_for_a_bad_model(coverage):
    """The mean coverage over many draws is between the wanted one and 1 / (n + 1) more, whatever the model."""
    generator = np.random.default_rng(0)
    images, draws = 60, 1500
    found = []
    for _ in range(draws):
        truth = generator.integers(3, size=2 * images)
        # Overconfident, and wrong in half of the cases.
        logits = 5 * generator.normal(size=(2 * images, 3)) + 2 * np.eye(3)[truth]
        probabilities = softmax(logits, axis=1)
        threshold = conformal_threshold(probabilities[:images], truth[:images], coverage)
        sets = probabilities[images:] >= threshold
        found.append(sets[np.arange(images), truth[images:]].mean())
    error = 4 * np.std(found) / math.sqrt(draws)
    assert coverage - error <= np.mean(found) <= coverage + 1 / (images + 1) + error


def test_sets_are_counted():
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=bool)
    found = measure_sets(sets, np.array([0, 2, 1, 0]))
    assert found["measured_coverage"] == 0.5 and found["mean_size"] == 1.5
    assert found["images_of_size"] == [1, 1, 1, 1] and found["coverage_of_class"] == [1.0, 0.0, 0.0]
