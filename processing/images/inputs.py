"""Find the images that a user specifies: files, folders, patterns, lists of paths, tables and datasets.

All commands that take images without labels or texts read them with this module, so the same arguments always select
the same rows in the same order: first the image files, sorted by path, then the rows of each table and dataset.
"""

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Protocol, TextIO

import fsspec
import pyarrow as pa

from ..files import special_kind
from ..parquet_rows import ID_COLUMNS, ParquetRows, own_id, row_id
from ..tables import arrow_column
from .folders import FolderContent, find_images, is_image_file, shown_name, warn_of_left_out
from .sets import is_saved_set, open_saved_set
from .sources import IMAGE_COLUMN, refuse_columns
from .tables import METADATA_FILES, check_table, file_columns, read_image_rows


ACCEPTED = (
    "image files, folders, patterns such as 'scans/*.png', - for a list of paths on stdin, CSV or JSON Lines files "
    "with a column of image paths, Parquet files, datasets of the `datasets` library, datasets that biomedclip build "
    "wrote, and hf://datasets/OWNER/NAME"
)
_PATH_TABLES = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class InputImage:
    """An image that the user specified.

    Args:
        id: Path of the file, `pair_id` or `id` of the row, or the name of the dataset and the number of the row.
        image: The image, for [`read_row_image`]. A file is a `Path`.
        path: Path of the file, or None for a row of a dataset.
        columns: Other columns of the row.
    """

    id: str
    image: Any
    path: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)


class _Part(Protocol):
    """Images of one kind, in a fixed order."""

    schema: pa.Schema

    def __len__(self) -> int: ...

    def rows(self, first: int, last: int) -> Iterator[InputImage]: ...

    def ids(self) -> Iterator[str]: ...


class ImageInputs:
    """The images that a user specified, in a fixed order. Rows are read on request.

    Args:
        parts: The image files and the datasets.

    Attributes:
        schema: Names and types of the columns of the datasets, without the images.
    """

    def __init__(self, parts: Sequence[_Part]):
        self._parts = list(parts)
        self._ends = list(accumulate(len(part) for part in parts))
        self.schema = pa.unify_schemas([part.schema for part in parts], promote_options="permissive")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def rows(self, first: int, last: int) -> Iterator[InputImage]:
        """Yield images [first, last)."""
        for part, end in zip(self._parts, self._ends, strict=True):
            start = end - len(part)
            if first < end and last > start:
                yield from part.rows(max(first - start, 0), min(last, end) - start)

    def ids(self) -> Iterator[str]:
        """Yield the ids of all images, without reading the images."""
        return chain.from_iterable(part.ids() for part in self._parts)


