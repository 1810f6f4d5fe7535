"""Calibration of one finding: a temperature, and a bias if it is needed, of the log-odds of a yes-or-no label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import chi2

from ..calibration import (
    BINS,
    LARGEST_TEMPERATURE,
    adaptive_bins,
    error_of_calibrated,
    fit_temperature,
    fixed_bins,
    smallest_temperature,
)
from ..statistics.bootstrap import bootstrap_interval


LEVEL = 0.05  # level of the likelihood-ratio test of the bias


@dataclass(frozen=True)
class LogOddsCalibration:
    """Calibrated log-odds are `log_odds / temperature + bias`. The order of the images stays the same."""

    temperature: float = 1.0
    bias: float = 0.0

    def __call__(self, log_odds: np.ndarray) -> np.ndarray:
        """Return calibrated log-odds."""
        return log_odds / self.temperature + self.bias


def binary_log_losses(log_odds: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the negative log-likelihood of each label."""
    return np.logaddexp(0, np.where(positive, -log_odds, log_odds))


def fit_log_odds(log_odds: np.ndarray, positive: np.ndarray, *, units: int | None = None) -> LogOddsCalibration:
    """Return the calibration with the smallest negative log-likelihood.

    The bias stays 0 unless it improves the likelihood significantly (likelihood-ratio test at a level of 5 %). It is
    needed where probabilities do not have the prevalence of the finding, as those of prompt pairs and of class weights.

    Args:
        log_odds: Log-odds of validation images.
        positive: Whether each image has the finding.
        units: Number of independent units for the test, such as patients (default: the number of images).

    Raises:
        ValueError: If log-odds are NaN or infinite, or if all labels are equal, or if the scores separate them
            completely or but for equal scores at the border, so that a smaller temperature is always better.
    """
    if not np.isfinite(log_odds).all():
        raise ValueError("its scores of the validation images are NaN or infinite.")
    if not 0 < positive.sum() < len(positive):
        labels = f"all {len(positive):,} validation labels are {int(positive.any())}" if len(positive) else "no labels"
        raise ValueError(f"{labels}. Add validation images with and without the finding.")
    lowest, highest = log_odds[positive].min(), log_odds[~positive].max()
    if lowest >= highest and np.ptp(log_odds) > 0:  # equal scores of all images separate nothing
        completely = "completely" if lowest > highest else "but for equal scores"
        raise ValueError(
            f"its scores separate the {positive.sum():,} positive from the {(~positive).sum():,} negative validation "
            f"images {completely}, so that each smaller temperature fits them better. Use more validation images."
        )
    two_classes = np.stack([np.zeros_like(log_odds), log_odds], axis=1)
    alone = LogOddsCalibration(fit_temperature(two_classes, positive.astype(np.int64)))
    with_bias = _fit_both(log_odds, positive, alone)
    losses = [binary_log_losses(fitted(log_odds), positive).mean() for fitted in (alone, with_bias)]
    gain = 2 * (len(positive) if units is None else units) * (losses[0] - losses[1])
    return with_bias if gain > chi2.ppf(1 - LEVEL, 1) else alone


def _fit_both(log_odds: np.ndarray, positive: np.ndarray, start: LogOddsCalibration) -> LogOddsCalibration:
    """Return the best temperature and bias. The loss is convex in the inverse temperature and the bias."""
    mean, deviation = log_odds.mean(), log_odds.std() or 1.0
    scaled = (log_odds - mean) / deviation

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, shift = parameters
        calibrated = slope * scaled + shift
        errors = expit(calibrated) - positive
        gradient = np.array([errors @ scaled, errors.sum()]) / len(scaled)
        return float(binary_log_losses(calibrated, positive).mean()), gradient

    largest = deviation / smallest_temperature(deviation)
    bounds = [(deviation / LARGEST_TEMPERATURE, largest), (None, None)]
    first = np.array([deviation, mean]) / start.temperature
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000}
    slope, shift = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return LogOddsCalibration(float(deviation / slope), float(shift - slope * mean / deviation))


def measure_log_odds(
    log_odds: np.ndarray,
    positive: np.ndarray,
    *,
    groups: Sequence[Any] | None = None,
    bins: int = BINS,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Return the calibration of the probabilities of one finding.

    Bins are those of the probability of the finding, and not of the predicted label as in [`measure_calibration`].

    Args:
        log_odds: Finite log-odds of each image.
        positive: Whether each image has the finding.
        groups: Patient or source of each image. The bootstrap draws whole groups.
        bins: Number of bins.
        seed: Seed of the bootstrap and the simulation.
        resamples: Number of bootstrap samples.

    Returns:
        `ece` (fixed bins), `adaptive_ece`, `brier` (0 to 1, as scikit-learn's) and `nll`, the last two with 95 %
        intervals, the mean `probability`, the `prevalence`, `ece_if_calibrated`, and the bins of both kinds, with the
        mean probability as `confidence` and the fraction of positive images as `accuracy`.
    """
    probabilities, truth = expit(log_odds), positive.astype(np.float64)
    fixed, adaptive = fixed_bins(probabilities, truth, bins), adaptive_bins(probabilities, truth, bins)
    result: dict[str, Any] = {"ece": fixed.error, "adaptive_ece": adaptive.error}
    drawn = np.arange(len(truth)) if groups is None else groups
    for name, values in (
        ("brier", (probabilities - truth) ** 2),
        ("nll", binary_log_losses(log_odds, positive)),
    ):
        result[name] = float(values.mean())
        result[f"{name}_interval"] = bootstrap_interval(values, drawn, seed=seed, resamples=resamples)
    return result | {
        "probability": float(probabilities.mean()),
        "prevalence": float(truth.mean()),
        "ece_if_calibrated": error_of_calibrated(probabilities, bins, seed=seed),
        "fixed_bins": fixed.as_dict(),
        "adaptive_bins": adaptive.as_dict(),
    }
