"""Read the Parquet shards of a built dataset from disk, the Hub or S3.

[`PairStream`] and [`load_pmc15m`] both use [`ShardReader`], so that they return the same rows and texts and raise the
same errors. It reads one row group at a time, and only the required columns. A row group of more than
`GROUP_BYTES_KEPT` is read in batches of about `BATCH_BYTES`, and one of more than `MAX_GROUP_BYTES` is refused.
"""

import glob
import hashlib
import json
import logging
import os
import posixpath
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Literal, TypeVar, get_args

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .files import require_regular
from .integrity import REPORT_FILE, DamagedFile, TruncatedFile, check_row_group, open_parquet, stated_shards
from .pmc.articles import LICENSES_KEY
from .retries import is_unreachable, lasting_error, with_retries
from .row_selection import COLUMNS_OF_PANELS, RowSelection


logger = logging.getLogger(__name__)

Text = Literal["caption", "mentions", "caption_and_mentions"]
TEXTS = get_args(Text)
TRAINING_COLUMNS = ("pair_id", "image", "caption")

OPEN_FILES = 16  # limited, because an epoch opens thousands of shards
GROUPS_KEPT = 2  # the next batch often begins in the row group in which the last one ended
GROUP_BYTES_KEPT = 64_000_000  # decompressed bytes of the columns that are read
BATCH_BYTES = 16_000_000
PAGE_BUFFER_BYTES = 8_000_000  # per column of a large row group
MAX_GROUP_BYTES = 1_000_000_000
READERS = 32  # shards that are opened at the same time
BAR_DELAY = 3  # seconds before a progress bar is shown

ATTEMPTS = 5
FIRST_PAUSE = 0.5  # seconds

_T = TypeVar("_T")


