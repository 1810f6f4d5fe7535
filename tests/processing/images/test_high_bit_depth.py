"""Images of more than 8 bits, or with signed or float samples, are scaled from the range of the data."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiff_writer import COMPRESSIONS, png16, tiff
from PIL import Image

from biomedclip.processing import BiomedCLIPImageProcessor, read_image
from biomedclip.processing.image_processing_biomedclip import to_8_bit
from biomedclip.processing.images import errors, reading
from biomedclip.processing.images.high_bit_depth import find_deep_image
from biomedclip.processing.images.perceptual_hash import perceptual_hash
from biomedclip.processing.images.reading import ImageError
from biomedclip.processing.pmc.images import inspect_image


UP = [0, 36, 73, 109, 146, 182, 219, 255]
DOWN = UP[::-1]
FAULTS = Path(__file__).parents[2] / "data" / "faults"
PROCESSOR = BiomedCLIPImageProcessor()

RANGES_OF = {
    np.uint16: [(0, 65535), (0, 4095), (100, 163), (30_000, 60_000)],
    np.int16: [(-32768, 32767), (-1024, 3071)],
    np.uint32: [(0, 2**32 - 1), (3_000_000_000, 4_000_000_000), (0, 1000)],
    np.int32: [(-(2**31), 2**31 - 1), (-70_000, 70_000)],
    np.int8: [(-128, 127), (-63, 0)],
    np.uint64: [(0, 2**64 - 1), (2**63, 2**63 + 6300)],
    np.int64: [(-(2**62), 2**62)],
    np.float16: [(0, 1), (-100, 100)],
    np.float32: [(0, 1), (0, 255), (-1000.5, 3000.25), (1e-30, 3e-30), (-3e38, 3e38)],
    np.float64: [(0, 1), (0.25, 0.75), (-1e308, 1e308), (1e-300, 2e-300)],
}
RANGES = [(dtype, *ends) for dtype, ranges in RANGES_OF.items() for ends in ranges]


def ramp(dtype, lowest=0, highest=1, size: int = 64) -> np.ndarray:
    """Return rows that rise from the lowest to the highest value."""
    if np.dtype(dtype).kind == "f":
        row = lowest * (1 - np.arange(size) / (size - 1)) + highest * (np.arange(size) / (size - 1))
    else:
        row = [lowest + round((highest - lowest) * column * 65536 // (size - 1) / 65536) for column in range(size)]
        row[-1] = highest
    return np.tile(np.array(row, dtype=dtype), (size, 1))


def color_ramp(dtype, lowest, highest, samples: int) -> np.ndarray:
    """Return a ramp, its mirror image, its half, and a constant as channels of an image."""
    rising = ramp(dtype, lowest, highest)
    constant = np.full_like(rising, highest // 4)
    return np.stack([rising, rising[:, ::-1], rising // 2, constant][:samples], axis=-1)


def shades(image) -> np.ndarray:
    return np.asarray(to_8_bit(image))[40, ::9].astype(int)


def pixel_values(image) -> torch.Tensor:
    return PROCESSOR(image, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("photometric", [1, 0], ids=["black is zero", "white is zero"])
@pytest.mark.parametrize(("dtype", "lowest", "highest"), RANGES)
def test_a_gray_tiff_of_any_type_uses_the_range_of_its_values(dtype, lowest, highest, photometric):
    for byteorder in "<>":
        content = tiff(ramp(dtype, lowest, highest), photometric, byteorder)
        assert shades(read_image(content)).tolist() == (UP if photometric else DOWN)


@pytest.mark.parametrize(("dtype", "lowest", "highest"), RANGES)
def test_a_file_and_an_array_of_the_same_values_give_the_same_pixels(dtype, lowest, highest):
    values = ramp(dtype, lowest, highest, size=250)[:, :240]
    expected = pixel_values(read_image(tiff(values)))
    for array in (values, values[None], values[..., None], [values], [values[None]]):
        assert torch.equal(pixel_values(array), expected)
    if dtype not in (np.uint16, np.uint32, np.uint64):
        assert torch.equal(pixel_values(torch.from_numpy(values)), expected)
    assert torch.equal(pixel_values(values.astype(values.dtype.newbyteorder(">"))), expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_a_color_file_and_its_array_use_one_range_for_all_channels_and_drop_transparency(dtype, samples):
    values = color_ramp(np.int64, 0, 4095 if dtype != np.uint8 else 255, samples)
    expected = np.round(values[..., : 1 if samples == 2 else 3] * 255 / values.max())
    values = values.astype(dtype)
    content = tiff(values, photometric=1 if samples == 2 else 2, extra_samples=samples % 2 == 0)
    assert np.array_equal(to_8_bit(read_image(content)).convert("RGB"), np.broadcast_to(expected, (64, 64, 3)))
    pixels = pixel_values(read_image(content))
    assert torch.equal(pixel_values(values), pixels)
    assert torch.equal(pixel_values(values.transpose(2, 0, 1)), pixels)
    assert torch.equal(pixel_values(list(values[None])), pixels)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("highest", [1023, 4095, 65535])
def test_a_16_bit_png_uses_the_range_of_its_values(samples, interlaced, highest):
    values = color_ramp(np.uint16, 0, highest, samples)
    # Noise uses every filter of the format, and both bytes of each sample.
    values[8:] = np.random.default_rng(0).integers(0, highest + 1, values[8:].shape)
    image = read_image(png16(values, interlaced))
    assert image.mode == ("I;16" if samples < 3 else "RGB")
    color = values[..., : 1 if samples < 3 else 3].astype(float)
    expected = np.round(color * 255 / highest)
    assert np.array_equal(np.asarray(to_8_bit(image)).reshape(expected.shape), expected)
    assert torch.equal(pixel_values(values), pixel_values(image))


LAYOUTS = [
    {"compression": name, "predictor": predictor, "byteorder": byteorder, **layout}
    for name in COMPRESSIONS
    for predictor in (1, 2)
    for byteorder in "<>"
    for layout in (
        [{}, {"planar": True}, {"rows_per_strip": 13}, {"tile": 16}, {"tile": 32, "planar": True}, {"big": True}]
        if name in (None, "deflate")
        else [{}]
    )
    if not (byteorder == ">" and layout.get("big"))
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_of_a_tiff_gives_the_same_pixels(layout):
    values = np.random.default_rng(0).integers(0, 4096, (45, 67, 3)).astype(np.uint16)
    values[0, 0], values[0, 1] = 0, 4095
    expected = np.round(values.astype(float) * 255 / 4095)
    assert np.array_equal(read_image(tiff(values, **layout)), expected)
    gray = values[..., 0].astype(np.uint32) * 65536 + 77
    expected = to_8_bit(Image.fromarray(values[..., 0]))
    assert np.array_equal(to_8_bit(read_image(tiff(gray, **layout))), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", [{}, {"tile": 16}, {"rows_per_strip": 7}, {"planar": True}], ids=str)
def test_the_floating_point_predictor_is_undone(dtype, layout):
    values = np.random.default_rng(0).normal(0, 100, (45, 67, 3)).astype(dtype)
    for pixels in (values, values[..., 0]):
        plain = read_image(tiff(pixels))
        for byteorder in "<>":
            content = tiff(pixels, predictor=3, compression="deflate", byteorder=byteorder, **layout)
            assert np.array_equal(to_8_bit(read_image(content)), to_8_bit(plain))


def with_numbers(content: bytes, numbers: dict[int, int]) -> bytes:
    """Return a TIFF file with other values of tags."""
    changed = bytearray(content)
    for tag, number in numbers.items():
        place = content.index(struct.pack("<HHL", tag, 4, 1))
        changed[place + 8 : place + 12] = struct.pack("<L", number)
    return bytes(changed)


def packed_tiff(bits: int, photometric: int = 1, **layout) -> bytes:
    """Return a file of a ramp whose samples are not aligned to bytes."""
    values = ramp(np.uint16, 0, 2**bits - 1)
    packed = np.packbits((values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(64, -1), axis=1)
    return with_numbers(tiff(packed, photometric, **layout), {256: 64, 258: bits})


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
def test_packed_samples_are_unpacked_unless_they_are_in_tiles_or_have_a_predictor(bits):
    for photometric, expected in ((1, UP), (0, DOWN)):
        assert shades(read_image(packed_tiff(bits, photometric))).tolist() == expected
    for layout in ({"tile": 16}, {"compression": "deflate", "predictor": 2}):
        assert find_deep_image(packed_tiff(bits, **layout)) is None, "left to Pillow"


@pytest.mark.parametrize(
    "content",
    [packed_tiff(12), *(tiff(ramp(dtype, 0, 255)) for dtype in (np.uint16, np.int16, np.int32, np.float32))],
    ids=["12 bits", "uint16", "int16", "int32", "float32"],
)
def test_gray_samples_that_pillow_reads_exactly_are_left_to_pillow(content):
    assert find_deep_image(content) is None
    assert shades(read_image(content)).tolist() == UP


@pytest.mark.parametrize(("tag", "odd"), [(258, 8), (339, 3)], ids=["bits", "formats"])
def test_a_tiff_with_samples_of_different_types_is_left_to_pillow(tag, odd):
    usual = {258: 16, 339: 1}[tag]
    before, after = (struct.pack("<3L", usual, usual, last) for last in (usual, odd))
    content = tiff(np.zeros((4, 4, 3), np.uint16))
    assert find_deep_image(content) is not None and content.count(before) == 1
    assert find_deep_image(content.replace(before, after)) is None


def test_missing_tags_of_a_tiff_have_their_default_values():
    values = ramp(np.uint32, 0, 1000)
    bare = tiff(values, without=(259, 262, 277, 278, 284, 317, 339))
    assert np.array_equal(read_image(bare), read_image(tiff(values)))


@pytest.mark.parametrize(
    ("lowest", "highest", "mode"), [(-(2**31), 2**31 - 1, "I"), (-(2**31) - 1, 0, "L"), (0, 2**31, "L")]
)
def test_integers_keep_their_precision_if_they_fit_in_32_bits(lowest, highest, mode):
    values = ramp(np.int64, lowest, highest)
    image = read_image(tiff(values))
    assert image.mode == mode and shades(image).tolist() == UP
    if mode == "I":
        assert np.array_equal(image, values)


def test_separate_planes_need_as_much_memory_as_samples_that_are_stored_together():
    values = np.zeros((50, 40, 3), np.uint16)
    together, separate = (find_deep_image(tiff(values, planar=planar)) for planar in (False, True))
    assert together.bytes_to_decode == separate.bytes_to_decode > 2 * values.nbytes


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_and_infinities_are_black_and_ignored_for_the_range(dtype):
    values = ramp(dtype, 1000, 2000)
    values[:4] = np.array([np.nan, np.inf, -np.inf, np.nan])[:, None]
    for photometric, expected in ((1, UP), (0, DOWN)):
        image = read_image(tiff(values, photometric))
        assert shades(image).tolist() == expected
        assert not np.asarray(to_8_bit(image))[:4].any()
    assert torch.equal(pixel_values(values), pixel_values(read_image(tiff(values))))
    assert perceptual_hash(read_image(tiff(values)))
    assert perceptual_hash(Image.fromarray(np.full((64, 64), np.nan, np.float32))) == ""


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(0.5, "f4"), (np.nan, "f4"), (np.inf, "f4"), (-7, "f8"), (200, "u2"), (3000, "u2"), (200, "u1")],
)
@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3)])
def test_a_constant_image_is_black_unless_it_has_8_bits(value, dtype, shape):
    values = np.full(shape, value, dtype)
    image = read_image(tiff(values))
    assert np.unique(np.asarray(to_8_bit(image))).tolist() == [200 if dtype == "u1" else 0]
    assert torch.equal(pixel_values(values), pixel_values(image))


def test_halves_are_rounded_to_even():
    for values, expected in (
        ([0, 1, 3, 5, 7, 508, 509, 510], [0, 0, 2, 2, 4, 254, 254, 255]),
        ([0, 8, 9, 24, 25, 4086, 4087, 4095], [0, 0, 1, 1, 2, 254, 255, 255]),
    ):
        assert np.asarray(to_8_bit(Image.fromarray(np.array([values], np.uint16)))).tolist() == [expected]


def test_a_boolean_array_is_read_like_an_image_of_black_and_white():
    values = np.random.default_rng(0).integers(0, 2, (300, 260)).astype(bool)
    Image.fromarray(values).save(buffer := io.BytesIO(), "PNG")
    assert torch.equal(pixel_values(values), pixel_values(read_image(buffer.getvalue())))
    color = np.stack([values, ~values, values], axis=-1)
    assert torch.equal(pixel_values(color), pixel_values(color.astype(np.uint8) * np.uint8(255)))


def test_a_bfloat16_tensor_that_needs_a_gradient_is_read():
    values = torch.from_numpy(ramp(np.float32, 0, 63).astype(np.float32)).to(torch.bfloat16)
    expected = pixel_values(values.float().numpy())
    assert torch.equal(pixel_values(values.requires_grad_()), expected)


@pytest.mark.parametrize("values", [np.zeros((4, 4), complex), np.zeros((8, 8, 5), np.float32)])
def test_an_array_that_is_not_an_image_is_a_clear_error(values):
    with pytest.raises(ValueError, match="integers, booleans or floats|channel"):
        PROCESSOR(values, input_data_format="channels_last")


def test_8_bit_files_are_read_by_pillow(monkeypatch):
    monkeypatch.setattr(reading, "_read_deep_image", None)
    values = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    for pixels in (values, values[..., :3], values[..., 0]):
        assert np.array_equal(read_image(tiff(pixels)), pixels)
    assert np.array_equal(read_image(tiff(values[..., 0], photometric=0)), 255 - values[..., 0])


@pytest.mark.parametrize(
    "content",
    [
        tiff(np.zeros((30, 30, 3), np.uint16))[:900],
        tiff(np.zeros((30, 30, 3), np.uint16), compression="deflate", byteorder=">").replace(b"\x78\x9c", b"\x78\x00"),
        png16(np.random.default_rng(0).integers(0, 65536, (20, 20, 3)).astype(np.uint16))[:900],
    ],
    ids=["cut TIFF", "damaged TIFF", "cut PNG"],
)
def test_a_damaged_file_is_an_image_error(content):
    with pytest.raises(ImageError):
        read_image(content)


@pytest.mark.parametrize(
    "content",
    [
        with_numbers(tiff(np.zeros((4, 4, 3), np.uint16)), {256: 2**20}),
        png16(np.zeros((4, 4, 3), np.uint16)).replace(struct.pack(">LL", 4, 4), struct.pack(">LL", 2**20, 2**20)),
        with_numbers(tiff(np.zeros((16, 16), np.float64), tile=16), {322: 2**30}),
    ],
    ids=["wide TIFF", "large PNG", "large tile"],
)
def test_an_image_that_needs_too_much_memory_is_refused_before_decoding(content, monkeypatch):
    monkeypatch.setattr(errors, "MAX_BYTES", 10_000_000)
    with pytest.raises(ImageError) as refused:
        read_image(content)
    assert refused.value.reason == "image too large"


def test_images_of_more_than_8_bits_have_the_mode_pages_and_hash_of_their_content():
    picture = np.random.default_rng(0).integers(0, 8, (8, 8)).repeat(20, 0).repeat(20, 1)
    gray = Image.fromarray((picture * 36).astype(np.uint8))
    expected = perceptual_hash(gray)
    deep = np.stack([picture.astype(np.uint16) * 500] * 3, axis=-1)
    pages = io.BytesIO()
    gray.save(pages, "TIFF", save_all=True, append_images=[gray, gray])
    with_nan = np.where(picture == 0, np.float32(np.nan), deep[..., 0].astype(np.float32))
    for content, mode in (
        (tiff(deep), "RGB"),
        (png16(deep), "RGB"),
        (tiff(deep[..., 0]), "I;16"),
        (tiff(65535 - deep[..., 0], photometric=0), "I;16"),
        (tiff(deep[..., 0] / np.float32(3500)), "F"),
        (tiff(with_nan), "F"),
    ):
        described = inspect_image(content)
        assert (described.mode, described.frames) == (mode, 1)
        # Color is rounded to 8 bits before it is reduced, and grayscale afterwards.
        assert (int(described.perceptual_hash, 16) ^ int(expected, 16)).bit_count() <= (0 if mode == "RGB" else 2)
    assert inspect_image(pages.getvalue()).frames == 3


@pytest.mark.parametrize(("name", "expected"), [("tif16_miniswhite", DOWN), ("tif_float01", UP)])
def test_reported_faults(name, expected):
    assert shades(read_image(FAULTS / name / "in.tif")).tolist() == expected
