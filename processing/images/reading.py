"""Read untrusted images. Size is checked before decoding, and every failure is an `ImageError`."""

import io
import os
import warnings
from typing import Any

import fsspec
from PIL import Image, UnidentifiedImageError

from .errors import MAX_PIXELS, ImageError, check_size
from .formats import DECODABLE_FORMATS, DICOM_SUFFIXES, format_of
from .high_bit_depth import DeepPng, DeepTiff, find_deep_image


# Maximum number of bytes per pixel that Pillow 13 needs for decoding. JPEG: a progressive file needs all coefficients.
# TIFF: one strip may contain the image, as 16-bit RGBA. WebP: four copies of the canvas.
_BYTES_TO_DECODE = {"JPEG": 12, "MPO": 12, "TIFF": 12, "WEBP": 16, "JPEG2000": 28}
MAX_NAME = 200  # characters of a path in error messages


def read_image(source: Any) -> Image.Image:
    """Read and decode an image in its original mode.

    Grayscale images keep values of more than 8 bits, which the image processor scales later. Color of more than 8 bits
    is scaled here, because Pillow has no mode for it.

    Args:
        source: A path or URL, the bytes of a file, a binary file object, a Pillow image, or a `datasets` image row
            `{"bytes": ..., "path": ...}`. Only the bytes of an image row are read. DICOM files need pydicom. Use
            [`read_row_image`] for the image of an untrusted data row.

    Returns:
        The decoded image. Only the first frame of an animation or multi-page file is decoded.

    Raises:
        ImageError: If the image is missing, damaged, of an unknown format, or larger than `MAX_PIXELS` or `MAX_BYTES`.
        ImportError: If the file is DICOM and pydicom is not installed.
    """
    return decode_image(*open_image(source))


def read_row_image(value: Any) -> Image.Image:
    """Read and decode the image of a data row like [`read_image`], but never open a string as a path or URL.

    A `pathlib.Path` is opened, because it cannot come from a table.

    Raises:
        ImageError: If the value is a path or URL, or for the reasons of [`read_image`].
    """
    return decode_image(*open_row_image(value))


def open_row_image(value: Any) -> tuple[Image.Image, str]:
    """Open the image of a data row like [`open_image`], but refuse a path or URL."""
    if isinstance(value, str):
        raise _path_in_row(value)
    return open_image(value)


def _path_in_row(path: str) -> ImageError:
    return ImageError(
        f"the image is given by its path {path[:MAX_NAME]!r}, and paths inside data rows are not opened: store the "
        "bytes of the file, or call read_image(path) if you trust the path",
        "image missing",
    )


def open_image(source: Any) -> tuple[Image.Image, str]:
    """Return the image of any source of [`read_image`] for [`decode_image`], and its name for errors.

    The image is not decoded, unless it is DICOM or has a high bit depth.
    """
    if isinstance(source, Image.Image):
        return _checked(source, "image", file_bytes=0), "image"
    content, name = _read_content(source)
    return _open(content, name), name


def read_row_content(value: Any) -> tuple[bytes, str]:
    """Return the bytes of the image of a data row for [`decode_content`], and its name for errors.

    Raises:
        ImageError: If the value is a path or URL as text, or the file cannot be read.
    """
    if isinstance(value, str):
        raise _path_in_row(value)
    return _read_content(value)


def decode_content(content: bytes, name: str) -> Image.Image:
    """Decode the bytes of an image like [`read_image`]."""
    return decode_image(_open(content, name), name)


def _read_content(source: Any) -> tuple[bytes, str]:
    if isinstance(source, dict):
        if source.get("bytes") is None and source.get("path"):
            raise _path_in_row(str(source["path"]))
        source = source.get("bytes")
        if source is None:
            raise ImageError("the row has neither bytes nor a path of an image", "image missing")
        if not isinstance(source, bytes):
            raise ImageError(f"the bytes of the image are of type {type(source).__name__}", "image missing")
    if source is None:
        raise ImageError("there is no image", "image missing")
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        return _read_file(name), name
    if isinstance(source, bytes):
        return source, "image"
    if not hasattr(source, "read"):
        raise ImageError(f"a value of type {type(source).__name__} is not an image", "image missing")
    return source.read(), "image"


def _read_file(name: str) -> bytes:
    if os.path.exists(name) and not os.path.isfile(name):  # opening a FIFO would block
        raise ImageError(f"{name}: not a regular file", "image unreadable")
    try:
        with fsspec.open(name, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error})", "image unreadable") from error


def _open(content: bytes, name: str) -> Image.Image:
    if not content:
        raise ImageError(f"{name}: the file is empty")
    signature = format_of(content)
    if signature == "DICOM" or (signature is None and os.path.splitext(name)[1].lower() in DICOM_SUFFIXES):
        from .dicom import decode_dicom  # pydicom is optional

        return decode_dicom(content, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about half of Pillow's own size limit, and damaged metadata
            if deep := find_deep_image(content):
                return _read_deep_image(deep, name)
            image = Image.open(io.BytesIO(content), formats=DECODABLE_FORMATS)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels ({error})", "image too large") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(DECODABLE_FORMATS)
        raise ImageError(f"{name}: not an image of a known format ({formats})", "image of unknown format") from error
    except Exception as error:  # damaged headers raise many types
        raise ImageError(f"{name}: {error}") from error
    return _checked(image, name, file_bytes=len(content))


def _read_deep_image(image: DeepTiff | DeepPng, name: str) -> Image.Image:
    kind = "TIFF" if isinstance(image, DeepTiff) else "PNG"
    check_size(name, image.size, len(image.content) * 2 + image.bytes_to_decode, f"{kind} of more than 8 bits")
    try:
        result = image.read()
    except Image.DecompressionBombError as error:  # a strip or tile that exceeds Pillow's limit
        raise ImageError(f"{name}: {error}", "image too large") from error
    except Exception as error:
        raise ImageError(f"{name}: damaged or truncated ({error})") from error
    result.format = kind
    return result


def _checked(image: Image.Image, name: str, file_bytes: int) -> Image.Image:
    bytes_to_decode = image.width * image.height * _bytes_to_decode(image)
    check_size(name, image.size, file_bytes + bytes_to_decode, f"{image.format} ({image.mode})")
    return image


def _bytes_to_decode(image: Image.Image) -> int:
    """Return the maximum number of bytes per pixel."""
    if image.format == "JPEG2000" and len(image.getbands()) == 1:
        return 10  # OpenJPEG uses four bytes per value of a tile
    if image.mode in ("1", "L", "P"):
        return 3
    return _BYTES_TO_DECODE.get(image.format or "", 5)  # otherwise four in Pillow, and a copy in grayscale


def decode_image(image: Image.Image, name: str) -> Image.Image:
    """Decode an image that [`open_image`] has opened, and return it."""
    try:
        image.load()
    except Exception as error:  # truncated files raise OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(f"{name}: damaged or truncated ({error})") from error
    return image
