"""Read DICOM files.

Grayscale values are displayed as the file specifies ([`gray_image`]). Color is scaled from the range of BitsStored, or
from the range of the data if BitsStored is only the size of a 16-bit container.
"""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..bit_depth_biomedclip import scale_to_8_bit
from .dicom_display import gray_image
from .errors import ImageError, check_size


if TYPE_CHECKING:
    from pydicom import Dataset

# Bytes per pixel value: the copies that pydicom makes, the index for numpy's lookup, and the image.
_BYTES_TO_DECODE = 16
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_DEFLATED_WHOLE = "1.2.840.10008.1.2.1.99"


def require_pydicom() -> None:
    """Raise an `ImportError` that says how to install pydicom, if it is not installed."""
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'DICOM files need pydicom, which is not installed: pip install "biomedclip[dicom]"'
        ) from error


def decode_dicom(content: bytes, name: str) -> Image.Image:
    """Decode the first frame of a DICOM file. Every failure is an [`ImageError`], except if pydicom is not installed.

    The image has mode `L` or `RGB`, or `I;16` for grayscale images of more than 8 bits without a usable window or VOI
    LUT.
    """
    require_pydicom()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values that violate the standard
        try:
            dataset = _open(content, name)
            size = (int(dataset.Columns), int(dataset.Rows))
            values = size[0] * size[1] * int(dataset.SamplesPerPixel)
            check_size(name, size, len(content) + values * _BYTES_TO_DECODE, "DICOM")
            image = _image(dataset, name)
        except ImageError:
            raise
        except Exception as error:  # damaged elements raise many types
            raise ImageError(f"{name}: damaged or truncated DICOM ({error})") from error
    image.format = "DICOM"
    return image


def _open(content: bytes, name: str) -> "Dataset":
    import pydicom
    from pydicom.filereader import read_dataset

    has_preamble = content[128:132] == b"DICM"
    if has_preamble:
        file = io.BytesIO(content[132:])
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
        if meta.get("TransferSyntaxUID") == _DEFLATED_WHOLE:
            # pydicom would inflate the file to any size before the number of pixels is known.
            raise ImageError(
                f"{name}: DICOM with a deflated transfer syntax is not supported", "image of unknown format"
            )
    dataset = pydicom.dcmread(io.BytesIO(content), force=not has_preamble)
    if "PixelData" not in dataset:
        raise ImageError(f"{name}: not a DICOM file, or one without an image", "image of unknown format")
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian  # the default of the standard
    return dataset


def _image(dataset: "Dataset", name: str) -> Image.Image:
    kind, bits = str(dataset.PhotometricInterpretation).strip(), int(dataset.BitsAllocated)
    if bits not in (1, 8, 16):
        raise ImageError(
            f"{name}: DICOM with {bits} bits per value is not supported, only 1, 8 and 16", "image of unknown format"
        )
    pixels = _pixels_of_first_frame(dataset, name, kind)
    try:
        if kind in _GRAY:
            return gray_image(pixels, dataset, name, mask_unused_bits=_has_unused_bits(dataset))
        return _color_image(pixels, dataset, kind)
    except Exception as error:  # invalid elements raise many types
        raise ImageError(
            f"{name}: the pixels were decoded, but the display step failed ({type(error).__name__}: {error}). Check "
            "the elements of modality LUT, VOI LUT, window and palette",
            "image unreadable",
        ) from error


def _pixels_of_first_frame(dataset: "Dataset", name: str, kind: str) -> np.ndarray:
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise ImageError(
            f"{name}: DICOM compressed as {syntax.name}, for which no decoder is installed. "
            "Install decoders for most formats with: pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg",
            "image of unknown format",
        )
    if kind in _GRAY and _has_unused_bits(dataset):
        # A padding value may use bits above BitsStored, so `gray_image` masks them later.
        return pixel_array(dataset, index=0, correct_unused_bits=False)
    return pixel_array(dataset, index=0, raw=_is_deep_ybr(dataset, kind))


def _has_unused_bits(dataset: "Dataset") -> bool:
    """Return whether bits above BitsStored must be ignored. Some decoders remove them."""
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

    decoded = {*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes}
    return int(dataset.BitsStored) < int(dataset.BitsAllocated) and dataset.file_meta.TransferSyntaxUID not in decoded


def _is_deep_ybr(dataset: "Dataset", kind: str) -> bool:
    return kind.startswith("YBR_FULL") and int(dataset.BitsAllocated) == 16


def _color_image(pixels: np.ndarray, dataset: "Dataset", kind: str) -> Image.Image:
    from pydicom.pixels import apply_color_lut, convert_color_space

    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)[..., :3]
        if pixels.dtype != np.uint8:
            # Some 16-bit palettes contain 8-bit values.
            pixels = (pixels if pixels.max() <= 255 else pixels >> 8).astype(np.uint8)
        return Image.fromarray(pixels)
    bits_stored, bits_allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    if bits_stored < bits_allocated or _is_deep_ybr(dataset, kind):
        pixels = scale_to_8_bit(pixels, 0, 2**bits_stored - 1)
    elif bits_allocated > 8:
        pixels = scale_to_8_bit(pixels)
    return Image.fromarray(convert_color_space(pixels, kind, "RGB") if _is_deep_ybr(dataset, kind) else pixels)
