"""Find copies of test images among a few training images.

[`find_leaks`] counts all similar images of two splits, such as adjacent slices of one volume. This module finds only
copies, so that an evaluation can refuse them. It compares thumbnails of all pairs of images, so one of the sets must be
small.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from ..images.errors import ImageError
from ..images.labeled import LabeledImages
from ..images.perceptual_hash import BLANK_DEVIATION, grayscale_thumbnail
from ..images.reading import read_row_image
from .fingerprint import content_of


# Of 60 images of MedNIST, all copies as PNG and all but the worst JPEG of quality 85 or half the size are within both
# limits, and none of the 75 pairs of similar slices is.
MOST_DECORRELATION = 0.0055  # 1 - the correlation of two thumbnails
MOST_DIFFERENCE = 2.3  # mean absolute difference of two thumbnails, in gray levels
Looks = tuple[bytes, np.ndarray | None]  # the hash of the content of an image, and its thumbnail


@dataclass(frozen=True)
class Copy:
    """A test image that is also a training image, with their names.

    `reason` states how the two images agree, and `row` is the row of the training image.
    """

    test: str
    train: str
    reason: str
    row: int


def find_copies(
    train: LabeledImages, test: LabeledImages, *, progress: bool = False, known: list[Looks] | None = None
) -> list[Copy]:
    """Return the test images that are among the training images, each with one reason.

    The reasons are the same patient or source (if both have groups), the same file or pixels, or the same picture,
    possibly resized or saved in another format. Mirrored, rotated and cropped copies are not found. Images that cannot
    be read are skipped. `known` is an empty list that is filled with the looks of the test images, or the list of an
    earlier call with the same ones, which are not read again.
    """
    looks = known if known is not None else []
    groups: dict[str, int] = {}
    files: dict[bytes, int] = {}
    rows, thumbnails = [], []
    with tqdm(total=len(train) + len(test), desc="Copies", unit="image", disable=not progress) as bar:
        for row in range(len(train)):
            if train.groups:
                groups.setdefault(train.groups[row], row)
            digest, thumbnail = _looks(train.images[row])
            files.setdefault(digest, row)
            if thumbnail is not None:
                rows.append(row)
                thumbnails.append(thumbnail)
            bar.update()
        pictures = np.stack(thumbnails) if thumbnails else np.empty((0, 1), np.float32)
        standardized = _standardized(pictures)
        found = []
        for row in range(len(test)):
            if row == len(looks):
                looks.append(_looks(test.images[row]))
            digest, thumbnail = looks[row]
            group = test.groups[row] if test.groups else None
            place = None if thumbnail is None else _same(thumbnail, pictures, standardized)
            for partner, reason in (
                (groups.get(group) if group is not None else None, f"both are of {group!r}"),
                (files.get(digest) if digest else None, "the same file"),
                (None if place is None else rows[place], "the same picture"),
            ):
                if partner is not None:
                    found.append(Copy(test.names[row], train.names[partner], reason, partner))
                    break
            bar.update()
    return found


def _looks(image: object) -> Looks:
    """Return a hash of the content of an image, and its thumbnail, or None if it is blank or cannot be read."""
    content = content_of(image)
    digest = hashlib.blake2b(content, digest_size=16).digest() if content else b""
    try:
        thumbnail = grayscale_thumbnail(read_row_image(image)).astype(np.float32).ravel()
    except ImageError:
        return digest, None
    return digest, thumbnail if thumbnail.std() >= BLANK_DEVIATION else None


def _standardized(thumbnails: np.ndarray) -> np.ndarray:
    centered = thumbnails - thumbnails.mean(axis=1, keepdims=True)
    return centered / np.linalg.norm(centered, axis=1, keepdims=True)


def _same(thumbnail: np.ndarray, known: np.ndarray, standardized: np.ndarray) -> int | None:
    """Return the place of the most similar known thumbnail, or None if it is not the same picture."""
    if not len(known):
        return None
    correlations = standardized @ _standardized(thumbnail[None])[0]
    close = np.flatnonzero(1 - correlations <= MOST_DECORRELATION)
    differences = np.abs(known[close] - thumbnail).mean(axis=1)
    if not len(close) or differences.min() > MOST_DIFFERENCE:
        return None
    return int(close[differences.argmin()])
