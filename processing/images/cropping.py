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

    Up to ten boxes are drawn, with a uniform fraction of the area (`scale`) and a log-uniform aspect ratio (`ratio`).
    If none fits, the largest centered box with an allowed aspect ratio is returned. `image_size` is the width and
    height, in pixels.
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
    """Crop an image and resize the result (bicubic, antialiased) to an RGB image of a height and width."""
    return to_8_bit(image).crop(box).convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC)


def reduce_jpeg(image: Image.Image, box: Box, size: tuple[int, int]) -> int:
    """Prepare a JPEG for faster decoding, in place, and return the factor by which its sides are divided: 1, 2, 4 or 8.

    The scale is the smallest at which the box still has at least as many pixels as the result, whose height and width
    are `size`. The decoder scales with the inverse cosine transform, not with a bicubic filter.
    """
    spare = min((box[2] - box[0]) // size[1], (box[3] - box[1]) // size[0])
    reduction = next((scale for scale in (8, 4, 2) if spare >= scale), 1)
    # Pillow chooses the smallest scale that has at least this size, which is `reduction`.
    if reduction > 1 and image.draft(None, (image.width // reduction, image.height // reduction)):
        return reduction
    return 1


def fast_resized_crop(image: Image.Image, box: Box, size: tuple[int, int], reduction: int) -> Image.Image:
    """Return nearly the same image as [`resized_crop`], in less time.

    `image` is an image of 8 bits that was decoded after [`reduce_jpeg`] returned `reduction`.
    """
    if reduction == 1:  # the same filter in torch is vectorized
        pixels = torch.from_numpy(np.array(image.crop(box).convert("RGB"))).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        return Image.fromarray(resized[0].permute(1, 2, 0).numpy())
    # Pillow accepts boxes with fractions of a pixel.
    left, top, right, bottom = (side / reduction for side in box)
    return image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
