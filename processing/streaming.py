"""Reading built pairs back: as a `datasets` set for people, and as a stream of exact batches for the trainer.

The stream's order is a matter of arithmetic. An epoch is the concatenation of all shards in an order drawn by seed and
epoch; batch k of an epoch is its rows [k B, (k + 1) B). A rank takes its contiguous slice of that, and loader worker w
the batches w, w + workers, ... So the pairs of a step are the same for every number of ranks and workers, and the
position to resume from is one integer. With a choice of licences the rows are those that are left, in the same order.

Both views read through one reader, a row group at a time and of it only the columns that are needed, so that they give
the same rows, texts and errors from a disk, the Hub or S3.

A reader keeps at most `GROUPS_KEPT` row groups of `GROUP_BYTES_KEPT`. A larger row group is read in batches of about
`BATCH_BYTES`, and one of more than `MAX_GROUP_BYTES` is refused.
"""

import glob
import hashlib
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch.utils.data import IterableDataset, get_worker_info
from tqdm.auto import tqdm

from .files import require_regular
from .images.reading import MAX_NAME
from .integrity import DamagedFile, TruncatedFile, check_batches, check_values, footers_of, open_parquet
from .pmc.articles import LICENSES_KEY, parse_licenses
from .retries import is_unreachable, lasting_error


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

Text = Literal["caption", "mentions", "caption_and_mentions"]
TEXTS = get_args(Text)
TRAINING_COLUMNS = ("pair_id", "image", "caption")

OPEN_FILES = 16  # an epoch walks through thousands of shards
GROUPS_KEPT = 2  # batches end in the middle of a row group, and the next one goes on there
GROUP_BYTES_KEPT = 64_000_000  # of the columns that are read, decompressed
BATCH_BYTES = 16_000_000  # of a larger row group, by the mean size of its rows
PAGE_BUFFER_BYTES = 8_000_000  # of each column of a larger row group
MAX_GROUP_BYTES = 1_000_000_000
READERS = 32  # shards looked into at a time when a stream is opened
BAR_DELAY = 3  # seconds; what takes less needs no progress bar

ATTEMPTS = 5
FIRST_PAUSE = 0.5  # seconds; doubled each time

_T = TypeVar("_T")


