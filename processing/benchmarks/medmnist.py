"""MedMNIST: 2D datasets with one label per image, as `.npz` files."""

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..images.labeled import LabeledImages
from .arrays import ArrayImages
from .benchmark import Content
from .files import folders_in


MAX_ARRAY_BYTES = 16_000_000_000  # PathMNIST at 224 pixels, the largest published array, takes 13.5 GB
_PARTS = {"train": "train", "validation": "val", "test": "test"}
_POSITIVE = {"pneumoniamnist": "1", "breastmnist": "0"}


def read(path: Path, split: str, facts: dict[str, Any]) -> Content:
    """Read a split of `pathmnist.npz`, `dermamnist_128.npz`, ..., or of the only such file in a folder."""
    file, part = _find(path, facts), _PARTS[split]
    images, labels = _array(file, f"{part}_images"), _array(file, f"{part}_labels")
    _check_arrays(file, images, labels)
    values = [str(label) for label in labels.reshape(-1).tolist()]
    name = set_name(file)
    notes = [f"{file.stem}: images of {images.shape[1]} x {images.shape[2]} pixels."]
    classes = {str(number): text for number, text in enumerate(facts["sets"].get(name, []))}
    if not classes:
        classes = {value: value for value in sorted(set(values), key=int)}
        notes.append(f"The class names of {name} are not known. The prompts contain the numbers of the classes.")
    elif unknown := set(values) - classes.keys():
        raise ValueError(f"{file}: label {min(unknown, key=int)} is not one of 0 to {len(classes) - 1} of {name}.")
    rows = LabeledImages(ArrayImages(images), values, [f"{part}/{row}" for row in range(len(images))])
    return Content(rows, notes, facts={"classes": classes, "positive": _POSITIVE.get(name)})


def set_name(file: Path) -> str:
    """Return the name of the dataset in a file, such as `pathmnist` for `pathmnist_224.npz`."""
    return re.sub(r"(_\d+)?$", "", file.stem.lower())


def _check_arrays(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"{file}: expected 2D images of 8 bits, found {images.dtype} of shape {images.shape}.")
    if images.ndim == 4 and images.shape[3] != 3:
        raise ValueError(f"{file}: volumes of {images.shape[1:]} voxels. Only the 2D sets of MedMNIST are supported.")
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2):
        raise ValueError(
            f"{file}: expected one integer label for each image, found {labels.dtype} of shape {labels.shape}."
        )
    if labels.size != len(labels):
        raise ValueError(
            f"{file}: {labels.shape[1]} labels for each image, as in ChestMNIST. Only sets with one label for each "
            "image are supported."
        )
    if len(labels) != len(images):
        raise ValueError(f"{file}: {len(labels):,} labels for {len(images):,} images. Download it again.")


def _find(path: Path, facts: dict[str, Any]) -> Path:
    if path.is_file():
        return path
    found = sorted(file for folder in folders_in(path) for file in folder.glob("*.npz"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise FileNotFoundError(
            f"{path}: expected one .npz file, found {names}. Pass the file. MedMNIST comes from {facts['download']}"
        )
    return found[0]


def _array(file: Path, key: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if f"{key}.npy" not in sizes:
            raise ValueError(f"it has no array {key!r}, only {', '.join(name.removesuffix('.npy') for name in sizes)}")
        if sizes[f"{key}.npy"] > MAX_ARRAY_BYTES:
            raise ValueError(f"{key!r} would take {sizes[f'{key}.npy']:,} bytes, more than {MAX_ARRAY_BYTES:,}")
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: not a MedMNIST file, or a truncated one ({error}).") from error
