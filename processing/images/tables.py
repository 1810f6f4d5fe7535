"""Read metadata files that list images and their labels, like `imagefolder` in `datasets`."""

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import leads_out
from ..tables import read_table, read_text
from .folders import first_names, shown_name


METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True)
class ImageRow:
    """A row of a table of images. `where` is its file and line, for messages."""

    where: str
    image: Path
    label: str


def file_columns(image_column: str) -> list[str]:
    """Return the columns that may contain the image paths. The first one that exists in the table is used.

    As in `datasets`, the column `file_name` contains the paths for `image`, and `scan_file_name` those for `scan`.
    """
    names = [f"{image_column}_file_name", image_column]
    return ["file_name", *names] if image_column == "image" else names


def names_images(path: Path, image_column: str) -> bool:
    """Return whether a metadata file has a column of image paths."""
    names = file_columns(image_column)
    columns, _ = _open_table(path, names)
    return any(name in columns or f"{name}s" in columns for name in names)


def read_image_table(path: Path, image_column: str, label_column: str) -> list[ImageRow]:
    """Return the images and labels that a metadata file lists, in the order of the file.

    Paths are relative to the folder of the file. Duplicate rows are returned once.

    Raises:
        FileNotFoundError: If images are missing.
        ValueError: If the file cannot be read, lacks a column or a value, lists an image outside its folder, or gives
            one image two labels. The message contains the line number.
    """
    wanted = file_columns(image_column)
    columns, values = _open_table(path, [*wanted, label_column])
    file_column = next((column for column in wanted if column in columns), None)
    if file_column is None and any(f"{name}s" in columns for name in wanted if name.endswith("file_name")):
        raise ValueError(f"{path}: each row names several images. Labeled images have one image in each row.")
    if file_column is None or label_column not in columns:
        missing = " or ".join(map(repr, wanted)) if file_column is None else repr(label_column)
        argument = "image_column" if file_column is None else "label_column"
        raise ValueError(f"{path}: no column {missing}. It has {', '.join(columns)}. Pass {argument}.")
    locate = _Locator(path.parent)
    rows: dict[Path, ImageRow] = {}
    missing_images = []
    for line, row in values:
        where = f"{path}, {line}"
        image = locate(row.get(file_column), f"{where}: {file_column}")
        label = _label(row.get(label_column), f"{where}: {label_column}")
        first = rows.setdefault(image, ImageRow(where, image, label))
        if first.label != label:
            raise ValueError(
                f"{where}: {shown_name(str(row[file_column]))} is labeled {label!r}, but {first.label!r} in "
                f"{first.where.removeprefix(f'{path}, ')}. Keep one of the two rows."
            )
        if first.where == where and not os.path.isfile(image):
            missing_images.append(f"{row[file_column]} ({line})")
    if missing_images:
        raise FileNotFoundError(
            f"{path}: {len(missing_images):,} of its {len(rows):,} images are missing or are not files: "
            f"{first_names(missing_images)}. {file_column} is relative to the folder of the table."
        )
    return list(rows.values())


class _Locator:
    """Check the image paths of a table. Links are resolved once for each folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.root = os.path.realpath(folder)
        self.checked: dict[Path, bool] = {}

    def __call__(self, name: Any, where: str) -> Path:
        """Return the path of an image. A value that is not a relative path below the folder is a `ValueError`."""
        if name is None or (isinstance(name, str) and not name.strip()):
            raise ValueError(f"{where} is empty. Fill it in, or remove the row.")
        if not isinstance(name, str):
            raise ValueError(f"{where} is {name!r}, not the path of an image.")
        parts = name.strip().replace("\\", "/").split("/")
        shown = shown_name(name[:200])
        if "\0" in name or "::" in name or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
            raise ValueError(f"{where} is {shown!r}, a URL or a drive. It must be a path relative to {self.folder}.")
        if parts[0] in ("", "~") or ".." in parts:
            raise ValueError(f"{where} is {shown!r}, which may be outside {self.folder}. It must be a path below it.")
        image = self.folder.joinpath(*(part for part in parts if part not in ("", ".")))
        if image.parent not in self.checked:
            self.checked[image.parent] = not leads_out(image.parent / "image", self.root)
        if not self.checked[image.parent] or (os.path.islink(image) and leads_out(image, self.root)):
            raise ValueError(f"{where} is {shown!r}, a link that leads out of {self.folder}. Copy the image there.")
        return image


def _label(value: Any, where: str) -> str:
    if isinstance(value, str):
        value = value.strip()
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"{where} is empty. Fill it in, or remove the row.")
    if not isinstance(value, str | int | float):
        raise ValueError(f"{where} is {str(value)[:100]!r}, not one label.")
    return str(value)


def _open_table(path: Path, columns: Sequence[str]) -> tuple[list[str], Iterator[tuple[str, dict[str, Any]]]]:
    """Return the columns of a table, and its rows, each with its position as text."""
    if not os.path.isfile(path):
        raise ValueError(f"{path}: not a regular file.")
    if path.suffix == ".csv":
        table = read_table(path, [], known=columns)
        return table.columns, ((f"line {row.line}", row.values) for row in table.rows)
    if path.suffix == ".jsonl":
        rows = list(_json_lines(path))
        names = dict.fromkeys(name for _, row in rows for name in row)
        return list(names), iter(rows)
    try:
        parquet = pq.ParquetFile(path)
        names = dict.fromkeys(parquet.schema_arrow.names)
        found = parquet.read(columns=[name for name in columns if name in names]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error}).") from error
    return list(names), ((f"row {number}", row) for number, row in enumerate(found))


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object.")
        yield f"line {number}", row