def shard_paths(
    path: str | os.PathLike[str], split: str, storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    """The shards of a split, in their order.

    Args:
        path: The folder that `biomedclip build` wrote, or its `data` folder; local, `hf://datasets/org/name`,
            `s3://...`.
        split: `train`, `validation` or `test`.
        storage_options: What fsspec needs to open it, such as `{"anon": True}`.

    Raises:
        FileNotFoundError: There are none, or some are missing.
        OSError: If the source cannot be reached, or denies access.
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


def _find_shards(
    path: str | os.PathLike[str], split: str, storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    filesystem, root = fsspec.core.url_to_fs(os.fspath(path), **(storage_options or {}))
    for folder in (f"{root}/data", root):
        names = sorted(filesystem.glob(f"{glob.escape(folder)}/{split}-*.parquet"))
        if names:
            _check_complete(names)
            return [filesystem.unstrip_protocol(name) for name in names]
    if not filesystem.exists(root):
        raise FileNotFoundError(f"{path}: there is no such folder.")
    if filesystem.exists(f"{root}/.build"):
        raise FileNotFoundError(
            f"{path}: a build was interrupted here, and no {split}-*.parquet is there yet. Run the same command again "
            "to finish it."
        )
    raise FileNotFoundError(
        f"{path}: no {split}-*.parquet there or in its data folder. Build a data set with: biomedclip build --help"
    )


def column_names(
    path: str | os.PathLike[str], split: str, storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    """Columns of a split, from the footer of its first shard."""
    shards = shard_paths(path, split, storage_options)
    return _Reader(storage_options=storage_options).verify_against_report(shards).schema(shards[0]).names


def load_pmc15m(
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    streaming: bool = True,
    columns: Sequence[str] | None = None,
    decode: bool = True,
    licenses: str | Collection[str] | None = None,
    text: Text = "caption",
    seed: int | None = None,
    epoch: int = 0,
    start: int = 0,
    storage_options: Mapping[str, Any] | None = None,
) -> "datasets.IterableDataset | datasets.Dataset":
    r"""Opens a split of a built data set with `datasets`.

    `datasets` shares the shards out: to the processes of a run by `datasets.distributed.split_dataset_by_node`, to the
    workers of a `DataLoader` by itself. Each row then comes exactly once for every number of both, but which rows make
    a batch depends on them; where it must not, there is [`PairStream`].

    `state_dict` and `load_state_dict` of the streaming set are exact: it goes on with the very next row, for which it
    reads the shard it is in again from that shard's first row. `start` reads nothing of what came before.
    `set_epoch` shuffles the shards as `datasets` does for any set; leave it, and pass `epoch`, where the order must be
    the one of [`PairStream`].

    Args:
        path: The folder that `biomedclip build` wrote; local, on the Hub (`hf://datasets/org/name`) or on S3
            (`s3://...`).
        split: `train`, `validation` or `test`.
        streaming: Read rows as they are asked for; otherwise a set with random access, for which `datasets` first
            copies whole files to its cache.
        columns: Columns to read, none for all. Nothing else is fetched.
        decode: Decode images with [`read_image`] and its limits; otherwise `image` holds the bytes of the file.
        licenses: Only pairs under these: `commercial`, `noncommercial` (every Creative Commons licence), `all`, codes
            such as `"CC BY,CC0"`, or a list of codes.
        text: What stands in `caption`: the `caption`; of the `mentions`, the paragraphs that cite the figure, one that
            is drawn by seed, epoch and `pair_id`, or the caption of a pair without; or `caption_and_mentions`, the
            caption followed by that paragraph.
        seed: Shards in the order that [`PairStream`] of this seed has in `epoch`; none for the order they are stored
            in, and texts drawn as with 0.
        epoch: The epoch, for the order of shards and the texts.
        start: Pairs to leave out at the beginning.
        storage_options: What fsspec needs to open `path`, such as `{"anon": True}`.

    Returns:
        Rows with `image`, `caption`, `pair_id`, `pmcid`, `license` and so on.

    Raises:
        FileNotFoundError: No such split there, or an incomplete one.
        ValueError: A column that the set does not have, no pair of these licences, or an option that makes no sense.

    Example:
    ```python
    >>> from biomedclip.processing import load_pmc15m

    >>> for row in load_pmc15m("out", split="test").take(3):
    ...     print(row["caption"], row["image"].size)

    >>> captions = load_pmc15m("out", columns=["pair_id", "caption"], licenses="commercial", seed=0, epoch=2)
    ```
    """
    import datasets

    from .images.feature import PairImage

    urls = shard_paths(path, split, storage_options)
    if seed is not None:
        urls = [urls[number] for number in _shard_order(len(urls), seed, epoch)]
    reader = _Reader(columns, None if licenses is None else parse_licenses(licenses), text, seed or 0, storage_options)
    reader.verify_against_report(urls)
    features = datasets.Features.from_arrow_schema(reader.schema(urls[0]))
    features = datasets.Features({name: features[name] for name in columns or features})
    if "image" in features:
        features["image"] = PairImage(decode=decode)
    if reader.licenses is not None and not reader.open_shard(urls[0])[0].rows:
        reader.open_shards(urls)  # raises where the others hold none either
    if not streaming:
        return _random_access(reader, urls, split, features, epoch, start)

    shards = [_Shard(url) for url in urls]
    if start:
        shards = _skip(reader.open_shards(urls), start)
    return datasets.IterableDataset.from_generator(
        _generate_rows,
        features=features,
        gen_kwargs={"shards": shards, "reader": reader, "epoch": epoch, "decode": decode},
        split=datasets.NamedSplit(split),
    )


class PairStream:
    """A split as batches whose pairs depend on seed and position alone.

    Opening it reads the footers of all shards, many at a time, and with a choice of licences what they say of them.

    Args:
        path: The folder that `biomedclip build` wrote; local, `hf://datasets/org/name` or `s3://...`.
        split: `train`, `validation` or `test`.
        seed: Seed of the order of shards, and of the texts.
        columns: Columns to read.
        licenses: Only pairs under these, as for [`load_pmc15m`]. Batches are ranges of the rows that are left.
        text: What stands in `caption`, as for [`load_pmc15m`].
        storage_options: What fsspec needs to open `path`, such as `{"anon": True}`.

    Raises:
        FileNotFoundError: No such split there, or an incomplete one.
        ValueError: A column that the set does not have, no pair of these licences, or an option that makes no sense.

    Example:
    ```python
    >>> from biomedclip.processing import PairStream

    >>> rows = next(iter(PairStream("out").batches(batch_size=64)))
    >>> [row["caption"] for row in rows]
    ```
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str = "train",
        *,
        seed: int = 0,
        columns: Sequence[str] = TRAINING_COLUMNS,
        licenses: str | Collection[str] | None = None,
        text: Text = "caption",
        storage_options: Mapping[str, Any] | None = None,
    ):
        self.path = os.fspath(path)
        self.split = split
        self.seed = seed
        self.columns = tuple(columns)
        self._reader = _Reader(
            columns, None if licenses is None else parse_licenses(licenses), text, seed, storage_options
        )
        shards = shard_paths(path, split, storage_options)
        self._shards = self._reader.verify_against_report(shards).open_shards(shards)

    def __len__(self) -> int:
        """Pairs in an epoch."""
        return sum(shard.rows for shard in self._shards)

    def shards(self, epoch: int) -> list[tuple[str, int]]:
        """The shards of an epoch in their order: where each lies, and how many of its pairs are read."""
        order = _shard_order(len(self._shards), self.seed, epoch)
        return [(self._shards[number].url, self._shards[number].rows) for number in order]

    def rows(self, epoch: int, low: int, high: int) -> list[dict[str, Any]]:
        """Rows [low, high) of an epoch.

        Returns:
            The columns asked for and `epoch`; `image` holds the bytes of the file, not decoded.
        """
        rows: list[dict[str, Any]] = []
        start = 0
        for shard in (self._shards[number] for number in _shard_order(len(self._shards), self.seed, epoch)):
            first, last = max(low - start, 0), min(high - start, shard.rows)
            if first < last:
                rows += self._reader.rows(shard, first, last, epoch)
            start += shard.rows
        for row in rows:
            row["epoch"] = epoch
        return rows

    def batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1, samples_seen: int = 0) -> "PairBatches":
        """The batches of one rank, without end; the last, incomplete batch of an epoch is left out.

        Args:
            batch_size: Pairs of a step, over all ranks.
            rank: This process.
            world_size: Number of processes.
            samples_seen: Pairs of the steps already taken, over all ranks: where to resume.

        Raises:
            ValueError: If `batch_size` or `world_size` is not positive, `rank` or `samples_seen` is out of range, the
                ranks cannot share a batch evenly, or a batch is larger than the split.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, not {world_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1} for world_size={world_size}, not {rank}.")
        if samples_seen < 0:
            raise ValueError(f"samples_seen must not be negative, and is {samples_seen}.")
        if batch_size % world_size != 0:
            raise ValueError(f"A batch of {batch_size} pairs cannot be shared evenly by {world_size} processes.")
        if batch_size > len(self):
            raise ValueError(
                f"A batch of {batch_size} pairs does not fit: the {self.split} split of {self.path} holds {len(self)}. "
                "Lower --per-device-train-batch-size, or build a larger data set."
            )
        return PairBatches(self, batch_size, rank, world_size, samples_seen)


class PairBatches(IterableDataset):
    """What [`PairStream.batches`] returns: lists of rows without end, for a loader with `batch_size=None`."""

    def __init__(self, stream: PairStream, batch_size: int, rank: int, world_size: int, samples_seen: int):
        super().__init__()
        self.stream = stream
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.samples_seen = samples_seen

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker = get_worker_info()
        step = self.samples_seen // self.batch_size + (worker.id if worker else 0)
        stride = worker.num_workers if worker else 1
        batches_per_epoch = len(self.stream) // self.batch_size
        share = self.batch_size // self.world_size
        while True:
            epoch, batch = divmod(step, batches_per_epoch)
            low = batch * self.batch_size + self.rank * share
            yield self.stream.rows(epoch, low, low + share)
            step += stride


@dataclass(frozen=True)
class _Shard:
    """One Parquet file.

    Args:
        url: Where it lies.
        group_rows: Of each row group the rows that are wanted; none as long as nobody has looked.
        first: Wanted rows to leave out at its beginning.
    """

    url: str
    group_rows: tuple[int, ...] | None = None
    first: int = 0

    @cached_property
    def rows(self) -> int:
        return sum(self.group_rows or ())


def _licenses_of_groups(file: pq.ParquetFile) -> list[Mapping[str, int]]:
    """Pairs by licence of each row group: from the footer, where the build has put them, else from the column."""
    noted = (file.metadata.metadata or {}).get(LICENSES_KEY.encode())
    if noted is not None:
        return json.loads(noted)
    groups = range(file.num_row_groups)
    columns = (file.read_row_group(group, columns=["license"]).column("license").to_pylist() for group in groups)
    return [Counter(map(str, codes)) for codes in columns]


class _Reader:
    """Reads the rows of shards, for both views: the columns asked for, the licences chosen, the text in `caption`.

    What may be a passing fault is tried again; a shard that cannot be read is named.
    """

    def __init__(
        self,
        columns: Sequence[str] | None = None,
        licenses: frozenset[str] | None = None,
        text: Text = "caption",
        seed: int = 0,
        storage_options: Mapping[str, Any] | None = None,
    ):
        if text not in TEXTS:
            raise ValueError(f"text must be one of {', '.join(TEXTS)}, not {text!r}.")
        if text != "caption" and columns is not None and "caption" not in columns:
            raise ValueError(f"text={text!r} is given in 'caption', which is not among the columns {list(columns)}.")
        self.columns = None if columns is None else tuple(columns)
        self.licenses = licenses
        self.text = text
        self.seed = seed
        self.storage_options = dict(storage_options or {})
        self.footers: Mapping[str, str] = {}
        self._keep_open()

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to another process.
        return {name: value for name, value in self.__dict__.items() if name not in ("_file", "_group", "_large")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._keep_open()

    def _keep_open(self) -> None:
        self._file = lru_cache(maxsize=OPEN_FILES)(self._open_file)
        self._group = lru_cache(maxsize=GROUPS_KEPT)(self._read_group)
        self._large = lru_cache(maxsize=1)(self._open_large)

    def verify_against_report(self, shards: Sequence[str]) -> "_Reader":
        """Read the hashes of footers from the report next to the shards, if it states them."""
        self.footers = footers_of(shards, self.storage_options)
        return self

    @property
    def stored_columns(self) -> list[str] | None:
        """Columns to read: those asked for and those that decide on rows and texts; none for all."""
        if self.columns is None:
            return None
        needed = [*self.columns]
        if self.licenses is not None:
            needed.append("license")
        if self.text != "caption":
            needed += ["mentions", "pair_id"]
        return list(dict.fromkeys(needed))

    def schema(self, url: str) -> pa.Schema:
        """The columns of a shard."""
        return self._patiently(url, lambda file: self._checked(file, url).schema_arrow)

    def open_shards(self, urls: Sequence[str]) -> list[_Shard]:
        """Counts the wanted rows of all shards, many shards at a time."""
        codes: Counter[str] = Counter()
        shards = []
        with ThreadPoolExecutor(READERS) as pool:
            opened = pool.map(self.open_shard, urls)
            bar = tqdm(
                opened,
                total=len(urls),
                desc="Opening shards" if self.licenses is None else "Reading licences",
                unit="shard",
                delay=BAR_DELAY,
                disable=None,
                file=sys.stderr,
                dynamic_ncols=True,
            )
            for shard, codes_of_shard in bar:
                shards.append(shard)
                codes.update(codes_of_shard)
        if self.licenses is not None and not any(shard.rows for shard in shards):
            there = ", ".join(f"{code} ({count:,} pairs)" for code, count in codes.most_common())
            raise ValueError(f"{urls[0]}: no pair under {', '.join(sorted(self.licenses))}; there are: {there}.")
        return shards

    def check_lists(self, urls: Sequence[str]) -> None:
        """Compares the list columns that are read with the footers, for readers that do not: see [`check_values`]."""

        def check(file: pq.ParquetFile, url: str) -> None:
            stored = self.stored_columns
            names = [
                field.name
                for field in file.schema_arrow
                if pa.types.is_list(field.type) and (stored is None or field.name in stored)
            ]
            for group in range(file.num_row_groups if names else 0):
                check_values(file.read_row_group(group, columns=names), file.metadata.row_group(group), url)

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda url: self._patiently(url, partial(check, url=url), keep=False), urls))

    def rows(self, shard: _Shard, first: int, last: int, epoch: int) -> list[dict[str, Any]]:
        """Wanted rows [first, last) of a shard whose rows have been counted, from the row groups that overlap them."""
        rows: list[dict[str, Any]] = []
        low = 0
        for group, count in enumerate(shard.group_rows or ()):
            begin, end = max(first - low, 0), min(last - low, count)
            if begin < end:
                for table in self._slices(shard.url, group, begin, end):
                    rows += self._rows(table, epoch)
            low += count
        return rows

    def all_rows(self, shard: _Shard, epoch: int) -> Iterator[dict[str, Any]]:
        """All wanted rows of a shard, from `shard.first` on; the row groups before it are not read."""
        left_out = shard.first
        for group in range(self._patiently(shard.url, lambda file: file.num_row_groups)):
            if shard.group_rows is not None and shard.group_rows[group] <= left_out:
                left_out -= shard.group_rows[group]
            else:
                for table in self._slices(shard.url, group, left_out, None):
                    yield from self._rows(table, epoch)
                left_out = 0

    def text_of(self, row: Mapping[str, Any], epoch: int) -> str | None:
        """The text of a pair in an epoch; the paragraph is drawn by seed, epoch and pair, so every process agrees."""
        mentions = [mention for mention in row["mentions"] or () if mention and mention.strip()]
        if self.text == "caption" or not mentions:
            return row["caption"]
        key = f"mention/{self.seed}/{epoch}/{row['pair_id']}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        mention = mentions[int.from_bytes(digest, "little") % len(mentions)]
        return mention if self.text == "mentions" else f"{row['caption'] or ''} {mention}".strip()

    def _rows(self, table: pa.Table, epoch: int) -> list[dict[str, Any]]:
        rows = table.to_pylist()
        if self.text != "caption":
            for row in rows:
                row["caption"] = self.text_of(row, epoch)
        return [{name: row[name] for name in self.columns or row} for row in rows]

    def open_shard(self, url: str) -> tuple[_Shard, Counter[str]]:
        """Counts the wanted rows of a shard, and with a choice of licences its pairs by licence."""
        return self._patiently(url, lambda file: self._count_rows(self._checked(file, url), url), keep=False)

    def _count_rows(self, file: pq.ParquetFile, url: str) -> tuple[_Shard, Counter[str]]:
        """The wanted rows of each row group, and pairs by licence."""
        if self.licenses is None:
            groups = range(file.num_row_groups)
            return _Shard(url, tuple(file.metadata.row_group(group).num_rows for group in groups)), Counter()
        counts = _licenses_of_groups(file)
        wanted = [sum(count for code, count in group.items() if code in self.licenses) for group in counts]
        return _Shard(url, tuple(wanted)), sum(map(Counter, counts), Counter())

    def _checked(self, file: pq.ParquetFile, url: str) -> pq.ParquetFile:
        names = file.schema_arrow.names
        missing = [name for name in self.stored_columns or () if name not in names]
        if missing:
            raise _NotReadable(f"{url} has no column {missing[0]!r}; it has {', '.join(names)}.")
        return file

    def _slices(self, url: str, group: int, first: int, last: int | None) -> Iterator[pa.Table]:
        """Wanted rows [first, last) of a row group, or all from `first` on, in pieces that do not take much memory."""
        group_bytes, stored_rows = self._patiently(url, lambda file: self._size_of_group(file, url, group))
        batch_rows = max(1, BATCH_BYTES * stored_rows // max(group_bytes, 1))
        if group_bytes <= GROUP_BYTES_KEPT:
            table = self._group(os.getpid(), url, group)
            last = table.num_rows if last is None else last
            for start in range(first, last, batch_rows):
                yield table.slice(start, min(batch_rows, last - start))
            return
        while last is None or first < last:
            piece = self._patiently(url, partial(self._read_large, url, group, batch_rows, first))
            if not piece.num_rows:
                return
            yield piece.slice(0, None if last is None else last - first)
            first += piece.num_rows

    def _size_of_group(self, file: pq.ParquetFile, url: str, group: int) -> tuple[int, int]:
        """Bytes of the columns that are read of a row group, and its rows; an error for one that is too large."""
        metadata = file.metadata.row_group(group)
        chunks = (metadata.column(number) for number in range(metadata.num_columns))
        stored = self.stored_columns
        size = sum(
            max(chunk.total_uncompressed_size, chunk.total_compressed_size)
            for chunk in chunks
            if stored is None or chunk.path_in_schema.split(".")[0] in stored
        )
        if size > MAX_GROUP_BYTES:
            raise _NotReadable(
                f"{url}: row group {group} has {size:,} bytes, and at most {MAX_GROUP_BYTES:,} are read. Write the "
                "file again with fewer rows in a row group."
            )
        return size, metadata.num_rows

    def _read_group(self, process: int, url: str, group: int) -> pa.Table:
        """The wanted rows of a row group that is not large."""
        return self._wanted(
            self._patiently(
                url,
                lambda file: check_values(
                    file.read_row_group(group, columns=self.stored_columns), file.metadata.row_group(group), url
                ),
            )
        )

    def _read_large(self, url: str, group: int, batch_rows: int, first: int, file: pq.ParquetFile) -> pa.Table:
        """Some wanted rows of a large row group from `first` on; none behind its end."""
        cursor = self._large(os.getpid(), url, group, batch_rows)
        if cursor.start > first:
            self._large.cache_clear()
            cursor = self._large(os.getpid(), url, group, batch_rows)
        try:
            return cursor.rows_from(first)
        except Exception:
            self._large.cache_clear()
            raise

    def _open_large(self, process: int, url: str, group: int, batch_rows: int) -> "_Cursor":
        # Column by column through a buffer: with `pre_buffer` Arrow would hold all of the row group.
        file = self._open_file(process, url, pre_buffer=False, buffer_size=PAGE_BUFFER_BYTES)
        batches = file.iter_batches(batch_rows, row_groups=[group], columns=self.stored_columns, use_threads=False)
        return _Cursor(map(self._wanted, check_batches(batches, file.metadata.row_group(group), url)))

    def _wanted(self, table: pa.Table) -> pa.Table:
        """The rows under the licences that were chosen."""
        if self.licenses is None:
            return table
        return table.filter(pc.is_in(table.column("license"), pa.array(sorted(self.licenses), pa.string())))

    def _open_file(self, process: int, url: str, **options: Any) -> pq.ParquetFile:
        """Opens a shard for this process alone: a forked one would share the position in the file."""
        filesystem, path = fsspec.core.url_to_fs(url, **self.storage_options)
        # Arrow asks for exactly the ranges it needs, and joins those that touch (`pre_buffer`). A cache that reads
        # ahead, by 50 MB on S3, would fetch the images between two captions.
        if _is_local(url):
            require_regular(path)
        file = filesystem.open(path, "rb", cache_type="none")
        return open_parquet(file, url, footer_sha256=self.footers.get(url), **{"pre_buffer": True, **options})

    def _patiently(self, url: str, read: Callable[[pq.ParquetFile], _T], *, keep: bool = True) -> _T:
        """Reads from a shard; what may be a passing fault is tried again on a file opened afresh."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return read((self._file if keep else self._open_file)(os.getpid(), url))
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{url}: this shard is not there any more. Restore it, or load the data set again if it has been "
                    "rebuilt."
                ) from error
            except PermissionError as error:
                raise PermissionError(f"{url}: this shard may not be read ({error}). Check the credentials.") from error
            except (MemoryError, _NotReadable):
                raise
            except Exception as error:  # every client has its own: time-outs, 503s, resets, truncated answers
                self._file.cache_clear()
                if lasting_error(error) is not None:
                    raise
                if _is_local(url) and _is_damage(error):
                    if attempt == 1:  # on a file that is opened again
                        continue
                    raise DamagedFile(f"{url}: this shard is damaged ({error}). Restore or build it again.") from error
                if attempt == ATTEMPTS:
                    raise OSError(
                        f"{url}: this shard could not be read in {ATTEMPTS} attempts ({type(error).__name__}: {error})."
                    ) from error
                logger.warning("%s: %s: %s. Trying again.", url, type(error).__name__, error)
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        raise AssertionError("unreachable")


