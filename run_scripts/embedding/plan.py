"""Decide which shards are still to be written, and keep the settings of an output folder in `embedding.json`.

Shard k has items [kS, (k+1)S) of the inputs. The shards of an update are numbered after the existing ones: they have
the inputs whose ids are in no shard, in order. An update also writes those shards again whose inputs have changed.
"""

import contextlib
import datetime
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ..cli.reporting import write_json
from .changes import Rows, changed_images, changed_texts, match_rows
from .inputs import Inputs
from .shards import DATA, ShardWriter, shard_numbers


logger = logging.getLogger(__name__)

SETTINGS = "embedding.json"
_INPUTS = "inputs"
_DAY = 24 * 3600  # seconds
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
                entries = self.content[_INPUTS]
                entries.items()
                # Older folders have it among the settings.
                if (column := self.content.pop("image_column", None)) is not None and "image" in entries:
                    entries["image"].setdefault("column", column)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{self._path}: not settings of biomedclip embed. Choose another --output.") from error
        elif folder.is_dir() and (others := [path.name for path in folder.iterdir() if path.suffix != ".partial"]):
            raise ValueError(f"--output {folder} contains {sorted(others)[0]}. Choose an empty or a new folder.")

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raise `ValueError` if the folder was written with other settings. The message lists the differences."""
        if self.content:
            self._compare(settings, {name: self.content.get(name) for name in settings})

    def check_columns(self, columns: Mapping[str, str]) -> None:
        """Raise `ValueError` if the folder has embeddings of another column. `columns` has that of each modality."""
        entries = self.content.get(_INPUTS, {})
        # The entries of older folders have no column.
        before = {name: entries.get(name, {}).get("column", column) for name, column in columns.items()}
        self._compare(*({f"{name}_column": value for name, value in found.items()} for found in (columns, before)))

    def _compare(self, settings: Mapping[str, Any], before: Mapping[str, Any]) -> None:
        if different := [name for name in settings if before[name] != settings[name]]:
            changes = "; ".join(f"{name} is {settings[name]}, and was {before[name]}" for name in different)
            raise ValueError(f"--output {self.folder} was written with other settings: {changes}. {_EARLIER}")

    def plan(
        self,
        inputs: Inputs,
        writer: ShardWriter,
        *,
        modality: str,
        column: str,
        shard_size: int,
        update: bool,
        start: datetime.datetime,
    ) -> list[Shard]:
        """Return the shards that are missing or damaged. Nothing is written before [`begin`].

        With `update`, these are also shards of new inputs, and shards whose inputs have changed. `column` is the column
        of the inputs, and `start` the time in UTC at which the run started.

        Raises:
            ValueError: If the inputs are not those of the folder, or images have changed, and `update` is not set.
        """
        found = fingerprint(inputs, modality)
        existing = shard_numbers(self.folder, modality)
        entries = self.content.setdefault(_INPUTS, {})
        before = entries.get(modality)
        updates = 0 if before is None else before["updates"]
        starts = {} if before is None else before.get("starts", {})
        if before is None or before["fingerprint"] != found:
            if before is not None:
                if not update:
                    raise ValueError(
                        f"--output {self.folder} has embeddings of {before['items']:,} other {modality}s (now "
                        f"{len(inputs):,}). To add those that are new, pass --update. Otherwise choose another "
                        "--output."
                    )
                updates += 1
            starts = {**starts, str(max(existing, default=-1) + 1): start.isoformat(timespec="seconds")}
        entries[modality] = {"items": len(inputs), "fingerprint": found, "updates": updates, "column": column}
        entries[modality]["starts"] = starts
        complete = [number for number in existing if writer.is_complete(number)]
        if damaged := [number for number in existing if number not in set(complete)]:
            others = f" and {len(damaged) - 1} other(s)" if len(damaged) > 1 else ""
            logger.warning("%s%s: damaged. It is written again.", writer.path(damaged[0]), others)
        paths = {number: writer.path(number) for number in complete}
        rows: Rows
        if updates:
            rows, items = match_rows(inputs, paths, modality)
            new = list(_shards_of_new(items, complete, shard_size))
        else:
            ranges = [range(k, min(k + shard_size, len(inputs))) for k in range(0, len(inputs), shard_size)]
            rows = {number: ranges[number] for number in complete}
            new = [Shard(number, items) for number, items in enumerate(ranges) if number not in rows]
        if modality == "image":
            changed = changed_images(inputs, rows, paths, starts)
            if changed and not update:
                raise ValueError(
                    f"--output {self.folder}: {len(changed):,} image(s) have changed since they were embedded, such as "
                    f"{changed[0][0]}. To embed them again, pass --update. Otherwise choose another --output."
                )
        else:
            # A changed text changes the fingerprint.
            changed = changed_texts(inputs, rows, paths, column) if updates else []
        again = [_replacing_shard(number, rows[number], paths[number]) for number in {number for _, number in changed}]
        return sorted([*again, *new], key=lambda shard: shard.number)

    def fingerprint(self, modality: str) -> str:
        """Return the fingerprint of the inputs that [`plan`] was called with."""
        return str(self.content[_INPUTS][modality]["fingerprint"])

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Write the settings, and remove the incomplete files of killed runs.

        Tasks of another run may be writing files, so only files that are older than a day are removed.
        """
        for path in [*self.folder.glob("*.partial"), *self.folder.glob(f"{DATA}/*.partial")]:
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_mtime < time.time() - _DAY:
                    path.unlink()
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


def _replacing_shard(number: int, items: Sequence[int | None], path: Path) -> Shard:
    """Return a shard that replaces a complete one.

    Raises:
        ValueError: If an item of the shard is not among the inputs.
    """
    found = [item for item in items if item is not None]
    if len(found) < len(items):
        names = pq.read_table(path, columns=["id"])["id"].to_pylist()
        raise ValueError(
            f"{path} has changed inputs, and {len(items) - len(found):,} inputs that are not among the given ones, "
            f"such as {names[items.index(None)]}. Pass all inputs of the folder, or choose another --output."
        )
    return Shard(number, found, replaces=True)


def _shards_of_new(new: Iterable[int], numbers: Sequence[int], shard_size: int) -> Iterator[Shard]:
    """Yield shards of the items that are in no shard, with the first numbers that are free.

    An interrupted update gets the same shards again: its complete shards are full, except the last one, so the other
    items are divided as before.
    """
    taken = set(numbers)
    free = (number for number in count() if number not in taken)
    items = iter(new)
    while chunk := list(islice(items, shard_size)):
        yield Shard(next(free), chunk)
