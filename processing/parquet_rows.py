"""Read the rows of several Parquet files as one numbered sequence."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from .shard_reader import ShardReader


ID_COLUMNS = ("pair_id", "id")


class ParquetRows:
    """The rows of Parquet files, numbered over all files. They are read one row group at a time.

    Args:
        urls: The files.
        name: Name of the dataset, which is part of the ids of rows without an id of their own.
        without: Columns that are not read.

    Attributes:
        schema: Names and types of the columns that are read, from the first file.
    """

    def __init__(self, urls: Sequence[str], name: str, *, without: Collection[str] = ()):
        self._urls, self._name = urls, name
        schema = ShardReader(urls).schema(urls[0])
        self.schema = pa.schema([entry for entry in schema if entry.name not in without])
        self._reader = ShardReader(urls, columns=self.schema.names if without else None)
        self._shards = self._reader.open_shards(urls)

    def __len__(self) -> int:
        return sum(shard.rows for shard in self._shards)

    def rows(self, first: int, last: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the ids and the values of rows [first, last)."""
        start = 0
        for shard in self._shards:
            low, high = max(first - start, 0), min(last - start, shard.rows)
            if low < high:
                for number, row in enumerate(self._reader.rows(shard, low, high, epoch=0), start + low):
                    yield row_id(row, number, self._name), row
            start += shard.rows

    def ids(self) -> Iterator[str]:
        """Yield the ids of all rows, without reading the other columns."""
        columns = [column for column in ID_COLUMNS if column in self.schema.names]
        if not columns:
            return (row_id({}, number, self._name) for number in range(len(self)))
        reader = ShardReader(self._urls, columns=columns)
        rows = chain.from_iterable(reader.rows(shard, 0, shard.rows, epoch=0) for shard in self._shards)
        return (row_id(row, number, self._name) for number, row in enumerate(rows))


def row_id(row: Mapping[str, Any], number: int, name: str) -> str:
    """Return `pair_id` or `id` of a row, or the name of the dataset and the number of the row."""
    return own_id(row) or f"{name}#{number}"


def own_id(row: Mapping[str, Any]) -> str | None:
    """Return `pair_id` or `id` of a row, or None if it has neither."""
    return next((str(row[column]) for column in ID_COLUMNS if row.get(column) not in (None, "")), None)
