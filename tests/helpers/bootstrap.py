"""Bootstrap intervals of scipy, which ours must equal."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def scipy_interval(values: np.ndarray, groups: Sequence, seed: int = 0) -> list[float]:
    """Return the 95 % percentile interval of a mean over whole groups, from their sums and sizes."""
    _, group_of = np.unique(groups, return_inverse=True)
    interval = stats.bootstrap(
        (np.bincount(group_of, values), np.bincount(group_of)),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return [interval.low, interval.high]