def find_inputs(
    values: Sequence[str],
    *,
    image_column: str = IMAGE_COLUMN,
    image_root: str | None = None,
    stdin: TextIO | None = None,
) -> ImageInputs:
    """Find the images that a user specified. Images are not decoded.

    Files in folders that are not images are counted and listed in one warning for each folder, and ignored. A file that
    is specified twice is used once. Paths on stdin may be missing or unreadable: reading their images raises
    `ImageError`.

    Args:
        values: Image files, folders, glob patterns, `-` for paths on stdin (one per line), CSV or JSON Lines files with
            a column of image paths, Parquet files, datasets that `save_to_disk` or `biomedclip build` wrote, and
            `hf://datasets/OWNER/NAME`.
        image_column: Column of the images in a dataset, or of their paths in a table. For `image`, a column `file_name`
            of a table is used if there is one.
        image_root: Folder to which the image paths of a table are relative (default: the folder of the table).
        stdin: Where `-` reads paths (default: `sys.stdin`).

    Raises:
        FileNotFoundError: If a file, folder, dataset or image of a table does not exist, a pattern matches nothing, or
            there are no images.
        ValueError: If a file is not an image, a dataset or table has no image column, a table lists an image outside
            its folder and `image_root`, or `image_root` has no effect.

    Example:
    ```python
    >>> from biomedclip.processing.images.inputs import find_inputs

    >>> inputs = find_inputs(["scans", "more/*.png"])
    >>> [image.id for image in inputs.rows(0, 2)]
    ['more/1.png', 'scans/a.png']
    ```
    """
    files: list[str] = []
    datasets: list[_Part] = []
    for value in values:
        if value == "-":
            files += [line.strip("\r\n") for line in stdin or sys.stdin if line.strip()]
        elif "://" in value:
            datasets.append(_ParquetFiles(_remote_parquet(value), value, image_column))
        elif Path(value).is_dir():
            dataset = _dataset_in(Path(value), image_column)
            if dataset is None:
                files += _images_in(Path(value))
            else:
                datasets.append(dataset)
        elif Path(value).suffix.lower() in _PATH_TABLES and os.path.exists(value):
            datasets.append(_Table(Path(value), image_column, image_root))
        else:
            found, others = _matches(value)
            files += chain(found, *(_images_in(Path(other)) for other in others if Path(other).is_dir()))
            datasets += [_ParquetFiles([other], other, image_column) for other in others if _is_parquet(other)]
    if not any(isinstance(part, _Table) for part in datasets):
        refuse_columns("images that no CSV or JSON Lines file lists", image_root=(image_root, None))
    unique = sorted({os.path.normpath(file) for file in files})
    inputs = ImageInputs([_Files(unique), *datasets])
    if not len(inputs):
        raise FileNotFoundError(f"{' '.join(values) or 'no input'}: no images found. Pass {ACCEPTED}.")
    return inputs


@dataclass(frozen=True)
class _Files:
    paths: Sequence[str]
    schema = pa.schema([])

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, first: int, last: int) -> Iterator[InputImage]:
        return (InputImage(path, Path(path), path) for path in self.paths[first:last])

    def ids(self) -> Iterator[str]:
        return iter(self.paths)


class _Table:
    """The rows of a table that lists image files. Rows of the same image are used once."""

    def __init__(self, path: Path, image_column: str, image_root: str | None):
        check_table(path, image_root)
        paths = file_columns(image_column)
        found: dict[str, InputImage] = {}
        places: dict[str, str] = {}
        for row in read_image_rows(path, image_column, {}, image_root=Path(image_root) if image_root else None):
            columns = {column: value for column, value in row.values.items() if column not in paths}
            file = str(row.image)
            image = InputImage(own_id(row.values) or file, row.image, file, columns)
            places.setdefault(image.id, row.where)
            if found.setdefault(image.id, image).image != row.image:
                raise ValueError(
                    f"{row.where}: another image has the id {image.id!r}. Make the ids unique, or rename the column."
                )
        self._images = list(found.values())
        names = dict.fromkeys(chain.from_iterable(image.columns for image in self._images))
        values = {column: [image.columns.get(column) for image in self._images] for column in names}
        self.schema = pa.schema(
            [(column, arrow_column(path, column, values[column], list(places.values())).type) for column in names]
        )

    def __len__(self) -> int:
        return len(self._images)

    def rows(self, first: int, last: int) -> Iterator[InputImage]:
        return iter(self._images[first:last])

    def ids(self) -> Iterator[str]:
        return (image.id for image in self._images)


class _ParquetFiles:
    """The rows of Parquet files."""

    def __init__(self, urls: Sequence[str], name: str, image_column: str):
        self._image_column, self._rows = image_column, ParquetRows(urls, name)
        _check_image_column(self._rows.schema.names, image_column, name)
        self.schema = pa.schema([entry for entry in self._rows.schema if entry.name != image_column])
        self.ids = self._rows.ids

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, first: int, last: int) -> Iterator[InputImage]:
        return (_image_of(row, name, self._image_column) for name, row in self._rows.rows(first, last))


