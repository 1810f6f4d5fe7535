"""Image processor of BiomedCLIP: open_clip's evaluation transform, to the last bit, with Pillow alone.

The order of the steps is open_clip's, because it shows in the pixels: an image is resized and cropped in its own mode
(palette, CMYK, RGBA, ...) and only then converted to RGB.
"""

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import to_channel_dimension_format
from transformers.image_utils import (
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.utils import TensorType, is_torch_tensor

from .bit_depth_biomedclip import scale_to_8_bit, to_8_bit


# A strip of 1 x 100,000 pixels would be blown up to 224 x 22,400,000 before the crop. Beyond this ratio of the sides
# what the crop cannot reach is cut off first.
MAX_ASPECT_RATIO = 1000


def _array_to_image(array: np.ndarray, input_data_format: Any = None) -> Image.Image:
    """Return an 8-bit Pillow image of an array: grey `(height, width)`, or with 1 to 4 channels first or last."""
    if array.ndim == 3:
        if input_data_format is None and not {1, 3} & {array.shape[0], array.shape[-1]}:
            # With transparency. Not tried first: a color image of two or four rows would be mistaken for it.
            input_data_format = infer_channel_dimension_format(array, num_channels=(2, 4))
        array = to_channel_dimension_format(array, ChannelDimension.LAST, input_data_format)
        if array.shape[-1] > 4:
            raise ValueError(f"An image has 1 to 4 channels, but the array has {array.shape[-1]}.")
        if array.shape[-1] == 1:
            array = array[..., 0]
    if array.dtype == np.bool_:
        # A grey one is an image of one bit, as Pillow reads it from a file.
        return Image.fromarray(array if array.ndim == 2 else array.astype(np.uint8) * np.uint8(255))
    if array.dtype != np.uint8:
        if array.ndim == 3:
            array = array[..., : 1 if array.shape[-1] == 2 else 3]  # transparency is dropped
            array = array[..., 0] if array.shape[-1] == 1 else array
        array = scale_to_8_bit(array)
    return Image.fromarray(np.ascontiguousarray(array))


class BiomedCLIPImageProcessor(PilBackend):
    r"""Shortest side to 224 pixels (bicubic, antialiased), centre crop of 224 x 224, RGB, [0, 1], CLIP's mean and std.

    `pixel_values` equal those of open_clip's evaluation transform bit for bit for every mode of 8 bits. What that means
    on purpose: transparency is dropped, not blended; palette images are resized without interpolation; EXIF orientation
    is left alone. Images of more than 8 bits, and arrays of other dtypes than uint8, are scaled from their own range to
    0..255 first: see [`scale_to_8_bit`].

    Example:
    ```python
    >>> from biomedclip.processing import BiomedCLIPImageProcessor, read_image

    >>> BiomedCLIPImageProcessor()(read_image("scan.png"), return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 224, 224])
    ```
    """

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
        """Convert an image to a Pillow image of 8 bits.

        Args:
            image: A Pillow image, an array or a tensor. Arrays of uint8 are taken as they are, those of another dtype
                are scaled by [`scale_to_8_bit`], like a file that holds the same values.
            input_data_format: Where an array has its channels; inferred by default.

        Returns:
            The image.
        """
        if isinstance(image, Image.Image):
            return to_8_bit(image)
        if is_torch_tensor(image):
            image = image.detach().cpu()
            image = image.float() if str(image.dtype) == "torch.bfloat16" else image  # numpy has no such type
        return _array_to_image(np.asarray(image), input_data_format)

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> ImageInput:
        """Accept grey arrays without a channel dimension, alone or in lists."""
        return super()._prepare_images_structure(_with_channels(images), expected_ndims)

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


def _with_channels(images: Any) -> Any:
    """Give arrays and tensors of shape `(height, width)` a channel dimension."""
    if isinstance(images, list | tuple):
        return [_with_channels(image) for image in images]
    return images[None] if getattr(images, "ndim", None) == 2 else images


def _tables(
    bands: int,
    do_rescale: bool,
    rescale_factor: float,
    do_normalize: bool,
    image_mean: float | list[float] | None,
    image_std: float | list[float] | None,
) -> np.ndarray:
    """What becomes of each of the 256 values of a pixel, of shape `(bands, 256)`. To look it up is faster than to work
    it out for each pixel anew.

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


__all__ = ["BiomedCLIPImageProcessor", "scale_to_8_bit", "to_8_bit"]
