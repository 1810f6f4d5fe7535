"""Percentile bootstrap intervals of means, over whole groups."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def bootstrap_means(
    values: np.ndarray, groups: Sequence[Any] | np.ndarray, *, seed: int | Sequence[int] = 0, resamples: int = 1000
) -> np.ndarray:
    """Return the means of bootstrap samples of whole groups, of shape `(resamples,)`.

    Figures of one article are similar, so an interval over single figures would be too narrow. `groups` contains the
    group of each value, such as its article or patient.
    """
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    sums, sizes = np.bincount(group_of, weights=values), np.bincount(group_of)
    generator = np.random.default_rng(seed)
    means = []
    at_a_time = max(1, 2**22 // len(sums))  # 1,000 draws of 725,739 groups at once would take 6 GB
    for start in range(0, resamples, at_a_time):
        drawn = generator.integers(len(sums), size=(min(at_a_time, resamples - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def percentile_interval(resampled: np.ndarray | Sequence[float]) -> list[float]:
    """Return the ends of the 95 % percentile interval of resampled metrics."""
    return np.quantile(resampled, [0.025, 0.975]).tolist()


def bootstrap_interval(
    values: np.ndarray, groups: Sequence[Any] | np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> list[float]:
    """Return the ends of the 95 % interval of a mean. See [`bootstrap_means`] for the arguments."""
    return percentile_interval(bootstrap_means(values, groups, seed=seed, resamples=resamples))
