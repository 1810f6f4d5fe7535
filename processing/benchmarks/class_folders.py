"""Sets of one folder of images for each class, as they are published, and in the form of BiomedCoOp.

BiomedCoOp (https://github.com/HealthX-Lab/BiomedCoOp) publishes its splits of eleven sets as `split_NAME.json`, next to
the folder of the images: `train`, `val` and `test`, each with the path, the class index and the class name of an image.
Without such a file, the folders are those of the original download. `folders` of the entry lists their names for each
class, `split_folders` those of its splits, and `images_in` the folder of the images in a class folder.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from ..files import leads_out
from ..images.folders import first_names, shown_name
from ..images.labeled import LabeledImages, choose_split
from . import medmnist
from .benchmark import Content
from .files import find_folder, folders_in, incomplete, labeled_folders


MAX_SPLIT_BYTES = 200_000_000  # OCTMNIST's file, the largest, has 13.4 MB
MASK = re.compile(r"_mask(_\d+)?$")  # names of segmentations next to the images, as in BUSI
_PARTS = {"train": "train", "validation": "val", "test": "test"}


def read(path: Path, split: str, facts: dict[str, Any], *, held_out: float | None = None, seed: int = 0) -> Content:
    """Read a split from BiomedCoOp's `split_NAME.json`, an `.npz` of MedMNIST, or folders of classes.

    Raises:
        FileNotFoundError: If a folder, an image of a split file, or a split is missing.
        ValueError: If a split file is damaged, is of another benchmark, or lists images outside its folder, or if there
            are several.
    """
    if file := _find_split_file(path, facts):
        return _read_split_file(file, split, facts)
    if "sets" in facts:  # files of MedMNIST
        return medmnist.read(path, split, facts)
    parts = {name: find_folder(path, folder) for name, folder in facts.get("split_folders", {}).items()}
    if not any(parts.values()):
        images = _images_in(path, path, facts)
        images = choose_split({"train": images}, path, split, held_out, seed)
        return Content(images)
    if split not in parts:
        raise FileNotFoundError(f"{path}: {facts['title']} has no {split} split, only {', '.join(parts)}.")
    folder = parts[split]
    if folder is None:
        raise incomplete(path, f"no folder {facts['split_folders'][split]}", facts)
    return Content(_images_in(folder, path, facts))


def _images_in(folder: Path, root: Path, facts: Mapping[str, Any]) -> LabeledImages:
    """Return the images of the classes below a folder, without segmentations. Their names are relative to `root`."""
    folders = {}
    for label in facts["classes"]:
        names = [label, *facts.get("folders", {}).get(label, [])]
        place = find_folder(folder, *names)
        if place is None:
            raise incomplete(folder, f"no folder {' or '.join(names)}", facts)
        inner = place / facts["images_in"] if "images_in" in facts else place
        folders[label] = inner if inner.is_dir() else place
    images = labeled_folders(root, folders, facts)
    return images.select([row for row, name in enumerate(images.names) if not MASK.search(PurePosixPath(name).stem)])


def _find_split_file(path: Path, facts: Mapping[str, Any]) -> Path | None:
    """Return the split file. Of several files, it is the one named like the benchmark."""
    found = [file for folder in folders_in(path) for file in sorted(folder.glob("split_*.json"))]
    if len(found) < 2:
        return found[0] if found else None
    named = [file for file in found if _is_named(file, facts)]
    if len(named) != 1:
        raise ValueError(
            f"{path}: {len(found)} split files, and {len(named) or 'none'} named like {facts['title']}: "
            f"{first_names([str(file.relative_to(path)) for file in named or found])}. Pass the folder of one set."
        )
    return named[0]


def _is_named(file: Path, facts: Mapping[str, Any]) -> bool:
    names = [file.stem.removeprefix("split_"), facts["name"], *facts.get("split_names", [])]
    found, *known = [re.sub(r"[\W_]", "", name.casefold()) for name in names]
    return found in known


def _read_split_file(file: Path, split: str, facts: Mapping[str, Any]) -> Content:
    if file.stat().st_size > MAX_SPLIT_BYTES:
        raise ValueError(f"{file}: {file.stat().st_size:,} bytes, more than {MAX_SPLIT_BYTES:,}. Is it a split file?")
    names: dict[int, str] = {}
    rows: dict[str, list[tuple[str, str]]] = {}
    try:
        parts = json.loads(file.read_text(encoding="utf-8"))
        for part, name in _PARTS.items():
            rows[part] = []
            for image, number, class_name in parts[name]:
                if names.setdefault(int(number), str(class_name)) != class_name:
                    raise ValueError(f"class {number} is {names[int(number)]!r} and {class_name!r}")
                rows[part].append((str(image), str(class_name).replace(" ", "_")))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{file}: not a split file of BiomedCoOp, which lists [path, class index, class name] under train, val and "
            f"test ({type(error).__name__}: {error})."
        ) from error
    classes = facts["classes"] or next(iter(facts["sets"].values()))
    if len(names) != len(classes) or len(set(names.values())) < len(names):
        raise ValueError(f"{file}: {len(names)} classes, but {facts['title']} has {len(classes)}.")
    labels_of_entry = {label.replace(" ", "_") for label in classes}
    if not _is_named(file, facts) and {name.replace(" ", "_") for name in names.values()} != labels_of_entry:
        raise ValueError(
            f"{file}: not the split file of {facts['title']}. Its classes are {shown_name(', '.join(names.values()))}, "
            f"not {', '.join(classes)}. Choose the benchmark of this file, or pass another folder."
        )
    root = _folder_of_images(file, rows[split])
    links: dict[Path, bool] = {}  # whether a folder leads out of that of the split file
    for image, _ in rows[split]:
        inside = PurePosixPath(image)
        if inside.is_absolute() or ".." in inside.parts or "\\" in image or ":" in image:
            raise ValueError(f"{file}: the image {shown_name(image[:200])!r} is not in the folder of the set.")
        place = root / image
        if place.parent not in links:
            links[place.parent] = leads_out(place.parent, file.parent)
        if links[place.parent] or (place.is_symlink() and leads_out(place, file.parent)):
            raise ValueError(
                f"{file}: the image {shown_name(image[:200])!r} is a link that leads out of {file.parent}. Copy the "
                "image there."
            )
    paths = [root / image for image, _ in rows[split]]
    if missing := [path for path in paths if not path.is_file()]:
        what = f"{len(missing):,} of {len(paths):,} images of {file.name} are missing: {shown_name(str(missing[0]))}"
        raise incomplete(root, what, facts)
    labels = [label for _, label in rows[split]]
    named = {names[number].replace(" ", "_"): names[number] for number in sorted(names)}
    images = LabeledImages(list(paths), labels, [image for image, _ in rows[split]])
    note = f"The splits and the class names are those of {file.name}."
    return Content(replace(images, notes=[note]), facts={"classes": named, "positive": None})


def _folder_of_images(file: Path, rows: list[tuple[str, str]]) -> Path:
    """Return the folder of the images: the one named like the set, or the folder of the split file."""
    named = file.parent / file.stem.removeprefix("split_")
    return named if named.is_dir() or not rows else file.parent
