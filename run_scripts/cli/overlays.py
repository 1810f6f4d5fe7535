"""Draw saliency maps over images."""

from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image

from biomedclip.processing.bit_depth_biomedclip import to_8_bit


_STRONGEST = 0.75  # opacity of the highest value
_DIMMED = 0.35  # brightness of what the model does not see


def save_overlay(image: Image.Image, saliency: torch.Tensor, path: Path, *, scale: float | None = None) -> None:
    """Write an overlay as a PNG file. See [`draw_overlay`] for the arguments."""
    draw_overlay(image, saliency, scale=scale).save(path, format="PNG")


def draw_overlay(image: Image.Image, saliency: torch.Tensor, *, scale: float | None = None) -> Image.Image:
    """Return the grayscale image with the positive values of a saliency map in color, from purple to yellow.

    Values of zero and below are not colored. Pixels with NaN, which the model does not see, are darker.

    Args:
        image: Pillow image.
        saliency: Map of shape `(height, width)` from [`saliency_map`].
        scale: Value with the strongest color. The default is the maximum of the map, so that any map has strong colors.
            Pass the maximum over the maps of all prompts to compare prompts.

    Raises:
        ValueError: If the sizes of the image and the map differ.
    """
    values = saliency.numpy()
    if values.shape != (image.height, image.width):
        raise ValueError(
            f"The map has shape {values.shape}, but the image has {image.height} x {image.width} pixels. Compute the "
            "map for this image."
        )
    visible = np.isfinite(values)
    if scale is None:
        scale = float(values.max(where=visible, initial=0.0))
    strength = np.clip(np.where(visible, values, 0.0) / scale, 0.0, 1.0) if scale > 0 else np.zeros_like(values)
    color = matplotlib.colormaps["plasma"](strength)[..., :3] * 255
    gray = np.asarray(to_8_bit(image).convert("L"), dtype=np.float32)[..., None]
    opacity = _STRONGEST * strength[..., None]
    blended = np.where(visible[..., None], opacity * color + (1 - opacity) * gray, _DIMMED * gray)
    return Image.fromarray(blended.round().astype(np.uint8))