class _SavedDataset:
    """The rows of a dataset of the `datasets` library."""

    def __init__(self, rows: Any, name: str, image_column: str):
        import datasets

        _check_image_column(rows.column_names, image_column, name)
        if isinstance(rows.features[image_column], datasets.Image):
            rows = rows.cast_column(image_column, datasets.Image(decode=False))
        self._rows, self._name, self._image_column = rows, name, image_column
        schema = rows.features.arrow_schema
        self.schema = pa.schema([entry for entry in schema if entry.name != image_column])

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, first: int, last: int) -> Iterator[InputImage]:
        for number in range(first, last):
            row = self._rows[number]
            yield _image_of(row, row_id(row, number, self._name), self._image_column)

    def ids(self) -> Iterator[str]:
        columns = [column for column in ID_COLUMNS if column in self.schema.names]
        rows: Iterable[Any] = self._rows.select_columns(columns) if columns else ({} for _ in range(len(self)))
        return (row_id(row, number, self._name) for number, row in enumerate(rows))


def _image_of(row: dict[str, Any], name: str, image_column: str) -> InputImage:
    columns = {column: value for column, value in row.items() if column != image_column}
    return InputImage(name, row[image_column], columns=columns)


def _check_image_column(columns: Iterable[str], image_column: str, name: str) -> None:
    if image_column not in columns:
        raise ValueError(
            f"{name}: no column {image_column!r}. The columns are {', '.join(columns)}. Pass image_column."
        )


def _matches(value: str) -> tuple[list[str], list[str]]:
    """Return the image files of a path or pattern, and the other paths: folders and Parquet files."""
    if os.path.lexists(value):
        paths = [value]
    elif glob.has_magic(value):
        paths = sorted(glob.glob(value, recursive=True))
        if not paths:
            raise FileNotFoundError(f"{value}: no file matches this pattern.")
    else:
        hub = f" A dataset on the Hub is hf://datasets/{value}." if re.fullmatch(r"[\w-]+/[\w-]+", value) else ""
        raise FileNotFoundError(f"{value}: the file or folder does not exist.{hub}")
    images = [path for path in paths if is_image_file(Path(path))]
    others = [path for path in paths if path not in set(images)]
    ignored = [Path(path) for path in others if not os.path.isdir(path) and not _is_parquet(path)]
    if ignored and len(paths) == 1:
        kind = special_kind(value) if os.path.exists(value) else "a broken link"
        raise ValueError(f"{shown_name(value)} is {kind or 'not an image'}. Pass {ACCEPTED}.")
    if ignored:
        warn_of_left_out(Path(os.path.commonpath(ignored)).parent, [FolderContent(others=ignored)])
    return images, others


def _images_in(folder: Path) -> list[str]:
    content = find_images(folder)
    warn_of_left_out(folder, [content])
    return [str(path) for path in content.images]


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet") and os.path.isfile(path)


def _dataset_in(folder: Path, image_column: str) -> _Part | None:
    """Return the dataset in a folder, or None if it is a folder of images."""
    if is_saved_set(folder):
        return _saved_dataset(folder, image_column)
    shards = sorted(str(path) for path in folder.glob("data/*.parquet"))
    # `metadata.parquet` is the table of a folder of images.
    shards = shards or sorted(str(path) for path in folder.glob("*.parquet") if path.name not in METADATA_FILES)
    return _ParquetFiles(shards, str(folder), image_column) if shards else None


def _saved_dataset(folder: Path, image_column: str) -> _Part:
    import datasets

    opened = open_saved_set(folder)
    rows = datasets.concatenate_datasets(list(opened.values())) if isinstance(opened, dict) else opened
    return _SavedDataset(rows, str(folder), image_column)


def _remote_parquet(url: str) -> list[str]:
    filesystem, root = fsspec.core.url_to_fs(url)
    names = [root] if root.endswith(".parquet") else sorted(filesystem.glob(f"{root}/**/*.parquet"))
    if not names:
        raise FileNotFoundError(f"{url}: no Parquet files found. Pass a dataset with an image column in Parquet.")
    return [filesystem.unstrip_protocol(name) for name in names]


__all__ = ["ACCEPTED", "IMAGE_COLUMN", "ImageInputs", "InputImage", "find_inputs"]
