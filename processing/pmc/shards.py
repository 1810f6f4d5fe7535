"""Splits and shards: where each pair ends up, and the Parquet files that hold them.

A split is the article's and a shard the pair's, both by hash: they depend on nothing but identifiers, so the same
articles give the same files however many tasks build them, and an article never changes its split.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


SPLITS = ("train", "validation", "test")
# The paper's 13.9 million, 13.6 thousand and 725,739 pairs as shares of their sum (they are of its 15.3 million).
PAPER_FRACTIONS = (0.9495, 0.0009, 0.0496)
SMALL_FRACTIONS = (0.8, 0.1, 0.1)
SMALL_ARTICLES = 10_000

# Readers share shards and take slices of them, so a slice must not cost a large row group.
ROWS_PER_GROUP = 100
# A run permutes shards, not rows: with fewer the order of a small set would hardly change between epochs.
SMALL_TRAIN_SHARDS = 16
SMALL_SHARD_ROWS = 25


@cache
def pair_schema() -> pa.Schema:
    """The columns of the data set, with the mark by which `datasets` and the Hub's viewer know the image."""
    from datasets import Features, Image, List, Value

    text = Value("string")
    return Features(
        {
            "pair_id": text,
            "image": Image(),
            "caption": text,
            "label": text,
            "panel": text,
            "mentions": List(text),
            "pmcid": text,
            "version": Value("int32"),
            "pmid": text,
            "doi": text,
            "citation": text,
            "license": text,
            "width": Value("int32"),
            "height": Value("int32"),
            "image_md5": text,
            "split": text,
        }
    ).arrow_schema


@dataclass
class ShardPlan:
    """
    Where pairs go.

    Args:
        fractions: Shares of train, validation and test.
        seed: Seed of the order of pairs.
        moved: Splits of the few articles that were moved so that no split is empty.
        boundaries: For each split the hashes at which a new shard starts.
        pairs: Pairs of each split.
        articles: Articles of each split.
    """

    fractions: tuple[float, ...]
    seed: int
    moved: dict[str, str] = field(default_factory=dict)
    boundaries: dict[str, list[int]] = field(default_factory=dict)
    pairs: dict[str, int] = field(default_factory=dict)
    articles: dict[str, int] = field(default_factory=dict)

    def split_of(self, pmcid: str) -> str:
        """The split of an article."""
        return self.moved.get(pmcid) or split_by_hash(pmcid, self.fractions)

    def shards(self) -> list[tuple[str, int]]:
        """Split and number of every shard."""
        return [(split, number) for split, starts in self.boundaries.items() for number in range(len(starts) + 1)]

    def file_name(self, split: str, number: int) -> str:
        """`train-00000-of-00016.parquet` and so on."""
        return f"{split}-{number:05d}-of-{len(self.boundaries[split]) + 1:05d}.parquet"


def split_by_hash(pmcid: str, fractions: Sequence[float]) -> str:
    """The split of an article by the hash of its PMCID; all its versions fall into one."""
    position = _hash(f"split/{pmcid}") / 2**64
    edges = np.cumsum(fractions)[:-1]
    return SPLITS[int(np.searchsorted(edges, position, side="right"))]


