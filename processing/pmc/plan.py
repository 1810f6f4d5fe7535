"""The plan of the second pass: for each shard the pairs that it holds, in their order, and where each lies now.

A pair's place follows from its hash alone, so the same articles give the same files however many tasks have built them,
and whether in one build or in several that each took what was new.
"""

import heapq
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import write_text
from ..integrity import (
    WRITE_OPTIONS,
    check_file,
    footer_sha256,
    footers_of,
    open_parquet,
    read_columns,
    read_hashes,
    stated_footer,
)
from .articles import KEPT
from .journal import read_journal, records_path
from .pictures import count_duplicates
from .splits import SPLITS, TooFewArticles, assign_splits, default_fractions, hash_of
from .staging import Staging


# A run permutes shards, not rows: with fewer the order of a small set would hardly change between epochs.
SMALL_TRAIN_SHARDS = 16
SMALL_SHARD_ROWS = 25
TEXT_BYTES = 4_000  # of a pair beside its picture, before compression: caption, mentions, identifiers

ARTICLES_FILE = "articles.parquet"
SKIPPED_FILE = "skipped.jsonl"
# Something of the article did not match its metadata or could not be had: it may be whole at the next update.
TRIED_AGAIN = ("metadata unreadable", "XML unreadable", "image unreadable", "unexpected error", "not in the source")

_PLACES = pa.schema([("file", pa.int32()), ("position", pa.int64()), ("size", pa.int32())])
# All that is known of a pair while the plan is made, 68 bytes.
_PAIR = np.dtype(
    [
        ("key", np.uint64),
        ("article", np.int64),
        ("file", np.int32),
        ("position", np.int64),
        ("size", np.int32),
        ("file_size", np.int32),
        ("image_md5", "S16"),  # 64 bits will do to count
        ("perceptual_hash", "S16"),
    ]
)
_ROWS_AT_A_TIME = 10_000


def _nothing_left(table: pa.Table, example: str) -> str:
    """Why no article has a pair."""
    counts = pc.value_counts(table.column("outcome")).to_pylist()
    counts.sort(key=lambda row: row["counts"], reverse=True)
    reasons = ", ".join(f"{row['values']} ({row['counts']:,})" for row in counts)
    return f"None of the {table.num_rows:,} article(s) has a figure that can be used: {reasons}.{example}"


def articles_schema() -> pa.Schema:
    """What became of each article; `again` where an update should try it once more."""
    return pa.schema(
        [
            ("pmcid", pa.string()),
            ("version", pa.int32()),
            ("mark", pa.string()),
            ("outcome", pa.string()),
            ("figures", pa.int32()),
            ("pairs", pa.int32()),
            ("again", pa.bool_()),
        ]
    )


@dataclass
class Plan:
    """What the second pass makes, without the places of single pairs, which lie in a Parquet file beside it.

    Args:
        seed: Seed of the order of pairs.
        fractions: Shares of train, validation and test.
        moved: Splits of the few articles that were moved so that no split is empty.
        files: Where pairs come from: records of the first pass (`.arrows`), or shards of the data set before.
        shards: For each split the number of pairs in each shard.
        articles: For each split the number of its articles.
        counts: What the report says of articles, figures and duplicates.
        footers: SHA-256 of the footers of the shards in `files`, where the data set before states them.
        places_sha256: SHA-256 of the footer of the Parquet file of places.
    """

    seed: int
    fractions: tuple[float, ...]
    moved: dict[str, str] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    shards: dict[str, list[int]] = field(default_factory=dict)
    articles: dict[str, int] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    footers: dict[str, str] = field(default_factory=dict)
    places_sha256: str | None = None

    def names(self) -> list[str]:
        """File names of all shards, such as `train-00000-of-00016.parquet`, in the order of the plan's row groups."""
        return [
            f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
            for split, shards in self.shards.items()
            for number in range(len(shards))
        ]

    def places(self, staging: Staging, number: int) -> pa.Table:
        """Return `file`, `position` and `size` of each pair of a shard, in the order of the shard."""
        return open_parquet(staging.plan, footer_sha256=self.places_sha256).read_row_group(number)

    def save(self, staging: Staging) -> None:
        write_text(staging.plan.with_suffix(".json"), json.dumps(asdict(self)))

    @classmethod
    def load(cls, staging: Staging) -> "Plan":
        return cls(**json.loads(staging.plan.with_suffix(".json").read_text(encoding="utf-8")))


