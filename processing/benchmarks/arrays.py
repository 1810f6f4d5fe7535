"""Images that are rows of an array, in memory or in an HDF5 file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..images.errors import MAX_BYTES, ImageError


_CHUNK_CACHE_BYTES = 16_000_000  # so that a chunk of adjacent rows is read only once


@dataclass(frozen=True)
class Unreadable:
    """A damaged image. [`read_row_image`] raises an error that states the reason."""

    reason: str

    def read(self) -> bytes:
        """Raise an error that states the reason."""
        raise ImageError(self.reason)


class ArrayImages(Sequence[Any]):
    """Images of 8 bits that are rows of an array of shape `(images, height, width)` or `(images, height, width, 3)`."""

    def __init__(self, array: np.ndarray):
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, row: Any) -> Any:
        return Image.fromarray(self._array[row])


class Hdf5Images(Sequence[Any]):
    """Images that are rows of an array in an HDF5 file, of shape `(images, height, width, 3)`. Each is read on access.

    Each process opens the file itself, because an open HDF5 file must not be shared across a fork.
    """

    def __init__(self, path: str | os.PathLike[str], key: str):
        self._path, self._key = Path(path), key
        self._process, self._rows = -1, None
        array = self._open()
        if array.ndim != 4 or array.shape[3] != 3 or array.dtype != np.uint8:
            raise ValueError(
                f"{path}: expected uint8 of shape (images, height, width, 3) in {key!r}, found {array.dtype} of shape "
                f"{array.shape}."
            )
        chunk = int(np.prod(array.chunks or array.shape[1:], dtype=np.int64))
        if chunk > MAX_BYTES:
            raise ValueError(
                f"{path}: reading one image would read {chunk:,} bytes. Store the images in smaller chunks."
            )

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, row: Any) -> Any:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        try:
            return Image.fromarray(self._open()[row])
        except OSError as error:  # a damaged or missing chunk, or a filter that the installed h5py does not support
            return Unreadable(f"{self._path.name}, row {row}: cannot be read ({error})")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_process": -1, "_rows": None}

    def _open(self) -> Any:
        if self._process != os.getpid():
            self._rows, self._process = open_array(self._path, self._key), os.getpid()
        return self._rows


def open_array(path: Path, key: str) -> Any:
    """Open an array of an HDF5 file. Raise `ValueError` if the file does not contain the array itself."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files need h5py, which is not installed: pip install "biomedclip[hdf5]"') from error
    try:
        file = h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES)
    except OSError as error:
        raise ValueError(f"{path}: not an HDF5 file, or a truncated one ({error}). Download it again.") from error
    # An external link may point to any file.
    if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(file[key], h5py.Dataset):
        raise ValueError(f"{path}: no array {key!r}, only {', '.join(file) or 'nothing'}.")
    array = file[key]
    if array.is_virtual or array.external:
        raise ValueError(f"{path}: the values of {key!r} are stored in external files, which are not read.")
    return array
