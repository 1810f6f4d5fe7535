"""Pixels: equal to open_clip's evaluation transform, and what we do where it is wrong."""

import io
import json

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms.functional import center_crop
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from biomedclip.processing import BiomedCLIPImageProcessor, bit_depth_biomedclip, read_image
from biomedclip.processing.image_processing_biomedclip import scale_to_8_bit, to_8_bit


MODES = ("RGB", "L", "RGBA", "P", "CMYK", "LA", "1", "YCbCr")


def noise(mode: str, width: int, height: int, generator: np.random.Generator) -> Image.Image:
    image = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode == "RGBA":
        image.putalpha(Image.fromarray(generator.integers(0, 256, (height, width), dtype=np.uint8)))
        return image
    return image.quantize(64) if mode == "P" else image.convert(mode)


def plain_transform(image: Image.Image) -> torch.Tensor:
    """The published evaluation transform, spelled out: resize in the image's mode, rounded crop, RGB, normalise."""
    width, height = image.size
    scaled = [224, int(224 * max(width, height) / min(width, height))]
    image = image.resize(tuple(scaled if width <= height else scaled[::-1]), Image.Resampling.BICUBIC)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)).convert("RGB")))
    pixels = pixels.permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std


def random_images(count: int):
    generator = np.random.default_rng(0)
    for number in range(count):
        width, height = (int(side) for side in generator.integers(1, 500, 2))
        if number % 20 == 0:
            width, height = 1, min(height, 100)
        elif number % 20 == 1:
            width, height = min(width, 100), 1
        yield noise(MODES[number % len(MODES)], width, height, generator)


def test_pixels_equal_the_published_transform_spelled_out():
    processor = BiomedCLIPImageProcessor()
    for image in random_images(80):
        ours = processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours, plain_transform(image)), (image.mode, image.size)


@pytest.fixture(scope="module")
def open_clips():
    """open_clip's evaluation transform of the published checkpoint."""
    return image_transform(
        224,
        is_train=False,
        mean=OPENAI_CLIP_MEAN,
        std=OPENAI_CLIP_STD,
        interpolation="bicubic",
        resize_mode="shortest",
    )


def test_pixels_equal_open_clips_for_300_random_images_of_every_mode(open_clips):
    processor = BiomedCLIPImageProcessor()
    for image in random_images(300):
        ours = processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours, open_clips(image)), (image.mode, image.size)


@pytest.mark.parametrize("size", [(9001, 6007), (40_000, 53), (3, 2900), (224, 224), (223, 225), (1, 1)])
def test_pixels_of_huge_odd_and_tiny_images_equal_open_clips(open_clips, size):
    row = np.random.default_rng(0).integers(0, 256, (1, size[0], 3), dtype=np.uint8)
    column = np.random.default_rng(1).integers(0, 256, (size[1], 1, 3), dtype=np.uint8)
    image = Image.fromarray(row ^ column)
    assert torch.equal(BiomedCLIPImageProcessor()(image, return_tensors="pt")["pixel_values"][0], open_clips(image))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_pixels_of_images_with_an_exif_orientation_equal_open_clips(open_clips, orientation, kind):
    image, exif = noise("RGB", 321, 250, np.random.default_rng(orientation)), Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    tagged = Image.open(buffer)
    assert tagged.getexif()[0x0112] == orientation
    expected = open_clips(Image.open(buffer))
    assert torch.equal(BiomedCLIPImageProcessor()(tagged, return_tensors="pt")["pixel_values"][0], expected)
    read = read_image(buffer.getvalue())
    assert torch.equal(BiomedCLIPImageProcessor()(read, return_tensors="pt")["pixel_values"][0], expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "CMYK"])
