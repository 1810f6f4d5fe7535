"""A few hex digits that tell whether two results were measured on the same data."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from PIL import Image


CONTENTS_IN_FINGERPRINT = 64


def fingerprint_of(rows: Sequence[Sequence[str]], images: Sequence[Any]) -> str:
    """Hashes texts and images.

    Args:
        rows: Name, label and what else belongs to each image.
        images: What [`read_row_image`] takes. Sizes of all that are files count, and the contents of
            `CONTENTS_IN_FINGERPRINT`, evenly spread; not where they lie.

    Returns:
        16 hex digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(repr(tuple(row)).encode())
    number_of_images = len(images)
    step = max(1, number_of_images / CONTENTS_IN_FINGERPRINT)
    shown = {int(position * step) for position in range(min(number_of_images, CONTENTS_IN_FINGERPRINT))}
    # An image out of an array or a `datasets` set is not read for its size.
    for number in range(number_of_images) if _are_paths(images) else sorted(shown):
        image = images[number]
        if isinstance(image, os.PathLike):
            digest.update(str(os.path.getsize(image) if os.path.isfile(image) else None).encode())
        if number in shown:
            digest.update(hashlib.blake2b(content_of(image)).digest())
    return digest.hexdigest()


def _are_paths(images: Sequence[Any]) -> bool:
    return len(images) > 0 and isinstance(images[0], os.PathLike)


def content_of(image: Any) -> bytes:
    """The bytes of an image's file, or of the pixels of one out of an array; none of one that cannot be read.

    Args:
        image: What [`read_row_image`] takes. A path in a data row is not opened.
    """
    if isinstance(image, dict):
        image = image.get("bytes") or b""
    if isinstance(image, Image.Image):
        return repr((image.mode, image.size)).encode() + image.tobytes()
    if isinstance(image, bytes):
        return image
    if not isinstance(image, os.PathLike):
        return b""
    try:
        if not os.path.isfile(image):  # opening a FIFO would wait for ever
            return b""
        with open(image, "rb") as file:
            return file.read()
    except OSError:  # counted when it is read
        return b""


__all__ = ["CONTENTS_IN_FINGERPRINT", "content_of", "fingerprint_of"]