class _NotReadable(ValueError):
    """No fault that passes."""


class _Cursor:
    """Walks forwards through the batches of a large row group, of which it keeps one.

    Args:
        batches: The wanted rows of each batch.
    """

    def __init__(self, batches: Iterator[pa.Table]):
        self._batches = batches
        self._batch = pa.table({})
        self.start = 0  # of the batch, in wanted rows

    def rows_from(self, first: int) -> pa.Table:
        """The rows of one batch from `first` on; none behind the end."""
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
    """Whether a file on a disk that gives this error will give it again; Arrow's errors on content have no number."""
    if isinstance(error, TruncatedFile):
        return False  # it may be about to be replaced
    return isinstance(error, pa.ArrowException) or (isinstance(error, OSError) and error.errno is None)


def _generate_rows(
    shards: Sequence[_Shard], reader: _Reader, epoch: int, decode: bool = False
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for number, row in enumerate(reader.all_rows(shard, epoch)):
            image = row.get("image")
            if isinstance(image, str):
                image = {"bytes": None, "path": image}
            if decode and isinstance(image, dict) and image["bytes"] is None and image["path"] is not None:
                raise _without_bytes(f"{shard.url}: row {row.get('pair_id') or number}", image["path"])
            yield row


def _without_bytes(row: str, path: str) -> ValueError:
    return ValueError(
        f"{row} has no bytes of its image, only the path {path[:MAX_NAME]!r}, and paths inside data are not opened. "
        "Store the bytes in the column 'image', or remove the row."
    )


def _random_access(
    reader: _Reader, urls: Sequence[str], split: str, features: "datasets.Features", epoch: int, start: int
) -> "datasets.Dataset":
    import datasets
    import pyarrow.dataset as pads
    from datasets.exceptions import DatasetGenerationError

    rows = sum(shard.rows for shard in reader.open_shards(urls))  # checks all footers
    reader.check_lists(urls)
    try:
        data_set = datasets.load_dataset(
            "parquet",
            data_files={split: list(urls)},
            split=split,
            columns=reader.stored_columns,
            filters=None if reader.licenses is None else [("license", "in", sorted(reader.licenses))],
            storage_options=reader.storage_options or None,
            fragment_scan_options=pads.ParquetFragmentScanOptions(page_checksum_verification=True),
        )
    except DatasetGenerationError:
        for url in urls:  # `datasets` does not say which shard it was; reading says so
            for _ in reader.all_rows(_Shard(url), epoch):
                pass
        raise
    if len(data_set) != rows:
        raise DamagedFile(f"{urls[0]}: {len(data_set):,} of {rows:,} rows of this set can be read. Build it again.")
    if reader.text != "caption":
        texts = data_set.select_columns(["pair_id", "caption", "mentions"]).map(
            _text_row, fn_kwargs={"reader": reader, "epoch": epoch}, remove_columns=["pair_id", "mentions"]
        )
        # Beside the other columns, so that images are not copied.
        data_set = datasets.concatenate_datasets([data_set.remove_columns("caption"), texts], axis=1)
    data_set = data_set.select_columns(list(features))
    if "image" in features:
        _refuse_paths(data_set)  # decoded or not: saving the set would put the files that rows name into it
        data_set = data_set.cast_column("image", features["image"])
    _check_start(start, len(data_set))
    # `select` takes no empty range.
    return data_set.select(range(start, len(data_set)) if start < len(data_set) else []) if start else data_set


def _refuse_paths(data_set: "datasets.Dataset") -> None:
    """Raises for the first row whose image has a path and no bytes."""
    images = paths = data_set.data.column("image")
    without_bytes = pc.is_valid(images)
    if pa.types.is_struct(images.type):
        paths = pc.struct_field(images, "path")
        without_bytes = pc.and_(pc.is_valid(paths), pc.is_null(pc.struct_field(images, "bytes")))
    elif pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type):
        return
    first = pc.index(without_bytes, True).as_py()
    if first >= 0:
        named = "pair_id" in data_set.column_names
        name = data_set.data.column("pair_id")[first].as_py() if named else f"{first} of the {data_set.split} split"
        raise _without_bytes(f"Row {name}", str(paths[first].as_py()))


def _text_row(row: Mapping[str, Any], reader: _Reader, epoch: int) -> dict[str, str | None]:
    return {"caption": reader.text_of(row, epoch)}


def _check_start(start: int, pairs: int) -> None:
    if not 0 <= start <= pairs:
        raise ValueError(f"start must lie in 0..{pairs}, the pairs of the split, and is {start}.")


def _skip(shards: Sequence[_Shard], start: int) -> list[_Shard]:
    """What is left of the shards after the first `start` rows."""
    total = sum(shard.rows for shard in shards)
    _check_start(start, total)
    left = []
    for shard in shards:
        if start < shard.rows:
            left.append(_Shard(shard.url, shard.group_rows, start))
        start = max(start - shard.rows, 0)
    return left


def _shard_order(shards: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(shards)


def _check_complete(names: Sequence[str]) -> None:
    """The names say how many shards there should be."""
    expected = names[0].rsplit("-of-", 1)[-1].removesuffix(".parquet")
    if expected.isdigit() and len(names) != int(expected):
        raise FileNotFoundError(f"{names[0]} is one of {int(expected)} shards, but only {len(names)} are there.")


__all__ = ["PairBatches", "PairStream", "column_names", "load_pmc15m", "shard_paths"]
