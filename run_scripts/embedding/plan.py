"""Decide which shards are still to be written, and keep the settings of an output folder in `embedding.json`.

Shard k has items [kS, (k+1)S) of the inputs. The shards of an update are numbered after the existing ones: they have
the inputs whose ids are in no shard, in order. An update also writes those shards again whose inputs have changed.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..cli.reporting import write_json
from .changes import changed_images, changed_texts
from .inputs import Inputs
from .shards import DATA, ShardWriter, shard_numbers, storable


logger = logging.getLogger(__name__)

SETTINGS = "embedding.json"
_INPUTS = "inputs"
_EARLIER = "The same command continues a run. For other settings, choose another --output."


@dataclass(frozen=True)
class Shard:
    """A shard to write: its number, and the numbers of its items in the inputs.

    `replaces` is whether it replaces a complete shard whose inputs have changed.
    """

    number: int
    items: Sequence[int]
    replaces: bool = False

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

    def plan(
        self,
        inputs: Inputs,
        writer: ShardWriter,
        *,
        modality: str,
        shard_size: int,
        update: bool,
        text_column: str = "text",
    ) -> list[Shard]:
        """Return the shards that are missing or damaged. Nothing is written before [`begin`].

        With `update`, these are also shards of new inputs, and shards whose inputs have changed.

        Raises:
            ValueError: If the inputs are not those of the folder, or images have changed, and `update` is not set.
        """
        found = fingerprint(inputs, modality)
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
        paths = {number: writer.path(number) for number in complete}
        if modality == "image":
            changed = changed_images(inputs, paths, None if updates else shard_size)
            if changed and not update:
                raise ValueError(
                    f"--output {self.folder}: {len(changed):,} image(s) have changed since they were embedded, such as "
                    f"{next(iter(changed))}. To embed them again, pass --update. Otherwise choose another --output."
                )
        else:
            # A changed text changes the fingerprint.
            changed = changed_texts(inputs, paths, text_column) if updates else {}
        again = _replacing_shards(inputs, {number: paths[number] for number in sorted(set(changed.values()))})
        if updates:
            new = list(_shards_of_new(inputs, list(paths.values()), complete, shard_size))
        else:
            missing = sorted(set(range(-(-len(inputs) // shard_size))) - set(complete))
            new = [Shard(n, range(n * shard_size, min((n + 1) * shard_size, len(inputs)))) for n in missing]
        return sorted([*again, *new], key=lambda shard: shard.number)

    def fingerprint(self, modality: str) -> str:
        """Return the fingerprint of the inputs that [`plan`] was called with."""
        return str(self.content[_INPUTS][modality]["fingerprint"])

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, and remove the incomplete files of a killed run."""
        for path in [*self.folder.glob("*.partial"), *self.folder.glob(f"{DATA}/*.partial")]:
            path.unlink(missing_ok=True)
        self.content = {**settings, _INPUTS: self.content[_INPUTS]}
        write_json(self._path, self.content)  # first, because it marks the folder as ours
        (self.folder / DATA).mkdir(exist_ok=True)


def fingerprint(inputs: Inputs, modality: str) -> str:
    """Return a hash of the ids of all items, and of the names and types of their columns. Texts are part of it."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr([(entry.name, str(entry.type)) for entry in inputs.schema]).encode())
    texts = (f"{item.id}\0{item.text}" for item in inputs.rows(0, len(inputs))) if modality == "text" else None
    for name in texts or inputs.ids():
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def _replacing_shards(inputs: Inputs, paths: Mapping[int, Path]) -> list[Shard]:
    """Return shards with the items of complete shards, to replace these.

    Raises:
        ValueError: If an item of a shard is not among the inputs.
    """
    if not paths:
        return []
    ids = {number: pq.read_table(path, columns=["id"])["id"].to_pylist() for number, path in paths.items()}
    items: dict[str, int | None] = {name: None for names in ids.values() for name in names}
    for position, name in enumerate(inputs.ids()):
        if (stored := str(storable(name))) in items:
            items[stored] = position
    shards = []
    for number, names in ids.items():
        numbers = [item for name in names if (item := items[name]) is not None]
        if len(numbers) < len(names):
            lost = next(name for name in names if items[name] is None)
            raise ValueError(
                f"{paths[number]} has changed inputs, and {len(names) - len(numbers):,} inputs that are not among the "
                f"given ones, such as {lost}. Pass all inputs of the folder, or choose another --output."
            )
        shards.append(Shard(number, numbers, replaces=True))
    return shards


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