def parse_fractions(choice: str) -> tuple[float, float, float]:
    """
    Reads `--split-fractions`, such as `0.8,0.1,0.1` for train, validation and test.

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


def plan_shards(
    pair_files: Sequence[Path], *, fractions: Sequence[float] | None, rows_per_shard: int, seed: int
) -> ShardPlan:
    """
    Decides on splits and shards, from two columns of all pairs.

    Args:
        pair_files: What the tasks of the build have written.
        fractions: Shares of train, validation and test; none for the paper's from 10,000 articles on and 80/10/10
            below.
        rows_per_shard: Pairs a shard holds at most.
        seed: Seed of the order of pairs.

    Raises:
        ValueError: Fewer articles with pairs than splits that were asked for.
    """
    pairs_of: Counter[str] = Counter()
    for path in pair_files:
        pairs_of.update(pq.read_table(path, columns=["pmcid"]).column("pmcid").to_pylist())
    if fractions is None:
        fractions = PAPER_FRACTIONS if len(pairs_of) >= SMALL_ARTICLES else SMALL_FRACTIONS
    plan = ShardPlan(fractions=tuple(fractions), seed=seed)
    plan.moved = _fill_empty_splits(sorted(pairs_of), plan)

    hashes: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for path in pair_files:
        table = pq.read_table(path, columns=["pmcid", "pair_id"])
        keys, splits = _placement(table, plan)
        for split in SPLITS:
            hashes[split].append(keys[splits == split])
    splits_of = Counter(plan.split_of(pmcid) for pmcid in pairs_of)
    for split in SPLITS:
        keys = np.sort(np.concatenate(hashes[split])) if hashes[split] else np.empty(0, dtype=np.uint64)
        if len(keys):
            plan.boundaries[split] = [int(keys[start]) for start in _shard_starts(len(keys), split, rows_per_shard)]
            plan.pairs[split] = len(keys)
            plan.articles[split] = splits_of[split]
    return plan


def write_shard(pair_files: Sequence[Path], plan: ShardPlan, split: str, number: int, folder: Path) -> None:
    """
    Writes one shard: its pairs out of all files, in the order of their hashes; complete or not at all.

    Args:
        pair_files: What the tasks of the build have written.
        plan: Where pairs go.
        split: Split of the shard.
        number: Number of the shard in its split.
        folder: Where it is written.
    """
    edges = [0, *plan.boundaries[split], 2**64]
    low, high = edges[number], edges[number + 1]
    found: list[tuple[int, dict[str, Any]]] = []
    for path in pair_files:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            keys, splits = _placement(file.read_row_group(group, columns=["pmcid", "pair_id"]), plan)
            here = np.flatnonzero((splits == split) & (keys >= low) & (keys <= high - 1))
            if len(here):
                rows = file.read_row_group(group).take(pa.array(here)).to_pylist()
                found += zip(keys[here].tolist(), rows, strict=True)
    # Two pairs of one hash would be as good as impossible; the id settles their order all the same.
    found.sort(key=lambda entry: (entry[0], entry[1]["pair_id"]))

    target = folder / plan.file_name(split, number)
    partial = target.with_suffix(".partial")
    with pq.ParquetWriter(partial, pair_schema(), write_page_index=True) as writer:
        for rows in _groups([row for _, row in found]):
            writer.write_table(
                pa.Table.from_pylist([{**row, "split": split} for row in rows], schema=pair_schema()),
                row_group_size=ROWS_PER_GROUP,
            )
    partial.replace(target)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _placement(table: pa.Table, plan: ShardPlan) -> tuple[np.ndarray, np.ndarray]:
    """Hash and split of each row of a table with `pmcid` and `pair_id`."""
    keys = [_hash(f"{plan.seed}/{pair_id}") for pair_id in table.column("pair_id").to_pylist()]
    splits = [plan.split_of(pmcid) for pmcid in table.column("pmcid").to_pylist()]
    return np.array(keys, dtype=np.uint64), np.array(splits, dtype=object)


def _shard_starts(rows: int, split: str, rows_per_shard: int) -> list[int]:
    """Rows at which the second, third, ... shard of a split starts."""
    shards = -(-rows // rows_per_shard)
    if split == "train":
        shards = max(shards, min(SMALL_TRAIN_SHARDS, rows // SMALL_SHARD_ROWS))
    return [number * rows // shards for number in range(1, shards)]


def _fill_empty_splits(pmcids: Sequence[str], plan: ShardPlan) -> dict[str, str]:
    """Articles to move so that no split that was asked for is empty: by hash, so again the same for the same set."""
    wanted = [split for split, fraction in zip(SPLITS, plan.fractions, strict=True) if fraction > 0]
    if len(pmcids) < len(wanted):
        raise ValueError(
            f"Only {len(pmcids)} article(s) with usable figures, too few for the splits {', '.join(wanted)}. Take more "
            "articles, or fewer splits, such as --split-fractions 1,0,0."
        )
    splits = {
        pmcid: split_by_hash(pmcid, plan.fractions) for pmcid in sorted(pmcids, key=lambda p: _hash(f"split/{p}"))
    }
    moved: dict[str, str] = {}
    for split in wanted:
        if split not in splits.values():
            largest = Counter(splits.values()).most_common(1)[0][0]
            pmcid = next(pmcid for pmcid, current in splits.items() if current == largest)
            splits[pmcid] = moved[pmcid] = split
    return moved


def _groups(rows: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for start in range(0, len(rows), ROWS_PER_GROUP):
        yield rows[start : start + ROWS_PER_GROUP]
