"""Compare two classifiers on the same images: paired bootstrap, McNemar's test and DeLong's test."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .bootstrap import MIN_USABLE, bootstrap_weights, percentile_interval


class McNemar(NamedTuple):
    """Numbers of images that only the first or only the second model classifies right, and the exact p-value."""

    only_first: int
    only_second: int
    p_value: float


class DeLong(NamedTuple):
    """AUROC of two models, their difference (second minus first), its standard error, 95 % interval and p-value.

    The standard error, interval and p-value are None if the variance is 0, such as for equal scores.
    """

    first: float
    second: float
    difference: float
    standard_error: float | None
    interval: list[float] | None
    p_value: float | None


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> McNemar:
    """Return the exact two-sided McNemar test of equal accuracy.

    If both models are equally accurate, each image on which they differ favors one of them with probability 0.5. The
    p-value is twice the smaller tail of this binomial distribution, and at most 1.

    Args:
        first_right: Whether the first model classifies each image right.
        second_right: Whether the second model does.
    """
    first, second = np.asarray(first_right, dtype=bool), np.asarray(second_right, dtype=bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing, smaller = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(differing, count) for count in range(smaller + 1))  # exact integers of any size
    p_value = min(1.0, float(2 * tail / 2**differing)) if differing < 1000 else _large_tail(differing, smaller)
    return McNemar(only_first, only_second, p_value)


def _large_tail(differing: int, smaller: int) -> float:
    """Return the p-value with logarithms, because 2^1000 has no float."""
    logs = [
        math.lgamma(differing + 1) - math.lgamma(count + 1) - math.lgamma(differing - count + 1)
        for count in range(smaller + 1)
    ]
    largest = max(logs)
    log_tail = largest + math.log(math.fsum(math.exp(log - largest) for log in logs)) - differing * math.log(2)
    return min(1.0, 2 * math.exp(log_tail))


def delong(first: np.ndarray, second: np.ndarray, positive: np.ndarray) -> DeLong:
    """Return DeLong's test of equal AUROC on the same images, which are independent of each other.

    A positive and a negative image of equal score count as one half. See DeLong et al. (1988).

    Args:
        first: Score of each image by the first model.
        second: Score of each image by the second model.
        positive: Whether each image is positive.

    Raises:
        ValueError: If there are fewer than two positive or two negative images.
    """
    if min(positive.sum(), (~positive).sum()) < 2:
        raise ValueError("DeLong's test needs at least two positive and two negative images.")
    # Placements: fraction of the images of the other kind that an image outranks.
    placed = [_placements(scores, positive) for scores in (first, second)]
    of_positive, of_negative = (np.stack(parts) for parts in zip(*placed, strict=True))
    areas = of_positive.mean(axis=1)
    covariance = np.cov(of_positive) / of_positive.shape[1] + np.cov(of_negative) / of_negative.shape[1]
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = float(areas[1] - areas[0])
    if variance <= 1e-20:
        return DeLong(float(areas[0]), float(areas[1]), difference, None, None, None)
    error = math.sqrt(variance)
    interval = [difference - 1.959963984540054 * error, difference + 1.959963984540054 * error]
    p_value = math.erfc(abs(difference) / error / math.sqrt(2))
    return DeLong(float(areas[0]), float(areas[1]), difference, error, interval, p_value)


def _placements(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how large a part of the negative images each positive image outranks, and of the positive the negative."""
    ours, others = scores[positive], scores[~positive]
    return _below(ours, others), 1 - _below(others, ours)


def _below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    ordered = np.sort(others)
    left, right = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
    return (left + right) / 2 / len(others)


def paired_interval(
    difference: Callable[[np.ndarray], float | None],
    groups: Sequence[Any] | np.ndarray,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> list[float] | None:
    """Return the 95 % interval of a difference of two models, with the same images in each bootstrap sample.

    Args:
        difference: Function of the number of times that each image counts. None means undefined.
        groups: Group of each image. Whole groups are drawn.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap samples.

    Returns:
        The ends of the interval, or None if the difference is undefined in more than 90 % of the samples.
    """
    found = [
        value
        for weights in bootstrap_weights(groups, seed=seed, resamples=resamples)
        if (value := difference(weights)) is not None
    ]
    return percentile_interval(found) if found and len(found) >= MIN_USABLE * resamples else None
