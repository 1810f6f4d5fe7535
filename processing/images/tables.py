"""Read tables that list images and their labels or texts, such as the metadata files of `imagefolder` in `datasets`."""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import leads_out
from ..tables import read_json_lines, read_table
from .folders import first_names, shown_name


METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class ImageRow:
    """A row of a table of images. `where` is its file and line, and `name` the path as in the table, for messages."""

    where: str
    name: str
    image: Path
    values: Mapping[str, Any]


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


def check_table(path: Path, image_root: str | os.PathLike[str] | None) -> None:
    """Raise `FileNotFoundError` if a table or the folder of its images does not exist."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: the file does not exist.")
    if image_root is not None and not os.path.isdir(image_root):
        raise FileNotFoundError(f"image_root={os.fspath(image_root)!r}: the folder does not exist.")


def embeds_images(path: Path, image_column: str) -> bool:
    """Return whether a table is a Parquet file whose image column contains images instead of paths."""
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error}).") from error
    kind = schema.field(image_column).type if image_column in schema.names else pa.string()
    return not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind))


def named_columns(columns: Mapping[str, str | Sequence[str]]) -> list[tuple[str, str]]:
    """Return each column with the name of the argument that selects it. An argument may select several columns."""
    lists = ((argument, [names] if isinstance(names, str) else names) for argument, names in columns.items())
    return [(argument, column) for argument, names in lists for column in names]


def read_image_rows(
    path: Path,
    image_column: str,
    columns: Mapping[str, str | Sequence[str]],
    *,
    image_root: Path | None = None,
    rename: Callable[[Any], Any] | None = None,
) -> Iterator[ImageRow]:
    """Yield the rows of a table in the order of the file. After the last one, check that all images exist.

    Args:
        path: A CSV, JSON Lines or Parquet file.
        image_column: Column of the image paths. They are relative to `image_root`, or absolute and below `image_root`
            or the folder of the table.
        columns: Other columns that the table must have, by the name of the argument that selects them.
        image_root: Folder of the images (default: the folder of the table).
        rename: Function that turns the path in the table into the path of the image (default: the same path).

    Raises:
        FileNotFoundError: If images are missing. The message contains their number and the first ones.
        ValueError: If the file cannot be read, lacks a column, or lists an image outside these folders. The message
            contains the line number.
    """
    wanted, others = file_columns(image_column), named_columns(columns)
    found, values = _open_table(path, [*wanted, *(column for _, column in others)])
    file_column = next((column for column in wanted if column in found), None)
    if file_column is None and any(f"{name}s" in found for name in wanted if name.endswith("file_name")):
        raise ValueError(f"{path}: each row lists several images. Write one row for each image.")
    missing = [] if file_column else [("image_column", " or ".join(map(repr, wanted)))]
    missing += [(argument, repr(column)) for argument, column in others if column not in found]
    for argument, column in missing:
        raise ValueError(f"{path}: no column {column}. The columns are {', '.join(found)}. Pass {argument.split()[0]}.")
    locate = _Locator(*([image_root] if image_root else []), path.parent)
    seen: set[Path] = set()
    absent = []
    for line, row in values:
        where = f"{path}, {line}"
        name = row.get(str(file_column))
        image = locate(name if rename is None else rename(name), f"{where}: {file_column}")
        yield ImageRow(where, str(name), image, row)
        if image not in seen and not os.path.isfile(image):
            absent.append(f"{name} ({line})")
        seen.add(image)
    if absent:
        raise FileNotFoundError(
            f"{path}: {len(absent):,} of its {len(seen):,} images are missing or are not files: "
            f"{first_names(absent)}. {file_column} is relative to "
            f"{image_root or 'the folder of the table, or to image_root if it is set'}."
        )


class _Locator:
    """Check the image paths of a table. Links are resolved once for each folder.

    Relative paths are below the first folder, and absolute paths below any of them.
    """

    def __init__(self, *folders: Path):
        self.folder = folders[0]
        self.roots = {folder: os.path.realpath(folder) for folder in folders}
        self.checked: dict[Path, bool] = {}

    def __call__(self, name: Any, where: str) -> Path:
        """Return the path of an image. A value that is not a path below the folders is a `ValueError`."""
        if name is None or (isinstance(name, str) and not name.strip()):
            raise ValueError(f"{where} is empty. Fill it in, or remove the row.")
        if not isinstance(name, str):
            raise ValueError(f"{where} is {name!r}, not the path of an image.")
        parts = name.strip().replace("\\", "/").split("/")
        shown = shown_name(name[:200])
        if "\0" in name or "::" in name or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
            raise ValueError(f"{where} is {shown!r}, a URL or a drive. It must be a path relative to {self.folder}.")
        folder, parts = self._below(parts) if parts[0] == "" else (self.folder, parts)
        if parts[0] in ("", "~") or ".." in parts:
            raise ValueError(
                f"{where} is {shown!r}, which may be outside {' and '.join(repr(str(root)) for root in self.roots)}. "
                "Paths must stay below the folder of the table. If the images are elsewhere, pass their folder as "
                "image_root."
            )
        image = folder.joinpath(*(part for part in parts if part not in ("", ".")))
        root = self.roots[folder]
        if image.parent not in self.checked:
            self.checked[image.parent] = not leads_out(image.parent / "image", root)
        if not self.checked[image.parent] or (os.path.islink(image) and leads_out(image, root)):
            raise ValueError(f"{where} is {shown!r}, a link that leads out of {folder}. Copy the image there.")
        return image

    def _below(self, parts: list[str]) -> tuple[Path, list[str]]:
        """Return the folder that contains an absolute path, and the rest of the path."""
        for folder, root in self.roots.items():
            for start in (os.path.abspath(folder), root):
                above = Path(start).as_posix().rstrip("/").split("/")
                if parts[: len(above)] == above and len(parts) > len(above):
                    return folder, parts[len(above) :]
        return self.folder, parts


def value_of(row: ImageRow, column: str) -> str:
    """Return the value of a column as text, or raise `ValueError` if it is empty or not one value."""
    return _label(row.values.get(column), f"{row.where}: {column}")


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
    if path.suffix.lower() in (".csv", ".tsv"):
        table = read_table(path, [], known=columns)
        return table.columns, ((f"line {row.line}", row.values) for row in table.rows)
    if path.suffix.lower() == ".jsonl":
        rows = [(f"line {number}", row) for number, row in read_json_lines(path)]
        names = dict.fromkeys(name for _, row in rows for name in row)
        return list(names), iter(rows)
    try:
        parquet = pq.ParquetFile(path)
        names = dict.fromkeys(parquet.schema_arrow.names)
        found = parquet.read(columns=[name for name in columns if name in names]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error}).") from error
    return list(names), ((f"row {number}", row) for number, row in enumerate(found))
