"""Random crops for training, with the rule of torchvision's RandomResizedCrop."""

import math

import numpy as np
import torch
from PIL import Image

from ..bit_depth_biomedclip import to_8_bit


Box = tuple[int, int, int, int]  # left, top, right and bottom, in pixels of the whole image

# The defaults of open_clip: fraction of the area, and width divided by height.
CROP_SCALE = (0.9, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)


def random_box(
    image_size: tuple[int, int],
    generator: np.random.Generator,
    scale: tuple[float, float] = CROP_SCALE,
    ratio: tuple[float, float] = CROP_RATIO,
) -> Box:
    """Return a random box with random area and aspect ratio.

    Up to ten boxes are drawn, with a uniform fraction of the area and a log-uniform aspect ratio. If none fits, the
    largest centered box with an allowed aspect ratio is returned.

    Args:
        image_size: Width and height of the image, in pixels.
        generator: The random number generator.
        scale: Smallest and largest fraction of the area.
        ratio: Smallest and largest aspect ratio (width divided by height).
    """
    width, height = image_size
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            left = int(generator.integers(width - box_width + 1))
            top = int(generator.integers(height - box_height + 1))
            return left, top, left + box_width, top + box_height
    box_width = min(width, max(1, round(height * ratio[1])))
    box_height = min(height, max(1, round(width / ratio[0])))
    left, top = (width - box_width) // 2, (height - box_height) // 2
    return left, top, left + box_width, top + box_height


def resized_crop(image: Image.Image, box: Box, size: tuple[int, int]) -> Image.Image:
    """Crop an image and resize the result (bicubic, antialiased).

    Args:
        image: Any Pillow image.
        box: The box to keep.
        size: Height and width of the result, in pixels.

    Returns:
        An RGB image.
    """
    return to_8_bit(image).crop(box).convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)


def reduce_jpeg(image: Image.Image, box: Box, size: tuple[int, int]) -> int:
    """Prepare a JPEG for faster decoding at a half, a quarter or an eighth of its size.

    The scale is the smallest at which the box still has at least as many pixels as the result in both directions. The
    decoder scales with the inverse cosine transform, not with a bicubic filter.

    Args:
        image: A JPEG that has been opened but not decoded. It is modified in place.
        box: The box to keep.
        size: Height and width of the result, in pixels.

    Returns:
        The factor by which width and height are divided: 1, 2, 4 or 8.
    """
    spare = min((box[2] - box[0]) // size[1], (box[3] - box[1]) // size[0])
    reduction = next((scale for scale in (8, 4, 2) if spare >= scale), 1)
    # Pillow chooses the smallest scale that has at least this size, which is `reduction`.
    if reduction > 1 and image.draft(None, (image.width // reduction, image.height // reduction)):
        return reduction
    return 1


def fast_resized_crop(image: Image.Image, box: Box, size: tuple[int, int], reduction: int) -> Image.Image:
    """Return nearly the same image as [`resized_crop`], in less time.

    Args:
        image: A Pillow image of 8 bits, decoded after [`reduce_jpeg`].
        box: The box to keep.
        size: Height and width of the result, in pixels.
        reduction: The result of [`reduce_jpeg`].

    Returns:
        An RGB image.
    """
    if reduction == 1:  # the same filter in torch is vectorized
        pixels = torch.from_numpy(np.array(image.crop(box).convert("RGB"))).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        return Image.fromarray(resized[0].permute(1, 2, 0).numpy())
    # Pillow accepts boxes with fractions of a pixel.
    left, top, right, bottom = (side / reduction for side in box)
    return image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(left, top, right, bottom))


__all__ = ["CROP_RATIO", "CROP_SCALE", "fast_resized_crop", "random_box", "reduce_jpeg", "resized_crop"]
