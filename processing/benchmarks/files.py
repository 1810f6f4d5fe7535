"""Find the files of a download and check their tables."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..images.dicom import require_pydicom
from ..images.folders import find_images, first_names, warn_of_left_out
from ..images.labeled import LabeledImages
from ..tables import Table


_DEPTH = 4  # levels of folders that are searched


def incomplete(path: str | os.PathLike[str], what: str, facts: Mapping[str, Any]) -> FileNotFoundError:
    """Return the error for a missing part of a download, with the source of the download."""
    return FileNotFoundError(f"{path}: {what}. {facts['title']} comes from {facts['download']}")


def folders_in(root: Path) -> Iterator[Path]:
    """Yield a folder and its subfolders, level by level."""
    level = [root] if root.is_dir() else []
    for _ in range(_DEPTH + 1):
        yield from level
        level = [
            Path(entry.path)
            for folder in level
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
            if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
        ]


def find_folder(root: Path, *names: str) -> Path | None:
    """Return the nearest folder with one of the names, starting with the root itself."""
    return next((folder for folder in folders_in(root) if folder.name in names), None)


def find_file(root: Path, *names: str) -> Path | None:
    """Return the nearest file with one of the names, starting with the root itself."""
    if root.is_file():
        return root if root.name in names else None
    return next((folder / name for folder in folders_in(root) for name in names if (folder / name).is_file()), None)


def check_names(table: Table, column: str) -> None:
    """Raise `ValueError` if a value of a column is not a plain file name."""
    for row in table.rows:
        if not re.fullmatch(r"[\w.-]+", row[column]) or row[column].startswith("."):
            raise ValueError(f"{table.path}, line {row.line}: {column} {row[column][:100]!r} is not a file name.")


def check_values(table: Table, column: str, allowed: Collection[str]) -> None:
    """Raise `ValueError` if a column contains a value that is not allowed."""
    unknown = {row[column]: row.line for row in reversed(table.rows) if row[column] not in allowed}
    if unknown:
        raise ValueError(
            f"{table.path}, line {min(unknown.values())}: {column} must be {' or '.join(allowed)}, but there are "
            f"{first_names(sorted(unknown))}."
        )


def check_images(folder: Path, names: Sequence[str], source: Path, facts: Mapping[str, Any]) -> None:
    """Raise `FileNotFoundError` if a folder, which may be missing, lacks images that the file `source` lists."""
    found = set(os.listdir(folder)) if folder.is_dir() else set()  # faster than checking each of 220,025 files
    missing = [name for name in names if name not in found and not os.path.isfile(folder / name)]
    if missing:
        what = f"{len(missing):,} of {len(names):,} images of {source.name} are missing: {first_names(missing)}"
        raise incomplete(folder, what, facts)


def labeled_folders(root: Path, folders: Mapping[str, Path], facts: Mapping[str, Any]) -> LabeledImages:
    """Return the images in the folder of each label. Their names are relative to `root`."""
    contents = {label: find_images(folder) for label, folder in folders.items()}
    for label, content in contents.items():
        if not content.images:
            raise incomplete(folders[label], f"no images of {label}", facts)
    if any(content.dicom for content in contents.values()):
        require_pydicom()
    warn_of_left_out(root, contents.values())
    found = [(path, label) for label, content in contents.items() for path in content.images]
    return LabeledImages(
        [path for path, _ in found],
        [label for _, label in found],
        [path.relative_to(root).as_posix() for path, _ in found],
    )
