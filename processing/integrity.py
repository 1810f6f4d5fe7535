"""Detect damaged files of a built dataset.

Page checksums cover the data of Parquet pages. Footers (schema, row groups, metadata) have no checksum, so
`report.json` contains the SHA-256 of each file and of its footer. It also contains the rows of each row group, so that
a stream need not read all footers before it starts. See docs/building_a_dataset.md.
"""

import hashlib
import json
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from .files import require_regular


logger = logging.getLogger(__name__)

REPORT_FILE = "report.json"
HASHES = "files"  # the section of the report
MAGIC = b"PAR1"
FOOTER_BYTES = 65_536  # most footers are smaller, and such a request is as fast as one for eight bytes
# Used for every file of a build, so that the same rows always produce the same bytes.
WRITE_OPTIONS = {"write_page_checksum": True}

_REPORTED_AS_NOT_VERIFIABLE: set[str] = set()


class DamagedFile(OSError):
    """Raised if a file has changed since it was written. The message contains its name."""


class TruncatedFile(OSError):
    """Raised if the end of a Parquet file is missing, for example because a network transfer was interrupted."""


def open_parquet(
    source: str | os.PathLike[str] | IO[bytes],
    name: str | None = None,
    *,
    footer_sha256: str | None = None,
    **options: Any,
) -> pq.ParquetFile:
    """Open a local path or a seekable binary file as Parquet, and check its footer.

    `name` is the name of the file in errors (default: the path). Raise `TruncatedFile` if the end of the file is
    missing, and `DamagedFile` if the SHA-256 of the footer is not `footer_sha256` (default: any). Reading a damaged
    page from the opened file raises `OSError`.
    """
    file: Any = source
    if isinstance(source, str | os.PathLike):
        require_regular(source)
        name = name or os.fspath(source)
        file = pa.OSFile(os.fspath(source), "rb")
    footer = _read_footer(file, name or "file")
    if footer_sha256 not in (None, hashlib.sha256(footer).hexdigest()):
        raise DamagedFile(
            f"{name}: the footer is damaged: its SHA-256 is not the one in {REPORT_FILE}. If the dataset has been "
            "rebuilt in the meantime, load it again."
        )
    try:
        metadata = pq.read_metadata(pa.BufferReader(footer))
    except (pa.ArrowException, OSError) as error:
        raise TruncatedFile(f"{name}: the footer is damaged ({error}).") from error
    file.seek(0)
    return pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True, **options)


def check_row_group(tables: Iterable[pa.Table], group: pq.RowGroupMetaData, name: str) -> Iterator[pa.Table]:
    """Yield the tables of a row group, and check their rows and the values in list columns against the footer.

    The header of a page has no checksum. If it contains a wrong number of values, Arrow may silently end the batches
    early or shorten the last list. The tables have all or some of the columns. The last one is yielded after the check,
    which raises `DamagedFile` if the numbers differ.
    """
    columns = [group.column(number) for number in range(group.num_columns)]
    stated = {column.path_in_schema.split(".")[0]: column.num_values for column in columns}
    rows = 0
    values: Counter[str] = Counter()
    for table in tables:
        rows += table.num_rows
        for field in table.schema:
            if pa.types.is_list(field.type) and not pa.types.is_nested(field.type.value_type):
                # In the footer, an empty list counts as one value.
                lengths = pc.fill_null(pc.list_value_length(table.column(field.name)), 0)
                values[field.name] += pc.sum(pc.max_element_wise(lengths, 1)).as_py() or 0
        if rows >= group.num_rows:
            for column, count in values.items():
                if count != stated[column]:
                    raise DamagedFile(f"{name}: column {column!r} is damaged: values are missing.")
        yield table
    if rows != group.num_rows:
        raise DamagedFile(f"{name}: damaged: {rows:,} of {group.num_rows:,} rows of a row group can be read.")


