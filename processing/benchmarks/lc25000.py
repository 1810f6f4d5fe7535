"""LC25000: folders of histopathology images of lung and colon, with 5,000 images for each class."""

import os
from pathlib import Path
from typing import Any

from ..images.labeled import choose_split
from .benchmark import Content
from .files import find_folder, incomplete, labeled_folders


def read(path: Path, split: str, facts: dict[str, Any], *, held_out: float | None = None, seed: int = 0) -> Content:
    """Read the images of one organ from the folder `lung_colon_image_set`, its parent folder, or a folder in it.

    LC25000 has no published splits. By default, all images are the test split.
    """
    folders = {}
    for label in facts["classes"]:
        folder = find_folder(path, label)
        if folder is None:
            raise incomplete(path, f"no folder {label}", facts)
        folders[label] = folder
    # The names, and therefore the fingerprint, are the same whichever of these folders `path` is.
    images = labeled_folders(Path(os.path.commonpath(list(folders.values()))), folders, facts)
    images = choose_split({"train": images}, path, split, held_out, seed)
    notes = []
    if held_out is not None:
        notes.append(
            "The images of LC25000 are rotated and flipped copies of 1,250 originals (250 of each class). It is not "
            "published which copies have the same original, so any split has copies of one original on both sides."
        )
    return Content(images, notes)
