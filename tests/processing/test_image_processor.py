"""The image processor compared with open_clip and torchvision, and its scaling of more than 8 bits."""

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


def random_images(count: int):
    generator = np.random.default_rng(0)
    for number in range(count):
        width, height = (int(side) for side in generator.integers(1, 500, 2))
        if number % 20 < 2:
            width, height = (1, min(height, 100)) if number % 20 == 0 else (min(width, 100), 1)
        yield noise(MODES[number % len(MODES)], width, height, generator)


@pytest.fixture(scope="module")
def open_clips():
    """open_clip's evaluation transform of the published checkpoint."""
    statistics = {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}
    return image_transform(224, is_train=False, interpolation="bicubic", resize_mode="shortest", **statistics)


def test_pixels_of_random_images_of_every_mode_equal_open_clip(open_clips):
    processor = BiomedCLIPImageProcessor()
    for image in random_images(160):
        ours = processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(ours, open_clips(image)), (image.mode, image.size)


@pytest.mark.parametrize("size", [(9001, 6007), (40_000, 53), (3, 2900), (224, 224), (223, 225), (1, 1)])
def test_pixels_of_large_and_small_images_equal_open_clip(open_clips, size):
    row = np.random.default_rng(0).integers(0, 256, (1, size[0], 3), dtype=np.uint8)
    column = np.random.default_rng(1).integers(0, 256, (size[1], 1, 3), dtype=np.uint8)
    image = Image.fromarray(row ^ column)
    assert torch.equal(BiomedCLIPImageProcessor()(image, return_tensors="pt")["pixel_values"][0], open_clips(image))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "CMYK"])
@pytest.mark.parametrize("steps", [(True, True), (True, False), (False, True), (False, False)])
def test_rescaling_and_normalization_are_exact_for_every_pixel_value(mode, steps):
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert(mode)
    rescales, normalizes = steps
    expected = np.atleast_3d(np.asarray(image, dtype=np.float32)).transpose(2, 0, 1)
    expected = expected / np.float32(255) if rescales else expected
    expected = (expected - np.float32(0.4)) / np.float32(0.3) if normalizes else expected
    pixels = BiomedCLIPImageProcessor(do_resize=False, do_center_crop=False, do_convert_rgb=False)(
        image, return_tensors="np", do_rescale=rescales, do_normalize=normalizes, image_mean=[0.4], image_std=[0.3]
    )["pixel_values"][0]
    assert pixels.dtype == np.float32 and np.array_equal(pixels, expected)


def test_a_12_bit_radiograph_keeps_its_range():
    """Pillow, and therefore open_clip, clips at 255, so that the image is nearly all white."""
    image = Image.fromarray(np.linspace(0, 4095, 256 * 256).reshape(256, 256).astype(np.uint16))
    pixels = BiomedCLIPImageProcessor(do_normalize=False)(image, return_tensors="pt")["pixel_values"]
    assert 0.4 < pixels.mean() < 0.6
    assert np.asarray(image.convert("RGB")).mean() > 230, "otherwise to_8_bit is no longer needed"


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
def test_crops_of_smaller_and_larger_images_equal_torchvision(crop):
    processor = BiomedCLIPImageProcessor(
        do_resize=False, do_normalize=False, do_rescale=False, crop_size={"height": crop[0], "width": crop[1]}
    )
    generator = np.random.default_rng(0)
    for height in range(1, 13):
        for width in range(1, 13):
            image = Image.fromarray(generator.integers(1, 256, (height, width, 3), dtype=np.uint8))
            expected = np.asarray(center_crop(image, crop)).transpose(2, 0, 1)
            assert np.array_equal(processor(image, return_tensors="np")["pixel_values"][0], expected), image.size


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_the_exif_orientation_is_ignored_as_in_open_clip(open_clips, kind):
    for orientation in range(1, 9):
        image, exif = noise("RGB", 321, 250, np.random.default_rng(orientation)), Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        image.save(buffer, kind, exif=exif)
        expected = open_clips(Image.open(buffer))
        assert Image.open(buffer).getexif()[0x0112] == orientation
        for tagged in (Image.open(buffer), read_image(buffer.getvalue())):
            assert torch.equal(BiomedCLIPImageProcessor()(tagged, return_tensors="pt")["pixel_values"][0], expected)


def test_arrays_and_tensors_give_the_pixels_of_the_image():
    processor = BiomedCLIPImageProcessor()
    images = [noise(mode, 300, 260, np.random.default_rng(1)) for mode in ("RGB", "RGBA", "LA")]
    images.append(noise("RGB", 40, 4, np.random.default_rng(3)))  # four rows are not four channels
    for image in images:
        expected = processor(image, return_tensors="pt")["pixel_values"]
        array = np.array(image)
        for other in (array, torch.from_numpy(array.transpose(2, 0, 1).copy())):
            assert torch.equal(processor(other, return_tensors="pt")["pixel_values"], expected)


def test_a_strip_of_one_pixel_does_not_exhaust_memory():
    strip = Image.fromarray(np.arange(200_000, dtype=np.uint32).astype(np.uint8)[None])
    assert BiomedCLIPImageProcessor()(strip, return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)


def test_saving_keeps_the_settings_and_adds_only_the_code_of_the_image_processor(small_processor, tmp_path):
    processor = BiomedCLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path)
    loaded = BiomedCLIPImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded(Image.new("L", (99, 70)), return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)
    small_processor.save_pretrained(tmp_path / "processor")  # adds itself to the image processor
    small_processor.image_processor.save_pretrained(tmp_path / "alone")
    auto_map = json.loads((tmp_path / "alone" / "preprocessor_config.json").read_text())["auto_map"]
    assert auto_map == {"AutoImageProcessor": "image_processing_biomedclip.BiomedCLIPImageProcessor"}
    code = {path.name for path in (tmp_path / "alone").glob("*.py")}
    assert code == {"image_processing_biomedclip.py", "bit_depth_biomedclip.py"}
