"""Reading DICOM files, of which the pixels are measurements: what they mean on a screen stands beside them.

Grey images of 8 bits keep the values that are stored, unless the file names a window. Those of 16 bits (of which often
12 are used) are brought to 8 by the window that the file names (its first); where it names none they stay 16-bit,
counted from their darkest value, and the image processor scales them to their own range. MONOCHROME1, in which the
largest value is black, is inverted. Rescaling and windows are pydicom's, applied to every value that can be stored
rather than to every pixel.
"""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .images import MAX_BYTES, MAX_PIXELS, ImageError


if TYPE_CHECKING:
    from pydicom import Dataset

# For each value of a pixel: pydicom's copies, those of numpy's look-up (8 bytes an index), and the image.
_BYTES_TO_DECODE = 16
_GREY = ("MONOCHROME1", "MONOCHROME2")
_DEFLATED_WHOLE = "1.2.840.10008.1.2.1.99"


def require_pydicom() -> None:
    """
    Raises:
        ImportError: pydicom is not installed.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'DICOM files need pydicom, which is not installed: pip install "biomedclip[dicom]"'
        ) from error


def decode_dicom(content: bytes, name: str) -> Image.Image:
    """
    Decodes the image of a DICOM file; of several frames the first.

    Args:
        content: The bytes of the file.
        name: What errors call it.

    Returns:
        An image of mode `L` or `RGB`, or `I;16` for grey of 16 bits without a window.

    Raises:
        ImportError: pydicom is not installed.
        ImageError: Damaged, too large (which is seen before it is decoded), without an image, or compressed in a way
            for which there is no decoder.
    """
    require_pydicom()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that break a rule of the standard, mostly in what nobody reads
        try:
            dataset = _open(content, name)
            _check_size(dataset, len(content), name)
            image = _image(dataset, name)
        except ImageError:
            raise
        except Exception as error:  # damaged elements surface as many types
            raise ImageError(f"{name}: damaged or truncated DICOM ({error})") from error
    image.format = "DICOM"
    return image


def _open(content: bytes, name: str) -> "Dataset":
    import pydicom

    has_preamble = content[128:132] == b"DICM"
    if has_preamble and _transfer_syntax(content) == _DEFLATED_WHOLE:
        # It would be inflated, to whatever size, before the number of pixels is known.
        raise ImageError(f"{name}: DICOM that is deflated as a whole is not read", "image of unknown format")
    dataset = pydicom.dcmread(io.BytesIO(content), force=not has_preamble)
    if "PixelData" not in dataset:
        raise ImageError(f"{name}: a DICOM file without an image, or none at all", "image of unknown format")
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian  # the standard's default
    return dataset


def _transfer_syntax(content: bytes) -> str | None:
    from pydicom.filereader import read_dataset

    file = io.BytesIO(content)
    file.seek(132)
    return read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2).get("TransferSyntaxUID")


def _check_size(dataset: "Dataset", file_bytes: int, name: str) -> None:
    width, height = int(dataset.Columns), int(dataset.Rows)
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width} x {height} pixels are more than {MAX_PIXELS:,} pixels", "image too large")
    if file_bytes + width * height * int(dataset.SamplesPerPixel) * _BYTES_TO_DECODE > MAX_BYTES:
        raise ImageError(
            f"{name}: to decode {width} x {height} pixels of DICOM may take more than {MAX_BYTES:,} bytes",
            "image too large",
        )


def _image(dataset: "Dataset", name: str) -> Image.Image:
    kind, bits = str(dataset.PhotometricInterpretation), int(dataset.BitsAllocated)
    if bits not in (1, 8, 16):
        raise ImageError(f"{name}: DICOM of {bits} bits; 1, 8 and 16 are read", "image of unknown format")
    pixels = _pixels_of_first_frame(dataset, name)
    if kind in _GREY:
        return _grey_image(pixels, dataset, inverted=kind == "MONOCHROME1")
    if kind == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        pixels = apply_color_lut(pixels, dataset)[..., :3]
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8))


def _pixels_of_first_frame(dataset: "Dataset", name: str) -> np.ndarray:
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        raise ImageError(
            f"{name}: DICOM compressed as {syntax.name}, for which pydicom finds no decoder; "
            "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg brings most of them",
            "image of unknown format",
        )
    return pixel_array(dataset, index=0)


def _grey_image(pixels: np.ndarray, dataset: "Dataset", inverted: bool) -> Image.Image:
    if int(dataset.BitsAllocated) == 1:
        pixels = pixels * np.uint8(255)
    stored = np.iinfo(pixels.dtype)
    if _has_window(dataset):
        shades = _windowed(np.arange(stored.min, stored.max + 1), dataset)
        return Image.fromarray((255 - shades if inverted else shades)[pixels.astype(np.intp) - stored.min])
    if pixels.dtype == np.uint8:
        return Image.fromarray(255 - pixels if inverted else pixels)
    values = pixels.astype(np.int32)
    return Image.fromarray((values.max() - values if inverted else values - values.min()).astype(np.uint16))


def _windowed(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """What stored values are shown as, in 8 bits."""
    from pydicom.pixels import apply_modality_lut, apply_windowing

    # The infinities tell what pydicom makes of values below and above the window.
    values = np.concatenate([[-np.inf, np.inf], apply_modality_lut(stored, dataset)])
    with np.errstate(over="ignore"):
        black, white, *shades = apply_windowing(values, dataset, index=0)
    return np.round((np.asarray(shades) - black) / (white - black) * 255).astype(np.uint8)


def _has_window(dataset: "Dataset") -> bool:
    return all(dataset.get(keyword) not in (None, "") for keyword in ("WindowCenter", "WindowWidth"))


__all__ = ["decode_dicom", "require_pydicom"]
