"""Find the images in a folder by the content of its files."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..files import leads_out
from .formats import DICOM_SUFFIXES, HEAD_BYTES, IMAGE_SUFFIXES, format_of


logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_BAR_DELAY = 2.0  # seconds before a progress bar is shown
_SHOWN = 5


@dataclass
class FolderContent:
    """The content of a folder and its subfolders. All lists are sorted."""

    images: list[Path] = field(default_factory=list)  # some may be damaged
    others: list[Path] = field(default_factory=list)  # other files, FIFOs, sockets, devices and broken links
    skipped_folders: list[Path] = field(default_factory=list)  # links to folders, and those without read permission
    links_out: list[Path] = field(default_factory=list)  # images and searched folders outside the folder
    dicom: bool = False  # whether at least one image is DICOM, which needs pydicom


def find_images(folder: Path, *, link_depth: int = 0) -> FolderContent:
    """Return the images in a folder and its subfolders, and everything that was ignored.

    A file counts as an image if its suffix or its first bytes are those of a supported format. Hidden files and folders
    and `__MACOSX` are ignored. Only regular files and links to them are opened. A progress bar is shown on stderr after
    two seconds.

    Links to folders outside `folder` are followed at the first `link_depth` levels: 1 for class folders, 2 for class
    folders inside split folders. Deeper links, and links to folders inside `folder`, are skipped.
    """
    content = FolderContent()
    root = os.path.realpath(folder)
    options: Any = {"delay": _BAR_DELAY, "disable": None, "file": sys.stderr, "dynamic_ncols": True}
    entries = _entries(folder, root, link_depth, content)
    for entry in tqdm(entries, f"Looking for images in {folder.name}", unit="file", **options):
        path = Path(entry.path)
        regular = entry.is_file(follow_symlinks=False) or (entry.is_symlink() and os.path.isfile(path))
        kind = _kind(path) if regular else None
        if kind is None:
            content.others.append(path)
            continue
        content.images.append(path)
        content.dicom |= kind == "DICOM"
        if entry.is_symlink() and leads_out(path, root):
            content.links_out.append(path)
    for paths in (content.images, content.others, content.skipped_folders, content.links_out):
        paths.sort()
    return content


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders that are named after splits, in upper or lower case. Each split may have one folder."""
    found: dict[str, Path] = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.is_dir() and folder.name.lower() in SPLIT_OF:
            split = SPLIT_OF[folder.name.lower()]
            if split in found:
                raise ValueError(
                    f"{root}: both {found[split].name} and {folder.name} are folders of the {split} split. Keep one."
                )
            found[split] = folder
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def is_image_file(path: Path) -> bool:
    """Return whether a single file counts as an image, by the rule of [`find_images`]."""
    return os.path.isfile(path) and _kind(path) is not None


def is_visible(*names: str) -> bool:
    """Return whether none of the names is hidden or `__MACOSX`, a folder that archive programs add."""
    return not any(name.startswith((".", "__MACOSX")) for name in names)


def warn_of_left_out(folder: Path, contents: Iterable[FolderContent]) -> None:
    """Log one line about the files in or below a folder that [`find_images`] ignored, with the first names.

    The same line is logged only once per process, because several splits of one folder may be read in turn.
    """
    found = list(contents)
    notes = []
    for name, one, several in (
        ("others", "file is not an image and is ignored", "files are not images and are ignored"),
        (
            "skipped_folders",
            "folder is a link or cannot be read and is ignored",
            "folders are links or cannot be read and are ignored",
        ),
        (
            "links_out",
            "image or folder is a link that leads out of it",
            "images or folders are links that lead out of it",
        ),
    ):
        if paths := [path for content in found for path in getattr(content, name)]:
            shown = first_names([path.relative_to(folder).as_posix() for path in paths])
            if name == "others":
                suffixes = Counter(path.suffix.lower() or "no suffix" for path in paths).most_common(_SHOWN)
                shown = f"{', '.join(f'{shown_name(suffix)} {count:,}' for suffix, count in suffixes)}; {shown}"
            notes.append(f"{len(paths):,} {one if len(paths) == 1 else several} ({shown})")
    if notes:
        warn_once(f"{shown_name(str(folder))}: {'; '.join(notes)}.")


def first_names(names: Sequence[str]) -> str:
    """Return the first names as text, followed by `...` if there are more."""
    return ", ".join(map(shown_name, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def shown_name(name: str) -> str:
    """Return a name with escaped unprintable characters, such as line breaks."""
    if name.isprintable():
        return name
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in name
    )


@lru_cache(maxsize=1024)
def warn_once(message: str) -> None:
    """Log a warning, but only once for each process."""
    logger.warning("%s", message)


def _entries(folder: Path, root: str, link_depth: int, content: FolderContent) -> Iterator[os.DirEntry[str]]:
    """Yield the visible entries of a folder and its subfolders that are not folders."""
    waiting = [(os.fspath(folder), 0)]
    while waiting:
        current, depth = waiting.pop()
        try:
            with os.scandir(current) as entries:
                visible = [entry for entry in entries if is_visible(entry.name)]
        except PermissionError:
            if depth == 0:
                raise
            content.skipped_folders.append(Path(current))
            continue
        for entry in visible:
            if entry.is_dir(follow_symlinks=False):
                waiting.append((entry.path, depth + 1))
            elif not entry.is_symlink() or not os.path.isdir(entry.path):
                yield entry
            elif depth < link_depth and not _overlap(os.path.realpath(entry.path), root):
                content.links_out.append(Path(entry.path))
                waiting.append((entry.path, depth + 1))
            else:
                content.skipped_folders.append(Path(entry.path))


def _overlap(one: str, other: str) -> bool:
    """Return whether two folders are the same or one contains the other."""
    return os.path.commonpath([one, other]) in (one, other)


def _kind(path: Path) -> str | None:
    """Return `"DICOM"` or `"image"`, or None if a regular file is not an image."""
    # If the suffix is known, the file is not opened: a folder may contain 300,000 files.
    if path.suffix.lower() in DICOM_SUFFIXES:
        return "DICOM"
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "image"
    try:
        with open(path, "rb") as file:
            found = format_of(file.read(HEAD_BYTES))
    except OSError:
        return None
    return found if found in (None, "DICOM") else "image"
