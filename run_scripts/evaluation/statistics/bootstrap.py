"""Percentile bootstrap intervals of means and other metrics, over whole groups."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .exact_intervals import exact_interval


# A metric of values that count as often as their weights say, or None if it is undefined.
Metric = Callable[[np.ndarray], float | None]
# Minimum fraction of bootstrap samples in which a metric is defined. Otherwise it has no interval.
MIN_USABLE = 0.1


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
) -> list[float] | None:
    """Return the ends of the 95 % interval of a mean, or None if there is only one group.

    See [`bootstrap_means`] for the arguments.
    """
    if len(np.unique(np.asarray(groups))) < 2:
        return None
    return percentile_interval(bootstrap_means(values, groups, seed=seed, resamples=resamples))


def fraction_interval(
    values: np.ndarray, groups: Sequence[Any] | np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> list[float] | None:
    """Return the ends of the 95 % interval of a mean of values from 0 to 1, such as an accuracy.

    If all values are 0 or all are 1, all bootstrap samples are equal, and the interval is that of [`exact_interval`].
    See [`bootstrap_means`] for the arguments. The interval is None if there is only one group.
    """
    interval = bootstrap_interval(values, groups, seed=seed, resamples=resamples)
    if interval is not None and is_constant(values):
        return exact_interval(float(values[0]), len(np.unique(np.asarray(groups))))
    return interval


def is_constant(values: np.ndarray) -> bool:
    """Return whether all values are 0 or all are 1."""
    return bool(np.all(values == 0) or np.all(values == 1))


def bootstrap_weights(
    groups: Sequence[Any] | np.ndarray, *, seed: int = 0, resamples: int = 1000
) -> Iterator[np.ndarray]:
    """Yield how often each value is drawn, for each bootstrap sample of whole groups. A single group has no samples."""
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    generator, drawable = np.random.default_rng(seed), group_of.max() + 1
    for _ in range(resamples if drawable > 1 else 0):
        drawn = generator.integers(drawable, size=drawable)
        yield np.bincount(drawn, minlength=drawable)[group_of].astype(float)


def metrics_with_intervals(
    metrics: Mapping[str, Metric], groups: Sequence[Any], *, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """Return the value `NAME` and the 95 % interval `NAME_interval` of each metric.

    An interval is None if the metric is undefined in more than 90 % of the bootstrap samples. A [`Ratio`] of 0 or 1 has
    the interval of [`exact_interval`], because all samples have the same value.
    """
    samples = list(bootstrap_weights(groups, seed=seed, resamples=resamples))
    result: dict[str, Any] = {}
    for name, metric in metrics.items():
        values = [value for weights in samples if (value := metric(weights)) is not None]
        usable = values and len(values) >= MIN_USABLE * resamples
        result[name] = metric(np.ones(len(groups)))
        result[f"{name}_interval"] = percentile_interval(values) if usable else None
        if usable and isinstance(metric, Ratio) and result[name] in (0, 1):
            result[f"{name}_interval"] = exact_interval(result[name], metric.units(groups))
    return result


@dataclass(frozen=True)
class Ratio:
    """The metric that is the sum of `parts` by the sum of `of`, and None if that is 0. It is from 0 to 1."""

    parts: np.ndarray
    of: np.ndarray

    def __call__(self, weights: np.ndarray) -> float | None:
        """Return the ratio of values that count as often as their weights say."""
        total = float(weights @ self.of)
        return float(weights @ self.parts) / total if total else None

    def units(self, groups: Sequence[Any] | np.ndarray) -> int:
        """Return the number of groups that the ratio is of."""
        return len(np.unique(np.asarray(groups)[self.of > 0]))


def ratio(parts: Sequence[float] | np.ndarray, of: Sequence[float] | np.ndarray) -> Ratio:
    """Return the metric of two sums. See [`Ratio`]."""
    return Ratio(np.asarray(parts, dtype=float), np.asarray(of, dtype=float))


def undefined_metrics(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the reason for each metric of [`metrics_with_intervals`] that is None."""
    names = [name for name, value in metrics.items() if value is None and not name.endswith("_interval")]
    return dict.fromkeys(names, "there is nothing to count")
