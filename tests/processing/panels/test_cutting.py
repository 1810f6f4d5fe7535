"""Recursive X-Y cut on drawn figures, whose panels are known."""

import pytest
from PIL import Image, ImageCms

from biomedclip.processing.panels import cut_panels


def figure(boxes, size=(600, 400), background="white", ink="black"):
    image = Image.new("RGB", size, background)
    for box in boxes:
        image.paste(ink, box)
    return image


GRID = [(10, 10, 290, 190), (310, 10, 590, 190), (10, 210, 290, 390), (310, 210, 590, 390)]
NESTED = [(10, 10, 290, 390), (310, 10, 590, 190), (310, 210, 590, 390)]


@pytest.mark.parametrize("boxes", [GRID, NESTED, GRID[:3]], ids=["grid", "nested", "empty corner"])
@pytest.mark.parametrize(("background", "ink"), [("white", "black"), ("black", "white"), ("#808080", "black")])
def test_panels_between_empty_stripes_are_found(boxes, background, ink):
    assert sorted(cut_panels(figure(boxes, background=background, ink=ink))) == sorted(boxes)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "YCbCr", "LAB", "1", "I;16", "F"])
def test_figures_of_any_mode_are_cut(mode):
    image = figure(GRID)
    if mode in ("I;16", "F"):
        image = image.convert("L").convert("I").point(lambda value: value * 250).convert(mode)
    if mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), lab, outputMode="LAB")
    assert sorted(cut_panels(image.convert(mode) if image.mode == "RGB" else image)) == sorted(GRID)


def test_the_background_of_a_transparent_figure_is_white():
    image = Image.new("RGBA", (600, 400))  # transparent black
    for box in GRID:
        image.paste((0, 0, 0, 255), box)
    assert sorted(cut_panels(image)) == sorted(GRID)


@pytest.mark.parametrize("scale", [3, 10])
def test_boxes_are_in_pixels_of_the_original(scale):
    large = figure(GRID).resize((600 * scale, 400 * scale), Image.Resampling.NEAREST)
    for found, box in zip(sorted(cut_panels(large)), sorted(GRID), strict=True):
        # The figure is cut at 800 pixels, so an edge is right to half of such a pixel and one of rounding.
        assert all(abs(a - b * scale) <= large.width / 800 + 1 for a, b in zip(found, box, strict=True))


def test_small_things_beside_a_panel_belong_to_it():
    assert cut_panels(figure([(10, 10, 590, 300), (250, 320, 350, 340)])) == [(0, 0, 600, 400)]


@pytest.mark.parametrize("image", [Image.new("L", (300, 200)), Image.new("1", (1, 1)), Image.new("RGBA", (5, 4000))])
def test_a_figure_without_stripes_is_one_panel(image):
    assert cut_panels(image) == [(0, 0, *image.size)]
