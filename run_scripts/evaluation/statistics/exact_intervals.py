"""Exact intervals for fractions of 0 and 1, where all bootstrap samples are the same and give an interval of a point.

All patients or images are then right, or all are wrong. The intervals are those of Clopper and Pearson. With groups,
they count groups: a patient with ten images that are all right counts once, because the images of a patient are not
independent. This is exact if the images of a patient are all right or all wrong, and too wide if they are independent.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest


LEVEL = 0.95


def exact_interval(value: float, units: int) -> list[float]:
    """Return the interval of Clopper and Pearson for a fraction of 0 or 1 of independent units.

    Args:
        value: The fraction, 0 or 1.
        units: Number of independent images, or of groups.
    """
    interval = binomtest(units if value == 1 else 0, units).proportion_ci(LEVEL, method="exact")
    return [float(interval.low), float(interval.high)]


def exact_mean_interval(value: float, units: Sequence[int] | np.ndarray) -> list[float]:
    """Return the interval for the mean of the recalls of classes that are all 0 or all 1, such as balanced accuracy.

    Recalls are plausible if the probability of what was observed is at least 2.5 %. The interval has the means of all
    plausible recalls. With equal numbers of units, it is that of all units together.

    Args:
        value: The recall of each class, 0 or 1.
        units: Number of independent images or groups of each class.
    """
    numbers = np.asarray(units, dtype=float)
    wanted = np.log((1 - LEVEL) / 2)

    def recalls(factor: float) -> np.ndarray:
        return np.minimum(1, factor * numbers)

    # The smallest mean of recalls p with sum(n log p) = log 0.025 has p proportional to n, and at most 1.
    def excess(logarithm: float) -> float:
        return float(numbers @ np.log(recalls(np.exp(logarithm))) - wanted)

    highest = -np.log(numbers.min())  # all recalls are 1
    lowest = highest + wanted  # the rarest class alone makes the observation implausible
    mean = float(recalls(np.exp(brentq(excess, lowest - 1, highest))).mean())
    return [mean, 1.0] if value == 1 else [0.0, 1 - mean]
