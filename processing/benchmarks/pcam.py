"""PatchCamelyon: HDF5 as published, Kaggle's TIFF files with a table of labels, or folders of images."""

from pathlib import Path

import numpy as np

from ..images.labeled import LabeledImages, split_folders
from ..tables import labels_by_name, read_table
from .arrays import Hdf5Images, open_array
from .files import (
    check_images,
    check_names,
    check_values,
    find_file,
    find_folder,
    incomplete,
    labeled_folders,
    some_of,
)
from .folders import choose_split


LABELS = {"0": "normal", "1": "tumor"}
_PARTS = {"train": "train", "validation": "valid", "test": "test"}
_FILE = "camelyonpatch_level_2_split_{part}_{what}"


def read_pcam(root: Path, split: str, held_out: float | None, seed: int) -> tuple[LabeledImages, list[str]]:
    """A split of PCam, and notes.

    Args:
        root: Folder with `camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5`; or with `train_labels.csv` and
            `train/<id>.tif`; or with folders of images called `normal` and `tumor`, or `0` and `1`, optionally under
            folders of splits.
        split: `train`, `validation` or `test`.
        held_out: Of images without splits: see [`choose_split`].
        seed: Likewise.

    Raises:
        FileNotFoundError: A part is missing.
        ImportError: h5py is not installed.
        ValueError: A file that holds something else.
    """
    root = root.parent if root.is_file() else root
    if _has_hdf5(root):
        return _from_hdf5(root, _PARTS[split])
    if table := _find_labels(root):
        images, notes = choose_split({"train": _from_kaggle(table)}, root, split, held_out, seed)
        return images, [
            *notes,
            "Kaggle's labeled images are from PCam's training split. Published values are not shown.",
        ]
    return choose_split(_from_folders(root), root, split, held_out, seed)


def find_kaggle(root: Path) -> Path | None:
    """Return the table of labels if the files of a folder are Kaggle's, whose images are from the training split."""
    root = root.parent if root.is_file() else root
    return None if _has_hdf5(root) else _find_labels(root)


def _find_labels(root: Path) -> Path | None:
    return find_file(root, "train_labels.csv")


def _has_hdf5(root: Path) -> bool:
    names = {_FILE.format(part=part, what=f"{what}.h5") for part in _PARTS.values() for what in "xy"}
    return find_file(root, *names, *(f"{name}.gz" for name in names)) is not None


def _from_hdf5(root: Path, part: str) -> tuple[LabeledImages, list[str]]:
    x, y = (_find_hdf5(root, _FILE.format(part=part, what=f"{what}.h5")) for what in "xy")
    images = Hdf5Images(x, "x")
    values = open_array(y, "y")
    if values.dtype.kind not in "iu" or values.size != len(values):
        raise ValueError(f"{y}: 'y' holds {values.dtype} of shape {values.shape}, where one integer an image belongs.")
    if len(values) != len(images):
        raise ValueError(
            f"{y}: {len(values):,} labels for the {len(images):,} images of {x.name}. Download both again."
        )
    labels = np.asarray(values).reshape(-1)
    if unknown := set(labels.tolist()) - {0, 1}:
        raise ValueError(
            f"{y}: labels are 0 and 1, and there are {some_of([str(label) for label in sorted(unknown)])}."
        )
    return (
        LabeledImages(
            images,
            [LABELS[str(label)] for label in labels],
            [f"{part}/{row}" for row in range(len(images))],
            _slides(x.with_name(_FILE.format(part=part, what="meta.csv")), len(images)),
        ),
        [],
    )


def _find_hdf5(root: Path, name: str) -> Path:
    if found := find_file(root, name):
        return found
    if packed := find_file(root, f"{name}.gz"):
        raise FileNotFoundError(
            f"{packed}: still packed, and not to be read by rows. Unpack it with: gunzip {packed.name}"
        )
    raise incomplete(root, f"no {name}", "pcam")


def _slides(table: Path, images: int) -> list[str] | None:
    """Slide of each patch, where the table of them was downloaded too."""
    if not table.is_file():
        return None
    slides = [row["wsi"] for row in read_table(table, ["wsi"]).rows]
    if len(slides) != images:
        raise ValueError(f"{table}: {len(slides):,} rows for {images:,} images. Download it again, or remove it.")
    return slides


def _from_kaggle(table: Path) -> LabeledImages:
    folder = table.parent / "train"
    read = read_table(table, ["id", "label"])
    check_names(read, "id")
    check_values(read, "label", LABELS)
    row_of = labels_by_name(read, "id", "label")
    files = [folder / f"{name}.tif" for name in row_of]
    check_images(folder, [file.name for file in files], table, "pcam")
    return LabeledImages(files, [LABELS[row["label"]] for row in row_of.values()], list(row_of))


def _from_folders(root: Path) -> dict[str, LabeledImages]:
    folders = split_folders(root) or {"train": root}
    splits = {}
    for split, folder in folders.items():
        found = {label: find_folder(folder, label, digit) for digit, label in LABELS.items()}
        for label, of_label in found.items():
            if of_label is None:
                raise incomplete(
                    folder,
                    f"no {_FILE.format(part='test', what='x.h5')}, no train_labels.csv, and no folder of images called "
                    f"{label} (or {list(LABELS.values()).index(label)})",
                    "pcam",
                )
        splits[split] = labeled_folders(root, {label: path for label, path in found.items() if path}, "pcam")
    return splits


__all__ = ["find_kaggle", "read_pcam"]
