"""Draw random fractions of each class, and hold out whole groups."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import numpy as np


DRAWS = 20  # of groups, until both parts have each label
SHOWN = 5  # labels that a note lists


def draw_fraction(labels: Sequence[Any] | np.ndarray, fraction: float, seed: int) -> list[int]:
    """Draw a fraction of each class at random, and return the positions of the drawn rows in ascending order.

    The classes must be sortable. The number of rows is rounded and is at least 1 for each class.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"The fraction to draw must be above 0 and at most 1, not {fraction}.")
    return _drawn(labels, lambda rows: min(max(1, round(fraction * rows)), rows), seed)


def draw_count(labels: Sequence[Any] | np.ndarray, count: int, seed: int) -> list[int]:
    """Draw `count` rows of each class at random, and return their positions in ascending order.

    A class with fewer rows is drawn as a whole. With the same seed, a larger draw contains a smaller one.
    """
    if count < 1:
        raise ValueError(f"The number of rows to draw must be 1 or more, not {count}.")
    return _drawn(labels, lambda rows: min(count, rows), seed)


def hold_out(labels: Sequence[Any] | np.ndarray, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split rows into two parts at random, class by class.

    At least one row of each class is not held out. The result is the positions of the rows that are kept, and of the
    rows that are held out, both in ascending order.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"The fraction to hold out must be between 0 and 1, not {fraction}.")
    held_out = _drawn(labels, lambda rows: min(max(1, round(fraction * rows)), rows - 1), seed)
    return sorted(set(range(len(labels))) - set(held_out)), held_out


def hold_out_groups(
    groups: Sequence[str], fraction: float, seed: int, *, where: str = "The data"
) -> tuple[list[int], list[int]]:
    """Split rows into two parts, so that all rows of a group are in the same part.

    The order in which groups are held out depends only on their names and the seed, so few groups change sides when
    rows are added. Groups that would exceed the fraction are skipped. At least one group is held out, and at least one
    is kept. The result is that of [`hold_out`]. `where` names the data in messages.

    Raises:
        ValueError: If the fraction is not between 0 and 1, or if there are no rows or only one group.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"The fraction to hold out must be between 0 and 1, not {fraction}.")
    sizes = Counter(groups)
    if not sizes:
        raise ValueError(f"{where}: there are no images, so no group can be held out. Check the folder or the table.")
    if len(sizes) < 2:
        raise ValueError(
            f"{where}: all {len(groups):,} images belong to the group {groups[0]!r} of group_column, so no group can "
            "be held out. Choose another column, omit group_column, or add a validation split."
        )
    order = sorted(sizes, key=lambda group: hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=8).digest())
    left = round(fraction * len(groups))
    chosen = set()
    for group in order[:-1]:
        if sizes[group] <= left:
            chosen.add(group)
            left -= sizes[group]
    chosen = chosen or {min(order, key=lambda group: sizes[group])}
    held_out = [row for row, group in enumerate(groups) if group in chosen]
    return [row for row, group in enumerate(groups) if group not in chosen], held_out


def hold_out_groups_with_labels(
    groups: Sequence[str],
    labels: Sequence[Collection[str]],
    fraction: float,
    seed: int,
    *,
    where: str = "The data",
) -> tuple[list[int], list[int], list[str]]:
    """Split rows like [`hold_out_groups`], so that both parts have rows of each label if possible.

    The draw with `seed` is used if both parts have rows of each label that occurs in two or more groups. Otherwise, the
    following seeds are tried, and the first draw in which the fewest labels are missing is used.

    Args:
        groups: Group of each row.
        labels: Labels of each row, such as its class.
        fraction: Fraction of the rows to hold out.
        seed: Seed of the first draw.
        where: Name of the data in messages.

    Returns:
        The positions of the rows that are kept and of those that are held out, and notes: if another seed was
        used, and on labels that one of the parts lacks.

    Raises:
        ValueError: As [`hold_out_groups`] does.
    """
    groups_of: dict[str, set[str]] = {}
    for group, of_row in zip(groups, labels, strict=True):
        for label in of_row:
            groups_of.setdefault(label, set()).add(group)
    shared = {label: found for label, found in groups_of.items() if len(found) > 1}
    draws = []
    for number in range(seed, seed + DRAWS):
        parts = hold_out_groups(groups, fraction, number, where=where)
        chosen = {groups[row] for row in parts[1]}
        draws.append((sum(map(len, _missing(shared, chosen))), number, parts, chosen))
        if draws[-1][0] == 0:
            break
    _, number, (kept, held_out), chosen = min(draws, key=lambda draw: draw[:2])
    notes = []
    if number != seed:
        lacking = _in_words(_missing(shared, draws[0][3]))
        notes.append(f"The groups were drawn again with seed {number}, because with seed {seed} {lacking}.")
    if lacking := _in_words(_missing(groups_of, chosen)):
        notes.append(f"Because groups are not split, {lacking}.")
    return kept, held_out, notes


def _missing(groups_of: Mapping[str, Collection[str]], held_out: Collection[str]) -> tuple[list[str], list[str]]:
    """Return the labels that no group that is kept has, and those that no group that is held out has."""
    chosen = set(held_out)
    return (
        sorted(label for label, found in groups_of.items() if chosen.issuperset(found)),
        sorted(label for label, found in groups_of.items() if chosen.isdisjoint(found)),
    )


def _in_words(missing: tuple[list[str], list[str]]) -> str:
    """Return which labels are missing, or an empty string."""
    parts = zip(("the images that are kept have", "the images that are held out have"), missing, strict=True)
    return " and ".join(f"{part} none of {_listed(labels)}" for part, labels in parts if labels)


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - SHOWN:,} more" if len(labels) > SHOWN else ""
    return ", ".join(map(repr, labels[:SHOWN])) + more


def _drawn(labels: Sequence[Any] | np.ndarray, count_of: Callable[[int], int], seed: int) -> list[int]:
    """Return the sorted positions of the drawn rows. `count_of` returns how many rows of a class are drawn."""
    members: dict[Hashable, list[int]] = {label: [] for label in sorted(set(labels))}
    for row, label in enumerate(labels):
        members[label].append(row)
    drawn: list[int] = []
    for order, rows in enumerate(members.values()):
        drawn += np.random.default_rng([seed, order]).permutation(rows)[: count_of(len(rows))].tolist()
    return sorted(drawn)
