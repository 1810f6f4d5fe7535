"""Open the rows of a table, of a folder with metadata files, or of a dataset, by split.

Labeled images and image-text pairs are both read from here, so they accept the same tables and datasets.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .folders import SPLIT_NAMES, FolderContent, find_images, split_folders
from .sets import is_saved_set, open_hub_set, open_parquet_file, open_parquet_set, open_saved_set, sets_by_split
from .tables import METADATA_FILES, TABLE_SUFFIXES, ImageRow, check_table, embeds_images, names_images, read_image_rows


IMAGE_COLUMN = "image"  # default
# Columns by the name of the argument that selects them.
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """The rows of each split. Without `rows` and `sets`, the source is a folder of images without texts or labels.

    Args:
        root: Folder to which the paths of images are relative.
        rows: Rows of tables that list image files.
        sets: `datasets.Dataset` of each split.
        downloaded: Whether the datasets are from the Hub.
        content: The files of a folder of images.
        folders: Folder of each split of a folder of images.
    """

    root: Path
    rows: Mapping[str, list[ImageRow]] = field(default_factory=dict)
    sets: Mapping[str, Any] = field(default_factory=dict)
    downloaded: bool = False
    content: FolderContent | None = None
    folders: Mapping[str, Path] = field(default_factory=dict)


def open_source(
    path: str | os.PathLike[str],
    columns: Columns,
    image_root: str | os.PathLike[str] | None,
    accepted: str,
) -> Source:
    """Open a table, a folder or a dataset.

    Args:
        path: A CSV, JSON Lines or Parquet file; a folder of images, optionally with metadata files; a dataset of the
            `datasets` library, saved with `save_to_disk` or as Parquet or Arrow files; or the name of a dataset on the
            Hub, also as `hf://datasets/OWNER/NAME`.
        columns: Columns that the rows must have, by the name of the argument that selects them. One is `image_column`.
        image_root: Folder to which the image paths of a table are relative (default: the folder of the table).
        accepted: The accepted data, for the error of a path that is none of them.

    Raises:
        FileNotFoundError: If the path or images that a table lists do not exist.
        ImportError: If a folder has DICOM images and pydicom is not installed.
        ValueError: If the data cannot be read, a column is missing, or `image_root` has no effect.
    """
    name, root = os.fspath(path), Path(path)
    if is_table(name):
        return _open_table(root, columns, None if image_root is None else Path(image_root))
    refuse_columns("data that is not a CSV, JSON Lines or Parquet file", image_root=(image_root, None))
    if not root.is_dir():
        return Source(root, sets=sets_by_split(open_hub_set(name, accepted), name, columns), downloaded=True)
    if is_saved_set(root):
        return Source(root, sets=sets_by_split(open_saved_set(root), name, columns))
    folders = split_folders(root)
    content = find_images(root, link_depth=2 if folders else 1)
    tables = [file for file in content.others if file.name in METADATA_FILES]
    if any(file.suffix in (".parquet", ".arrow") for file in content.others if file not in tables):
        return Source(root, sets=sets_by_split(open_parquet_set(root), name, columns))
    rows = {}
    if any(names_images(table, columns["image_column"]) for table in tables):
        rows = _read_metadata(root, folders, tables, columns)
        content.others = [file for file in content.others if file not in tables]
    if content.dicom:
        from .dicom import require_pydicom  # pydicom is optional

        require_pydicom()
    return Source(root, rows, content=content, folders=folders)


def is_table(name: str) -> bool:
    """Return whether a path is that of a table, which may not exist."""
    return "://" not in name and Path(name).suffix.lower() in TABLE_SUFFIXES and not os.path.isdir(name)


def _open_table(path: Path, columns: Columns, image_root: Path | None) -> Source:
    check_table(path, image_root)
    if embeds_images(path, columns["image_column"]):
        refuse_columns(f"{path}, which contains the images", image_root=(image_root, None))
        return Source(path, sets=sets_by_split(open_parquet_file(path), str(path), columns))
    return Source(image_root or path.parent, {"train": _read_rows(path, columns, image_root)})


def _read_metadata(
    root: Path, folders: Mapping[str, Path], tables: Sequence[Path], columns: Columns
) -> dict[str, list[ImageRow]]:
    if len({table.parent for table in tables}) < len(tables):
        raise ValueError(f"{root}: several of {', '.join(METADATA_FILES)} are in one folder. Keep one of them.")
    return _rows_by_split(root, folders, [row for table in tables for row in _read_rows(table, columns, None)])


def _read_rows(path: Path, columns: Columns, image_root: Path | None) -> list[ImageRow]:
    others = {argument: column for argument, column in columns.items() if argument != "image_column"}
    rows = list(read_image_rows(path, columns["image_column"], others, image_root=image_root))
    if not rows:
        raise ValueError(f"{path}: the table has no rows.")
    return rows


def _rows_by_split(root: Path, folders: Mapping[str, Path], rows: Sequence[ImageRow]) -> dict[str, list[ImageRow]]:
    """Return the rows of metadata files by the split folder of their images, or as `train` if there are none.

    Raises:
        ValueError: If only some of the images are in split folders, or a split folder has no listed images.
    """
    split_of = {folder: split for split, folder in folders.items()}
    found: dict[str | None, list[ImageRow]] = {}
    for row in rows:
        found.setdefault(split_of.get(root / row.image.relative_to(root).parts[0]), []).append(row)
    if None in found and len(found) > 1:
        row = found[None][0]
        raise ValueError(
            f"{row.where}: {row.image.relative_to(root)} is not in a folder of a split, but other images are."
        )
    if None in found:
        return {"train": list(rows)}
    if without := [folder.name for split, folder in folders.items() if split not in found]:
        raise ValueError(f"{root}: no metadata file lists images of {', '.join(without)}, as of the other splits.")
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def refuse_columns(what: str, **columns: tuple[Any, Any]) -> None:
    """Raise `ValueError` for the first of the arguments, each with its default, that is set but has no effect."""
    for name, (value, default) in columns.items():
        if value != default:
            raise ValueError(f"{name}={value!r} has no effect on {what}. Omit it.")