def footer_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the footer of a local Parquet file: metadata, length of the metadata, and magic number."""
    with open(path, "rb") as file:
        return hashlib.sha256(_read_footer(file, os.fspath(path))).hexdigest()


def hashes_of(path: Path, *, parquet: bool) -> dict[str, Any]:
    """Return the entry of a local file in the report: its size and its SHA-256.

    For Parquet files, it also contains the SHA-256 of the footer, and the number of rows of each row group.
    """
    hashes: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": _file_sha256(path)}
    if parquet:
        metadata = pq.read_metadata(path)
        rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        hashes |= {"footer_sha256": footer_sha256(path), "rows": rows}
    return hashes


def check_file(path: Path, stated: Mapping[str, Any]) -> None:
    """Raise `DamagedFile` if the size or SHA-256 of a local file differs from its entry in the report."""
    size = path.stat().st_size
    if size != stated["bytes"]:
        raise DamagedFile(f"{path}: damaged: it has {size:,} bytes, but {REPORT_FILE} states {stated['bytes']:,}.")
    if _file_sha256(path) != stated["sha256"]:
        raise DamagedFile(f"{path}: damaged: its SHA-256 is not the one in {REPORT_FILE}.")


def read_columns(
    path: str | os.PathLike[str], columns: Sequence[str] | None = None, *, footer_sha256: str | None = None
) -> pa.Table:
    """Read columns of a local Parquet file (default: all). Raise `DamagedFile` if they or the footer are damaged."""
    name = os.fspath(path)
    try:
        file = open_parquet(path, footer_sha256=footer_sha256)
        tables: list[pa.Table] = []
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            tables += check_row_group([table], file.metadata.row_group(group), name)
    except (DamagedFile, FileNotFoundError, PermissionError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise DamagedFile(f"{name}: damaged ({error}).") from error
    return pa.concat_tables(tables) if tables else file.schema_arrow.empty_table().select(columns or file.schema.names)


def read_hashes(root: str, filesystem: Any = None) -> dict[str, dict[str, Any]] | None:
    """Return the hashes in the report of a built dataset, by the name of the file in its folder `root`.

    The entry of a file is the one that [`hashes_of`] returns. If the report has no hashes, return None, and warn once
    that the dataset is not verifiable. Raise `DamagedFile` if the report cannot be read.
    """
    filesystem = filesystem or fsspec.filesystem("file")
    path = posixpath.join(root, REPORT_FILE)
    try:
        if isinstance(filesystem, LocalFileSystem):
            require_regular(path)
        hashes = report_of_build(json.loads(filesystem.cat_file(path))).get(HASHES)
        if hashes is not None:
            return {str(name): dict(stated) for name, stated in hashes.items()}
        why = f"its {REPORT_FILE} has no hashes"
    except FileNotFoundError:
        why = f"it has no {REPORT_FILE}"
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{path}: damaged ({error}). Build the dataset again.") from error
    if root not in _REPORTED_AS_NOT_VERIFIABLE:
        _REPORTED_AS_NOT_VERIFIABLE.add(root)
        logger.warning("%s: not verifiable: %s, so damage to its files may go unnoticed. Build it again.", root, why)
    return None


def report_of_build(report: dict[str, Any]) -> dict[str, Any]:
    """Return the report of the build. In the report of a quickstart, it is under `build`."""
    build = report.get("build")
    return build if isinstance(build, dict) else report


@dataclass(frozen=True)
class StatedShard:
    """Entry of a shard in the report of a dataset.

    Attributes:
        footer_sha256: SHA-256 of the footer.
        bytes: Size of the file.
        rows: Number of rows of each row group, None if the report is older.
    """

    footer_sha256: str
    bytes: int
    rows: tuple[int, ...] | None


def stated_shards(shards: Sequence[str], storage_options: Mapping[str, Any] | None = None) -> dict[str, StatedShard]:
    """Return what the report of a dataset states about each shard of its folder.

    The result is empty if the dataset is not verifiable. Raise `DamagedFile` if the report cannot be read or does not
    list a shard.
    """
    filesystem, first = fsspec.core.url_to_fs(shards[0], **(storage_options or {}))
    root, prefix = posixpath.dirname(first), ""
    if posixpath.basename(root) == "data":
        root, prefix = posixpath.dirname(root), "data/"
    hashes = read_hashes(root, filesystem)
    if hashes is None:
        return {}
    stated = {}
    for shard in shards:
        name = f"{prefix}{posixpath.basename(shard)}"
        footer = stated_footer(hashes, name, root)
        size, rows = hashes[name].get("bytes"), hashes[name].get("rows")
        if not _is_count(size) or not (rows is None or (isinstance(rows, list) and rows and all(map(_is_count, rows)))):
            raise DamagedFile(f"{root}: the entry of {name} in {REPORT_FILE} is damaged. Build the dataset again.")
        stated[shard] = StatedShard(footer, size, None if rows is None else tuple(rows))
    return stated


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**50


def stated_footer(hashes: Mapping[str, Mapping[str, Any]], name: str, root: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the footer of one file from [`read_hashes`]. Raise `DamagedFile` if there is none."""
    try:
        return str(hashes[name]["footer_sha256"])
    except KeyError as error:
        raise DamagedFile(
            f"{root}: {REPORT_FILE} has no hash of {name}. One of the two is damaged or from another build."
        ) from error


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_footer(file: IO[bytes], name: str) -> bytes:
    """Return the last bytes of a Parquet file: metadata, length of the metadata, magic number."""
    size = file.seek(0, os.SEEK_END)
    tail = _read_last(file, size, min(size, FOOTER_BYTES))
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != MAGIC or length > size:
        raise TruncatedFile(f"{name}: not a Parquet file, or truncated: it does not end like a Parquet file.")
    return tail[-length:] if length <= len(tail) else _read_last(file, size, length)


def _read_last(file: IO[bytes], size: int, count: int) -> bytes:
    file.seek(size - count)
    content = file.read(count)
    if len(content) != count:
        raise TruncatedFile(f"only {len(content)} of {count} bytes were received")
    return content
