"""Saliency maps over images."""

import numpy as np
import pytest
import torch
from PIL import Image

from biomedclip.run_scripts.cli.overlays import draw_overlay, save_overlay


@pytest.fixture
def image():
    return Image.new("RGB", (12, 8), (100, 100, 100))


@pytest.fixture
def saliency():
    """NaN on the left, negative in the middle, and the maximum at the right edge."""
    row = [float("nan")] * 4 + [-3.0] * 4 + [0.0, 0.5, 1.0, 2.0]
    return torch.tensor([row] * 8)


def test_only_positive_values_are_colored_and_unseen_pixels_are_darker(image, saliency):
    pixels = np.asarray(draw_overlay(image, saliency)).astype(int)
    assert pixels.shape == (8, 12, 3)
    assert (pixels[:, :4] == 35).all()
    assert (pixels[:, 4:9] == 100).all()
    colorfulness = np.ptp(pixels[:, 9:], axis=-1)
    assert (np.diff(colorfulness[0]) > 0).all() and colorfulness[0, 0] > 0
    assert (pixels == pixels[:1]).all()


def test_the_scale_makes_maps_of_several_prompts_comparable(image, saliency):
    np.testing.assert_array_equal(draw_overlay(image, saliency, scale=2.0), draw_overlay(image, saliency))
    np.testing.assert_array_equal(draw_overlay(image, saliency / 2, scale=1.0), draw_overlay(image, saliency))
    weaker = np.asarray(draw_overlay(image, saliency, scale=20.0)).astype(int)
    assert np.ptp(weaker[:, 9:], axis=-1).max() < np.ptp(np.asarray(draw_overlay(image, saliency)), axis=-1).max()


def test_a_map_without_positive_values_is_not_colored(image):
    for value in (-1.0, 0.0):
        assert (np.asarray(draw_overlay(image, torch.full((8, 12), value))) == 100).all()


@pytest.mark.parametrize("mode", ["L", "I;16", "1", "P", "RGBA"])
def test_any_image_gives_a_png_file_of_its_size(mode, saliency, tmp_path):
    image = Image.new(mode, (12, 8))
    save_overlay(image, saliency, tmp_path / "overlay.png")
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert (overlay.format, overlay.mode, overlay.size) == ("PNG", "RGB", (12, 8))


def test_a_map_of_another_image_is_refused(image):
    with pytest.raises(ValueError, match=r"The map has shape \(12, 8\), but the image has 8 x 12 pixels"):
        draw_overlay(image, torch.zeros(12, 8))
