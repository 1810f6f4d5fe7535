"""The stream of reproducible batches for training.

An epoch is the concatenation of all shards in an order that depends on seed and epoch. With batch size B, batch k of an
epoch consists of the rows [k B, (k + 1) B). Each rank takes a contiguous slice of each batch. Loader worker w reads the
batches w, w + workers, ... The pairs of a step are therefore the same for every number of ranks and workers, and the
position for resuming is one integer. If rows are selected, for example by license, only these are used, in the same
order.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from .row_selection import Panels, RowSelection
from .shard_reader import TRAINING_COLUMNS, ShardReader, Text, shard_paths


class BatchStream:
    """Base class of streams of pairs: batches that depend only on the rows, the seed and the position."""

    path: str
    split: str
    seed: int

    def __len__(self) -> int:
        """Return the number of pairs in an epoch."""
        raise NotImplementedError

    def rows(self, epoch: int, low: int, high: int) -> list[dict[str, Any]]:
        """Return rows [low, high) of an epoch. Images are not decoded."""
        raise NotImplementedError

    def batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1, samples_seen: int = 0) -> "PairBatches":
        """Return an infinite sequence of the batches of one rank. The last, incomplete batch of an epoch is dropped.

        Args:
            batch_size: Number of pairs per step, over all ranks.
            rank: Index of this process.
            world_size: Number of processes.
            samples_seen: Number of pairs in all previous steps, over all ranks. Pass it to resume at this position.

        Raises:
            ValueError: If `batch_size` or `world_size` is not positive, `rank` or `samples_seen` is out of range,
                `batch_size` is not a multiple of `world_size`, or a batch is larger than the split.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}.")
        if world_size < 1:
            raise ValueError(f"world_size must be at least 1, not {world_size}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1} for world_size={world_size}, not {rank}.")
        if samples_seen < 0:
            raise ValueError(f"samples_seen must not be negative, but is {samples_seen}.")
        if batch_size % world_size != 0:
            raise ValueError(f"batch_size={batch_size} is not a multiple of world_size={world_size}.")
        if batch_size > len(self):
            raise ValueError(
                f"batch_size={batch_size} is larger than the {self.split} split of {self.path}, which has {len(self)} "
                "pairs. Use a smaller batch or a larger dataset."
            )
        return PairBatches(self, batch_size, rank, world_size, samples_seen)


class PairStream(BatchStream):
    """Stream a split of a built dataset in batches that depend only on seed and position.

    The numbers of rows are those in the report of the dataset. If rows are selected or the report is older, the footers
    of all shards are read when the stream is created.

    Args:
        path: The folder that `biomedclip build` wrote: local, `hf://datasets/org/name` or `s3://...`.
        split: `train`, `validation` or `test`.
        seed: Seed for the order of shards and the choice of mentions.
        columns: Columns to read.
        licenses: Read only pairs under these licenses, as for [`load_pmc15m`].
        image_types: Read only images of these types or groups, as for [`load_pmc15m`].
        panels: `only` reads panels and single figures, `none` figures, `also` both, as for [`load_pmc15m`].
        text: The text to return as `caption`, as for [`load_pmc15m`].
        storage_options: Options of fsspec for opening `path`, such as `{"anon": True}`.

    Raises:
        FileNotFoundError: If the split does not exist or is incomplete.
        ValueError: If a column does not exist, no pair is selected, or an option is invalid.

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
        image_types: str | Collection[str] | None = None,
        panels: Panels | None = None,
        text: Text = "caption",
        storage_options: Mapping[str, Any] | None = None,
    ):
        self.path = os.fspath(path)
        self.split = split
        self.seed = seed
        self.columns = tuple(columns)
        urls = shard_paths(path, split, storage_options)
        selection = RowSelection.of(licenses, image_types, panels)
        self._reader = ShardReader(urls, columns, selection, text, seed, storage_options)
        self._shards = self._reader.open_shards(urls)
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        """Return the number of pairs in an epoch."""
        return sum(shard.rows for shard in self._shards)

    def shards(self, epoch: int) -> list[tuple[str, int]]:
        """Return the URL and the number of pairs of each shard, in the order of an epoch."""
        order = epoch_order(len(self._shards), self.seed, epoch)
        return [(self._shards[number].url, self._shards[number].rows) for number in order]

    def rows(self, epoch: int, low: int, high: int) -> list[dict[str, Any]]:
        """Return rows [low, high) of an epoch, with the columns of the stream and `epoch`. Images are not decoded."""
        order, edges = self._places(epoch)
        rows: list[dict[str, Any]] = []
        for place in range(int(np.searchsorted(edges, low, side="right")) - 1, len(order)):
            start, end = int(edges[place]), int(edges[place + 1])
            if start >= high:
                break
            if max(low, start) < min(high, end):
                shard = self._shards[order[place]]
                rows += self._reader.rows(shard, max(low, start) - start, min(high, end) - start, epoch)
        return [row | {"epoch": epoch} for row in rows]

    def _places(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the order of the shards in an epoch, and the row at which each of them begins."""
        if self._epoch is None or self._epoch[0] != epoch:  # a dataset can have thousands of shards
            order = epoch_order(len(self._shards), self.seed, epoch)
            self._epoch = (epoch, order, np.cumsum([0, *(self._shards[number].rows for number in order)]))
        return self._epoch[1:]


@dataclass(eq=False)
class PairBatches(IterableDataset):
    """The result of [`BatchStream.batches`], an infinite sequence of lists of rows. Use it with `batch_size=None`."""

    stream: BatchStream
    batch_size: int
    rank: int
    world_size: int
    samples_seen: int

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker = get_worker_info()
        step = self.samples_seen // self.batch_size + (worker.id if worker else 0)
        stride = worker.num_workers if worker else 1
        batches_per_epoch = len(self.stream) // self.batch_size
        rows_per_rank = self.batch_size // self.world_size
        while True:
            epoch, batch = divmod(step, batches_per_epoch)
            low = batch * self.batch_size + self.rank * rows_per_rank
            yield self.stream.rows(epoch, low, low + rows_per_rank)
            step += stride


def epoch_order(parts: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order of shards or rows in an epoch. Later versions must not change it, to resume earlier runs."""
    return np.random.default_rng([seed, epoch]).permutation(parts)
