"""Reading built pairs back: as a `datasets` set for people, and as a stream of exact batches for the trainer.

The stream's order is a matter of arithmetic. An epoch is the concatenation of all shards in an order drawn by seed and
epoch; batch k of an epoch is its rows [k B, (k + 1) B). A rank takes its contiguous slice of that, and loader worker w
the batches w, w + workers, ... So the pairs of a step are the same for every number of ranks and workers, and the
position to resume from is one integer.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
from torch.utils.data import IterableDataset, get_worker_info


if TYPE_CHECKING:
    import datasets

OPEN_FILES = 16  # an epoch walks through thousands of shards
TRAINING_COLUMNS = ("pair_id", "image", "caption")


def shard_paths(path: str | os.PathLike[str], split: str) -> list[str]:
    """
    The shards of a split, in their order.

    Args:
        path: The folder that `biomedclip build` wrote, or its `data` folder; local, `hf://datasets/org/name`,
            `s3://...`.
        split: `train`, `validation` or `test`.

    Raises:
        FileNotFoundError: There are none, or some are missing.
    """
    filesystem, root = fsspec.core.url_to_fs(os.fspath(path))
    for folder in (f"{root}/data", root):
        names = sorted(filesystem.glob(f"{glob.escape(folder)}/{split}-*.parquet"))
        if names:
            _check_complete(names)
            return [filesystem.unstrip_protocol(name) for name in names]
    raise FileNotFoundError(
        f"{path}: no {split}-*.parquet there or in its data folder. Build a data set with: biomedclip build --help"
    )


def column_names(path: str | os.PathLike[str], split: str) -> list[str]:
    """Columns of a split, from the footer of its first shard."""
    with fsspec.open(shard_paths(path, split)[0], "rb") as file:
        return pq.read_schema(file).names


def load_pmc15m(
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    streaming: bool = True,
    columns: Sequence[str] | None = None,
    decode: bool = True,
) -> "datasets.IterableDataset | datasets.Dataset":
    """
    Opens a split of a built data set with `datasets`.

    Args:
        path: The folder that `biomedclip build` wrote; local or on the Hub (`hf://datasets/org/name`).
        split: `train`, `validation` or `test`.
        streaming: Read rows as they are asked for; otherwise a set with random access.
        columns: Columns to read; none for all.
        decode: Decode images with Pillow; otherwise `image` holds the bytes of the file, for [`read_image`].

    Returns:
        Rows with `image`, `caption`, `pair_id`, `pmcid`, `license` and so on.

    Raises:
        FileNotFoundError: No such split there, or an incomplete one.

    Example:

    ```python
    >>> from processing import load_pmc15m

    >>> for row in load_pmc15m("out", split="test").take(3):
    ...     print(row["caption"], row["image"].size)
    ```"""
    import datasets

    data_set = datasets.load_dataset(
        "parquet",
        data_files={split: shard_paths(path, split)},
        split=split,
        streaming=streaming,
        columns=list(columns) if columns is not None else None,
    )
    return data_set if decode else data_set.cast_column("image", datasets.Image(decode=False))


class PairStream:
    """
    A split as batches whose pairs depend on seed and position alone.

    Args:
        path: The folder that `biomedclip build` wrote.
        split: `train`, `validation` or `test`.
        seed: Seed of the order of shards.
        columns: Columns to read.

    Raises:
        FileNotFoundError: No such split there, or an incomplete one.

    Example:

    ```python
    >>> from processing import PairStream

    >>> rows = next(iter(PairStream("out").batches(batch_size=64)))
    >>> [row["caption"] for row in rows]
    ```"""

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str = "train",
        *,
        seed: int = 0,
        columns: Sequence[str] = TRAINING_COLUMNS,
    ):
        self.path = os.fspath(path)
        self.split = split
        self.seed = seed
        self.columns = tuple(columns)
        self.shards = [_Shard.open(url) for url in shard_paths(path, split)]

    def __len__(self) -> int:
        """Pairs in an epoch."""
        return sum(shard.rows for shard in self.shards)

    def rows(self, epoch: int, low: int, high: int) -> list[dict[str, Any]]:
        """
        Rows [low, high) of an epoch.

        Returns:
            The columns asked for and `epoch`; `image` holds the bytes of the file, not decoded.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        rows: list[dict[str, Any]] = []
        start = 0
        for shard in (self.shards[number] for number in order):
            first, last = max(low - start, 0), min(high - start, shard.rows)
            if first < last:
                rows += shard.read(first, last, self.columns)
            start += shard.rows
        for row in rows:
            row["epoch"] = epoch
        return rows

    def batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1, samples_seen: int = 0) -> "PairBatches":
        """
        The batches of one rank, without end; the last, incomplete batch of an epoch is left out.

        Args:
            batch_size: Pairs of a step, over all ranks.
            rank: This process.
            world_size: Number of processes.
            samples_seen: Pairs of the steps already taken, over all ranks: where to resume.

        Raises:
            ValueError: A batch that the ranks cannot share evenly, or that is larger than the split.
        """
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


@lru_cache(maxsize=OPEN_FILES)
def _open_file(process: int, url: str) -> pq.ParquetFile:
    """A shard's file, kept open for a while; for each process its own, as a forked one shares the position in it."""
    return pq.ParquetFile(fsspec.open(url, "rb").open())


@dataclass(frozen=True)
class _Shard:
    """One Parquet file: the rows of its row groups, known from its footer alone."""

    url: str
    group_rows: tuple[int, ...]

    @classmethod
    def open(cls, url: str) -> "_Shard":
        with fsspec.open(url, "rb") as file:
            metadata = pq.read_metadata(file)
        return cls(url, tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))

    @property
    def rows(self) -> int:
        return sum(self.group_rows)

    def read(self, first: int, last: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Rows [first, last), from the row groups that overlap them."""
        edges = np.cumsum([0, *self.group_rows])
        groups = [group for group in range(len(self.group_rows)) if edges[group] < last and edges[group + 1] > first]
        table = _open_file(os.getpid(), self.url).read_row_groups(groups, columns=list(columns))
        return table.slice(first - edges[groups[0]], last - first).to_pylist()


def _check_complete(names: Sequence[str]) -> None:
    """The names say how many shards there should be."""
    expected = names[0].rsplit("-of-", 1)[-1].removesuffix(".parquet")
    if expected.isdigit() and len(names) != int(expected):
        raise FileNotFoundError(f"{names[0]} is one of {int(expected)} shards, but only {len(names)} are there.")


__all__ = ["PairBatches", "PairStream", "column_names", "load_pmc15m", "shard_paths"]
