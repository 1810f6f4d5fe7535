"""Which split an article falls into: by the hash of its PMCID, so for ever the same whatever else is in the set."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np


SPLITS = ("train", "validation", "test")
# The paper's 13.9 million, 13.6 thousand and 725,739 pairs as shares of their sum (they are of its 15.3 million).
PAPER_FRACTIONS = (0.9495, 0.0009, 0.0496)
SMALL_FRACTIONS = (0.8, 0.1, 0.1)
SMALL_ARTICLES = 10_000


class TooFewArticles(ValueError):
    """Fewer articles with pairs than splits that were asked for."""


def hash_of(text: str) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_by_hash(pmcid: str, fractions: Sequence[float]) -> str:
    """The split of an article by the hash of its PMCID; all its versions fall into one."""
    position = hash_of(f"split/{pmcid}") / 2**64
    edges = np.cumsum(fractions)[:-1]
    return SPLITS[int(np.searchsorted(edges, position, side="right"))]


def default_fractions(articles: int) -> tuple[float, ...]:
    """The paper's proportions for a set of some size; of a small one a tenth each for validation and test."""
    return PAPER_FRACTIONS if articles >= SMALL_ARTICLES else SMALL_FRACTIONS


def parse_fractions(choice: str) -> tuple[float, float, float]:
    """Reads `--split-fractions`, such as `0.8,0.1,0.1` for train, validation and test.

    Raises:
        ValueError: Not three numbers from 0 to 1 that add up to 1.
    """
    try:
        train, validation, test = (float(part) for part in choice.split(","))
    except ValueError:
        raise ValueError(f"--split-fractions {choice!r}: three numbers are needed, such as 0.8,0.1,0.1.") from None
    if min(train, validation, test) < 0 or abs(train + validation + test - 1) > 1e-6:
        raise ValueError(f"--split-fractions {choice!r}: the three must lie in 0..1 and add up to 1.")
    return train, validation, test


def assign_splits(
    pmcids: Sequence[str], fractions: Sequence[float], moved_before: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """The split of each article, none of those that were asked for left empty.

    Args:
        pmcids: Articles with at least one pair.
        fractions: Shares of train, validation and test.
        moved_before: Articles that were moved when the set was smaller: they stay where they are.

    Returns:
        A split for each article, and the few articles that were moved to fill a split: those whose hashes come first,
        so again the same for the same articles.

    Raises:
        TooFewArticles: Fewer articles than splits that were asked for.
    """
    wanted = [split for split, fraction in zip(SPLITS, fractions, strict=True) if fraction > 0]
    if len(pmcids) < len(wanted):
        raise TooFewArticles(
            f"Only {len(pmcids)} article(s) with usable figures, too few for the splits {', '.join(wanted)}. Take more "
            "articles, or fewer splits, such as --split-fractions 1,0,0."
        )
    splits = {pmcid: split_by_hash(pmcid, fractions) for pmcid in pmcids}
    moved = {pmcid: split for pmcid, split in (moved_before or {}).items() if pmcid in splits and split in wanted}
    moved |= _fill_empty(splits | moved, wanted)
    return [moved.get(pmcid, splits[pmcid]) for pmcid in pmcids], moved


def _fill_empty(splits: Mapping[str, str], wanted: Sequence[str]) -> dict[str, str]:
    counts = Counter(splits.values())
    moved: dict[str, str] = {}
    for split in wanted:
        if not counts[split]:
            largest = counts.most_common(1)[0][0]
            candidates = (pmcid for pmcid, current in splits.items() if current == largest and pmcid not in moved)
            pmcid = min(candidates, key=lambda pmcid: hash_of(f"split/{pmcid}"))
            moved[pmcid] = split
            counts.update({split: 1, largest: -1})
    return moved
