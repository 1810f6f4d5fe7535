"""Draw random fractions of each class."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np


def draw_fraction(labels: Sequence[Any] | np.ndarray, fraction: float, seed: int) -> list[int]:
    """Draw a fraction of each class at random.

    Args:
        labels: The class of each row. The classes must be sortable.
        fraction: Fraction of each class. The number of rows is rounded and is at least 1 for each class.
        seed: Random seed.

    Returns:
        The positions of the drawn rows, in ascending order.

    Raises:
        ValueError: If `fraction` is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"The fraction to draw must be above 0 and at most 1, not {fraction}.")
    return sorted(row for drawn in _drawn(labels, fraction, seed).values() for row in drawn)


def hold_out(labels: Sequence[Any] | np.ndarray, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split rows into two parts at random, class by class.

    Args:
        labels: The class of each row.
        fraction: Fraction of each class to hold out. At least one row of each class is not held out.
        seed: Random seed.

    Returns:
        The positions of the rows that are kept, and of the rows that are held out, both in ascending order.

    Raises:
        ValueError: If `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"The fraction to hold out must be between 0 and 1, not {fraction}.")
    members = _members(labels)
    drawn = _drawn(labels, fraction, seed)
    held_out = {row for label, rows in drawn.items() for row in rows[: len(members[label]) - 1]}
    return sorted(set(range(len(labels))) - held_out), sorted(held_out)


def _members(labels: Sequence[Any] | np.ndarray) -> dict[Hashable, list[int]]:
    """Return the positions of the rows of each class, in the sorted order of the classes."""
    members: dict[Hashable, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        members[label].append(row)
    return members


def _drawn(labels: Sequence[Any] | np.ndarray, fraction: float, seed: int) -> dict[Hashable, list[int]]:
    return {
        label: np.random.default_rng([seed, order]).permutation(rows)[: max(1, round(fraction * len(rows)))].tolist()
        for order, (label, rows) in enumerate(_members(labels).items())
    }


__all__ = ["draw_fraction", "hold_out"]
