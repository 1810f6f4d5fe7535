"""Calibration: whether a predicted probability of 0.8 is right in 80 % of the cases, and the temperature that helps.

All functions take the probabilities or logits of images that have one label each. They use NumPy only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .statistics.bootstrap import bootstrap_interval


BINS = 15  # default, as in Guo et al. (2017)
SIMULATIONS = 200
LARGEST_TEMPERATURE = 100.0
SMALLEST_TEMPERATURE = 0.01  # smaller ones are searched only for logits of a standard deviation below 10
_SMALLEST = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Bins:
    """Bins of images by confidence, the probability of the predicted class. Empty bins are left out.

    Args:
        confidence: Mean confidence of each bin.
        accuracy: Fraction of right predictions in each bin.
        images: Number of images in each bin.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    images: np.ndarray

    @property
    def error(self) -> float:
        """Return the expected calibration error: the mean difference of confidence and accuracy, by images."""
        return float(np.abs(self.confidence - self.accuracy) @ self.images / self.images.sum())

    def as_dict(self) -> dict[str, list[float]]:
        """Return the bins in the form of `results.json`."""
        return {name: getattr(self, name).tolist() for name in ("confidence", "accuracy", "images")}


def fixed_bins(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Bins:
    """Return bins of equal width from 0 to 1. A confidence on an edge belongs to the bin below.

    Args:
        confidence: Probability of the predicted class of each image.
        right: Whether the predicted class is right.
        bins: Number of bins.
    """
    # The edges are k / bins in floating point, as in np.linspace.
    number = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1, 0, bins - 1)
    return _bins(confidence, right, number, bins)


def adaptive_bins(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> Bins:
    """Return bins with equal numbers of images, or numbers that differ by one. See [`fixed_bins`] for the arguments.

    Images with the same confidence are sorted by their position.
    """
    bins = min(bins, len(confidence))
    number = np.empty(len(confidence), dtype=np.int64)
    number[np.argsort(confidence, kind="stable")] = np.arange(len(confidence)) * bins // len(confidence)
    return _bins(confidence, right, number, bins)


def _bins(confidence: np.ndarray, right: np.ndarray, number: np.ndarray, bins: int) -> Bins:
    images = np.bincount(number, minlength=bins)
    used = images > 0
    means = {
        name: np.bincount(number, values, bins)[used] / images[used]
        for name, values in (("confidence", confidence), ("accuracy", right))
    }
    return Bins(images=images[used], **means)


def brier_scores(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the Brier score of each image: the squared distance to the true class, summed over the classes (0 to 2).

    Args:
        probabilities: Of shape `(images, classes)`.
        truth: Class index of each image.
    """
    return ((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(axis=1)


def log_losses(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the negative log-likelihood of each image. See [`brier_scores`] for the arguments."""
    return -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], _SMALLEST))


def error_of_calibrated(
    confidence: np.ndarray, bins: int = BINS, *, seed: int = 0, simulations: int = SIMULATIONS
) -> dict[str, float]:
    """Return the fixed-bin error that a perfectly calibrated model with these confidences would have.

    The error is above 0 for few images even if the model is calibrated. Predictions are drawn as right with the
    probability that the confidence states. Return the mean error and its 97.5 % quantile.
    """
    generator = np.random.default_rng(seed)
    errors = [
        fixed_bins(confidence, generator.random(len(confidence)) < confidence, bins).error for _ in range(simulations)
    ]
    return {"mean": float(np.mean(errors)), "quantile_97_5": float(np.quantile(errors, 0.975))}


def measure_calibration(
    probabilities: np.ndarray,
    truth: np.ndarray,
    *,
    groups: Sequence[Any] | None = None,
    bins: int = BINS,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any] | None:
    """Return the calibration of predictions, or None if a probability is NaN.

    Args:
        probabilities: Of shape `(images, classes)`. The rows sum to 1.
        truth: Class index of each image.
        groups: Patient or source of each image. The bootstrap draws whole groups.
        bins: Number of bins.
        seed: Seed of the bootstrap and the simulation.
        resamples: Number of bootstrap samples.

    Returns:
        `ece` (fixed bins), `adaptive_ece`, `brier` and `nll` (the last two with 95 % intervals `..._interval`), the
        mean `confidence`, `ece_if_calibrated` of [`error_of_calibrated`], and the bins of both kinds.
    """
    if not np.isfinite(probabilities).all():
        return None
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == truth).astype(np.float64)
    fixed, adaptive = fixed_bins(confidence, right, bins), adaptive_bins(confidence, right, bins)
    result: dict[str, Any] = {"ece": fixed.error, "adaptive_ece": adaptive.error}
    drawn = np.arange(len(truth)) if groups is None else groups
    for name, values in (("brier", brier_scores(probabilities, truth)), ("nll", log_losses(probabilities, truth))):
        result[name] = float(values.mean())
        result[f"{name}_interval"] = bootstrap_interval(values, drawn, seed=seed, resamples=resamples)
    return result | {
        "confidence": float(confidence.mean()),
        "ece_if_calibrated": error_of_calibrated(confidence, bins, seed=seed),
        "fixed_bins": fixed.as_dict(),
        "adaptive_bins": adaptive.as_dict(),
    }


def softmax(logits: Any) -> np.ndarray:
    """Return the probabilities of logits `(images, classes)` in float64, NaN for rows that are not finite."""
    logits = np.asarray(logits, dtype=np.float64)
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.where(finite, powers / powers.sum(axis=1, keepdims=True), np.nan)


def fit_temperature(logits: Any, truth: np.ndarray) -> float:
    """Return the temperature by which logits are divided so that the negative log-likelihood is smallest.

    It is at most 100, for logits that are no better than equal probabilities.

    The loss is convex in the inverse temperature, so that its minimum is found by bisection of its derivative.

    Args:
        logits: Of shape `(images, classes)`, of validation images.
        truth: Class index of each image.

    Raises:
        ValueError: If a logit is NaN or infinite, or if all images are classified right, so that a smaller temperature
            is always better.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(logits).all():
        raise ValueError("logits of the validation images are NaN or infinite.")
    own = logits[np.arange(len(truth)), truth]

    def slope(inverse: float) -> float:
        """Return the derivative of the mean loss by the inverse temperature."""
        return float(((softmax(logits * inverse) * logits).sum(axis=1) - own).mean())

    smallest = smallest_temperature(float((logits - logits.mean(axis=1, keepdims=True)).std()))
    low, high = 1 / LARGEST_TEMPERATURE, 1 / smallest
    if slope(low) >= 0:
        return LARGEST_TEMPERATURE  # equal probabilities are best
    if slope(high) <= 0:
        nearly = "" if (own >= logits.max(axis=1)).all() else "nearly "
        raise ValueError(
            f"{nearly}all {len(truth):,} validation images are classified right, so that each smaller temperature fits "
            f"them better, even below {smallest:.2g}. Use more validation images."
        )
    return 1 / _root(slope, low, high)


def smallest_temperature(deviation: float) -> float:
    """Return the smallest temperature that is searched, by the standard deviation of the logits.

    The logits of a strongly regularized classifier are small, and so is their temperature.
    """
    return min(SMALLEST_TEMPERATURE, deviation / 1000) or SMALLEST_TEMPERATURE


def _root(slope: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of an increasing function by bisection of the logarithm, to the last digits."""
    for _ in range(100):
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(np.sqrt(low * high))
