"""Images whose pixels encode their position."""

import io

import numpy as np
from PIL import Image


def position_gradient(width: int, height: int) -> Image.Image:
    """Return an image in which red grows from left to right and green from top to bottom, from 0 to 255."""
    columns, lines = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([columns, lines, 0 * lines], axis=-1).round().astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """Return the bytes of a file, by default a JPEG of high quality."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()