@pytest.mark.parametrize("steps", [(True, True), (True, False), (False, True), (False, False)])
def test_all_values_of_a_pixel_get_the_arithmetic_of_the_steps_that_are_asked_for(mode, steps):
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode)
    rescales, normalizes = steps
    expected = np.atleast_3d(np.asarray(image, dtype=np.float32)).transpose(2, 0, 1)
    expected = expected / np.float32(255) if rescales else expected
    expected = (expected - np.float32(0.4)) / np.float32(0.3) if normalizes else expected
    pixels = BiomedCLIPImageProcessor(do_resize=False, do_center_crop=False, do_convert_rgb=False)(
        image, return_tensors="np", do_rescale=rescales, do_normalize=normalizes, image_mean=[0.4], image_std=[0.3]
    )["pixel_values"][0]
    assert pixels.dtype == np.float32 and np.array_equal(pixels, expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_12_bit_radiograph_keeps_its_range(dtype):
    """Pillow's own conversion, which open_clip uses, clips at 255 and leaves it nearly all white."""
    ramp = np.linspace(0, 4095, 256 * 256).reshape(256, 256).astype(dtype)
    image = Image.fromarray(ramp)
    grey = np.asarray(to_8_bit(image))
    assert (grey.min(), grey.max()) == (0, 255)
    assert abs(grey.mean() - 127.5) < 1
    pixels = BiomedCLIPImageProcessor(do_normalize=False)(image, return_tensors="pt")["pixel_values"]
    assert 0.4 < pixels.mean() < 0.6
    if dtype is np.uint16:
        assert np.asarray(image.convert("RGB")).mean() > 230, "if Pillow did better, to_8_bit could go"


def test_the_range_is_that_of_the_data_for_values_that_fit_into_8_bits_too():
    values = np.arange(0, 64, 9, dtype=np.uint16).reshape(2, 4)
    assert np.asarray(to_8_bit(Image.fromarray(values))).tolist() == [[0, 36, 73, 109], [146, 182, 219, 255]]


def test_a_constant_image_of_16_bits_and_one_with_nan_are_black_where_they_have_no_range():
    assert np.asarray(to_8_bit(Image.fromarray(np.full((4, 4), 3000, dtype=np.uint16)))).max() == 0
    values = np.array([[np.nan, 500.0], [np.inf, 1000.0], [-np.inf, 700.0]], dtype=np.float32)
    assert np.asarray(to_8_bit(Image.fromarray(values))).tolist() == [[0, 0], [0, 255], [0, 102]]


def test_the_range_can_be_given_and_values_outside_are_clipped():
    for dtype in (np.int16, np.int64, np.float32):
        values = np.array([-5, 0, 10, 50, 100, 101], dtype=dtype)
        assert scale_to_8_bit(values, 0, 100).tolist() == [0, 0, 26, 128, 255, 255]
    assert scale_to_8_bit(np.array([0.0, 50.0]), lowest=-50).tolist() == [128, 255]
    assert scale_to_8_bit(np.array([2**63 + 5, 2**63 + 1], dtype=np.uint64), 2**63, 2**63 + 5).tolist() == [255, 51]


def test_large_arrays_are_scaled_in_blocks_to_the_same_values(monkeypatch):
    values = np.random.default_rng(0).normal(size=(70, 30)).astype(np.float32)
    values[20:30] = np.nan
    expected = scale_to_8_bit(values)
    monkeypatch.setattr(bit_depth_biomedclip, "_BLOCK", 100)
    assert np.array_equal(scale_to_8_bit(values), expected)
    assert np.array_equal(to_8_bit(Image.fromarray(values)), expected)


@pytest.mark.parametrize("crop", [(8, 8), (7, 8), (8, 5)])
def test_crops_are_those_of_torchvision_for_images_smaller_and_larger_than_the_crop(crop):
    """What lies outside the image is black, and the surplus pixel of an odd difference is on torchvision's side."""
    processor = BiomedCLIPImageProcessor(
        do_resize=False, do_normalize=False, do_rescale=False, crop_size={"height": crop[0], "width": crop[1]}
    )
    generator = np.random.default_rng(0)
    for height in range(1, 13):
        for width in range(1, 13):
            image = Image.fromarray(generator.integers(1, 256, (height, width, 3), dtype=np.uint8))
            expected = np.asarray(center_crop(image, crop)).transpose(2, 0, 1)
            assert np.array_equal(processor(image, return_tensors="np")["pixel_values"][0], expected), image.size


def test_arrays_and_tensors_give_the_pixels_of_the_image():
    image = noise("RGB", 300, 260, np.random.default_rng(1))
    processor = BiomedCLIPImageProcessor()
    expected = processor(image, return_tensors="pt")["pixel_values"]
    array = np.array(image)
    for other in (array, torch.from_numpy(array.transpose(2, 0, 1).copy()), array.astype(np.float64) / 255):
        assert torch.equal(processor(other, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_arrays_with_transparency_give_the_pixels_of_the_image(mode):
    image = noise(mode, 300, 260, np.random.default_rng(2))
    processor = BiomedCLIPImageProcessor()
    expected = processor(image, return_tensors="pt")["pixel_values"]
    for array in (np.array(image), np.array(image).transpose(2, 0, 1)):
        assert torch.equal(processor(array, return_tensors="pt")["pixel_values"], expected)


def test_an_array_of_four_rows_is_not_taken_for_one_of_four_channels():
    array = np.random.default_rng(3).integers(0, 256, (4, 40, 3), dtype=np.uint8)
    processor = BiomedCLIPImageProcessor()
    expected = processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(array, return_tensors="pt")["pixel_values"], expected)


def test_a_strip_of_one_pixel_does_not_exhaust_memory():
    strip = Image.fromarray(np.arange(200_000, dtype=np.uint32).astype(np.uint8)[None])
    assert BiomedCLIPImageProcessor()(strip, return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)


def test_another_size_can_be_asked_for():
    processor = BiomedCLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    assert processor(Image.new("L", (99, 70)), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


def test_saving_and_loading_changes_nothing(tmp_path):
    processor = BiomedCLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    assert BiomedCLIPImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_saved_alone_it_names_its_own_code_and_no_processor(small_processor, tmp_path):
    small_processor.save_pretrained(tmp_path / "processor")  # which writes itself into the image processor too
    small_processor.image_processor.save_pretrained(tmp_path / "alone")
    auto_map = json.loads((tmp_path / "alone" / "preprocessor_config.json").read_text())["auto_map"]
    assert auto_map == {"AutoImageProcessor": "image_processing_biomedclip.BiomedCLIPImageProcessor"}
    code = {path.name for path in (tmp_path / "alone").glob("*.py")}
    assert code == {"image_processing_biomedclip.py", "bit_depth_biomedclip.py"}
