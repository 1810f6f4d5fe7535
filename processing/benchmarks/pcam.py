"""PatchCamelyon: the published HDF5 files, Kaggle's TIFF files with a table of labels, or folders of images."""

from pathlib import Path
from typing import Any

import numpy as np

from ..images.folders import first_names, split_folders
from ..images.labeled import LabeledImages, choose_split
from ..tables import labels_by_name, read_table
from .arrays import Hdf5Images, open_array
from .benchmark import Content
from .files import check_images, check_names, check_values, find_file, find_folder, incomplete, labeled_folders


LABELS = {"0": "normal", "1": "tumor"}
_PARTS = {"train": "train", "validation": "valid", "test": "test"}
_FILE = "camelyonpatch_level_2_split_{part}_{what}"


def read(path: Path, split: str, facts: dict[str, Any], *, held_out: float | None = None, seed: int = 0) -> Content:
    """Read a split.

    The folder contains `camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`; or `train_labels.csv` and
    `train/<id>.tif`; or folders of images named `normal` and `tumor`, or `0` and `1`, optionally in folders of splits.
    """
    root = path.parent if path.is_file() else path
    if _has_hdf5(root):
        return Content(_from_hdf5(root, _PARTS[split], facts))
    table = find_file(root, "train_labels.csv")
    splits = {"train": _from_kaggle(table, facts)} if table else _from_folders(root, facts)
    images = choose_split(splits, root, split, held_out, seed)
    if table is None:
        return Content(images)
    note = "Kaggle's labeled images are from PCam's training split. Published values are not shown."
    return Content(images, [note], facts={"paper": {}, "images": {}})


def _has_hdf5(root: Path) -> bool:
    names = {_FILE.format(part=part, what=f"{what}.h5") for part in _PARTS.values() for what in "xy"}
    return find_file(root, *names, *(f"{name}.gz" for name in names)) is not None


def _from_hdf5(root: Path, part: str, facts: dict[str, Any]) -> LabeledImages:
    x, y = (_find_hdf5(root, _FILE.format(part=part, what=f"{what}.h5"), facts) for what in "xy")
    images, values = Hdf5Images(x, "x"), open_array(y, "y")
    if values.dtype.kind not in "iu" or values.size != len(values):
        raise ValueError(
            f"{y}: expected one integer for each image in 'y', found {values.dtype} of shape {values.shape}."
        )
    if len(values) != len(images):
        raise ValueError(
            f"{y}: {len(values):,} labels for the {len(images):,} images of {x.name}. Download both again."
        )
    labels = [str(label) for label in np.asarray(values).reshape(-1)]
    if unknown := set(labels) - LABELS.keys():
        raise ValueError(f"{y}: labels must be 0 or 1, but there are {first_names(sorted(unknown))}.")
    names = [f"{part}/{row}" for row in range(len(images))]
    slides = _slides(x.with_name(_FILE.format(part=part, what="meta.csv")), len(images))
    return LabeledImages(images, [LABELS[label] for label in labels], names, slides)


def _find_hdf5(root: Path, name: str, facts: dict[str, Any]) -> Path:
    if found := find_file(root, name):
        return found
    if packed := find_file(root, f"{name}.gz"):
        raise FileNotFoundError(f"{packed}: the file is compressed. Run: gunzip {packed.name}")
    raise incomplete(root, f"no {name}", facts)


def _slides(table: Path, images: int) -> list[str] | None:
    """Return the slide of each patch, if the table of slides was downloaded too."""
    if not table.is_file():
        return None
    slides = [row["wsi"] for row in read_table(table, ["wsi"]).rows]
    if len(slides) != images:
        raise ValueError(f"{table}: {len(slides):,} rows for {images:,} images. Download it again, or remove it.")
    return slides


def _from_kaggle(table: Path, facts: dict[str, Any]) -> LabeledImages:
    rows = read_table(table, ["id", "label"])
    check_names(rows, "id")
    check_values(rows, "label", LABELS)
    row_of = labels_by_name(rows, "id", "label")
    files = [table.parent / "train" / f"{name}.tif" for name in row_of]
    check_images(table.parent / "train", [file.name for file in files], table, facts)
    return LabeledImages(files, [LABELS[row["label"]] for row in row_of.values()], list(row_of))


def _from_folders(root: Path, facts: dict[str, Any]) -> dict[str, LabeledImages]:
    splits = {}
    for split, folder in (split_folders(root) or {"train": root}).items():
        found = {}
        for digit, label in LABELS.items():
            of_label = find_folder(folder, label, digit)
            if of_label is None:
                name = _FILE.format(part="test", what="x.h5")
                what = f"no {name}, no train_labels.csv, and no folder of images named {label} or {digit}"
                raise incomplete(folder, what, facts)
            found[label] = of_label
        splits[split] = labeled_folders(root, found, facts)
    return splits
