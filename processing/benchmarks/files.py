"""Files of downloads: finding them, and checking what their tables say."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ..images.dicom import require_pydicom
from ..images.folders import find_images, warn_of_left_out
from ..images.labeled import LabeledImages
from ..tables import Table
from .facts import facts_of


_DEPTH = 4  # folders that a download may lie below the one that is named
_SHOWN = 5


def incomplete(path: str | os.PathLike[str], what: str, benchmark: str) -> FileNotFoundError:
    """The error for a download of which a part is missing: what, and where it comes from."""
    facts = facts_of(benchmark)
    return FileNotFoundError(f"{path}: {what}. {facts['title']} comes from {facts['download']}")


def some_of(names: Sequence[str]) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def folders_in(root: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """A folder and those below it, the nearer ones first."""
    level = [root] if root.is_dir() else []
    for _ in range(depth + 1):
        yield from level
        level = [
            Path(entry.path)
            for folder in level
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name)
            if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
        ]


def find_folder(root: Path, *names: str) -> Path | None:
    """The folder of one of these names that is nearest below another, or is that one itself."""
    return next((folder for folder in folders_in(root) if folder.name in names), None)


def find_file(root: Path, *names: str) -> Path | None:
    """The file of one of these names that lies nearest below a folder, or is named itself."""
    if root.is_file():
        return root if root.name in names else None
    return next((folder / name for folder in folders_in(root) for name in names if (folder / name).is_file()), None)


def check_names(table: Table, column: str) -> None:
    """Check that a column holds names of files.

    Raises:
        ValueError: If a name would lead out of the folder of images. The message names the line.
    """
    for row in table.rows:
        if not re.fullmatch(r"[\w.-]+", row[column]) or row[column].startswith("."):
            raise ValueError(f"{table.path}, line {row.line}: {column} {row[column][:100]!r} is no name of a file.")


def check_values(table: Table, column: str, allowed: Collection[str]) -> None:
    """Check that a column holds known values alone.

    Raises:
        ValueError: If there is another value. The message names the line of the first one.
    """
    unknown = {row[column]: row.line for row in reversed(table.rows) if row[column] not in allowed}
    if unknown:
        first = min(unknown.values())
        raise ValueError(
            f"{table.path}, line {first}: {column} is {' or '.join(allowed)}, and there are {some_of(sorted(unknown))}."
        )


def check_images(folder: Path, names: Sequence[str], source: Path, benchmark: str) -> None:
    """Checks that the images that a file names are in a folder.

    Args:
        folder: The folder, which may itself be missing.
        names: Names of the images, as they lie below it.
        source: The file that names them.
        benchmark: For the error.

    Raises:
        FileNotFoundError: Some are not there.
    """
    there = set(os.listdir(folder)) if folder.is_dir() else set()  # faster than to ask for each of 220,025
    missing = [name for name in names if name not in there and not os.path.isfile(folder / name)]
    if missing:
        raise incomplete(
            folder,
            f"{len(missing):,} of {len(names):,} images of {source.name} are missing: {some_of(missing)}",
            benchmark,
        )


def labeled_folders(root: Path, folders: dict[str, Path], benchmark: str) -> LabeledImages:
    """Return the images of some folders.

    Args:
        root: What names of images begin below.
        folders: Folder of each label.
        benchmark: For the error.

    Raises:
        FileNotFoundError: If a folder has no images.
        ImportError: If images are DICOM and pydicom is not installed.
    """
    contents = {label: find_images(folder) for label, folder in folders.items()}
    for label, content in contents.items():
        if not content.images:
            raise incomplete(folders[label], f"no images of {label} there", benchmark)
    if any(content.dicom for content in contents.values()):
        require_pydicom()
    warn_of_left_out(root, contents.values())
    files = {label: content.images for label, content in contents.items()}
    paths = [path for found in files.values() for path in found]
    return LabeledImages(
        paths,
        [label for label, found in files.items() for _ in found],
        [path.relative_to(root).as_posix() for path in paths],
    )


__all__ = [
    "check_images",
    "check_names",
    "check_values",
    "find_file",
    "find_folder",
    "folders_in",
    "incomplete",
    "labeled_folders",
    "some_of",
]
