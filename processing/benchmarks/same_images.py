"""Tell whether two images are the same: the same file, the same pixels, or the same picture.

A picture is the same if its perceptual hash is (nearly) the same and its thumbnails agree. The hash alone also finds
similar images, such as adjacent slices of one volume or charts from one template. Mirrored, rotated and cropped copies
are not found.
"""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..images.errors import ImageError
from ..images.perceptual_hash import NEAR_DUPLICATE_BITS, grayscale_thumbnail, hash_of_thumbnail
from ..images.reading import read_row_image
from .fingerprint import content_of


# How images can agree, the surest reason first, in words.
SAME = {"same_bytes": "the same file", "same_pixels": "the same pixels", "same_picture": "the same picture"}
SIMILAR = "similar"  # the hash alone
# Copies in another format, or of half the size, are within both limits. Different slices of a volume are not.
MOST_DECORRELATION = 0.0055  # 1 - the correlation of two thumbnails
MOST_DIFFERENCE = 2.3  # mean absolute difference of two thumbnails, in gray levels


class Looks(NamedTuple):
    """Properties of an image that comparisons use.

    `file` and `pixels` are hashes, `picture` is the perceptual hash, and `thumbnail` has 32 x 32 gray values. All are
    empty for an image that cannot be read, and all but `file` for a blank one. `error` states why it cannot be read.
    """

    file: bytes = b""
    pixels: bytes = b""
    picture: str = ""
    thumbnail: np.ndarray = np.empty(0, np.uint8)
    error: str = ""


def looks_of(image: object) -> Looks:
    """Return the properties of an image that comparisons use. It is read and decoded once."""
    content = content_of(image)
    file = _digest(content) if content else b""
    try:
        decoded = read_row_image(image)
        pixels = _digest(content_of(decoded))
        thumbnail = grayscale_thumbnail(decoded)
    except ImageError as error:
        return Looks(file, error=str(error))
    picture = hash_of_thumbnail(thumbnail)
    if not picture:
        return Looks(file)
    return Looks(file, pixels, picture, np.rint(thumbnail).clip(0, 255).astype(np.uint8))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


class KnownImages:
    """Images in which the same images are found. Takes 1 kB for each.

    Args:
        looks: Those of the images. [`find`] returns their positions.
    """

    def __init__(self, looks: Iterable[Looks]):
        self._files: dict[bytes, int] = {}
        self._pixels: dict[bytes, int] = {}
        self._rows: list[int] = []
        hashes: list[int] = []
        thumbnails: list[np.ndarray] = []
        for row, known in enumerate(looks):
            if known.file:
                self._files.setdefault(known.file, row)
            if known.picture:
                self._pixels.setdefault(known.pixels, row)
                self._rows.append(row)
                hashes.append(int(known.picture, 16))
                thumbnails.append(known.thumbnail)
        self._hashes = np.array(hashes, dtype=np.uint64)
        self._thumbnails = thumbnails

    def find(self, looks: Looks) -> dict[str, int]:
        """Return the position of a known image for each reason for which it is the same or, if none, similar."""
        found = {"same_bytes": self._files.get(looks.file), "same_pixels": self._pixels.get(looks.pixels)}
        if looks.picture and len(self._hashes):
            distances = np.bitwise_count(self._hashes ^ np.uint64(int(looks.picture, 16)))
            close = np.flatnonzero(distances <= NEAR_DUPLICATE_BITS)
            place = self._same_picture(looks.thumbnail, close)
            if place is not None:
                found["same_picture"] = self._rows[place]
            elif len(close):
                found[SIMILAR] = self._rows[close[distances[close].argmin()]]
        return {reason: row for reason, row in found.items() if row is not None}

    def _same_picture(self, thumbnail: np.ndarray, close: np.ndarray) -> int | None:
        """Return the most similar of some images, or None if none is the same picture."""
        best: tuple[float, int] | None = None
        own = thumbnail.astype(float)
        for place in close:
            known = self._thumbnails[place].astype(float)
            difference = float(np.abs(known - own).mean())
            if difference <= MOST_DIFFERENCE and 1 - _correlation(known, own) <= MOST_DECORRELATION:
                best = min(best, (difference, int(place))) if best else (difference, int(place))
        return best[1] if best else None


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    return float((first * second).sum() / (np.linalg.norm(first) * np.linalg.norm(second)))
