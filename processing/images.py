"""Reading images that nobody vouches for: bounded in size, decoded whole, never more than a clear error."""

import io
import os
import warnings
from typing import Any

import fsspec
from PIL import Image, UnidentifiedImageError


MAX_PIXELS = 175_000_000  # 525 MB as RGB; a page scanned at 1,200 dpi has 140 million, Pillow itself stops at 179
DECODABLE_FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP")
IMAGE_SUFFIXES = {f".{name.lower()}" for name in DECODABLE_FORMATS} | {".jpg", ".tif"}


class ImageError(ValueError):
    """An image that cannot be used; the message says why."""


def read_image(source: Any) -> Image.Image:
    """
    Reads and decodes one image in its own mode (16-bit images stay 16-bit; the image processor converts).

    Args:
        source: A path or URL that fsspec opens, the bytes of a file, a binary file object, a Pillow image, or a
            `datasets` image row `{"bytes": ..., "path": ...}`.

    Returns:
        The image, decoded; of an animation or a multi-page file the first frame.

    Raises:
        ImageError: Missing, empty, truncated, of an unknown format, or of more than `MAX_PIXELS` pixels.
    """
    if source is None:
        raise ImageError("there is no image")
    if isinstance(source, Image.Image):
        return _decode(source, "image")
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
        if not source:
            raise ImageError("the row holds neither bytes nor a path of an image")
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        try:
            with fsspec.open(name, "rb") as file:
                content = file.read()
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error})") from error
        return _open(content, name)
    return _open(source if isinstance(source, bytes) else source.read(), "image")


def _open(content: bytes, name: str) -> Image.Image:
    if not content:
        raise ImageError(f"{name}: the file is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns at half its own limit; the limit that counts is checked below.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=DECODABLE_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels ({error})") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image of a known format ({', '.join(DECODABLE_FORMATS)})") from error
    except Exception as error:  # damaged headers surface as many types; the next line of a bulk run must go on
        raise ImageError(f"{name}: {error}") from error
    return _decode(image, name)


def _decode(image: Image.Image, name: str) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{name}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
    try:
        image.load()
    except Exception as error:  # truncated data surfaces as OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(f"{name}: damaged or truncated ({error})") from error
    return image


__all__ = ["DECODABLE_FORMATS", "IMAGE_SUFFIXES", "MAX_PIXELS", "ImageError", "read_image"]
