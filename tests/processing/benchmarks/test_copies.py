"""Copies of test images among training images."""

import io
from pathlib import Path

import numpy as np
from helpers.benchmark_files import drawn_pixels, save_drawn
from PIL import Image

from biomedclip.processing.benchmarks.copies import find_copies
from biomedclip.processing.images.labeled import LabeledImages


def images_of(*images, names=None, groups=None) -> LabeledImages:
    names = names or [f"{number}.png" for number in range(len(images))]
    return LabeledImages(list(images), ["a"] * len(images), names, groups)


def saved(seed: int, how: str) -> bytes:
    image = Image.fromarray(drawn_pixels(seed, 96))
    stream = io.BytesIO()
    if how == "half":
        image.resize((48, 48)).save(stream, "PNG")
    else:
        image.save(stream, "JPEG" if how == "jpeg" else "BMP", quality=85)
    return stream.getvalue()


def test_files_and_pictures_in_other_formats_and_sizes_are_found_by_name(tmp_path: Path):
    save_drawn(tmp_path / "shot.png", 1, 96)
    train = images_of(tmp_path / "shot.png", drawn_to_png(2), names=["shot.png", "other.png"])
    test = images_of(
        *(tmp_path / "shot.png", saved(1, "jpeg"), saved(1, "half"), saved(2, "bmp"), drawn_to_png(3)),
        names=["same.png", "jpeg.jpg", "half.png", "bmp.bmp", "new.png"],
    )
    assert [(copy.test, copy.train, copy.reason, copy.row) for copy in find_copies(train, test)] == [
        ("same.png", "shot.png", "the same file", 0),
        ("jpeg.jpg", "shot.png", "the same picture", 0),
        ("half.png", "shot.png", "the same picture", 0),
        ("bmp.bmp", "other.png", "the same picture", 1),
    ]


def drawn_to_png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(drawn_pixels(seed, 96)).save(stream, "PNG")
    return stream.getvalue()


def test_images_of_one_patient_are_copies_and_blank_or_damaged_images_are_none():
    blank = Image.fromarray(np.full((32, 32), 7, np.uint8))
    train = images_of(drawn_to_png(1), blank, b"no image", groups=["p1", "p2", "p3"])
    test = images_of(drawn_to_png(5), blank.resize((40, 40)), b"nothing", groups=["p1", "p9", "p8"])
    (found,) = find_copies(train, test)
    assert (found.test, found.train, found.reason) == ("0.png", "0.png", "both are of 'p1'")
    assert find_copies(images_of(), test) == []
