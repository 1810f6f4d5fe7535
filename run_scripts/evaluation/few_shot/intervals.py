"""Intervals of means over draws and test images, both of which are samples.

Each draw is measured on the same test images, so draws and images are crossed. The variance of the mean is estimated
from the mean squares of an analysis of variance with two crossed random effects. The interval has the quantile of
Student's t distribution with Satterthwaite's degrees of freedom.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t


def mean_interval(values: np.ndarray, groups: Sequence[Any] | np.ndarray | None = None) -> list[float] | None:
    """Return the ends of the 95 % interval of a mean, or None if it cannot be estimated.

    It covers the choice of the draws and of the test images. With a single draw, it covers only that of the images.

    Args:
        values: A value for each draw and image, such as whether the answer is right, of shape `(draws, images)`.
        groups: Patient or source of each image. Whole groups are a sample, or single images if None.

    Returns:
        The ends, or None if there is a single group, or if no value differs from another.
    """
    values = np.asarray(values, dtype=float)
    draws, images = values.shape
    _, group_of = np.unique(np.arange(images) if groups is None else np.asarray(groups), return_inverse=True)
    size = group_of.max() + 1
    if size < 2:
        return None
    mean = values.mean()
    of_images = np.bincount(group_of, values.mean(axis=0) - mean) / images
    parts = [(size / (size - 1) * float((of_images**2).sum()), size - 1)]
    if draws > 1:
        of_draws = values.mean(axis=1)
        parts.append((float(of_draws.var(ddof=1)) / draws, draws - 1))
        rest = values - values.mean(axis=0) - of_draws[:, None] + mean
        sums = np.stack([np.bincount(group_of, row) for row in rest]) / images
        freedom = (draws - 1) * (size - 1)
        both = size * float((sums**2).sum()) / freedom / draws  # is in the variances of the images and of the draws
        parts.append((-both, freedom))
    variance = max(sum(part for part, _ in parts), *(part for part, _ in parts))
    if variance <= np.finfo(float).eps:
        return None
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    half = float(t.ppf(0.975, freedom)) * variance**0.5
    return [float(mean - half), float(mean + half)]
