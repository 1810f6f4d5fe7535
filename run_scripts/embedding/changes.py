"""Match the inputs with the rows of the shards, and find inputs that have changed since they were embedded."""

import datetime
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from biomedclip.processing.images.reading import ImageError, read_row_content

from .inputs import Inputs
from .shards import storable, stored_names


# Clocks of machines that share a disk differ.
_SLACK = 3600 * 10**9  # nanoseconds
_NO_MORE = -1

Rows = Mapping[int, Sequence[int | None]]


def match_rows(inputs: Inputs, paths: Mapping[int, Path], modality: str) -> tuple[Rows, list[int]]:
    """Match inputs and rows of shards by their ids. Of several inputs with an id, the nth one belongs to the nth row.

    Args:
        inputs: The inputs.
        paths: Path of each complete shard, in the order of their numbers.
        modality: `image` or `text`.

    Returns:
        For each shard, the numbers of the inputs of its rows, or None for an input that was removed. Then the numbers
        of the inputs that are in no shard.

    Raises:
        ValueError: If some, but not all inputs with the same id were removed or, for images, are new. Texts are
            compared afterwards, but nothing tells the images of a dataset apart.
    """
    names = [storable(name) for name in inputs.ids()]
    first: dict[str | None, int] = {}
    following: dict[int, int] = {}
    for number in range(len(names) - 1, -1, -1):
        if (after := first.get(names[number])) is not None:
            following[number] = after
        first[names[number]] = number
    taken = bytearray(len(names))
    rows: dict[int, list[int | None]] = {}
    uneven: list[str | None] = []
    for shard, path in paths.items():
        rows[shard] = []
        for name in pq.read_table(path, columns=["id"])["id"].to_pylist():
            found = first.get(name)
            if found == _NO_MORE:
                uneven.append(name)
            elif found is not None:
                taken[found] = True
                first[name] = following.get(found, _NO_MORE)
            rows[shard].append(found)
    if modality == "image":
        uneven += [names[after] for number, after in following.items() if taken[number] and not taken[after]]
    if uneven:
        raise ValueError(
            f"The id {uneven[0]!r} occurs several times, and not as often among the {modality}s as in the folder. Make "
            "the ids unique, or choose another --output."
        )
    return rows, [number for number in range(len(names)) if not taken[number]]


def changed_images(
    inputs: Inputs, rows: Rows, paths: Mapping[int, Path], starts: Mapping[str, str]
) -> list[tuple[str, int]]:
    """Return the ids of image files whose content has changed, and the number of the shard of each.

    Only files are compared that have changed in any way since an hour before the run that wrote their shard. Rows of
    datasets are not compared.

    Args:
        inputs: The images.
        rows: Numbers of the images in each shard.
        paths: Path of each complete shard.
        starts: Time at which a run started, by the number of its first shard.
    """
    changed = []
    for shard, path in paths.items():
        since = _start_of(shard, path, starts) - _SLACK
        table = pq.read_table(path, columns=["path", "image_md5"])
        for number, file, md5 in zip(rows[shard], *(column.to_pylist() for column in table.columns), strict=True):
            if file is None or number is None:
                continue
            # The path of the input is opened, not that in the shard.
            item = next(inputs.rows(number, number + 1))
            if item.path is not None and _is_newer(item.path, since):
                try:
                    found = hashlib.md5(read_row_content(item.image)[0], usedforsecurity=False).hexdigest()
                except ImageError:
                    found = None
                if found != md5:
                    changed.append((item.id, shard))
    return changed


def changed_texts(inputs: Inputs, rows: Rows, paths: Mapping[int, Path], column: str) -> list[tuple[str, int]]:
    """Return the ids of texts that have changed, and the number of the shard of each."""
    name_in_shard = stored_names(inputs.schema).get(column)
    if name_in_shard is None:
        return []  # the text is the id
    stored: dict[int, tuple[int, bytes]] = {}
    for shard, path in paths.items():
        texts = pq.read_table(path, columns=[name_in_shard])[name_in_shard].to_pylist()
        for number, text in zip(rows[shard], texts, strict=True):
            if number is not None:
                stored[number] = shard, _digest(text)
    changed = []
    for number, item in enumerate(inputs.rows(0, len(inputs))):
        shard_and_digest = stored.get(number)
        if shard_and_digest is not None and shard_and_digest[1] != _digest(item.text):
            changed.append((item.id, shard_and_digest[0]))
    return changed


def _start_of(shard: int, path: Path, starts: Mapping[str, str]) -> int:
    """Return the time in nanoseconds at which the first run with a shard started.

    The time of the file is not used, because it changes when the folder is copied. Older folders have only that.
    """
    known = [number for number in map(int, starts) if number <= shard]
    if not known:
        return path.stat().st_mtime_ns
    return int(datetime.datetime.fromisoformat(starts[str(max(known))]).timestamp()) * 10**9


def _is_newer(path: str, time: int) -> bool:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return True
    # Moving another file to the path changes only the second.
    return max(status.st_mtime_ns, status.st_ctime_ns) > time


def _digest(text: object) -> bytes:
    return hashlib.blake2b(repr(text).encode(), digest_size=8).digest()
