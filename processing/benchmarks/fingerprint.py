"""A hash of texts and images, which shows whether two results were measured on the same data."""

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from PIL import Image


CONTENTS_IN_FINGERPRINT = 64


def fingerprint_of(rows: Sequence[Sequence[str]], images: Sequence[Any]) -> str:
    """Return a hash of the texts of all rows and of images, as 16 hexadecimal digits.

    It depends on the sizes of all files and on the content of `CONTENTS_IN_FINGERPRINT` evenly spread images, but not
    on paths.
    """
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(repr(tuple(row)).encode())
    step = max(1, len(images) / CONTENTS_IN_FINGERPRINT)
    chosen = {int(position * step) for position in range(min(len(images), CONTENTS_IN_FINGERPRINT))}
    are_files = len(images) > 0 and isinstance(images[0], os.PathLike)
    for number in range(len(images)) if are_files else sorted(chosen):
        image = images[number]
        if isinstance(image, os.PathLike):
            digest.update(str(os.path.getsize(image) if os.path.isfile(image) else None).encode())
        if number in chosen:
            digest.update(hashlib.blake2b(content_of(image)).digest())
    return digest.hexdigest()


def content_of(image: Any) -> bytes:
    """Return the bytes of an image file, or the pixels of an image in memory, or no bytes if it cannot be read.

    A path in a data row is not opened.
    """
    if isinstance(image, dict):
        image = image.get("bytes") or b""
    if isinstance(image, Image.Image):
        return repr((image.mode, image.size)).encode() + image.tobytes()
    if isinstance(image, bytes):
        return image
    if not isinstance(image, os.PathLike) or not os.path.isfile(image):  # opening a FIFO would block
        return b""
    try:
        with open(image, "rb") as file:
            return file.read()
    except OSError:  # reported when the image is decoded
        return b""
