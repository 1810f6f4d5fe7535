"""Image processor of BiomedCLIP: open_clip's evaluation transform, to the last bit, with Pillow alone.

The order of the steps is open_clip's, because it shows in the pixels: an image is resized and cropped in its own mode
(palette, CMYK, RGBA, ...) and only then converted to RGB.
"""

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.utils import TensorType


# A strip of 1 x 100,000 pixels would be blown up to 224 x 22,400,000 before the crop. Beyond this ratio of the sides
# what the crop cannot reach is cut off first.
MAX_ASPECT_RATIO = 1000


def to_8_bit(image: Image.Image) -> Image.Image:
    """
    Brings an image of more than 8 bits (modes `I;16`, `I`, `F`) to 8-bit grey.

    The image's own range, darkest to brightest, is mapped linearly to 0..255. Pillow's conversion, which open_clip
    uses, clips at 255 instead: a 12-bit radiograph comes out nearly all white. Values that fit into 8 bits already are
    kept as they are, and so is every image of 8 bits.

    Args:
        image: Any Pillow image.

    Returns:
        The image itself, or one of mode `L`.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    darkest, brightest = values.min(), values.max()
    if darkest < 0 or brightest > 255:
        values = (values - darkest) * (255 / ((brightest - darkest) or 1))
    return Image.fromarray(np.round(values).astype(np.uint8))


class BiomedCLIPImageProcessor(PilBackend):
    r"""
    Shortest side to 224 pixels (bicubic, antialiased), centre crop of 224 x 224, RGB, [0, 1], CLIP's mean and std.

    `pixel_values` equal those of open_clip's evaluation transform bit for bit for every mode of 8 bits. What that means
    on purpose: transparency is dropped, not blended; palette images are resized without interpolation; EXIF orientation
    is left alone. Images of 16 bits are the exception, see [`to_8_bit`].

    Example:

    ```python
    >>> from processing import BiomedCLIPImageProcessor, read_image

    >>> BiomedCLIPImageProcessor()(read_image("scan.png"), return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 224, 224])
    ```"""

    _auto_class = "AutoImageProcessor"  # the code is saved beside the settings
    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Saves the settings, and the code of this class alone: a processor that it was part of is not saved here."""
        self.auto_map = {"AutoImageProcessor": "image_processing_biomedclip.BiomedCLIPImageProcessor"}
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def process_image(self, image: ImageInput, input_data_format: Any = None, **kwargs: Any) -> Image.Image:
        """A Pillow image out of a Pillow image, an array or a tensor; arrays hold 0..255, or floats in [0, 1]."""
        if not isinstance(image, Image.Image):
            image = np.asarray(image)
            if input_data_format is None and image.ndim == 3 and not {1, 3} & {image.shape[0], image.shape[-1]}:
                # With transparency. Not asked for at once: a colour image of two or four rows would be taken for it.
                input_data_format = infer_channel_dimension_format(image, num_channels=(2, 4))
            if image.dtype == np.uint16:
                image = Image.fromarray(np.squeeze(image))
            else:
                image = to_pil_image(image, input_data_format=input_data_format)
        return to_8_bit(image)

    def resize(self, image: Image.Image, size: SizeDict, resample: Any, **kwargs: Any) -> Image.Image:
        """Resizes to `shortest_edge`, or to `height` and `width`, as torchvision does."""
        if not size.shortest_edge:
            return image.resize((size.width, size.height), resample)
        image = _limit_aspect_ratio(image)
        width, height = image.size
        shortest, longest = size.shortest_edge, int(size.shortest_edge * max(width, height) / min(width, height))
        return image.resize((shortest, longest) if width <= height else (longest, shortest), resample)

    def center_crop(self, image: Image.Image, size: SizeDict, **kwargs: Any) -> Image.Image:
        """Crops as torchvision does: the offset is rounded, and what lies outside the image is black."""
        left, top = (_crop_offset(*sides) for sides in zip(image.size, (size.width, size.height), strict=True))
        return image.crop((left, top, left + size.width, top + size.height))

    def _preprocess(
        self,
        images: list[Image.Image],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: float | list[float] | None,
        image_std: float | list[float] | None,
        do_convert_rgb: bool = True,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        pixel_values = []
        for image in images:
            if do_resize:
                image = self.resize(image, size, resample)
            if do_center_crop:
                image = self.center_crop(image, crop_size)
            if do_convert_rgb:
                image = image.convert("RGB")
            bands = image.split()
            tables = _tables(len(bands), do_rescale, rescale_factor, do_normalize, image_mean, image_std)
            pixels = np.empty((len(tables), image.height, image.width), dtype=np.float32)
            for number, table in enumerate(tables):
                # A grey image takes the means of three bands, if there are so many. There is nothing to clip, but in
                # another mode numpy would fill a copy first.
                np.take(table, np.asarray(bands[number % len(bands)]), out=pixels[number], mode="clip")
            pixel_values.append(pixels)
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


def _tables(
    bands: int,
    do_rescale: bool,
    rescale_factor: float,
    do_normalize: bool,
    image_mean: float | list[float] | None,
    image_std: float | list[float] | None,
) -> np.ndarray:
    """
    What becomes of each of the 256 values of a pixel, of shape `(bands, 256)`. To look it up is faster than to work it
    out for each pixel anew.

    Division, subtraction, division, each rounded to float32: the arithmetic of torchvision's ToTensor and Normalize.
    Multiplying by 1 / 255 would differ in the last bit.
    """
    values = np.tile(np.arange(256, dtype=np.float32), (bands, 1))
    if do_rescale:
        values = values / np.float32(1 / rescale_factor)
    if do_normalize:
        mean, std = (np.array(value, dtype=np.float32).reshape(-1, 1) for value in (image_mean, image_std))
        values = (values - mean) / std
    return values


def _crop_offset(length: int, crop: int) -> int:
    """First pixel of a centred crop; negative where the image is the smaller one."""
    return int(round((length - crop) / 2.0)) if length >= crop else -((crop - length) // 2)


def _limit_aspect_ratio(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = min(width, height) * MAX_ASPECT_RATIO
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, width - left, height - top))


__all__ = ["BiomedCLIPImageProcessor"]
