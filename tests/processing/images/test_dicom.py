"""DICOM files as images."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from biomedclip.processing import BiomedCLIPImageProcessor, read_image
from biomedclip.processing.images.reading import ImageError


pydicom = pytest.importorskip("pydicom")
from helpers.dicom_writer import dicom, ramp  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_windowing  # noqa: E402


PYDICOM_FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def test_8_bits_are_the_values_of_the_file():
    pixels = ramp(np.uint8)
    image = read_image(dicom(pixels))
    assert image.mode == "L"
    assert np.array_equal(image, pixels)
    inverted = read_image(dicom(pixels, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted, 255 - pixels)


def test_12_bits_without_a_window_keep_their_steps_and_the_image_processor_scales_them():
    pixels = ramp(np.uint16) // 2 + 100
    image = read_image(dicom(pixels, BitsStored=12, HighBit=11))
    assert image.mode == "I;16"
    assert np.array_equal(image, pixels - 100)
    processor = BiomedCLIPImageProcessor(image_mean=[0, 0, 0], image_std=[1, 1, 1])
    values = processor(image, return_tensors="np")["pixel_values"]
    assert values.min() < 0.01 and values.max() > 0.99
    inverted = read_image(dicom(pixels, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted, pixels.max() - pixels)


def test_signed_values_below_zero_are_not_wrapped():
    pixels = (ramp(np.int16) - 2048).astype(np.int16)
    assert np.array_equal(read_image(dicom(pixels)), pixels.astype(int) + 2048)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), ([300, 40], [1500, 80]), (5000, 100), (-600, 1)])
def test_a_window_is_the_one_that_pydicom_applies_pixel_by_pixel(function, centre, width):
    pixels = ramp(np.uint16)
    elements = {"RescaleSlope": 0.5, "RescaleIntercept": -1024, "WindowCenter": centre, "WindowWidth": width}
    elements |= {"VOILUTFunction": function, "BitsStored": 12, "HighBit": 11}
    content = dicom(pixels, **elements)
    image = read_image(content)
    assert image.mode == "L"
    dataset = pydicom.dcmread(io.BytesIO(content))
    with np.errstate(over="ignore"):  # far outside a sigmoid of width 1
        windowed = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    lowest, highest = -1024, 4095 * 0.5 - 1024
    assert np.array_equal(image, np.round((windowed - lowest) / (highest - lowest) * 255))
    inverted = read_image(dicom(pixels, PhotometricInterpretation="MONOCHROME1", **elements))
    assert np.array_equal(255 - np.asarray(inverted), image)


def test_an_empty_window_is_none():
    assert read_image(dicom(ramp(np.uint16), WindowCenter=None, WindowWidth=None)).mode == "I;16"


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [
        ("CT_small.dcm", "I;16", (128, 128)),
        ("MR_small.dcm", "L", (64, 64)),
        ("MR_small_RLE.dcm", "L", (64, 64)),
        ("MR_small_bigendian.dcm", "L", (64, 64)),
        ("MR_small_jp2klossless.dcm", "L", (64, 64)),
        ("examples_overlay.dcm", "L", (484, 300)),
        ("examples_palette.dcm", "RGB", (800, 350)),
        ("examples_rgb_color.dcm", "RGB", (320, 240)),
        ("examples_ybr_color.dcm", "RGB", (320, 240)),  # of 30 frames the first
        ("SC_rgb_rle_16bit.dcm", "RGB", (100, 100)),
        ("SC_rgb_jpeg_dcmtk.dcm", "RGB", (100, 100)),
        ("liver_1frame.dcm", "L", (512, 512)),
        ("no_meta.dcm", None, "without an image"),
        ("rtdose_1frame.dcm", None, "32 bits; 1, 8 and 16 are read"),
        ("test-SR.dcm", None, "without an image"),
        ("image_dfl.dcm", None, "deflated as a whole"),
        ("MR_truncated.dcm", None, "damaged or truncated"),
    ],
)
def test_files_that_pydicom_is_tested_with(name, mode, size):
    path = PYDICOM_FILES / name
    if not path.exists():
        pytest.skip(f"this pydicom does not bring {name}")
    if mode is None:
        with pytest.raises(ImageError, match=size):
            read_image(path)
        return
    image = read_image(path)
    assert (image.mode, image.size) == (mode, size)
    assert np.asarray(image).std() > 1, "and there is something on it"


def test_the_same_picture_in_other_encodings_is_the_same_image():
    images = [
        np.asarray(read_image(PYDICOM_FILES / f"MR_small{encoding}.dcm"))
        for encoding in ("", "_RLE", "_bigendian", "_implicit", "_jp2klossless")
    ]
    assert all(np.array_equal(image, images[0]) for image in images)


def test_a_compression_without_a_decoder_is_named(monkeypatch):
    decoder = pydicom.pixels.get_decoder(pydicom.uid.JPEG2000Lossless)
    monkeypatch.setattr(type(decoder), "is_available", property(lambda self: False))
    with pytest.raises(ImageError, match="compressed as JPEG 2000 .*no decoder; pip install pylibjpeg"):
        read_image(PYDICOM_FILES / "MR_small_jp2klossless.dcm")


@pytest.mark.parametrize("rows", [15_000, 60_000])
def test_an_image_that_is_too_large_is_refused_before_it_is_decoded(rows):
    content = dicom(ramp(np.uint8), Rows=rows, Columns=rows)
    with pytest.raises(ImageError, match="pixels") as refused:
        read_image(content)
    assert refused.value.reason == "image too large"


def test_every_truncation_and_many_changed_bytes_give_an_image_or_a_clear_error():
    content = dicom(ramp(np.uint16), WindowCenter=2000, WindowWidth=4000, RescaleSlope=1, RescaleIntercept=0)
    randomness = np.random.default_rng(0)
    damaged = [content[:length] for length in range(132, len(content), 7)]
    for _ in range(300):
        changed = bytearray(content)
        for position in randomness.integers(132, len(content) - 512, 3):
            changed[position] = randomness.integers(256)
        damaged.append(bytes(changed))
    refused = 0
    for file in damaged:
        try:
            read_image(file)
        except ImageError:
            refused += 1
    assert refused > 50


def test_real_radiographs_are_exactly_the_pixels_of_their_files(shared_data):
    files = sorted((shared_data / "rsna_sample").rglob("*.dcm"))
    assert len(files) == 14
    for file in files:
        dataset = pydicom.dcmread(file)
        (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
        with Image.open(io.BytesIO(frame)) as jpeg:
            assert np.array_equal(read_image(file), jpeg)


def test_without_pydicom_the_error_names_the_extra(tmp_path):
    (tmp_path / "a.dcm").write_bytes(dicom(ramp(np.uint8)))
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from biomedclip.processing import read_image\n"
        f"try:\n    read_image({str(tmp_path / 'a.dcm')!r})\n"
        "except ImportError as error:\n    print(error)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'pip install "biomedclip[dicom]"' in output
