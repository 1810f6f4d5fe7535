"""Decide which shards are still to be written, and keep the settings of an output folder in `embedding.json`.

Shard k has items [kS, (k+1)S) of the inputs. The shards of an update are numbered after the existing ones: they have
the inputs whose ids are in no shard, in order.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from ..cli.reporting import write_json
from .shards import DATA, ShardWriter, shard_numbers, storable


logger = logging.getLogger(__name__)

SETTINGS = "embedding.json"
_INPUTS = "inputs"
_EARLIER = "The same command continues a run. For other settings, choose another --output."


class Inputs(Protocol):
    """Images or texts in a fixed order."""

    @property
    def schema(self) -> pa.Schema: ...  # noqa: D102

    def __len__(self) -> int: ...

    def rows(self, first: int, last: int) -> Iterator[Any]: ...  # noqa: D102

    def ids(self) -> Iterator[str]: ...  # noqa: D102


@dataclass(frozen=True)
class Shard:
    """A shard to write: its number, and the numbers of its items in the inputs, ascending."""

    number: int
    items: Sequence[int]

    def batches(self, size: int) -> Iterator[Sequence[int]]:
        """Yield the numbers of the items of each batch."""
        return (self.items[start : start + size] for start in range(0, len(self.items), size))


def read_items(inputs: Inputs, items: Sequence[int]) -> Iterator[Any]:
    """Yield items of the inputs. Items that follow each other are read together."""
    for _, group in groupby(enumerate(items), lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in group]
        yield from inputs.rows(numbers[0], numbers[-1] + 1)


class OutputFolder:
    """The output folder of `biomedclip embed`.

    Raises:
        ValueError: If the folder contains something else.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._path = folder / SETTINGS
        self.content: dict[str, Any] = {}
        if self._path.is_file():
            try:
                self.content = json.loads(self._path.read_text(encoding="utf-8"))
                self.content[_INPUTS].items()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{self._path}: not settings of biomedclip embed. Choose another --output.") from error
        elif folder.is_dir() and (others := [path.name for path in folder.iterdir() if path.suffix != ".partial"]):
            raise ValueError(f"--output {folder} contains {sorted(others)[0]}. Choose an empty or a new folder.")

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise `ValueError` if the folder was written with other settings. The message lists the differences."""
        if not self.content:
            return
        before = {name: self.content.get(name) for name in settings}
        if different := [name for name in settings if before[name] != settings[name]]:
            changes = "; ".join(f"{name} is {settings[name]}, and was {before[name]}" for name in different)
            raise ValueError(f"--output {self.folder} was written with other settings: {changes}. {_EARLIER}")

    def plan(self, inputs: Inputs, writer: ShardWriter, *, modality: str, shard_size: int, update: bool) -> list[Shard]:
        """Return the shards that are missing or damaged. Nothing is written before [`begin`].

        Raises:
            ValueError: If the inputs are not those of the folder and `update` is not set.
        """
        found = _fingerprint(inputs, modality)
        entries = self.content.setdefault(_INPUTS, {})
        before = entries.get(modality)
        if before is None or before["fingerprint"] == found:
            updates = 0 if before is None else before["updates"]
        elif update:
            updates = before["updates"] + 1
        else:
            raise ValueError(
                f"--output {self.folder} has embeddings of {before['items']:,} other {modality}s (now "
                f"{len(inputs):,}). To add those that are new, pass --update. Otherwise choose another --output."
            )
        entries[modality] = {"items": len(inputs), "fingerprint": found, "updates": updates}
        existing = shard_numbers(self.folder, modality)
        complete = [number for number in existing if writer.is_complete(number)]
        if damaged := [number for number in existing if number not in set(complete)]:
            others = f" and {len(damaged) - 1} other(s)" if len(damaged) > 1 else ""
            logger.warning("%s%s: damaged. It is written again.", writer.path(damaged[0]), others)
        if updates:
            return list(_shards_of_new(inputs, [writer.path(number) for number in complete], complete, shard_size))
        total = -(-len(inputs) // shard_size)
        missing = sorted(set(range(total)) - set(complete))
        return [Shard(n, range(n * shard_size, min((n + 1) * shard_size, len(inputs)))) for n in missing]

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, and remove the incomplete files of a killed run."""
        for path in [*self.folder.glob("*.partial"), *self.folder.glob(f"{DATA}/*.partial")]:
            path.unlink(missing_ok=True)
        self.content = {**settings, _INPUTS: self.content[_INPUTS]}
        write_json(self._path, self.content)  # first, because it marks the folder as ours
        (self.folder / DATA).mkdir(exist_ok=True)


def _fingerprint(inputs: Inputs, modality: str) -> str:
    """Return a hash of the ids of all items, and of the names and types of their columns. Texts are part of it."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr([(entry.name, str(entry.type)) for entry in inputs.schema]).encode())
    texts = (f"{item.id}\0{item.text}" for item in inputs.rows(0, len(inputs))) if modality == "text" else None
    for name in texts or inputs.ids():
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _shards_of_new(inputs: Inputs, written: Sequence[Path], numbers: Sequence[int], shard_size: int) -> Iterator[Shard]:
    """Yield shards of the items whose ids are in no shard, with the first numbers that are free.

    An interrupted update gets the same shards again: its complete shards are full, except the last one, so the other
    items are divided as before.
    """
    known = {name for path in written for name in pq.read_table(path, columns=["id"])["id"].to_pylist()}
    new = []
    for item, name in enumerate(inputs.ids()):
        if (stored := str(storable(name))) not in known:
            known.add(stored)
            new.append(item)
    taken = set(numbers)
    free = (number for number in count() if number not in taken)
    items = iter(new)
    while chunk := list(islice(items, shard_size)):
        yield Shard(next(free), chunk)
