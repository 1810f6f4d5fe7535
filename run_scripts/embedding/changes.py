"""Find inputs that have changed since they were embedded."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from biomedclip.processing.images.reading import ImageError, read_row_content

from .inputs import Inputs
from .shards import storable, stored_names


# A shard is written after its first image was read. Clocks of machines that share a disk differ.
_SLACK = 3600 * 10**9  # nanoseconds


def changed_images(inputs: Inputs, paths: Mapping[int, Path], shard_size: int | None) -> dict[str, int]:
    """Return the ids of image files whose content has changed, and the number of the shard of each.

    Only files are compared that have changed in any way since an hour before their shard was written. Rows of datasets
    are not compared.

    Args:
        inputs: The images.
        paths: Path of each complete shard.
        shard_size: Number of items of a shard, if shard k has items [kS, (k+1)S). Otherwise items are found by id.
    """
    changed = {}
    numbers = None if shard_size else {storable(name): number for number, name in enumerate(inputs.ids())}
    for shard, path in paths.items():
        since = path.stat().st_mtime_ns - _SLACK
        table = pq.read_table(path, columns=["id", "path", "image_md5"])
        for row, (name, file, md5) in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
            if file is None:
                continue
            number = shard * shard_size + row if shard_size else (numbers or {}).get(name)
            # The path of the input is opened, not that in the shard.
            item = next(inputs.rows(number, number + 1), None) if number is not None else None
            if item is not None and item.path is not None and _is_newer(item.path, since):
                try:
                    found = hashlib.md5(read_row_content(item.image)[0], usedforsecurity=False).hexdigest()
                except ImageError:
                    found = None
                if found != md5:
                    changed[item.id] = shard
    return changed


def changed_texts(inputs: Inputs, paths: Mapping[int, Path], column: str) -> dict[str, int]:
    """Return the ids of texts that have changed, and the number of the shard of each."""
    name_in_shard = stored_names(inputs.schema).get(column)
    if name_in_shard is None:
        return {}  # the text is the id
    stored: dict[str | None, tuple[int, bytes] | None] = {}
    for shard, path in paths.items():
        table = pq.read_table(path, columns=["id", name_in_shard])
        for name, text in zip(*(column.to_pylist() for column in table.columns), strict=True):
            # Of several rows with an id, none is compared.
            stored[name] = None if name in stored else (shard, _digest(text))
    changed = {}
    for item in inputs.rows(0, len(inputs)):
        entry = stored.get(storable(item.id))
        if entry is not None and entry[1] != _digest(item.text):
            changed[item.id] = entry[0]
    return changed


def _is_newer(path: str, time: int) -> bool:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return True
    # Moving another file to the path changes only the second.
    return max(status.st_mtime_ns, status.st_ctime_ns) > time


def _digest(text: object) -> bytes:
    return hashlib.blake2b(repr(text).encode(), digest_size=8).digest()
