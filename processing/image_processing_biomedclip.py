"""Image processor of BiomedCLIP: the evaluation transform of open_clip, bit for bit, with Pillow only.

As in open_clip, an image is resized and cropped in its original mode (palette, CMYK, RGBA, ...) and then converted to
RGB.
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


# A strip of 1 x 100,000 pixels would become 224 x 22,400,000 pixels before the crop. Above this aspect ratio, the ends
# are cut off before resizing. The crop would remove them anyway.
MAX_ASPECT_RATIO = 1000


class BiomedCLIPImageProcessor(PilBackend):
    r"""Resize the shortest side to 224 pixels (bicubic, antialiased), crop the center, convert to RGB, and normalize.

    For images of up to 8 bits, `pixel_values` equal those of open_clip's evaluation transform bit for bit. In
    particular, transparency is dropped, palette images are resized without interpolation, and the EXIF orientation is
    ignored. Images of more than 8 bits, and arrays that are not uint8, are first scaled to 8 bits ([`scale_to_8_bit`]).

    Example:
    ```python
    >>> from biomedclip.processing import BiomedCLIPImageProcessor, read_image

    >>> BiomedCLIPImageProcessor()(read_image("scan.png"), return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 224, 224])
    ```
    """

    _auto_class = "AutoImageProcessor"  # saves the code next to the settings
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
        """Save the settings and the code of this class, even if it is part of a processor."""
        self.auto_map = {"AutoImageProcessor": "image_processing_biomedclip.BiomedCLIPImageProcessor"}
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def process_image(self, image: ImageInput, input_data_format: Any = None, **kwargs: Any) -> Image.Image:
        """Convert a Pillow image, an array or a tensor to a Pillow image of 8 bits.

        Arrays that are not uint8 are scaled like a file with the same values.
        """
        if isinstance(image, Image.Image):
            return to_8_bit(image)
        if is_torch_tensor(image):
            image = image.detach().cpu()
            image = image.float() if str(image.dtype) == "torch.bfloat16" else image  # not a type of numpy
        return _array_to_image(np.asarray(image), input_data_format)

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> ImageInput:
        return super()._prepare_images_structure(_with_channels(images), expected_ndims)

    def resize(self, image: Image.Image, size: SizeDict, resample: Any, **kwargs: Any) -> Image.Image:
        """Resize to `shortest_edge`, or to `height` and `width`, like torchvision."""
        if not size.shortest_edge:
            return image.resize((size.width, size.height), resample)
        image = _limit_aspect_ratio(image)
        width, height = image.size
        shortest, longest = size.shortest_edge, int(size.shortest_edge * max(width, height) / min(width, height))
        return image.resize((shortest, longest) if width <= height else (longest, shortest), resample)

    def center_crop(self, image: Image.Image, size: SizeDict, **kwargs: Any) -> Image.Image:
        """Crop the center like torchvision: offsets are rounded, and pixels outside the image are black."""
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
            # A lookup table of shape (bands, 256) is faster. It is rounded to float32 three times, like torchvision's
            # ToTensor and Normalize.
            tables = np.tile(np.arange(256, dtype=np.float32), (len(bands), 1))
            if do_rescale:
                tables = tables / np.float32(1 / rescale_factor)
            if do_normalize:
                mean, std = (np.array(value, dtype=np.float32).reshape(-1, 1) for value in (image_mean, image_std))
                tables = (tables - mean) / std
            pixels = np.empty((len(tables), image.height, image.width), dtype=np.float32)
            for number, table in enumerate(tables):
                # Three means turn a grayscale image into three bands. `mode="clip"` avoids a copy in numpy.
                np.take(table, np.asarray(bands[number % len(bands)]), out=pixels[number], mode="clip")
            pixel_values.append(pixels)
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


def _array_to_image(array: np.ndarray, input_data_format: Any = None) -> Image.Image:
    """Convert an array of shape `(height, width)`, or with 1 to 4 channels first or last, to an 8-bit image."""
    if array.ndim == 3:
        if input_data_format is None and not {1, 3} & {array.shape[0], array.shape[-1]}:
            # Two or four channels include transparency. This is checked last, because a color image may have two or
            # four rows.
            input_data_format = infer_channel_dimension_format(array, num_channels=(2, 4))
        array = to_channel_dimension_format(array, ChannelDimension.LAST, input_data_format)
        if array.shape[-1] > 4:
            raise ValueError(f"An image has 1 to 4 channels, but the array has {array.shape[-1]}.")
        if array.shape[-1] == 1:
            array = array[..., 0]
    if array.dtype == np.bool_:
        # A grayscale array becomes an image of 1 bit, as if Pillow had read it from a file.
        return Image.fromarray(array if array.ndim == 2 else array.astype(np.uint8) * np.uint8(255))
    if array.dtype != np.uint8:
        if array.ndim == 3:  # drop transparency
            array = array[..., 0] if array.shape[-1] == 2 else array[..., :3]
        array = scale_to_8_bit(array)
    return Image.fromarray(np.ascontiguousarray(array))


def _with_channels(images: Any) -> Any:
    """Add a channel dimension to arrays and tensors of shape `(height, width)`, alone or in lists."""
    if isinstance(images, list | tuple):
        return [_with_channels(image) for image in images]
    return images[None] if getattr(images, "ndim", None) == 2 else images


def _crop_offset(length: int, crop: int) -> int:
    """Return the first pixel of a centered crop. It is negative if the image is smaller than the crop."""
    return int(round((length - crop) / 2.0)) if length >= crop else -((crop - length) // 2)


def _limit_aspect_ratio(image: Image.Image) -> Image.Image:
    width, height = image.size
    longest = min(width, height) * MAX_ASPECT_RATIO
    if max(width, height) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, width - left, height - top))


__all__ = ["BiomedCLIPImageProcessor", "scale_to_8_bit", "to_8_bit"]
