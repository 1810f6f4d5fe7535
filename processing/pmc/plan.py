"""The plan of the shards: which pairs each shard contains, in which order, and where they are currently stored.

The position of a pair depends only on its hash. The same articles therefore result in the same files for any number of
tasks, whether they are built at once or with updates.
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
    open_parquet,
    read_columns,
    read_hashes,
    stated_footer,
    stated_shards,
)
from .articles import KEPT, PANEL_COUNTS
from .images import count_duplicates
from .journal import read_journal, records_path
from .splits import SPLITS, TooFewArticles, assign_splits, default_fractions, hash_of
from .staging import Staging


# Training shuffles shards, not rows, so even a small dataset needs several shards.
SMALL_TRAIN_SHARDS = 16
SMALL_SHARD_ROWS = 25
TEXT_BYTES = 4_000  # uncompressed size of a pair without its image

ARTICLES_FILE = "articles.parquet"
SKIPPED_FILE = "skipped.jsonl"
# Reasons that an update may resolve: an object of the article was damaged or missing.
RETRIED = ("metadata unreadable", "XML unreadable", "image unreadable", "unexpected error", "not in the source")
# The outcome of each article. `source_etag` changes with the metadata of the article. If `retry` is set, an update
# reads the article again.
ARTICLES_SCHEMA = pa.schema(
    [
        ("pmcid", pa.string()),
        ("version", pa.int32()),
        ("source_etag", pa.string()),
        ("outcome", pa.string()),
        ("figures", pa.int32()),
        ("pairs", pa.int32()),
        ("retry", pa.bool_()),
    ]
)

_PLACES = pa.schema([("file", pa.int32()), ("position", pa.int64()), ("size", pa.int32())])
# The properties of a pair that the plan needs, in 68 bytes.
_PAIR = np.dtype(
    [
        ("key", np.uint64),
        ("article", np.int64),
        ("file", np.int32),
        ("position", np.int64),
        ("size", np.int32),
        ("file_size", np.int32),
        ("image_md5", "S16"),  # 64 bits are enough to count duplicates
        ("perceptual_hash", "S16"),
    ]
)
_BATCH_ROWS = 10_000


@dataclass
class Plan:
    """The plan, except for the places of the pairs. These are in a Parquet file with one row group per shard."""

    fractions: tuple[float, ...]  # of train, validation and test
    moved: dict[str, str]  # splits of the articles that were moved so that no split is empty
    files: list[str]  # with pairs: records (.arrows), or shards of the updated dataset
    footers: dict[str, str]  # SHA-256 of the footers of the shards in `files`, if the old report contains them
    counts: dict[str, Any]  # of articles, figures and duplicates, for the report
    shards: dict[str, list[int]] = field(default_factory=dict)  # number of pairs in each shard, by split
    articles: dict[str, int] = field(default_factory=dict)  # number of articles, by split
    places_sha256: str | None = None  # of the footer of the Parquet file of places

    def names(self) -> list[str]:
        """Return the file names of all shards, such as `train-00000-of-00016.parquet`, in the order of the plan."""
        return [
            f"{split}-{number:05d}-of-{len(shards):05d}.parquet"
            for split, shards in self.shards.items()
            for number in range(len(shards))
        ]

    def places(self, staging: Staging, number: int) -> pa.Table:
        """Return the `file`, `position` and `size` of each pair in a shard, in the order of the shard."""
        return open_parquet(staging.plan, footer_sha256=self.places_sha256).read_row_group(number)

    def save(self, staging: Staging) -> None:
        """Write the plan to the staging folder."""
        write_text(staging.plan.with_suffix(".json"), json.dumps(asdict(self)))

    @classmethod
    def load(cls, staging: Staging) -> "Plan":
        """Read the plan from the staging folder."""
        return cls(**json.loads(staging.plan.with_suffix(".json").read_text(encoding="utf-8")))


def make_plan(
    staging: Staging,
    *,
    seed: int,
    fractions: Sequence[float] | None,
    max_shard_bytes: int,
    previous: Mapping[str, Any] | None = None,
    panels: bool = False,
) -> Plan:
    """Assign articles to splits and pairs to shards, and write the plan, `articles.parquet` and `skipped.jsonl`.

    A pair takes 90 bytes of memory and an article takes 280. `previous` is the report of the dataset to update. Its
    fractions are kept, so that no article changes its split. `panels` states whether a detector looked for panels.

    Raises:
        TooFewArticles: If there are fewer articles with pairs than splits.
    """
    staging.result.mkdir(exist_ok=True)
    journals = sorted(staging.journals.glob("*.jsonl"))
    outdated: frozenset[str] = frozenset()
    shards: list[Path] = []
    moved_before: dict[str, str] = {}
    if previous is not None:
        outdated = frozenset(staging.outdated.read_text(encoding="utf-8").split())
        shards = sorted((staging.output / "data").glob("*.parquet"))
        fractions, moved_before = previous["split_fractions"], previous["articles_moved_to_fill_a_split"]
    schema = articles_schema(panels=panels)
    table, skipped, example = _write_outcomes(staging, journals, outdated, schema, update=previous is not None)
    stated = stated_shards([str(path) for path in shards]) if shards else {}
    footers = {path: shard.footer_sha256 for path, shard in stated.items()}
    pairs = _read_pairs(seed, journals, shards, outdated, footers)

    kept = table.filter(pc.greater(table.column("pairs"), 0)).column("pmcid").to_pylist()
    outcomes = Counter({row["values"]: row["counts"] for row in pc.value_counts(table.column("outcome")).to_pylist()})
    if not kept:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in outcomes.most_common())
        raise TooFewArticles(f"None of the {table.num_rows:,} article(s) has a usable figure: {reasons}.{example}")
    fractions = tuple(fractions) if fractions is not None else default_fractions(len(kept))
    splits, moved = assign_splits(kept, fractions, moved_before)
    hashes = (map(bytes.decode, pairs[name]) for name in ("image_md5", "perceptual_hash"))
    counts = {
        "articles": {"seen": table.num_rows, "kept": outcomes.pop(KEPT, 0), "dropped": dict(outcomes.most_common())},
        "figures": {"seen": pc.sum(table.column("figures")).as_py() or 0, "skipped": dict(skipped.most_common())},
        "duplicates": count_duplicates(*hashes),
    }
    if panels:
        counts["panel_detection"] = {name: pc.sum(table.column(name)).as_py() or 0 for name in PANEL_COUNTS}
    plan = Plan(fractions, moved, [str(path) for path in (*map(records_path, journals), *shards)], footers, counts)
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
            plan.shards[split] = []
            for start, end in itertools.pairwise(edges):
                plan.shards[split].append(end - start)
                columns = [pa.array(pairs[name][chosen[start:end]]) for name in _PLACES.names]
                writer.write_table(pa.Table.from_arrays(columns, schema=_PLACES), row_group_size=end - start)
    plan.places_sha256 = footer_sha256(staging.plan)
    plan.save(staging)
    return plan


def _read_pairs(
    seed: int, journals: Sequence[Path], shards: Sequence[Path], outdated: frozenset[str], footers: Mapping[str, str]
) -> np.ndarray:
    """Return all pairs in the journals, and the pairs in the shards whose articles are not outdated."""

    def rows() -> Iterator[tuple[Any, ...]]:
        for file, path in enumerate(journals):
            position = 0
            for entry in read_journal(path):
                article = int(entry["pmcid"][3:])
                for pair_id, size, file_size, md5, perceptual_hash in entry["pairs"]:
                    yield _key(seed, pair_id), article, file, position, size, file_size, md5[:16], perceptual_hash
                    position += size
        names = ["pmcid", "pair_id", "file_size", "image_md5", "perceptual_hash"]
        for file, path in enumerate(shards, start=len(journals)):
            columns = read_columns(path, names, footer_sha256=footers.get(str(path))).to_pydict()
            shard_rows = zip(*(columns[name] for name in names), strict=True)
            for position, (pmcid, pair_id, file_size, md5, perceptual_hash) in enumerate(shard_rows):
                if pmcid not in outdated:
                    yield _key(seed, pair_id), int(pmcid[3:]), file, position, 0, file_size, md5[:16], perceptual_hash

    return np.fromiter(rows(), dtype=_PAIR)


def _key(seed: int, pair_id: str) -> int:
    """Return the sort key of a pair."""
    return hash_of(f"{seed}/{pair_id}")


def _shard_edges(rows: int, split: str, shards: int) -> list[int]:
    """Return the first row of each shard, and the number of rows."""
    if split == "train":
        shards = max(shards, min(SMALL_TRAIN_SHARDS, rows // SMALL_SHARD_ROWS))
    shards = min(max(shards, 1), rows)
    return [number * rows // shards for number in range(shards + 1)]


def read_articles(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read `articles.parquet` of a built dataset and check it against the report."""
    hashes = read_hashes(str(folder))
    footer = None if hashes is None else stated_footer(hashes, ARTICLES_FILE, folder)
    return read_columns(folder / ARTICLES_FILE, columns, footer_sha256=footer)


