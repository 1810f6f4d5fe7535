"""The shards of the data set: Parquet files with the figures' original bytes."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..files import write_text
from ..integrity import WRITE_OPTIONS, DamagedFile, check_row_group, hashes_of, open_parquet
from .articles import LICENSES_KEY
from .journal import RECORDS_SUFFIX, read_record
from .plan import Plan
from .staging import Staging
from .statistics import ShardStatistics


# Readers share shards and take slices of them, so a slice must not cost a large row group.
ROWS_PER_GROUP = 100
# Of images and texts: a reader refuses groups of a gigabyte, and the memory of a task is shared out.
BYTES_PER_GROUP = 250_000_000


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
            "title": text,
            "citation": text,
            "license": text,
            "width": Value("int32"),
            "height": Value("int32"),
            "mode": text,
            "frames": Value("int32"),
            "file_size": Value("int32"),
            "image_md5": text,
            "perceptual_hash": text,
            "split": text,
        }
    ).arrow_schema


def write_shard(staging: Staging, plan: Plan, number: int, tokenizer: str | None = None) -> None:
    """Writes one shard in the order of the plan, and its statistics; complete or not at all.

    A row group is in memory at a time: a hundred pairs, or fewer if their pictures are large.

    Args:
        staging: The build.
        plan: What goes where.
        number: The shard, counted over all splits.
        tokenizer: Tokenizer that measures captions; none to count words.
    """
    name = plan.names()[number]
    target = staging.result / "data" / name
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    places = plan.places(staging, number)
    statistics = ShardStatistics(tokenizer)
    licenses: list[dict[str, int]] = []
    partial = staging.partial(name)
    reader = _PairReader(plan.files, plan.footers)
    # Content-defined pages: what an update leaves as it was need not be uploaded again.
    layout = {"write_page_index": True, "use_content_defined_chunking": True, **WRITE_OPTIONS}
    with pq.ParquetWriter(partial, pair_schema(), **layout) as writer:
        for rows in _row_groups(reader, places):
            table = pa.Table.from_batches(rows, pair_schema()).combine_chunks()
            split = pa.array([name.split("-")[0]] * len(rows), pa.string())
            table = table.set_column(table.schema.get_field_index("split"), pair_schema().field("split"), split)
            statistics.add(table)
            licenses.append(dict(sorted(Counter(map(str, table.column("license").to_pylist())).items())))
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        writer.add_key_value_metadata({LICENSES_KEY: json.dumps(licenses)})
    staging.statistics.mkdir(exist_ok=True)
    hashes = hashes_of(partial, parquet=True)
    counts = {"counts": statistics.counts(hashes["bytes"]), "hashes": hashes}
    write_text(staging.statistics / f"{target.stem}.json", json.dumps(counts))
    partial.replace(target)


def _row_groups(reader: "_PairReader", places: pa.Table) -> Iterator[list[pa.RecordBatch]]:
    """The pairs of a shard, a row group at a time."""
    rows: list[pa.RecordBatch] = []
    group_bytes = 0
    for place in places.to_pylist():
        row = reader.read(**place)
        row_bytes = _bytes_of(row)
        if rows and (len(rows) == ROWS_PER_GROUP or group_bytes + row_bytes > BYTES_PER_GROUP):
            yield rows
            rows, group_bytes = [], 0
        rows.append(row)
        group_bytes += row_bytes
    if rows:
        yield rows


def _bytes_of(row: pa.RecordBatch) -> int:
    """The bytes of the image and the texts of a pair; the same wherever the pair comes from."""
    texts = pc.binary_length(pa.concat_arrays([row.column("caption"), row.column("mentions").flatten()]))
    return row.column("file_size")[0].as_py() + (pc.sum(texts).as_py() or 0)


class _PairReader:
    """Reads single pairs out of the files of the plan, of which some are kept open.

    Args:
        files: Paths of records and of shards.
        footers: SHA-256 of the footers of those shards that are verifiable.
    """

    def __init__(self, files: Sequence[str], footers: Mapping[str, str]):
        self.files = files
        self.footers = footers
        self._records = lru_cache(maxsize=256)(lambda path: open(path, "rb"))
        self._shard = lru_cache(maxsize=8)(_OldShard)

    def read(self, file: int, position: int, size: int) -> pa.RecordBatch:
        """The pair as a batch of one row: `size` bytes of records at `position`, or row `position` of a shard."""
        path = self.files[file]
        if path.endswith(RECORDS_SUFFIX):
            return read_record(self._records(path), position, size, pair_schema())
        return self._shard(path, self.footers.get(path)).row(position)


class _OldShard:
    """A shard of the data set before; its rows come in their order, so a group is read once."""

    def __init__(self, path: str, footer_sha256: str | None):
        self._path = path
        self._file = open_parquet(path, footer_sha256=footer_sha256)
        metadata = self._file.metadata
        self._edges = np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])
        self._group: tuple[int, pa.Table] = (-1, pa.table({}))

    def row(self, position: int) -> pa.RecordBatch:
        group = int(np.searchsorted(self._edges, position, side="right")) - 1
        if self._group[0] != group:
            self._group = (group, self._read_group(group).cast(pair_schema()))
        return self._group[1].slice(position - int(self._edges[group]), 1).combine_chunks().to_batches()[0]

    def _read_group(self, group: int) -> pa.Table:
        try:
            table = self._file.read_row_group(group)
            return next(check_row_group([table], self._file.metadata.row_group(group), self._path))
        except OSError as error:
            raise DamagedFile(f"{self._path}: damaged ({error}). Build the data set again with --overwrite.") from error
