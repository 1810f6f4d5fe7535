"""Read DICOM files."""

import contextlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biomedclip.processing import BiomedCLIPImageProcessor, read_image
from biomedclip.processing.images.reading import ImageError


pydicom = pytest.importorskip("pydicom")
from helpers.dicom_writer import dicom, ramp  # noqa: E402


PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def test_12_bits_without_a_window_keep_their_precision():
    pixels = ramp(np.uint16) // 2 + 100
    image = read_image(dicom(pixels, BitsStored=12, HighBit=11))
    assert image.mode == "I;16"
    assert np.array_equal(image, pixels - 100)
    processor = BiomedCLIPImageProcessor(image_mean=[0, 0, 0], image_std=[1, 1, 1])
    values = processor(image, return_tensors="np")["pixel_values"]
    assert values.min() < 0.01 and values.max() > 0.99
    inverted = read_image(dicom(pixels, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted, pixels.max() - pixels)


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [
        ("CT_small.dcm", "I;16", (128, 128)),
        ("MR_small.dcm", "L", (64, 64)),
        ("examples_overlay.dcm", "L", (484, 300)),
        ("examples_palette.dcm", "RGB", (800, 350)),
        ("examples_rgb_color.dcm", "RGB", (320, 240)),
        ("examples_ybr_color.dcm", "RGB", (320, 240)),
        ("SC_rgb_rle_16bit.dcm", "RGB", (100, 100)),
        ("SC_rgb_jpeg_dcmtk.dcm", "RGB", (100, 100)),
        ("liver_1frame.dcm", "L", (512, 512)),
        ("no_meta.dcm", None, "without an image"),
        ("rtdose_1frame.dcm", None, "32 bits per value is not supported, only 1, 8 and 16"),
        ("test-SR.dcm", None, "without an image"),
        ("image_dfl.dcm", None, "deflated transfer syntax"),
        ("MR_truncated.dcm", None, "damaged or truncated"),
    ],
)
def test_the_test_files_of_pydicom(name, mode, size):
    path = PYDICOM_FILES / name
    if not path.exists():
        pytest.skip(f"this version of pydicom has no {name}")
    if mode is None:
        with pytest.raises(ImageError, match=size):
            read_image(path)
        return
    image = read_image(path)
    assert (image.mode, image.size) == (mode, size)
    assert np.asarray(image).std() > 1, "the image is not blank"


def test_all_encodings_of_an_image_are_equal():
    image = read_image(PYDICOM_FILES / "MR_small.dcm")
    for encoding in ("RLE", "bigendian", "implicit", "jp2klossless"):
        assert np.array_equal(read_image(PYDICOM_FILES / f"MR_small_{encoding}.dcm"), image)


def test_a_compression_without_a_decoder_is_named(monkeypatch):
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    with pytest.raises(ImageError, match="compressed as JPEG 2000 .*no decoder is installed.*pip install pylibjpeg"):
        read_image(PYDICOM_FILES / "MR_small_jp2klossless.dcm")


@pytest.mark.parametrize("rows", [15_000, 60_000])
def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(rows):
    content = dicom(ramp(np.uint8), Rows=rows, Columns=rows)
    with pytest.raises(ImageError, match="pixels") as refused:
        read_image(content)
    assert refused.value.reason == "image too large"


def test_damaged_files_are_read_or_are_a_clear_error():
    content = dicom(ramp(np.uint16), WindowCenter=2000, WindowWidth=4000, RescaleSlope=1, RescaleIntercept=0)
    randomness = np.random.default_rng(0)
    damaged = [content[:length] for length in range(132, len(content), 7)]
    for _ in range(300):
        changed = bytearray(content)
        for position in randomness.integers(132, len(content) - 512, 3):
            changed[position] = randomness.integers(256)
        damaged.append(bytes(changed))
    readable = []
    for file in damaged:
        with contextlib.suppress(ImageError):
            readable.append(read_image(file))
    assert len(readable) < len(damaged) - 50


def test_real_radiographs_have_the_pixels_of_their_files(shared_data):
    files = sorted((shared_data / "rsna_sample").rglob("*.dcm"))
    assert len(files) == 14
    for file in files:
        dataset = pydicom.dcmread(file)
        (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
        with Image.open(io.BytesIO(frame)) as jpeg:
            assert np.array_equal(read_image(file), jpeg)


def test_without_pydicom_the_error_names_the_extra(monkeypatch):
    content = dicom(ramp(np.uint8))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImportError, match=r'pip install "biomedclip\[dicom\]"'):
        read_image(content)
