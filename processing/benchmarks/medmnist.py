"""MedMNIST's 2D sets of one label an image, out of their `.npz` files."""

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ..images.labeled import LabeledImages
from .arrays import ArrayImages
from .facts import medmnist_classes
from .files import folders_in


_PARTS = {"train": "train", "validation": "val", "test": "test"}
MAX_ARRAY_BYTES = 16_000_000_000  # the largest published one, PathMNIST's training images of 224 pixels, takes 13.5 GB


def read_medmnist(path: Path, split: str) -> tuple[LabeledImages, dict[str, str], list[str]]:
    """A split of a MedMNIST set, its classes with their names, and notes.

    Args:
        path: `pathmnist.npz`, `dermamnist_128.npz`, ..., or a folder with one such file.
        split: `train`, `validation` or `test`.

    Raises:
        FileNotFoundError: There is no such file, or there are several.
        ValueError: A damaged file, or a set of volumes or of several labels an image.
    """
    file = _find(path)
    images, labels = (_array(file, f"{_PARTS[split]}_{what}") for what in ("images", "labels"))
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise ValueError(f"{file}: images of {images.dtype} and shape {images.shape} are not 2D images of 8 bits.")
    if images.ndim == 4 and images.shape[3] != 3:
        raise ValueError(f"{file}: volumes of {images.shape[1:]} voxels; only the 2D sets of MedMNIST are read.")
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2):
        raise ValueError(f"{file}: labels of {labels.dtype} and shape {labels.shape} are not one number an image.")
    if labels.size != len(labels):
        raise ValueError(
            f"{file}: {labels.shape[1]} labels an image (as ChestMNIST has); zero-shot classification and the linear "
            "probe need one."
        )
    if len(labels) != len(images):
        raise ValueError(f"{file}: {len(labels):,} labels for {len(images):,} images. Download it again.")
    values = [str(label) for label in labels.reshape(-1).tolist()]
    flag = set_name(file)
    notes = [f"{file.stem}: images of {images.shape[1]} x {images.shape[2]} pixels."]
    classes = medmnist_classes(flag)
    if classes is None:
        classes = {value: value for value in sorted(set(values), key=int)}
        notes.append(f"{flag} is no set of MedMNIST whose classes are known: they are called by their numbers.")
    elif unknown := set(values) - classes.keys():
        raise ValueError(f"{file}: label {min(unknown, key=int)}, and {flag} has 0 to {len(classes) - 1}.")
    part = _PARTS[split]
    return LabeledImages(ArrayImages(images), values, [f"{part}/{row}" for row in range(len(images))]), classes, notes


def set_name(file: Path) -> str:
    """Return the name of the set that a file of MedMNIST holds: `pathmnist` of `pathmnist_224.npz`."""
    return re.sub(r"(_\d+)?$", "", file.stem.lower())


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(file for folder in folders_in(path) for file in folder.glob("*.npz"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise FileNotFoundError(
            f"{path}: one .npz file is needed, and there is {names}. Name the file; MedMNIST comes from "
            "https://zenodo.org/records/10519652"
        )
    return found[0]


def _array(file: Path, key: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if f"{key}.npy" not in sizes:
            raise ValueError(f"no array {key!r} in it, only {', '.join(name.removesuffix('.npy') for name in sizes)}")
        if sizes[f"{key}.npy"] > MAX_ARRAY_BYTES:
            raise ValueError(f"{key!r} would take {sizes[f'{key}.npy']:,} bytes, more than {MAX_ARRAY_BYTES:,}")
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: not a MedMNIST file, or a truncated one ({error}).") from error


__all__ = ["read_medmnist", "set_name"]
