"""Read untrusted images."""

import io

import numpy as np
import pytest
from helpers.mirror_writer import png_bytes
from PIL import Image

from biomedclip.processing import read_image
from biomedclip.processing.images import errors
from biomedclip.processing.images.reading import ImageError, decode_content, read_row_content, read_row_image


def test_a_path_bytes_a_file_a_row_and_an_image_are_all_read(tmp_path):
    content = png_bytes(1)
    (tmp_path / "a.png").write_bytes(content)
    expected = np.asarray(Image.open(io.BytesIO(content)))
    for source in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        f"file://{tmp_path}/a.png",
        content,
        io.BytesIO(content),
        {"bytes": content, "path": None},
        {"bytes": content, "path": "/nowhere/a.png"},
        Image.open(io.BytesIO(content)),
    ):
        assert np.array_equal(np.asarray(read_image(source)), expected)
        if not isinstance(source, str):
            source = io.BytesIO(content) if isinstance(source, io.BytesIO) else source
            assert np.array_equal(np.asarray(read_row_image(source)), expected)
    for source in (tmp_path / "a.png", content, {"bytes": content, "path": "/nowhere/a.png"}):
        found, name = read_row_content(source)
        assert found == content and np.array_equal(np.asarray(decode_content(found, name)), expected)
    with pytest.raises(ImageError, match="paths inside data rows are not opened"):
        read_row_content(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/nowhere/a.png", "/nowhere/a.png: cannot be read"),
        (b"", "empty"),
        (b"%PDF-1.7 no image", "not an image of a known format"),
        (png_bytes(1)[:300], "damaged or truncated"),
        (None, "no image"),
        ({"bytes": None, "path": None}, "neither bytes nor a path"),
        ({"bytes": "text", "path": None}, "the bytes of the image are of type str"),
        ({}, "neither bytes nor a path"),
        (7, "a value of type int is not an image"),
        (["a.png"], "a value of type list is not an image"),
        (bytearray(b"a"), "a value of type bytearray is not an image"),
    ],
)
def test_an_unreadable_image_is_a_clear_error(source, message):
    with pytest.raises(ImageError, match=message):
        read_image(source)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded():
    buffer = io.BytesIO()
    Image.new("1", (20_000, 9_000)).save(buffer, "PNG")
    with pytest.raises(ImageError, match="more than 175,000,000 pixels"):
        read_image(buffer.getvalue())


def test_a_large_scan_below_the_limit_is_read(monkeypatch):
    monkeypatch.setattr(errors, "MAX_PIXELS", 10_000 * 9_000)
    buffer = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(buffer, "PNG")
    assert read_image(buffer.getvalue()).size == (10_000, 9_000)
