"""Convert the stored values of a grayscale DICOM image to the values that are displayed.

The steps follow the standard (PS3.3, N.2), but are applied to each possible stored value instead of each pixel:

1. Modality: the modality LUT, or rescale slope and intercept (C.11.1).
2. Values of interest: the first usable VOI LUT, or else the first usable window (C.11.2).
3. Presentation: MONOCHROME1 and the presentation LUT shape INVERSE display large values as dark.

In enhanced files, the functional groups of the first frame take precedence over the shared groups, which take
precedence over the root. Pixels with the padding value are black and are ignored when the range is computed. Without
step 2, images of up to 8 bits use the range of BitsStored, and all others use the range of the data. An element that
cannot be used is ignored with a warning.
"""

import logging
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..bit_depth_biomedclip import scale_to_8_bit


if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Lut:
    """A lookup table."""

    first: int  # input value of the first entry
    entries: np.ndarray
    bits: int  # of an entry

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the output values. Inputs outside the table are mapped to the first or last entry."""
        # Round first: products with a rescale slope can be slightly below the intended integer.
        positions = np.floor(np.round(values.astype(np.float64), 6)) - self.first
        return self.entries[np.clip(positions, 0, len(self.entries) - 1).astype(np.intp)]

    def brightness(self, values: np.ndarray) -> np.ndarray:
        """Return the output values, scaled to the range from 0 to 1."""
        return self(values) / (2**self.bits - 1)


@dataclass(frozen=True)
class _Modality:
    """The result of the modality step."""

    values: np.ndarray  # one for each possible stored value
    slope: float = 1.0
    intercept: float = 0.0
    lut: _Lut | None = None  # replaces slope and intercept


def gray_image(pixels: np.ndarray, dataset: "Dataset", name: str, mask_unused_bits: bool) -> Image.Image:
    """Return the image of a MONOCHROME frame, in mode `L`, or `I;16` if the range of the data is used.

    `pixels` are the stored values of 8 or 16 bits, of shape `(rows, columns)`. If `mask_unused_bits`, their bits above
    BitsStored are ignored. `name` is the name of the file in warnings.
    """
    codes = np.ascontiguousarray(pixels).view(f"u{pixels.dtype.itemsize}")
    contained = np.arange(2 ** (8 * pixels.dtype.itemsize)).astype(codes.dtype).view(pixels.dtype).astype(np.int64)
    bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation") or 0) == 1
    stored = _without_unused_bits(contained, bits, signed) if mask_unused_bits else contained
    padding = _padding(dataset, contained, stored, bits, signed, name)
    modality = _modality(dataset, stored, name)
    shape = str(dataset.get("PresentationLUTShape") or "").strip().upper()
    inverted = str(dataset.PhotometricInterpretation).strip() == "MONOCHROME1" or shape == "INVERSE"
    used = np.zeros(len(stored), dtype=bool)
    used[codes] = True
    used &= ~padding

    show = _values_of_interest(dataset, modality, bits, signed, name)
    output_bits = modality.lut.bits if modality.lut else bits
    if show is not None:
        table = np.round(show(modality.values) * 255).astype(np.uint8)
        table = 255 - table if inverted else table
    else:
        # Only the order of the values matters, so the stored values are used directly.
        steps = modality.values.astype(np.int64) if modality.lut else stored
        inverted ^= modality.lut is None and modality.slope < 0
        if output_bits <= 8 and (modality.lut or not signed):
            table = scale_to_8_bit(steps, 0, 2**output_bits - 1)
            table = 255 - table if inverted else table
        else:
            lowest, highest = (steps[used].min(), steps[used].max()) if used.any() else (0, 0)
            table = np.clip(highest - steps if inverted else steps - lowest, 0, 2**16 - 1).astype(np.uint16)
    table[padding] = 0
    return Image.fromarray(table[codes])


def _without_unused_bits(contained: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    values = contained & (2**bits - 1)
    return values - ((values >> (bits - 1)) << bits) if signed else values


def _padding(
    dataset: "Dataset", contained: np.ndarray, stored: np.ndarray, bits: int, signed: bool, name: str
) -> np.ndarray:
    """Return which values are padding (C.7.5.1.1.2): the padding value, or the range up to the limit (inclusive)."""
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        numbers = _numbers(dataset, keyword)
        if len(numbers) == 1 and math.isfinite(numbers[0]):
            # The element may have been written with the wrong signedness, and may use bits above BitsStored.
            ends.append(int(numbers[0]))
        elif numbers:
            _warn(name, f"{keyword} {dataset.get(keyword)!r}", "is not one number")
        if not ends:
            return np.zeros(len(contained), dtype=bool)
    size = len(contained)
    in_container = sorted((end % size) - (size if signed and end % size >= size // 2 else 0) for end in ends)
    padding = (contained >= in_container[0]) & (contained <= in_container[-1])
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    in_bits = sorted(_without_unused_bits(np.array(ends), bits, signed).tolist())
    if all(lowest <= end <= highest for end in in_container) or all(0 <= end < 2**bits for end in ends):
        padding |= (stored >= in_bits[0]) & (stored <= in_bits[-1])
    return padding


def _modality(dataset: "Dataset", stored: np.ndarray, name: str) -> _Modality:
    for source in _sources(dataset, "PixelValueTransformationSequence"):
        for lut in _luts(source, "ModalityLUTSequence", dataset, bool(stored.min() < 0), name):
            return _Modality(lut(stored), lut=lut)
        slopes, intercepts = _numbers(source, "RescaleSlope"), _numbers(source, "RescaleIntercept")
        if not slopes and not intercepts:
            continue
        slope, intercept = (slopes or [1.0])[0], (intercepts or [0.0])[0]
        if slope and math.isfinite(slope) and math.isfinite(intercept):
            return _Modality(stored * slope + intercept, slope, intercept)
        _warn(name, f"RescaleSlope {slope} with RescaleIntercept {intercept}", "produces no usable values")
    return _Modality(stored)


def _values_of_interest(
    dataset: "Dataset", modality: _Modality, bits: int, signed: bool, name: str
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the function that maps values after the modality step to brightness, from 0 (black) to 1 (white)."""
    for source in _sources(dataset, "FrameVOILUTSequence"):
        for lut in _luts(source, "VOILUTSequence", dataset, bool(modality.values.min() < 0), name):
            return lut.brightness
        for window in _windows(source, name):
            if modality.lut:
                window.update(BitsStored=modality.lut.bits, PixelRepresentation=0)
            else:
                window.update(BitsStored=bits, PixelRepresentation=int(signed))
                window.update(RescaleSlope=modality.slope, RescaleIntercept=modality.intercept)
            return partial(_windowed, elements=window)
    return None