def shard_paths(
    path: str | os.PathLike[str], split: str, storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the URLs of the shards of a split, in the order in which they are stored.

    `path` is the folder that `biomedclip build` wrote, or its folder `data`. Raise `FileNotFoundError` if the split
    does not exist or is incomplete, and another `OSError` if the source cannot be reached or denies access.
    """
    try:
        return _find_shards(path, split, storage_options)
    except (FileNotFoundError, ImportError):
        raise
    except Exception as error:  # clients raise their own errors, without the path
        if is_unreachable(error):
            raise ConnectionError(f"{path}: no connection ({error}). Check the network.") from error
        if isinstance(error, PermissionError):
            raise PermissionError(f"{path}: access is denied ({error}). Check the credentials.") from error
        if isinstance(error, OSError | ValueError):
            raise
        raise OSError(f"{path}: the files cannot be listed ({type(error).__name__}: {error}).") from error


def _find_shards(path: str | os.PathLike[str], split: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    filesystem, root = fsspec.core.url_to_fs(os.fspath(path), **(storage_options or {}))
    for folder in (f"{root}/data", root):
        names = sorted(filesystem.glob(f"{glob.escape(folder)}/{split}-*.parquet"))
        if names:
            expected = names[0].rsplit("-of-", 1)[-1].removesuffix(".parquet")
            if expected.isdigit() and len(names) != int(expected):
                raise FileNotFoundError(
                    f"{names[0]} is one of {int(expected)} shards, but only {len(names)} were found. Copy the others."
                )
            return [filesystem.unstrip_protocol(name) for name in names]
    if not filesystem.exists(root):
        raise FileNotFoundError(f"{path}: the folder does not exist.")
    if filesystem.exists(f"{root}/.build"):
        raise FileNotFoundError(
            f"{path}: a build was interrupted before it wrote {split}-*.parquet. Run the same command again to finish "
            "it."
        )
    raise FileNotFoundError(
        f"{path}: no {split}-*.parquet in the folder or its subfolder data. Build a dataset with: biomedclip build"
    )


def column_names(
    path: str | os.PathLike[str], split: str, storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the columns of a split, from the footer of its first shard."""
    shards = shard_paths(path, split, storage_options)
    return ShardReader(shards, storage_options=storage_options).schema(shards[0]).names


@dataclass(frozen=True)
class Shard:
    """A Parquet file."""

    url: str
    group_rows: tuple[int, ...] | None = None  # selected rows of each row group, if they have been counted
    first: int = 0  # number of selected rows to skip

    @cached_property
    def rows(self) -> int:
        """Number of selected rows, including those to skip."""
        return sum(self.group_rows or ())


class ShardReader:
    """Read rows of the shards of a split. The arguments are those of [`load_pmc15m`].

    The report next to the shards contains the hashes of their footers. Temporary errors are retried. Error messages
    contain the name of the shard.
    """

    def __init__(
        self,
        urls: Sequence[str],
        columns: Sequence[str] | None = None,
        selection: RowSelection | None = None,
        text: Text = "caption",
        seed: int = 0,
        storage_options: Mapping[str, Any] | None = None,
    ):
        if text not in TEXTS:
            raise ValueError(f"text must be one of {', '.join(TEXTS)}, not {text!r}.")
        if text != "caption" and columns is not None and "caption" not in columns:
            raise ValueError(f"text={text!r} is returned as 'caption', which is not in columns={list(columns)}.")
        self.columns = None if columns is None else tuple(columns)
        self.selection = RowSelection() if selection is None else selection
        self.text = text
        self.seed = seed
        self.storage_options = dict(storage_options or {})
        self.stated = stated_shards(urls, self.storage_options) if urls else {}
        self._create_caches()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_group")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._create_caches()

    def _create_caches(self) -> None:
        # The process id is part of each key, because a forked process must not share the position in an open file.
        self._file = lru_cache(maxsize=OPEN_FILES)(self._open_file)
        self._group = lru_cache(maxsize=GROUPS_KEPT)(self._open_group)

    @property
    def stored_columns(self) -> list[str] | None:
        """The columns to read: those to return and those that select rows and texts. None for all columns."""
        if self.columns is None:
            return None
        needed = [*self.columns, *self.selection.columns]
        if self.text != "caption":
            needed += ["mentions", "pair_id"]
        return list(dict.fromkeys(needed))

    def schema(self, url: str) -> pa.Schema:
        """Return the schema of a shard."""
        return self._retry(url, lambda: self._checked(self._file(os.getpid(), url), url).schema_arrow)

    def open_shards(self, urls: Sequence[str]) -> list[Shard]:
        """Count the selected rows of shards, in parallel. Raise `ValueError` if there are none.

        If all rows are selected, the report of the dataset states their numbers, and only the first shard is opened.
        The footers of the others are checked when they are read, but their sizes now.
        """
        if not self.selection and all(url in self.stated and self.stated[url].rows is not None for url in urls):
            self.schema(urls[0])
            self._check_sizes(urls)
            return [Shard(url, self.stated[url].rows) for url in urls]
        found: Counter[tuple[str, str]] = Counter()
        shards = []
        with ThreadPoolExecutor(READERS) as pool:
            bar = tqdm(
                pool.map(self.open_shard, urls),
                total=len(urls),
                desc="Selecting pairs" if self.selection else "Opening shards",
                unit="shard",
                delay=BAR_DELAY,
                disable=None,
                dynamic_ncols=True,
            )
            for shard, found_in_shard in bar:
                shards.append(shard)
                found.update(found_in_shard)
        if self.selection and not any(shard.rows for shard in shards):
            raise ValueError(f"{urls[0]}: {self.selection.nothing_found(found)}")
        return shards

    def _check_sizes(self, urls: Sequence[str]) -> None:
        filesystem, first = fsspec.core.url_to_fs(urls[0], **self.storage_options)
        filesystem.invalidate_cache()  # the report may be newer than a listing that is kept
        entries = self._retry(urls[0], lambda: filesystem.ls(posixpath.dirname(first), detail=True))
        sizes = {posixpath.basename(entry["name"]): entry["size"] for entry in entries}
        for url in urls:
            size, stated = sizes.get(posixpath.basename(url)), self.stated[url].bytes
            if size is not None and size != stated:
                raise DamagedFile(
                    f"{url}: the shard is damaged: it has {size:,} bytes, but {REPORT_FILE} states {stated:,}. Restore "
                    "or build it again."
                )

    def open_shard(self, url: str) -> tuple[Shard, Counter[tuple[str, str]]]:
        """Count the selected rows of a shard and, for an error message, the values by which they are selected."""
        return self._retry(url, lambda: self._count_rows(self._checked(self._open_file(os.getpid(), url), url), url))

    def _count_rows(self, file: pq.ParquetFile, url: str) -> tuple[Shard, Counter[tuple[str, str]]]:
        groups = range(file.num_row_groups)
        if not self.selection:
            return Shard(url, tuple(file.metadata.row_group(group).num_rows for group in groups)), Counter()
        columns = self.selection.columns
        stated = (file.metadata.metadata or {}).get(LICENSES_KEY.encode())
        if columns == ["license"] and stated is not None:
            counts = [Counter(group) for group in json.loads(stated)]
            wanted = tuple(sum(group[code] for code in self.selection.licenses or ()) for group in counts)
            return Shard(url, wanted), Counter({("license", code): n for code, n in sum(counts, Counter()).items()})
        found: Counter[tuple[str, str]] = Counter()
        selected = []
        for group in groups:
            table = file.read_row_group(group, columns=columns)
            selected.append(pc.sum(self.selection.mask(table)).as_py() or 0)
            found.update(self.selection.values(table))
        return Shard(url, tuple(selected)), found

    def rows(self, shard: Shard, first: int, last: int, epoch: int) -> Iterator[dict[str, Any]]:
        """Yield the selected rows [first, last) of an opened shard."""
        low = 0
        for group, count in enumerate(shard.group_rows or ()):
            begin, end = max(first - low, 0), min(last - low, count)
            if begin < end:
                yield from self._rows_of_group(shard.url, group, begin, end, epoch)
            low += count

    def all_rows(self, shard: Shard, epoch: int) -> Iterator[dict[str, Any]]:
        """Yield the selected rows of a shard, starting at `shard.first`. The shard need not have been opened."""
        if shard.group_rows is not None:
            yield from self.rows(shard, shard.first, shard.rows, epoch)
            return
        for group in range(self._retry(shard.url, lambda: self._file(os.getpid(), shard.url).num_row_groups)):
            yield from self._rows_of_group(shard.url, group, 0, sys.maxsize, epoch)

    def text_of(self, row: Mapping[str, Any], epoch: int) -> str | None:
        """Return the text of a pair in an epoch. Seed, epoch and `pair_id` determine which mention is chosen."""
        mentions = [mention for mention in row["mentions"] or () if mention and mention.strip()]
        if not mentions:
            return row["caption"]
        key = f"mention/{self.seed}/{epoch}/{row['pair_id']}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        mention = mentions[int.from_bytes(digest, "little") % len(mentions)]
        return mention if self.text == "mentions" else f"{row['caption'] or ''} {mention}".strip()

    def _rows_of_group(self, url: str, group: int, first: int, last: int, epoch: int) -> Iterator[dict[str, Any]]:
        while first < last:
            table = self._retry(url, partial(self._table, url, group, first, last))
            if not table.num_rows:
                return
            for row in table.to_pylist():
                if self.text != "caption":
                    row["caption"] = self.text_of(row, epoch)
                yield {name: row[name] for name in self.columns or row}
            first += table.num_rows

    def _table(self, url: str, group: int, first: int, last: int) -> pa.Table:
        """Return up to `BATCH_BYTES` of selected rows [first, last) of a row group, or an empty table after its end."""
        opened = self._group(os.getpid(), url, group)
        if opened.start > first:
            self._group.cache_clear()
            opened = self._group(os.getpid(), url, group)
        return opened.rows_from(first).slice(0, min(opened.batch_rows, last - first))

    def _open_group(self, process: int, url: str, group: int) -> "_RowGroup":
        file = self._file(process, url)
        metadata, stored = file.metadata.row_group(group), self.stored_columns
        chunks = (metadata.column(number) for number in range(metadata.num_columns))
        size = sum(
            max(chunk.total_uncompressed_size, chunk.total_compressed_size)
            for chunk in chunks
            if stored is None or chunk.path_in_schema.split(".")[0] in stored
        )
        if size > MAX_GROUP_BYTES:
            raise _NotReadable(
                f"{url}: row group {group} has {size:,} bytes, and at most {MAX_GROUP_BYTES:,} are read. Write the "
                "file again with fewer rows per row group."
            )
        batch_rows = max(1, BATCH_BYTES * metadata.num_rows // max(size, 1))
        if size <= GROUP_BYTES_KEPT:
            tables = iter([file.read_row_group(group, columns=stored)])
        else:
            # Without `pre_buffer`, which would keep the whole row group in memory.
            file = self._open_file(process, url, pre_buffer=False, buffer_size=PAGE_BUFFER_BYTES)
            batches = file.iter_batches(batch_rows, row_groups=[group], columns=stored, use_threads=False)
            tables = (pa.Table.from_batches([batch]) for batch in batches)
        checked = check_row_group(tables, metadata, url)
        if self.selection:
            checked = (table.filter(self.selection.mask(table)) for table in checked)
        return _RowGroup(checked, batch_rows)

    def _checked(self, file: pq.ParquetFile, url: str) -> pq.ParquetFile:
        names = file.schema_arrow.names
        if missing := [name for name in self.selection.required if name not in names]:
            of_panels = missing[0] in COLUMNS_OF_PANELS
            remedy = " Build the dataset with panels: biomedclip build --panels also." if of_panels else ""
            raise _NotReadable(f"{url} has no column {missing[0]!r}, by which rows are selected.{remedy}")
        if missing := [name for name in self.stored_columns or () if name not in names]:
            raise _NotReadable(f"{url} has no column {missing[0]!r}. The columns are {', '.join(names)}.")
        return file

    def _open_file(self, process: int, url: str, **options: Any) -> pq.ParquetFile:
        filesystem, path = fsspec.core.url_to_fs(url, **self.storage_options)
        if _is_local(url):
            require_regular(path)
        # Arrow requests exactly the ranges that it needs. A read-ahead cache would also fetch the images between
        # captions.
        file = filesystem.open(path, "rb", cache_type="none")
        stated = self.stated.get(url)
        footer = None if stated is None else stated.footer_sha256
        opened = open_parquet(file, url, footer_sha256=footer, **{"pre_buffer": True, **options})
        rows = tuple(opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups))
        if stated is not None and stated.rows not in (None, rows):
            raise DamagedFile(f"{url}: its row groups are not those in {REPORT_FILE}. One of the two is damaged.")
        return opened

    def _retry(self, url: str, read: Callable[[], _T]) -> _T:
        return with_retries(read, check=partial(self._check_error, url), pause=FIRST_PAUSE)

    def _check_error(self, url: str, error: Exception, attempt: int) -> None:
        """Raise an error unless another attempt might succeed. The next attempt opens the file again."""
        self._file.cache_clear()
        self._group.cache_clear()
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(
                f"{url}: the shard no longer exists. Restore it, or load the dataset again if it has been rebuilt."
            ) from error
        if isinstance(error, PermissionError):
            raise PermissionError(f"{url}: access is denied ({error}). Check the credentials.") from error
        if isinstance(error, MemoryError | _NotReadable) or lasting_error(error) is not None:
            raise error
        if _is_local(url) and _is_damage(error):
            if attempt > 1:
                raise DamagedFile(f"{url}: the shard is damaged ({error}). Restore or build it again.") from error
        elif attempt == ATTEMPTS:
            raise OSError(
                f"{url}: the shard could not be read in {ATTEMPTS} attempts ({type(error).__name__}: {error})."
            ) from error
        else:
            logger.warning("%s: %s: %s. Trying again.", url, type(error).__name__, error)


class _NotReadable(ValueError):
    """Raised for an error that a retry cannot fix."""


class _RowGroup:
    """The selected rows of a row group, which are read in order. Only the current batch is kept."""

    def __init__(self, batches: Iterator[pa.Table], batch_rows: int):
        self.batch_rows = batch_rows
        self.start = 0  # index of the first row of the current batch
        self._batches = batches
        self._batch = pa.table({})

    def rows_from(self, first: int) -> pa.Table:
        """Return the batch that contains a row, from that row on, or an empty table after the end of the row group."""
        while first >= self.start + self._batch.num_rows:
            following = next(self._batches, None)
            if following is None:
                return self._batch.slice(self._batch.num_rows)
            self.start += self._batch.num_rows
            self._batch = following
        return self._batch.slice(first - self.start)


def _is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def _is_damage(error: Exception) -> bool:
    """Return whether an error is caused by the content of a file. Arrow raises such errors without an errno."""
    if isinstance(error, TruncatedFile):
        return False  # the file may be in the process of being replaced
    return isinstance(error, pa.ArrowException) or (isinstance(error, OSError) and error.errno is None)
