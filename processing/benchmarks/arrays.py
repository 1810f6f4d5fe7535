"""Images that lie as rows of an array, in an HDF5 file or in memory."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..images.errors import MAX_BYTES, ImageError


_CHUNKS_KEPT = 16_000_000  # bytes; neighbouring rows share a chunk, which is read once


class Unreadable:
    """An image that turned out to be damaged when it was asked for: [`read_image`] raises why."""

    def __init__(self, reason: str):
        self._reason = reason

    def read(self) -> bytes:
        raise ImageError(self._reason)


class ArrayImages(Sequence[Any]):
    """Rows of an array in memory as images.

    Args:
        array: Rows of 8-bit grey (height, width) or RGB (height, width, 3).
    """

    def __init__(self, array: np.ndarray):
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, number: Any) -> Any:
        return Image.fromarray(self._array[number])


class Hdf5Images(Sequence[Any]):
    """Rows of an array in an HDF5 file as images, each read when it is asked for.

    Every process opens the file for itself: what HDF5 keeps of an open file is not to be shared by a fork.

    Args:
        path: The HDF5 file.
        key: Name of an array of 8-bit RGB (images, height, width, 3).

    Raises:
        ImportError: h5py is not installed.
        ValueError: Not an HDF5 file, a truncated one, or one that holds something else.
    """

    def __init__(self, path: str | os.PathLike[str], key: str):
        self._path, self._key = Path(path), key
        self._process, self._rows = -1, None
        shape, dtype = self._open().shape, self._open().dtype
        if len(shape) != 4 or shape[3] != 3 or dtype != np.uint8:
            raise ValueError(
                f"{path}: {key!r} holds {dtype} of shape {shape}, where uint8 of (images, height, width, 3) belongs."
            )
        chunk = int(np.prod(self._open().chunks or shape[1:], dtype=np.int64))
        if chunk > MAX_BYTES:
            raise ValueError(f"{path}: to read one image, {chunk:,} bytes would have to be read. Store it in chunks.")

    def __len__(self) -> int:
        return len(self._open())

    def __getitem__(self, number: Any) -> Any:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        try:
            return Image.fromarray(self._open()[number])
        except OSError as error:  # a damaged or missing chunk, or a filter that this h5py does not have
            return Unreadable(f"{self._path.name}, row {number}: cannot be read ({error})")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_process": -1, "_rows": None}

    def _open(self) -> Any:
        if self._process != os.getpid():
            self._rows, self._process = open_array(self._path, self._key), os.getpid()
        return self._rows


def open_array(path: Path, key: str) -> Any:
    """Opens an array of an HDF5 file.

    Raises:
        ImportError: h5py is not installed.
        ValueError: Not an HDF5 file, a truncated one, or one without this array in itself.
    """
    h5py = require_h5py()
    try:
        file = h5py.File(path, "r", rdcc_nbytes=_CHUNKS_KEPT)
    except OSError as error:
        raise ValueError(f"{path}: not an HDF5 file, or a truncated one ({error}). Download it again.") from error
    # A link may lead to any file.
    if not isinstance(file.get(key, getlink=True), h5py.HardLink) or not isinstance(file[key], h5py.Dataset):
        raise ValueError(f"{path}: there is no array {key!r} in it, only {', '.join(file) or 'nothing'}.")
    array = file[key]
    if array.is_virtual or array.external:
        raise ValueError(f"{path}: the values of {key!r} lie in other files, which are not read.")
    return array


def require_h5py() -> Any:
    """The module h5py.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError('HDF5 files need h5py, which is not installed: pip install "biomedclip[hdf5]"') from error
    return h5py


__all__ = ["ArrayImages", "Hdf5Images", "Unreadable", "open_array", "require_h5py"]