def _windows(source: "Dataset", name: str) -> Iterator[dict[str, Any]]:
    """Yield the usable windows, as elements of a dataset."""
    centers, widths = _numbers(source, "WindowCenter"), _numbers(source, "WindowWidth")
    function = str(source.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        _warn(name, f"VOILUTFunction {function!r}", "is unknown", "LINEAR is used")
        function = "LINEAR"
    if len(centers) != len(widths):
        unequal = f"{len(centers)} values of WindowCenter with {len(widths)} of WindowWidth"
        _warn(name, unequal, "do not match", "those without a partner are ignored")
    for center, width in zip(centers, widths, strict=False):
        if not (math.isfinite(center) and math.isfinite(width) and width > 0):
            _warn(name, f"the window with WindowCenter {center} and WindowWidth {width}", "cannot be used")
            continue
        # The standard requires a width of at least 1 for LINEAR. PET files with real units can have smaller widths.
        function_used = "LINEAR_EXACT" if function == "LINEAR" and width < 1 else function
        yield {"WindowCenter": center, "WindowWidth": width, "VOILUTFunction": function_used}


def _windowed(values: np.ndarray, elements: dict[str, Any]) -> np.ndarray:
    from pydicom import DataElement, Dataset
    from pydicom.pixels import apply_windowing

    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    for keyword, value in elements.items():
        # FD instead of DS, because a decimal string is limited to 16 characters.
        representation = "US" if isinstance(value, int) else "CS" if isinstance(value, str) else "FD"
        window.add(DataElement(keyword, representation, value))
    # With the infinite values, the output below and above the window equals pydicom's.
    with np.errstate(over="ignore"):
        black, white, *shades = apply_windowing(np.concatenate([[-np.inf, np.inf], values]), window)
    return (np.asarray(shades) - black) / (white - black)


def _luts(source: "Dataset", keyword: str, dataset: "Dataset", signed: bool, name: str) -> Iterator[_Lut]:
    """Return the usable lookup tables of a sequence. If `signed`, input values may be negative."""
    for number, item in enumerate(source.get(keyword) or []):
        try:
            yield _lut(item, dataset.file_meta.TransferSyntaxUID.is_little_endian, signed)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
            _warn(name, f"item {number} of {keyword}", f"cannot be used ({error})")


def _lut(item: "Dataset", little_endian: bool, signed: bool) -> _Lut:
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or data is None:
        raise ValueError("LUTDescriptor or LUTData is missing")
    count, first, bits = (int(number) for number in descriptor)
    count = count % 2**16 or 2**16
    if signed and first >= 2**15:
        first -= 2**16  # written as an unsigned number
    if isinstance(data, bytes):
        raw = data
    else:
        numbers = [int(number) for number in (data if hasattr(data, "__iter__") else [data])]
        raw = np.array(numbers, dtype=np.int64).astype("<u2").tobytes()
        little_endian = True
    if not 1 <= bits <= 16:
        raise ValueError(f"{bits} bits for each entry")
    # 8-bit entries may be packed, two per word.
    packed = bits <= 8 and len(raw) < 2 * count
    entry = np.dtype("u1") if packed else np.dtype("<u2" if little_endian else ">u2")
    entries = np.frombuffer(raw, dtype=entry, count=count).astype(np.int64)
    # Some tables declare too few bits, or the bits of the container, which are at least two more than any entry uses.
    used_bits = max(1, int(entries.max()).bit_length())
    return _Lut(first, entries, bits if used_bits <= bits < used_bits + 2 else used_bits)


def _sources(dataset: "Dataset", macro: str) -> Iterator["Dataset"]:
    """Return the datasets that may contain elements of the first frame, in order of precedence."""
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        groups = dataset.get(keyword)
        items = groups[0].get(macro) if groups else None
        if items:
            yield items[0]
    yield dataset


def _numbers(source: "Dataset", keyword: str) -> list[float]:
    """Return the values of an element, with NaN for invalid numbers. The result is empty if the element is absent."""
    try:
        value = source.get(keyword)
    except (TypeError, ValueError, OverflowError):  # pydicom converts numbers lazily, on access
        return [math.nan]
    if value is None or value == "":
        return []
    numbers = []
    for part in value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]:
        try:
            numbers.append(float(part))
        except (TypeError, ValueError, OverflowError):
            numbers.append(math.nan)
    return numbers


def _warn(name: str, what: str, problem: str, instead: str = "it is ignored") -> None:
    logger.warning("%s: %s of the DICOM file %s; %s.", name, what, problem, instead)
