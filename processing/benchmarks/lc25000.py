"""LC25000: folders of histopathology images of lung and colon, 5,000 for each class."""

import os
from pathlib import Path

from ..images.labeled import LabeledImages
from .facts import facts_of
from .files import find_folder, incomplete, labeled_folders
from .folders import choose_split


def read_lc25000(
    root: Path, name: str, split: str, held_out: float | None, seed: int
) -> tuple[LabeledImages, list[str]]:
    """The images of lung or colon, and notes.

    Args:
        root: The folder `lung_colon_image_set`, one above it, or one inside it.
        name: `lc25000_lung` or `lc25000_colon`.
        split: There are no published splits: all images are `test`.
        held_out: See [`choose_split`].
        seed: Likewise.

    Raises:
        FileNotFoundError: The folder of a class is missing, or holds no images.
    """
    folders = {}
    for label in facts_of(name)["classes"]:
        folder = find_folder(root, label)
        if folder is None:
            raise incomplete(root, f"no folder {label}", name)
        folders[label] = folder
    # Names are the same wherever in the tree the path begins, and so is the fingerprint.
    images = labeled_folders(Path(os.path.commonpath(list(folders.values()))), folders, name)
    images, notes = choose_split({"train": images}, root, split, held_out, seed)
    if held_out is not None:
        notes.append(
            "The images of LC25000 are 1,250 originals (250 of each class), turned and flipped; which came from which "
            "is not published, so that any split of them has the same originals on both sides."
        )
    return images, notes


__all__ = ["read_lc25000"]
