"""The shards of the dataset: Parquet files with the original bytes of the images."""

import json
from collections import Counter
from collections.abc import Iterator
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


# Several readers share a shard and read slices of it, so large row groups would be read many times.
ROWS_PER_GROUP = 100
BYTES_PER_GROUP = 250_000_000  # of images and texts, because a reader keeps a row group in memory


@cache
def pair_schema(*, panels: bool = False) -> pa.Schema:
    """Return the columns of the dataset, with the metadata that `datasets` and the Hub's viewer read.

    `panels` adds the columns of a dataset whose figures were split into panels.
    """
    from datasets import Features, Image, List, Value

    text, integer, number = Value("string"), Value("int32"), Value("float64")
    of_panels = {
        "figure_pair_id": text,
        "compound": Value("bool"),
        "panel_box": List(integer),
        "panel_score": number,
        "context": text,
        "caption_match": text,
        "image_type": text,
        "image_type_score": number,
    }
    return Features(
        {
            "pair_id": text,
            "image": Image(),
            "caption": text,
            "label": text,
            "panel": text,
            "mentions": List(text),
            "pmcid": text,
            "version": integer,
            "pmid": text,
            "doi": text,
            "title": text,
            "citation": text,
            "license": text,
            "width": integer,
            "height": integer,
            "mode": text,
            "frames": integer,
            "file_size": integer,
            "image_md5": text,
            "perceptual_hash": text,
            "split": text,
            **(of_panels if panels else {}),
        }
    ).arrow_schema


def write_shard(
    staging: Staging, plan: Plan, number: int, tokenizer: str | None = None, *, panels: bool = False
) -> None:
    """Write one shard and its statistics atomically. At most one row group is in memory.

    `number` is the index of the shard among the shards of all splits. `tokenizer` measures the lengths of captions.
    `panels` states whether the dataset has the columns of panels.
    """
    schema = pair_schema(panels=panels)
    name = plan.names()[number]
    target = staging.result / "data" / name
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    statistics = ShardStatistics(tokenizer)
    licenses: list[dict[str, int]] = []
    partial = staging.partial(name)
    # With content-defined pages, unchanged pages need not be uploaded again after an update.
    layout = {"write_page_index": True, "use_content_defined_chunking": True, **WRITE_OPTIONS}
    with pq.ParquetWriter(partial, schema, **layout) as writer:
        for group in _row_groups(_read_pairs(staging, plan, number, schema)):
            table = pa.Table.from_batches(group, schema).combine_chunks()
            split = pa.array([name.split("-")[0]] * len(group), pa.string())
            table = table.set_column(schema.get_field_index("split"), schema.field("split"), split)
            statistics.add(table)
            licenses.append(dict(sorted(Counter(map(str, table.column("license").to_pylist())).items())))
            writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        writer.add_key_value_metadata({LICENSES_KEY: json.dumps(licenses)})
    staging.statistics.mkdir(exist_ok=True)
    counts = {"counts": statistics.counts(), "hashes": hashes_of(partial, parquet=True)}
    write_text(staging.statistics / f"{target.stem}.json", json.dumps(counts))
    partial.replace(target)


def _row_groups(rows: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    group_bytes = 0
    for row in rows:
        # The size of the image and texts does not depend on where the pair is stored.
        texts = pc.binary_length(pa.concat_arrays([row.column("caption"), row.column("mentions").flatten()]))
        row_bytes = row.column("file_size")[0].as_py() + (pc.sum(texts).as_py() or 0)
        if group and (len(group) == ROWS_PER_GROUP or group_bytes + row_bytes > BYTES_PER_GROUP):
            yield group
            group, group_bytes = [], 0
        group.append(row)
        group_bytes += row_bytes
    if group:
        yield group


def _read_pairs(staging: Staging, plan: Plan, number: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield each pair of a shard as a batch of one row. Some of the files remain open."""
    records = lru_cache(maxsize=256)(lambda path: open(path, "rb"))
    old_shard = lru_cache(maxsize=8)(_OldShard)
    for place in plan.places(staging, number).to_pylist():
        path = plan.files[place["file"]]
        if path.endswith(RECORDS_SUFFIX):  # `size` bytes at `position`
            yield read_record(records(path), place["position"], place["size"], schema)
        else:
            yield old_shard(path, plan.footers.get(path), schema).row(place["position"])


class _OldShard:
    """A shard of the dataset to update. Its rows are read in order, so each row group is read once."""

    def __init__(self, path: str, footer_sha256: str | None, schema: pa.Schema):
        self._path = path
        self._schema = schema
        self._file = open_parquet(path, footer_sha256=footer_sha256)
        metadata = self._file.metadata
        self._edges = np.cumsum([0, *(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))])
        self._group: tuple[int, pa.Table] = (-1, pa.table({}))

    def row(self, position: int) -> pa.RecordBatch:
        group = int(np.searchsorted(self._edges, position, side="right")) - 1
        if self._group[0] != group:
            try:
                table = self._file.read_row_group(group)
                table = next(check_row_group([table], self._file.metadata.row_group(group), self._path))
            except OSError as error:
                message = f"{self._path}: damaged ({error}). Build the dataset again with `overwrite=True`."
                raise DamagedFile(message) from error
            self._group = (group, table.cast(self._schema))
        return self._group[1].slice(position - int(self._edges[group]), 1).combine_chunks().to_batches()[0]