def articles_schema(*, panels: bool = False) -> pa.Schema:
    """Return the columns of `articles.parquet`. `panels` adds the counts of a detector of panels."""
    counts = [pa.field(name, pa.int32()) for name in PANEL_COUNTS if panels]
    return pa.schema([*ARTICLES_SCHEMA, *counts])


def _write_outcomes(
    staging: Staging, journals: Sequence[Path], outdated: frozenset[str], schema: pa.Schema, *, update: bool
) -> tuple[pa.Table, Counter[str], str]:
    """Write `articles.parquet` and `skipped.jsonl`, both sorted by the number of the article.

    Return the table, the number of skipped items by reason, and an example of the most frequent reason with a detail.
    """
    counts: Counter[str] = Counter()
    details: Counter[str] = Counter()
    examples: dict[str, str] = {}
    tables = [schema.empty_table()]
    if update:
        before = read_articles(staging.output)
        is_outdated = pc.is_in(before.column("pmcid"), pa.array(list(outdated), pa.string()))
        tables = [before.filter(pc.invert(is_outdated)).cast(schema)]
    articles: list[dict[str, Any]] = []

    def to_table() -> None:
        tables.append(pa.Table.from_pylist(articles, schema=schema))
        articles.clear()

    def new_skipped() -> Iterator[dict[str, Any]]:
        for entry in itertools.chain.from_iterable(map(read_journal, journals)):
            retry = any(reason.startswith(RETRIED) for _, reason, *_ in entry["skipped"])
            articles.append(
                {name: entry.get(name) for name in schema.names} | {"pairs": len(entry["pairs"]), "retry": retry}
            )
            if len(articles) == _BATCH_ROWS:
                to_table()
            name = entry["pmcid"] if entry["version"] is None else f"{entry['pmcid']}.{entry['version']}"
            for item, reason, detail, *count in entry["skipped"]:
                row = {"article": name, "item": item, "reason": reason, "detail": detail}
                yield row | {"count": count[0]} if count else row

    old_skipped = _previous_skipped(staging.output, outdated) if update else iter(())
    with (staging.result / SKIPPED_FILE).open("w", encoding="utf-8") as file:
        for row in heapq.merge(old_skipped, new_skipped(), key=_number):
            if row["item"]:
                counts[row["reason"]] += row.get("count", 1)
            if row["detail"]:
                details[row["reason"]] += 1
                examples.setdefault(row["reason"], f"{row['article']} {row['item']}".strip() + f": {row['detail']}")
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    to_table()
    table = pa.concat_tables(tables)
    numbers = pc.utf8_slice_codeunits(table.column("pmcid"), len("PMC")).cast(pa.int64())
    table = table.take(pa.array(np.argsort(numbers.to_numpy(), kind="stable")))
    pq.write_table(table, staging.result / ARTICLES_FILE, **WRITE_OPTIONS)
    example = "".join(f" For example {examples[reason]}." for reason, _ in details.most_common(1))
    return table, counts, example


def _number(row: Mapping[str, Any]) -> int:
    match = re.match(r"PMC(\d+)", row["article"])
    return int(match[1]) if match else 0


def _previous_skipped(folder: Path, outdated: frozenset[str]) -> Iterator[dict[str, Any]]:
    hashes = read_hashes(str(folder))
    if hashes is not None and SKIPPED_FILE in hashes:
        check_file(folder / SKIPPED_FILE, hashes[SKIPPED_FILE])
    with (folder / SKIPPED_FILE).open(encoding="utf-8") as lines:
        yield from (row for row in map(json.loads, lines) if row["article"].split(".")[0] not in outdated)
