"""One definition of the same image, for leaks and for copies."""

import io

import numpy as np
import pytest
from helpers.benchmark_files import drawn_pixels
from PIL import Image, ImageFilter

from biomedclip.processing.benchmarks.same_images import KnownImages, looks_of


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(drawn_pixels(1, 96)).filter(ImageFilter.GaussianBlur(1))


def reasons(known: Image.Image, other: Image.Image, *, reverse: bool = False) -> set[str]:
    first, second = (other, known) if reverse else (known, other)
    return set(KnownImages([looks_of(png(first))]).find(looks_of(png(second))))


def test_copies_are_the_same_for_all_reasons_that_apply(image):
    assert reasons(image, image) == {"same_bytes", "same_pixels", "same_picture"}
    again = io.BytesIO()
    image.save(again, "PNG", compress_level=1)
    assert set(KnownImages([looks_of(png(image))]).find(looks_of(again.getvalue()))) == {"same_pixels", "same_picture"}
    assert set(KnownImages([looks_of(image)]).find(looks_of(png(image)))) == {"same_pixels", "same_picture"}
    for reverse in (False, True):
        assert reasons(image, image.resize((48, 48)), reverse=reverse) == {"same_picture"}
        assert reasons(image, image.convert("RGBA"), reverse=reverse) == {"same_picture"}


def test_an_image_that_only_looks_alike_is_similar_but_not_the_same(image):
    brighter = image.point(lambda value: 60 + value // 2)
    assert looks_of(brighter).picture and reasons(image, brighter) == {"similar"}
    assert reasons(image, Image.fromarray(drawn_pixels(2, 96))) == set()


def test_the_most_similar_of_several_images_is_found(image):
    brighter = image.point(lambda value: 60 + value // 2)
    known = KnownImages([looks_of(png(each)) for each in (brighter, image.resize((40, 40)), image.resize((64, 64)))])
    assert known.find(looks_of(png(image))) == {"same_picture": 2}


def test_blank_images_are_the_same_only_as_files_and_damaged_ones_state_why():
    blank = Image.fromarray(np.full((32, 32), 7, np.uint8))
    assert reasons(blank, blank) == {"same_bytes"} and reasons(blank, blank.resize((16, 16))) == set()
    damaged = looks_of(b"no image")
    assert damaged.error and damaged.picture == "" and KnownImages([damaged]).find(damaged) == {"same_bytes": 0}
    assert KnownImages([looks_of(b"")]).find(looks_of(b"")) == {} and KnownImages([]).find(looks_of(png(blank))) == {}
