"""Reading images that nobody vouches for: bounded in size, decoded whole, never more than a clear error."""

import io
import os
import warnings
from typing import Any

import fsspec
from PIL import Image, UnidentifiedImageError

from .deep import DeepPng, DeepTiff, find_deep_image
from .formats import DECODABLE_FORMATS, DICOM_SUFFIXES, format_of


MAX_PIXELS = 175_000_000  # a page scanned at 1,200 dpi has 140 million; Pillow itself stops at 179
# An image and its file, decoder included, stay below this: with all that a process holds besides, below 1 GiB.
MAX_BYTES = 700_000_000
# Bytes that decoding takes for each pixel at most, measured with Pillow 13. JPEG: a file may come in several scans, for
# which all coefficients are held. TIFF: a file may be one strip, of 16-bit RGBA. WebP: the canvas, four times.
_BYTES_TO_DECODE = {"JPEG": 12, "MPO": 12, "TIFF": 12, "WEBP": 16, "JPEG2000": 28}
_BYTES_TO_DECODE_ONE_BAND = 3
_BYTES_TO_DECODE_JPEG2000_ONE_BAND = 10  # OpenJPEG holds four bytes for each value of a tile, which may be the image
_BYTES_TO_DECODE_OTHERWISE = 5  # four in Pillow's memory, and a copy in grey
MAX_NAME = 200  # characters of a path that errors show


class ImageError(ValueError):
    """An image that cannot be used; the message says why.

    Args:
        message: What is wrong with which image.
        reason: The same in a few words, for counting: `image missing`, `image unreadable`, `image of unknown format`,
            `image too large`, `image too small` or `image damaged`.
    """

    def __init__(self, message: str, reason: str = "image damaged"):
        super().__init__(message)
        self.reason = reason


def read_image(source: Any) -> Image.Image:
    """Read and decode one image in its own mode.

    Grey images of more than 8 bits keep their values; the image processor scales them. Color of more than 8 bits is
    scaled here, because Pillow has no mode for it.

    Args:
        source: A path or URL that fsspec opens, the bytes of a file, a binary file object, a Pillow image, or a
            `datasets` image row `{"bytes": ..., "path": ...}`, of which only the bytes are read. A file may be DICOM:
            see `dicom.py` for what becomes of its values. For an image out of a data row that strangers
            may have written, use [`read_row_image`], which opens no path.

    Returns:
        The image, decoded; of an animation or a multi-page file the first frame.

    Raises:
        ImportError: A DICOM file, and pydicom is not installed.
        ImageError: Missing, empty, truncated, of an unknown format, of more than `MAX_PIXELS` pixels, or such that
            decoding it would take more than `MAX_BYTES`.
    """
    return decode_image(*open_image(source))


def read_row_image(value: Any) -> Image.Image:
    """Read and decode the image of a data row; a path or URL in the row is an error.

    Rows of a table may come from strangers, and a path in them could name any file or server. A `pathlib.Path` is read:
    no table holds one, so it comes from the program, such as a reader of image folders.

    Args:
        value: The value of the image column: bytes, `{"bytes": ..., "path": ...}`, a Pillow image, a `pathlib.Path`, or
            another object that [`read_image`] takes, but no text.

    Returns:
        The image, decoded.

    Raises:
        ImageError: If the row holds a path or URL in place of the bytes, or as of [`read_image`].
    """
    return decode_image(*open_row_image(value))


def open_row_image(value: Any) -> tuple[Image.Image, str]:
    """Open the image of a data row, as [`open_image`] does; a path or URL in the row is an error.

    Args:
        value: As of [`read_row_image`].

    Returns:
        The image, and the name for errors.

    Raises:
        ImageError: As of [`read_row_image`].
    """
    if isinstance(value, str):
        raise _path_in_row(value)
    return open_image(value)


def _path_in_row(path: str) -> ImageError:
    return ImageError(
        f"the image is given by its path {path[:MAX_NAME]!r}, and paths inside data rows are not opened: store the "
        "bytes of the file, or call read_image(path) where the path is yours",
        "image missing",
    )


def open_image(source: Any) -> tuple[Image.Image, str]:
    """Open an image, of which the size is known then, but do not decode it: [`decode_image`] does.

    DICOM, and the files that `processing/images/deep.py` reads, are decoded here.

    Args:
        source: What [`read_image`] takes.

    Returns:
        The image, and what errors should call it.

    Raises:
        ImageError: As [`read_image`], but for damage behind the headers.
    """
    if source is None:
        raise ImageError("there is no image", "image missing")
    if isinstance(source, Image.Image):
        return _checked(source, "image", file_bytes=0), "image"
    if isinstance(source, dict):
        if source.get("bytes") is None and source.get("path"):
            raise _path_in_row(str(source["path"]))
        source = source.get("bytes")
        if source is None:
            raise ImageError("the row holds neither bytes nor a path of an image", "image missing")
        if not isinstance(source, bytes):
            raise ImageError(f"the bytes of the image are of type {type(source).__name__}", "image missing")
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if os.path.exists(name) and not os.path.isfile(name):  # opening a FIFO would wait for ever
            raise ImageError(f"{name}: not a regular file", "image unreadable")
        try:
            with fsspec.open(name, "rb") as file:
                content = file.read()
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error})", "image unreadable") from error
        return _open(content, name), name
    if isinstance(source, bytes):
        return _open(source, "image"), "image"
    if not hasattr(source, "read"):
        raise ImageError(f"a value of type {type(source).__name__} is no image", "image missing")
    return _open(source.read(), "image"), "image"