def make_plan(
    staging: Staging,
    *,
    seed: int,
    fractions: Sequence[float] | None,
    max_shard_bytes: int,
    previous: Path | None = None,
    outdated: Path | None = None,
    moved_before: Mapping[str, str] | None = None,
) -> Plan:
    """Decides on splits and shards, and writes the plan, the table of articles and the list of what was left out.

    A pair takes 90 bytes of memory and an article 280: 4.5 GiB for 28 million pairs of 8 million articles.

    Args:
        staging: The build, its first pass complete.
        seed: Seed of the order of pairs.
        fractions: Shares of train, validation and test; none for [`default_fractions`].
        max_shard_bytes: Size of a shard, about.
        previous: Folder of the data set that is updated, if any.
        outdated: List of the PMCIDs whose pairs in it no longer count, one a line.
        moved_before: Its articles that were moved to fill a split.

    Raises:
        TooFewArticles: Fewer articles with pairs than splits that were asked for.
    """
    journals = sorted(staging.journals.glob("*.jsonl"))
    staging.result.mkdir(exist_ok=True)
    gone = frozenset(outdated.read_text(encoding="utf-8").split()) if outdated else frozenset()
    old_articles, old_skipped = _previous_articles(previous, gone)
    table, skipped_counts, example = _write_outcomes(staging, journals, old_articles, old_skipped)
    shards = sorted((previous / "data").glob("*.parquet")) if previous else []
    footers = footers_of([str(path) for path in shards]) if shards else {}
    pairs = _read_pairs(seed, journals, shards, gone, footers)

    kept = table.filter(pc.greater(table.column("pairs"), 0)).column("pmcid").to_pylist()
    if not kept:
        raise TooFewArticles(_nothing_left(table, example))
    fractions = tuple(fractions) if fractions is not None else default_fractions(len(kept))
    splits, moved = assign_splits(kept, fractions, moved_before)
    files = [str(path) for path in (*map(records_path, journals), *shards)]
    plan = Plan(seed, fractions, moved, files, footers=footers)
    outcomes = Counter({row["values"]: row["counts"] for row in pc.value_counts(table.column("outcome")).to_pylist()})
    plan.counts = {
        "articles": {
            "seen": table.num_rows,
            "kept": outcomes.pop(KEPT, 0),
            "dropped": dict(outcomes.most_common()),
        },
        "figures": {
            "seen": pc.sum(table.column("figures")).as_py() or 0,
            "skipped": dict(skipped_counts.most_common()),
        },
        "duplicates": count_duplicates(
            map(bytes.decode, pairs["image_md5"]), map(bytes.decode, pairs["perceptual_hash"])
        ),
    }
    numbers = np.array([int(pmcid[3:]) for pmcid in kept], dtype=np.int64)
    codes = np.array([SPLITS.index(split) for split in splits], dtype=np.int8)
    split_of_pair = codes[np.searchsorted(numbers, pairs["article"])]
    with pq.ParquetWriter(staging.plan, _PLACES, **WRITE_OPTIONS) as writer:
        for code, split in enumerate(SPLITS):
            chosen = np.flatnonzero(split_of_pair == code)
            if not len(chosen):
                continue
            chosen = chosen[np.argsort(pairs["key"][chosen], kind="stable")]
            plan.articles[split] = int((codes == code).sum())
            total_bytes = int(pairs["file_size"][chosen].sum(dtype=np.int64)) + TEXT_BYTES * len(chosen)
            edges = _shard_edges(len(chosen), split, -(-total_bytes // max_shard_bytes))
            plan.shards[split] = [end - start for start, end in zip(edges, edges[1:], strict=False)]
            for start, end in zip(edges, edges[1:], strict=False):
                writer.write_table(_places(pairs[chosen[start:end]]), row_group_size=end - start)
    plan.places_sha256 = footer_sha256(staging.plan)
    plan.save(staging)
    return plan


def _read_pairs(
    seed: int, journals: Sequence[Path], shards: Sequence[Path], gone: frozenset[str], footers: Mapping[str, str]
) -> np.ndarray:
    """All pairs of the journals, and of the data set before those of articles that still count, as `_PAIR`."""
    rows = itertools.chain(
        *(_journal_pairs(seed, path, file) for file, path in enumerate(journals)),
        *(
            _shard_pairs(seed, path, file, gone, footers.get(str(path)))
            for file, path in enumerate(shards, start=len(journals))
        ),
    )
    return np.fromiter(rows, dtype=_PAIR)


def _journal_pairs(seed: int, path: Path, file: int) -> Iterator[tuple[Any, ...]]:
    position = 0
    for entry in read_journal(path):
        article = int(entry["pmcid"][3:])
        for pair_id, size, file_size, md5, perceptual_hash in entry["pairs"]:
            yield _key(seed, pair_id), article, file, position, size, file_size, md5[:16], perceptual_hash
            position += size


def _shard_pairs(
    seed: int, path: Path, file: int, gone: frozenset[str], footer: str | None
) -> Iterator[tuple[Any, ...]]:
    names = ["pmcid", "pair_id", "file_size", "image_md5", "perceptual_hash"]
    columns = read_columns(path, names, footer_sha256=footer).to_pydict()
    rows = zip(*(columns[name] for name in names), strict=True)
    for position, (pmcid, pair_id, file_size, md5, perceptual_hash) in enumerate(rows):
        if pmcid not in gone:
            yield _key(seed, pair_id), int(pmcid[3:]), file, position, 0, file_size, md5[:16], perceptual_hash


def _key(seed: int, pair_id: str) -> int:
    """Pairs are in the order of this."""
    return hash_of(f"{seed}/{pair_id}")


def _places(pairs: np.ndarray) -> pa.Table:
    """Where pairs lie now."""
    return pa.Table.from_arrays([pa.array(pairs[name].copy()) for name in _PLACES.names], schema=_PLACES)


def _shard_edges(rows: int, split: str, shards: int) -> list[int]:
    """Rows at which shards start, and the end."""
    if split == "train":
        shards = max(shards, min(SMALL_TRAIN_SHARDS, rows // SMALL_SHARD_ROWS))
    shards = min(max(shards, 1), rows)
    return [number * rows // shards for number in range(shards + 1)]


def _previous_articles(previous: Path | None, gone: frozenset[str]) -> tuple[pa.Table, Iterator[dict[str, Any]]]:
    """Articles of the data set before that still count, and what of them was left out."""
    if previous is None:
        return articles_schema().empty_table(), iter(())
    table = read_articles(previous)
    table = table.filter(pc.invert(pc.is_in(table.column("pmcid"), pa.array(list(gone), pa.string()))))
    hashes = read_hashes(str(previous))
    if hashes is not None and SKIPPED_FILE in hashes:
        check_file(previous / SKIPPED_FILE, hashes[SKIPPED_FILE])
    return table.cast(articles_schema()), (
        row for row in _read_lines(previous / SKIPPED_FILE) if row["article"].split(".")[0] not in gone
    )


def read_articles(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the table of articles of a built set, checked against its report.

    Args:
        folder: The folder of the set.
        columns: Names of the columns; all by default.

    Raises:
        DamagedFile: If the file is damaged.
    """
    hashes = read_hashes(str(folder))
    footer = None if hashes is None else stated_footer(hashes, ARTICLES_FILE, folder)
    return read_columns(folder / ARTICLES_FILE, columns, footer_sha256=footer)


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _write_outcomes(
    staging: Staging, journals: Sequence[Path], old_articles: pa.Table, old_skipped: Iterator[dict[str, Any]]
) -> tuple[pa.Table, Counter[str], str]:
    """Writes the table of articles and the list of what was left out, both in the order of numbers.

    Returns:
        The table, the number of figures, images and versions left out by reason, and a sentence with an example of the
        most frequent reason that has a detail.
    """
    counts: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    tables = [old_articles]
    articles: list[dict[str, Any]] = []

    def to_table() -> None:
        tables.append(pa.Table.from_pylist(articles, schema=articles_schema()))
        articles.clear()

    def new_skipped() -> Iterator[dict[str, Any]]:
        for entry in (entry for path in journals for entry in read_journal(path)):
            reasons = [row[1] for row in entry["skipped"]]
            articles.append(
                {
                    **{name: entry[name] for name in ("pmcid", "version", "mark", "outcome", "figures")},
                    "pairs": len(entry["pairs"]),
                    "again": any(reason.startswith(TRIED_AGAIN) for reason in reasons),
                }
            )
            if len(articles) == _ROWS_AT_A_TIME:
                to_table()
            name = entry["pmcid"] if entry["version"] is None else f"{entry['pmcid']}.{entry['version']}"
            for item, reason, detail, *count in entry["skipped"]:
                row = {"article": name, "item": item, "reason": reason, "detail": detail}
                yield row | {"count": count[0]} if count else row

    with (staging.result / SKIPPED_FILE).open("w", encoding="utf-8") as file:
        for row in heapq.merge(old_skipped, new_skipped(), key=_number):
            if row["item"]:
                counts[row["reason"]] += row.get("count", 1)
            if row["detail"]:
                causes[row["reason"]] += 1
                examples.setdefault(row["reason"], f"{row['article']} {row['item']}".strip() + f": {row['detail']}")
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    to_table()
    table = pa.concat_tables(tables)
    numbers = pc.utf8_slice_codeunits(table.column("pmcid"), len("PMC")).cast(pa.int64())
    table = table.take(pa.array(np.argsort(numbers.to_numpy(), kind="stable")))
    pq.write_table(table, staging.result / ARTICLES_FILE, **WRITE_OPTIONS)
    example = "".join(f" For example {examples[reason]}." for reason, _ in causes.most_common(1))
    return table, counts, example


def _number(row: dict[str, Any]) -> int:
    match = re.match(r"PMC(\d+)", row["article"])
    return int(match[1]) if match else 0
