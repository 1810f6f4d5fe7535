"""Decisions from probabilities: thresholds for a wanted sensitivity, abstention, and prediction sets.

Thresholds are chosen on validation images and measured on others. All functions use NumPy only.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .statistics.bootstrap import fraction_interval, metrics_with_intervals, ratio


COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.5)  # fractions of the images for which the accuracy is reported
_POINTS = 200  # of a curve


def threshold_for_sensitivity(scores: np.ndarray, positive: np.ndarray, wanted: float) -> float:
    """Return the highest threshold with at least the wanted sensitivity. A score at the threshold is positive.

    Args:
        scores: Probability of the positive class of each validation image.
        positive: Whether each image is positive.
        wanted: Sensitivity, above 0 and at most 1.

    Raises:
        ValueError: If no image is positive.
    """
    own = np.sort(scores[positive])[::-1]
    if not len(own):
        raise ValueError("a sensitivity needs positive images.")
    return float(own[max(1, math.ceil(wanted * len(own) - 1e-9)) - 1])


def threshold_for_specificity(scores: np.ndarray, positive: np.ndarray, wanted: float) -> float:
    """Return the lowest threshold with at least the wanted specificity among the scores. See above for the arguments.

    If no score is high enough, the threshold is just above the highest one.

    Raises:
        ValueError: If no image is negative.
    """
    others = np.sort(scores[~positive])
    if not len(others):
        raise ValueError("a specificity needs negative images.")
    below = others[max(1, math.ceil(wanted * len(others) - 1e-9)) - 1]
    above = scores[scores > below]
    return float(above.min() if len(above) else np.nextafter(below, np.inf))


def measure_threshold(
    scores: np.ndarray,
    positive: np.ndarray,
    threshold: float,
    *,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Return sensitivity, specificity, and the predictive values at a threshold, with 95 % intervals.

    A metric is None if there is nothing to count. The bootstrap draws whole groups.
    """
    called = scores >= threshold
    return metrics_with_intervals(
        {
            "sensitivity": ratio(called & positive, positive),
            "specificity": ratio(~called & ~positive, ~positive),
            "positive_predictive_value": ratio(called & positive, called),
            "negative_predictive_value": ratio(~called & ~positive, ~called),
        },
        range(len(scores)) if groups is None else groups,
        seed=seed,
        resamples=resamples,
    )


def operating_point(
    goal: str,
    wanted: float,
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    **options: Any,
) -> dict[str, Any]:
    """Choose a threshold on validation images, and measure it on test images.

    Args:
        goal: `sensitivity` or `specificity`.
        wanted: Its value.
        validation: Scores of the validation images, and whether each is positive.
        test: Those of the test images.
        options: Options of [`measure_threshold`].

    Returns:
        The `threshold`, the value that it reaches `on_validation`, and the metrics of [`measure_threshold`].
    """
    scores, positive = validation
    choose = threshold_for_sensitivity if goal == "sensitivity" else threshold_for_specificity
    threshold = choose(scores, positive, wanted)
    called = scores >= threshold
    reached = called[positive] if goal == "sensitivity" else ~called[~positive]
    point = {"goal": goal, "wanted": wanted, "threshold": threshold, "on_validation": float(reached.mean())}
    return point | measure_threshold(*test, threshold, **options)


def measure_abstention(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """Return the accuracy if a model answers only for its most confident images.

    Images of the same confidence are in random order, so that each of them counts with their mean accuracy.

    Args:
        confidence: Probability of the predicted class of each image.
        right: Whether the predicted class is right.

    Returns:
        `aurc`, the mean error over all coverages, and that of a perfect and of a random order of the images.
        `accuracy_at_coverage` by fraction of the images, and `curve` with `coverage` and `accuracy`.
    """
    _, tied = np.unique(confidence, return_inverse=True)
    errors = 1.0 - np.asarray(right, dtype=np.float64)
    expected = (np.bincount(tied, errors) / np.bincount(tied))[tied]
    risks = _risks(expected[np.argsort(-confidence, kind="stable")])
    images = len(risks)
    places = np.unique(np.linspace(1, images, min(images, _POINTS)).round().astype(int))
    return {
        "aurc": float(risks.mean()),
        "aurc_of_perfect_order": float(_risks(np.sort(errors)).mean()),
        "aurc_of_random_order": float(errors.mean()),
        "accuracy_at_coverage": {
            f"{coverage:g}": float(1 - risks[max(1, math.ceil(coverage * images - 1e-9)) - 1]) for coverage in COVERAGES
        },
        "curve": {"coverage": (places / images).tolist(), "accuracy": (1 - risks[places - 1]).tolist()},
    }


def _risks(errors: np.ndarray) -> np.ndarray:
    """Return the mean error of the first k images, for each k."""
    return errors.cumsum() / np.arange(1, len(errors) + 1)


def conformal_threshold(probabilities: np.ndarray, truth: np.ndarray, coverage: float) -> float:
    """Return the probability from which a class belongs to the prediction set of an image.

    Split conformal prediction: if images are exchangeable with the validation images, the set contains the true class
    with at least the wanted probability, whatever the model. The score of an image is 1 minus the probability of its
    true class, as in Sadinle et al. (2019).

    Args:
        probabilities: Of shape `(images, classes)`, of validation images that the model has not seen in training.
        truth: Class index of each image.
        coverage: Wanted probability, above 0 and below 1.

    Returns:
        The threshold. It is minus infinity, so that a set contains all classes, if there are too few images.
    """
    own = np.sort(probabilities[np.arange(len(truth)), truth])  # ascending: the worst image first
    # The k-th largest score of n, with k = ceil((n + 1) coverage), is the k-th largest of 1 - p.
    place = math.ceil((len(own) + 1) * coverage - 1e-9)
    return -math.inf if place > len(own) else float(own[len(own) - place])


def fewest_images(coverage: float) -> int:
    """Return the smallest number of validation images with which prediction sets can leave a class out."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def measure_sets(
    sets: np.ndarray,
    truth: np.ndarray,
    *,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Return how often prediction sets contain the true class, with a 95 % interval, and how large they are.

    Args:
        sets: Whether each class is in the set of each image, of shape `(images, classes)`.
        truth: Class index of each image.
        groups: Patient or source of each image. The bootstrap draws whole groups.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap samples.
    """
    covered = sets[np.arange(len(truth)), truth].astype(np.float64)
    drawn = np.arange(len(truth)) if groups is None else groups
    sizes = sets.sum(axis=1)
    present = np.bincount(truth, minlength=sets.shape[1])
    of_class = np.bincount(truth, covered, sets.shape[1])
    return {
        "measured_coverage": float(covered.mean()),
        "measured_coverage_interval": fraction_interval(covered, drawn, seed=seed, resamples=resamples),
        "mean_size": float(sizes.mean()),
        "images_of_size": np.bincount(sizes, minlength=sets.shape[1] + 1).tolist(),
        "coverage_of_class": [
            float(hit / count) if count else None for hit, count in zip(of_class, present, strict=True)
        ],
    }