def _open(content: bytes, name: str) -> Image.Image:
    if not content:
        raise ImageError(f"{name}: the file is empty")
    signature = format_of(content)
    if signature == "DICOM" or (signature is None and os.path.splitext(name)[1].lower() in DICOM_SUFFIXES):
        from .dicom import decode_dicom  # it looks for pydicom, which few images need

        return decode_dicom(content, name)
    try:
        with warnings.catch_warnings():
            # About half of Pillow's own size limit (ours is checked below), and about damaged metadata.
            warnings.simplefilter("ignore")
            deep = find_deep_image(content)
            if deep is not None:
                return _read_deep_image(deep, name)
            image = Image.open(io.BytesIO(content), formats=DECODABLE_FORMATS)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: more than {MAX_PIXELS:,} pixels ({error})", "image too large") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(DECODABLE_FORMATS)
        raise ImageError(f"{name}: not an image of a known format ({formats})", "image of unknown format") from error
    except Exception as error:  # damaged headers surface as many types; the next line of a bulk run must go on
        raise ImageError(f"{name}: {error}") from error
    return _checked(image, name, file_bytes=len(content))


def _read_deep_image(image: DeepTiff | DeepPng, name: str) -> Image.Image:
    kind = "TIFF" if isinstance(image, DeepTiff) else "PNG"
    _check_size(name, image.size, len(image.content) * 2 + image.bytes_to_decode, f"{kind} of more than 8 bits")
    try:
        result = image.read()
    except Image.DecompressionBombError as error:  # a strip or tile beyond Pillow's limit
        raise ImageError(f"{name}: {error}", "image too large") from error
    except Exception as error:  # as in `decode_image`
        raise ImageError(f"{name}: damaged or truncated ({error})") from error
    result.format = kind
    return result


def _checked(image: Image.Image, name: str, file_bytes: int) -> Image.Image:
    bytes_to_decode = image.width * image.height * _bytes_to_decode(image)
    _check_size(name, image.size, file_bytes + bytes_to_decode, f"{image.format} ({image.mode})")
    return image


def _check_size(name: str, size: tuple[int, int], bytes_needed: int, kind: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels are more than {MAX_PIXELS:,} pixels", "image too large")
    if bytes_needed > MAX_BYTES:
        raise ImageError(
            f"{name}: to decode {width} x {height} pixels of {kind} may take more than {MAX_BYTES:,} bytes",
            "image too large",
        )


def reduce_jpeg(image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> int:
    """Decode a JPEG at a half, a quarter or an eighth of its size (draft mode of Pillow), which is faster.

    The scale is the smallest at which the box still has at least as many pixels as the result, in both directions, so
    that nothing is blown up that would have been scaled down. Its pixels are those of the scaled inverse cosine
    transform, not of a bicubic filter.

    Args:
        image: A JPEG that [`open_image`] has opened, not decoded yet; it is changed.
        box: Left, top, right and bottom of what will be cut out, in pixels of the whole image.
        size: Height and width of the result, in pixels.

    Returns:
        By how much width and height are divided: 1, 2, 4 or 8.
    """
    spare = min((box[2] - box[0]) // size[1], (box[3] - box[1]) // size[0])
    reduction = next((scale for scale in (8, 4, 2) if spare >= scale), 1)
    if reduction == 1:
        return 1
    # Pillow chooses the smallest scale that still has these sides: this very one.
    return reduction if image.draft(None, (image.width // reduction, image.height // reduction)) else 1


def decode_image(image: Image.Image, name: str) -> Image.Image:
    """Decodes what [`open_image`] has opened.

    Args:
        image: An opened image.
        name: What errors call it.

    Returns:
        The same image, decoded.

    Raises:
        ImageError: Damaged or truncated.
    """
    try:
        image.load()
    except Exception as error:  # truncated data surfaces as OSError, SyntaxError, ValueError, struct.error, ...
        raise ImageError(f"{name}: damaged or truncated ({error})") from error
    return image


def _bytes_to_decode(image: Image.Image) -> int:
    """Bytes for each pixel, at most."""
    if image.format == "JPEG2000" and len(image.getbands()) == 1:
        return _BYTES_TO_DECODE_JPEG2000_ONE_BAND
    if image.mode in ("1", "L", "P"):
        return _BYTES_TO_DECODE_ONE_BAND
    return _BYTES_TO_DECODE.get(image.format or "", _BYTES_TO_DECODE_OTHERWISE)


__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageError",
    "decode_image",
    "open_image",
    "open_row_image",
    "read_image",
    "read_row_image",
    "reduce_jpeg",
]
