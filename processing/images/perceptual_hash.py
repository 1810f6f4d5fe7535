"""Perceptual hash of images: the DCT hash of `imagehash.phash` (Zauner 2010).

The result equals `imagehash.phash` bit for bit if both are computed from the same thumbnail. This module exists because
the thumbnail must be made from images of any mode, without a second copy in memory.
"""

import numpy as np
from PIL import Image

from ..bit_depth_biomedclip import finite_range, row_blocks


# Of 4,635 copies of 1,545 images (PNG, JPEG of quality 85, half the size), none differs in more than 6 bits. No two
# images of different datasets are this close. Within a dataset, some are: charts from one template, adjacent slices.
NEAR_DUPLICATE_BITS = 6

_THUMBNAIL = 32  # pixels per side
_FREQUENCIES = 8  # number of lowest frequencies in each direction
_COSINES = np.cos(np.pi / (2 * _THUMBNAIL) * np.outer(np.arange(_FREQUENCIES), 2 * np.arange(_THUMBNAIL) + 1))
# With a smaller standard deviation of the thumbnail, the bits are noise.
BLANK_DEVIATION = 2.0


@np.errstate(invalid="ignore", over="ignore")
def perceptual_hash(image: Image.Image) -> str:
    """Return 16 hex digits that change little if an image is resized or saved in another format.

    The image is reduced to 32 x 32 grayscale values. Values of more than 8 bits are scaled from the range of the data,
    and transparency is dropped. The 8 x 8 lowest frequencies of the discrete cosine transform are compared with their
    median. The hash of a blank image is an empty string.
    """
    return hash_of_thumbnail(grayscale_thumbnail(image))


def hash_of_thumbnail(thumbnail: np.ndarray) -> str:
    """Return the [`perceptual_hash`] of an image with this [`grayscale_thumbnail`]."""
    if not thumbnail.std() >= BLANK_DEVIATION:
        return ""
    # Coefficients that are 0 by symmetry would otherwise depend on rounding errors of the machine.
    coefficients = np.round(_COSINES @ thumbnail @ _COSINES.T, 3)
    middle = coefficients.size // 2
    median = np.sort(coefficients, axis=None)[middle - 1 : middle + 1].mean()  # np.median takes five times as long
    return np.packbits(coefficients > median).tobytes().hex()


@np.errstate(invalid="ignore", over="ignore")
def grayscale_thumbnail(image: Image.Image) -> np.ndarray:
    """Return the 32 x 32 gray values from 0 to 255 that [`perceptual_hash`] compares."""
    deep = image.mode.startswith(("I", "F"))
    darkest, brightest = finite_range(image) if deep else (0, 255)
    if image.mode in ("1", "P", "PA", "LA", "RGBA"):
        # Pillow does not interpolate the first three modes, and would copy the others to blend their transparency.
        image.info.pop("transparency", None)
        image = image.convert("L")
    elif image.mode.startswith("I;16") and image.mode != "I;16":
        image = image.convert("I")  # Pillow 13 resizes I;16B with swapped bytes
    elif image.mode == "F":
        finite = image.copy()
        for box, values in row_blocks(image):  # NaN and infinities would spread to other pixels
            finite.paste(Image.fromarray(np.where(np.isfinite(values), values, np.float32(darkest))), box)
        image = finite
    gap = 2.0 if image.mode != "I;16" else None  # not available for this mode
    thumbnail = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS, reducing_gap=gap)
    if not deep:
        return np.asarray(thumbnail.convert("RGB").convert("L"), dtype=np.float64)
    return (np.asarray(thumbnail, dtype=np.float64) - darkest) * (255 / ((brightest - darkest) or 1))
