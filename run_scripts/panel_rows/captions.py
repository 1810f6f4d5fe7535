"""Captions of figures: from a file that the user names, or from a column of a dataset."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedclip.processing.images.folders import first_names
from biomedclip.processing.tables import read_json_lines, read_table


logger = logging.getLogger(__name__)
COLUMNS = ("file", "caption")


def read_captions(path: Path, ids: Sequence[str]) -> dict[str, str]:
    """Return the captions of images by their ids.

    Args:
        path: CSV or JSON Lines file with the columns `file` and `caption`. `file` is the id of an image, or its file
            name.
        ids: The ids of the images.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not such a table, or names none of the images.
    """
    if not path.exists():
        raise FileNotFoundError(f"--captions {path}: the file does not exist.")
    rows = _json_rows(path) if path.suffix.lower() == ".jsonl" else _table_rows(path)
    found = {image: rows[name] for image in ids for name in (image, Path(image).name)[::-1] if name in rows}
    if not found:
        raise ValueError(
            f"--captions {path}: none of its {len(rows):,} files is one of the images, {first_names(ids[:2])}."
        )
    if missing := [image for image in ids if image not in found]:
        logger.warning("%s: images without a caption: %s (%s).", path, f"{len(missing):,}", first_names(missing))
    return found


def _table_rows(path: Path) -> dict[str, str]:
    return {row["file"]: row["caption"] for row in read_table(path, COLUMNS, filled=["file"]).rows}


def _json_rows(path: Path) -> dict[str, str]:
    rows = {}
    for line, row in read_json_lines(path):
        for column in COLUMNS:
            if not isinstance(row.get(column), str):
                raise ValueError(f"{path}, line {line}: {column!r} is missing or no text.")
        rows[row["file"]] = row["caption"]
    return rows


def caption_of(captions: Mapping[str, str], name: str, columns: Mapping[str, Any]) -> str | None:
    """Return the caption of a figure from the file of captions, or from the column `caption` of its row."""
    own = columns.get("caption")
    return captions.get(name, own if isinstance(own, str) else None)
