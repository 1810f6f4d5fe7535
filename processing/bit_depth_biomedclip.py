"""Scale pixels of more than 8 bits to 8 bits, and put transparent images on white.

This file is saved with the image processor and imports only numpy and Pillow.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image


# Number of values that are converted at once, to limit the memory of the intermediate float64 array.
_BLOCK = 1 << 20


def scale_to_8_bit(values: np.ndarray, lowest: float | None = None, highest: float | None = None) -> np.ndarray:
    """Map values linearly from `lowest`..`highest` to uint8, and round to the nearest integer (ties to even).

    Values outside the range become 0 or 255. The default range is that of the finite values. NaN and infinities become
    0. If all values are equal, the result is 0.
    """
    if values.dtype.kind not in "biuf":
        raise ValueError(f"Pixels must be integers, booleans or floats, but they are {values.dtype}.")
    result = np.zeros(values.shape, dtype=np.uint8)
    if lowest is None or highest is None:
        smallest, largest = _finite_range(values) or (0, 0)
        lowest, highest = smallest if lowest is None else lowest, largest if highest is None else highest
    if lowest < highest:
        step = max(1, _BLOCK // max(1, values[:1].size))
        for start in range(0, len(values), step):
            result[start : start + step] = _scale(values[start : start + step], lowest, highest)
    return result


def to_8_bit(image: Image.Image) -> Image.Image:
    """Convert an image of more than 8 bits (modes `I;16`, `I` and `F`) to 8-bit grayscale with [`scale_to_8_bit`].

    Pillow, and therefore open_clip, clips at 255 instead, which makes a 12-bit radiograph nearly all white. An image of
    8 bits or fewer is returned unchanged.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    lowest, highest = finite_range(image)
    result = np.empty((image.height, image.width), dtype=np.uint8)
    for box, values in row_blocks(image):
        result[box[1] : box[3]] = scale_to_8_bit(values, lowest, highest)
    return Image.fromarray(result)


def on_white(image: Image.Image) -> Image.Image:
    """Return an image of any mode in RGB. Transparent parts become white."""
    image = to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def row_blocks(image: Image.Image) -> Iterator[tuple[tuple[int, int, int, int], np.ndarray]]:
    """Yield the box and values of each block of rows. Converting the whole image at once would take too much memory."""
    rows = max(1, _BLOCK // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield box, np.asarray(image.crop(box))


def finite_range(image: Image.Image) -> tuple[Any, Any]:
    """Return the smallest and largest finite values of an image, or zeros if no value is finite."""
    ranges = [found for _, values in row_blocks(image) if (found := _finite_range(values))]
    return min((smallest for smallest, _ in ranges), default=0), max((largest for _, largest in ranges), default=0)


def _finite_range(values: np.ndarray) -> tuple[Any, Any] | None:
    if values.dtype.kind != "f":
        return (values.min().item(), values.max().item()) if values.size else None
    finite = np.isfinite(values)
    if not finite.any():
        return None
    return values.min(where=finite, initial=np.inf).item(), values.max(where=finite, initial=-np.inf).item()


def _scale(values: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    if values.dtype.itemsize == 8 and values.dtype.kind in "iu" and isinstance(lowest, int):
        # float64 has 53 bits: the offset is subtracted before the conversion, modulo 2**64.
        above = np.where(values > lowest, values.astype(np.uint64) - np.uint64(lowest % 2**64), np.uint64(0))
        distance, width = above.astype(np.float64), float(highest - lowest)
    else:
        # Differences and products of very large floats would overflow. A power of two does not change their digits.
        shrink = 2.0**-20 if max(abs(lowest), abs(highest)) > 1e300 else 1.0
        with np.errstate(invalid="ignore"):  # for signaling NaN
            distance = np.nan_to_num(values.astype(np.float64), nan=lowest, posinf=lowest, neginf=lowest) * shrink
        distance -= lowest * shrink
        width = highest * shrink - lowest * shrink
    return np.round(np.clip(distance, 0, width) * 255 / width).astype(np.uint8)


__all__ = ["finite_range", "row_blocks", "scale_to_8_bit", "to_8_bit"]
