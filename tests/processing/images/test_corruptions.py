"""Corruptions of images of any mode and size, seeded by the name of the image."""

import numpy as np
import pytest
from PIL import Image

from biomedclip.processing.images.corruptions import (
    STRENGTHS,
    CorruptedImages,
    corrupt,
    corruption_names,
    find_corruption,
)
from biomedclip.processing.images.errors import ImageError


NAMES = corruption_names()


def drawn(mode: str = "L", size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A gradient with some texture."""
    across, down = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    values = (across + down + np.sin(20 * across)) / 4 + 0.25
    if mode == "I;16":
        return Image.fromarray((values * 4095).astype(np.uint16))
    if mode == "F":
        return Image.fromarray(values.astype(np.float32))
    return Image.fromarray((values * 255).clip(0, 255).astype(np.uint8)).convert(mode)


@pytest.mark.parametrize("name", NAMES)
def test_strength_zero_is_the_image_itself_and_stronger_means_further_from_it(name):
    texture = np.random.default_rng(0).integers(-30, 30, size=(256, 256))
    pixels = (np.asarray(drawn("L", (256, 256)), dtype=int) + texture).clip(0, 255)
    image = Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    assert corrupt(image, name, 0, image_name="a") is image
    before = np.asarray(image, dtype=float)
    distances = [
        np.abs(np.asarray(corrupt(image, name, strength, image_name="a"), dtype=float) - before).mean()
        for strength in range(1, STRENGTHS + 1)
    ]
    assert 0 < distances[0] and distances == sorted(distances)
    assert np.array_equal(np.asarray(image), before), "the image is unchanged"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (40, 31), (7, 300)])
def test_images_of_any_mode_and_size_can_be_corrupted(name, mode, size):
    result = corrupt(drawn(mode, size), name, 5, image_name="a")
    assert result.size == size
    assert result.mode == ("L" if mode in ("L", "LA", "1", "I;16", "F") else "RGB")


@pytest.mark.parametrize("name", NAMES)
def test_what_is_random_depends_on_the_name_of_the_image_and_the_seed(name):
    image = drawn()

    def pixels(image_name, seed=0):
        return corrupt(image, name, 4, image_name=image_name, seed=seed).tobytes()

    assert pixels("a") == pixels("a")
    names = [f"{number} ü 'x'.png" for number in range(12)]
    is_random = name in ("noise", "rotation", "text", "mark")
    assert (len({pixels(name) for name in names}) > 1) == is_random
    assert (len({pixels("a", seed) for seed in range(12)}) > 1) == is_random


def test_twelve_bits_are_scaled_as_the_image_processor_does():
    assert np.asarray(corrupt(drawn("I;16"), "contrast", 1)).std() > 10, "not clipped at 255"


def test_noise_and_contrast_are_what_their_units_say():
    image = Image.new("L", (300, 300), 128)
    noise = np.asarray(corrupt(image, "noise", 2), dtype=float) - 128
    assert noise.std() == pytest.approx(255 * find_corruption("noise").strengths[1], rel=0.02)
    assert abs(noise.mean()) < 0.5
    gray = np.asarray(corrupt(image.convert("RGB"), "noise", 3))
    assert np.array_equal(gray[..., 0], gray[..., 2]), "gray images stay gray"
    pixels = np.asarray(drawn(), dtype=float)
    weaker = np.asarray(corrupt(drawn(), "contrast", 2), dtype=float)
    assert weaker.std() == pytest.approx(pixels.std() * 0.5, rel=0.01)
    assert weaker.mean() == pytest.approx(pixels.mean(), abs=0.5)


def test_noise_and_blur_look_the_same_at_other_sizes():
    small, large = drawn("L", (224, 224)), drawn("L", (896, 896))
    for name in ("noise", "blur", "resolution", "mark"):
        results = [
            corrupt(image, name, 4, image_name="a").resize((56, 56), Image.Resampling.BOX) for image in (small, large)
        ]
        differences = np.abs(np.asarray(results[0], dtype=float) - np.asarray(results[1], dtype=float))
        assert differences.mean() < 6, name


def test_large_images_are_reduced_first():
    assert corrupt(drawn("L", (3000, 2048)), "blur", 1).size == (1500, 1024)
    assert corrupt(drawn("L", (20000, 8)), "jpeg", 1).size == (8192, 3)


def test_marks_and_text_are_in_the_square_that_models_see():
    image = Image.new("L", (400, 100), 60)
    for name in ("mark", "text"):
        changed = np.asarray(corrupt(image, name, 3, image_name="a")) != 60
        columns = np.flatnonzero(changed.any(axis=0))
        assert 150 <= columns.min() and columns.max() < 250, name


@pytest.mark.parametrize("background", [0, 128, 255])
@pytest.mark.parametrize("size", [48, 64, 224, 1024])
def test_text_and_marks_can_be_seen_at_each_strength_and_size(size, background):
    image = Image.new("L", (size, size), background)
    for name, least in (("text", 4), ("mark", 2)):
        heights = []
        for strength in range(1, STRENGTHS + 1):
            pixels = np.asarray(corrupt(image, name, strength, image_name="a"), dtype=int)[: size // 2]
            rows = np.flatnonzero((np.abs(pixels - background) > 100).any(axis=1))
            heights.append(rows.max() - rows.min() + 1)
        assert heights[0] >= least and heights == sorted(heights), (name, heights)
        assert heights[-1] <= size // 3, name


def test_artifacts_of_jpeg_are_as_large_on_large_images_as_where_models_see_them():
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, size=(224, 224), dtype=np.uint8))
    small = small.resize((28, 28), Image.Resampling.BOX).resize((224, 224), Image.Resampling.BICUBIC)
    large = small.resize((1024, 1024), Image.Resampling.BICUBIC)
    added = []
    for image in (small, large):
        difference = np.asarray(corrupt(image, "jpeg", 5), dtype=float) - np.asarray(image, dtype=float)
        seen = Image.fromarray(difference.astype(np.float32)).resize((224, 224), Image.Resampling.BOX)
        added.append(np.asarray(seen))
    assert np.abs(added[1]).mean() == pytest.approx(np.abs(added[0]).mean(), rel=0.25)
    assert np.corrcoef(added[0].ravel(), added[1].ravel())[0, 1] > 0.9


def test_unknown_names_and_strengths_are_errors():
    with pytest.raises(ValueError, match="Unknown corruption 'nois'. Did you mean 'noise'. Choose from noise, blur"):
        corrupt(drawn(), "nois", 1)
    for strength in (-1, 6):
        with pytest.raises(ValueError, match=f"strength={strength} must be from 0 to 5"):
            corrupt(drawn(), "noise", strength)


def test_corrupted_images_are_read_on_access_and_damaged_ones_stay_damaged(tmp_path):
    drawn().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    images = CorruptedImages([tmp_path / "a.png", tmp_path / "b.png"], ["a", "b"], "blur", 2)
    assert len(images) == 2
    assert images[0].tobytes() == corrupt(drawn(), "blur", 2, image_name="a").tobytes()
    with pytest.raises(ImageError):
        images[1]
