"""Assign articles to splits by the hash of their PMCID, so that an article stays in its split as the dataset grows."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np


SPLITS = ("train", "validation", "test")
# The paper's 13.9 million, 13.6 thousand and 725,739 pairs, as fractions of the total.
PAPER_FRACTIONS = (0.9495, 0.0009, 0.0496)
SMALL_FRACTIONS = (0.8, 0.1, 0.1)
SMALL_ARTICLES = 10_000


class TooFewArticles(ValueError):
    """Raised if there are fewer articles with pairs than splits."""


def hash_of(text: str) -> int:
    """Return a 64-bit BLAKE2b hash."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_by_hash(pmcid: str, fractions: Sequence[float]) -> str:
    """Return the split of an article by the hash of its PMCID. All its versions are in one split."""
    position = hash_of(f"split/{pmcid}") / 2**64
    edges = np.cumsum(fractions)[:-1]
    return SPLITS[int(np.searchsorted(edges, position, side="right"))]


def default_fractions(articles: int) -> tuple[float, ...]:
    """Return the paper's fractions for a large dataset, or larger validation and test fractions for a small one."""
    return PAPER_FRACTIONS if articles >= SMALL_ARTICLES else SMALL_FRACTIONS


def parse_fractions(choice: str) -> tuple[float, float, float]:
    """Parse the fractions of train, validation and test, such as `0.8,0.1,0.1`.

    Raises:
        ValueError: If they are not three numbers from 0 to 1 that add up to 1.
    """
    try:
        train, validation, test = (float(part) for part in choice.split(","))
    except ValueError:
        raise ValueError(f"`split_fractions` must be three numbers such as 0.8,0.1,0.1, not {choice!r}.") from None
    if min(train, validation, test) < 0 or abs(train + validation + test - 1) > 1e-6:
        raise ValueError(f"`split_fractions` must be in 0..1 and add up to 1, not {choice!r}.")
    return train, validation, test


def assign_splits(
    pmcids: Sequence[str], fractions: Sequence[float], moved_before: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return the split of each article, and the splits of the few that were moved to fill an empty split.

    Articles with the smallest hashes are moved, so the result depends only on the articles. Those in `moved_before`
    were moved when the dataset was smaller and stay in their splits.

    Raises:
        TooFewArticles: If there are fewer articles than splits.
    """
    wanted = [split for split, fraction in zip(SPLITS, fractions, strict=True) if fraction > 0]
    if len(pmcids) < len(wanted):
        raise TooFewArticles(
            f"Only {len(pmcids)} article(s) have usable figures, too few for the splits {', '.join(wanted)}. Use more "
            "articles, or fewer splits, such as `split_fractions` 1,0,0."
        )
    splits = {pmcid: split_by_hash(pmcid, fractions) for pmcid in pmcids}
    moved = {pmcid: split for pmcid, split in (moved_before or {}).items() if pmcid in splits and split in wanted}
    before = splits | moved
    counts = Counter(before.values())
    filled: dict[str, str] = {}
    for split in wanted:
        if not counts[split]:
            largest = counts.most_common(1)[0][0]
            candidates = (pmcid for pmcid, current in before.items() if current == largest and pmcid not in filled)
            filled[min(candidates, key=lambda pmcid: hash_of(f"split/{pmcid}"))] = split
            counts.update({split: 1, largest: -1})
    moved |= filled
    return [moved.get(pmcid, splits[pmcid]) for pmcid in pmcids], moved
