"""Random crops, exact and fast."""

import io

import numpy as np
import pytest
from helpers.gradients import encode, position_gradient
from PIL import Image

from biomedclip.processing.images.cropping import fast_resized_crop, random_box, reduce_jpeg, resized_crop
from biomedclip.processing.images.reading import decode_image, open_image


def fast_crop(source, box, size) -> tuple[Image.Image, int]:
    image, name = open_image(source)
    reduction = reduce_jpeg(image, box, size)
    return fast_resized_crop(decode_image(image, name), box, size, reduction), reduction


def difference(exact: Image.Image, fast: Image.Image) -> float:
    """Return the mean difference, in levels."""
    return np.abs(np.asarray(exact).astype(int) - np.asarray(fast)).mean()


def test_crops_have_the_permitted_area_and_are_inside_the_image():
    image = position_gradient(256, 256)
    generator = np.random.default_rng(0)
    for _ in range(50):
        box = random_box(image.size, generator, (0.5, 0.6), (0.9, 1.1))
        crop = np.asarray(resized_crop(image, box, (256, 256))).astype(int)
        width, height = np.ptp(crop[..., 0]) + 1, np.ptp(crop[..., 1]) + 1
        assert 0.47 < width * height / 256**2 < 0.63  # a bicubic filter flattens the border


def test_a_very_narrow_image_is_cropped_at_its_center():
    crop = resized_crop(Image.new("L", (1, 500)), random_box((1, 500), np.random.default_rng(0)), (8, 8))
    assert crop.size == (8, 8) and crop.mode == "RGB"


@pytest.mark.parametrize("box", [(0, 0, 640, 480), (31, 17, 607, 471), (3, 5, 67, 69), (3, 5, 66, 69), (0, 0, 20, 480)])
def test_a_jpeg_is_decoded_at_the_smallest_sufficient_size(box):
    image, _ = open_image(encode(position_gradient(640, 480)))
    reduction = reduce_jpeg(image, box, (32, 32))
    image.load()
    assert image.size == (640 / reduction, 480 / reduction)
    shortest = min(box[2] - box[0], box[3] - box[1])
    assert reduction == 1 or shortest / reduction >= 32
    assert reduction == 8 or shortest / (2 * reduction) < 32


@pytest.mark.parametrize("size", [(640, 480), (643, 477), (301, 1001)])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_fast_crop_has_the_position_of_the_exact_one(size, mode):
    content = encode(position_gradient(*size).convert(mode))
    for seed in range(5):
        box = random_box(size, np.random.default_rng(seed), (0.3, 0.6))
        fast, reduction = fast_crop(content, box, (64, 64))
        assert reduction > 1 and fast.mode == "RGB" and fast.size == (64, 64)
        # Adjacent pixels of the result differ by about two levels, and rounding by half a level.
        assert difference(resized_crop(Image.open(io.BytesIO(content)), box, (64, 64)), fast) < 0.5


def test_fast_decoding_changes_pixels_of_real_figures_by_about_one_level(shared_data):
    reduced, whole = [], []
    for seed, path in enumerate(sorted((shared_data / "pmc_mirror").glob("PMC*/*.jpg"))[::8]):
        box = random_box(Image.open(path).size, np.random.default_rng(seed))
        fast, reduction = fast_crop(path, box, (224, 224))
        exact = resized_crop(decode_image(*open_image(path)), box, (224, 224))
        (reduced if reduction > 1 else whole).append(difference(exact, fast))
    assert len(reduced) > 20 and len(whole) > 10
    assert 0 < np.mean(reduced) < 1.5 and max(reduced) < 6
    assert max(whole) < 0.1
