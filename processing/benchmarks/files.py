"""Files of downloads: finding them, and reading tables whose columns are known."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..labelled_images import LabelledImages, image_files
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


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """
    Rows of a CSV file.

    Raises:
        ValueError: It does not have these columns, or not in every row, or is no text.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            found = reader.fieldnames or []
            if missing := [column for column in columns if column not in found]:
                raise ValueError(f"{path}: no column {', '.join(missing)}; it has {', '.join(found) or 'none'}.")
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file that can be read ({error}).") from error
    for number, row in enumerate(rows, start=2):
        if any(row[column] is None for column in columns):
            raise ValueError(
                f"{path}, line {number}: the row ends too early. The file is truncated: download it again."
            )
    return rows


def check_names(names: Iterable[str], table: Path, column: str) -> None:
    """
    Raises:
        ValueError: A name that would lead out of the folder of images.
    """
    for name in names:
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise ValueError(f"{table}: {column} {name[:100]!r} is no name of a file.")


def check_images(folder: Path, names: Sequence[str], source: Path, benchmark: str) -> None:
    """
    Checks that the images that a file names are in a folder.

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


def labelled_folders(root: Path, folders: dict[str, Path], benchmark: str) -> LabelledImages:
    """
    The images of some folders.

    Args:
        root: What names of images begin below.
        folders: Folder of each label.
        benchmark: For the error.

    Raises:
        FileNotFoundError: A folder without images.
    """
    files = {label: [*image_files(folder)] for label, folder in folders.items()}
    for label, found in files.items():
        if not found:
            raise incomplete(folders[label], f"no images of {label} there", benchmark)
    paths = [path for found in files.values() for path in found]
    return LabelledImages(
        paths,
        [label for label, found in files.items() for _ in found],
        [path.relative_to(root).as_posix() for path in paths],
    )


__all__ = [
    "check_images",
    "check_names",
    "find_file",
    "find_folder",
    "folders_in",
    "incomplete",
    "labelled_folders",
    "read_table",
    "some_of",
]
