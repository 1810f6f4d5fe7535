"""Grayscale values and colors of DICOM files, for each element of the display chain."""

import io
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from biomedclip.processing import read_image
from biomedclip.processing.image_processing_biomedclip import to_8_bit
from biomedclip.processing.images.reading import ImageError


pydicom = pytest.importorskip("pydicom")
from helpers.dicom_writer import dicom, item  # noqa: E402
from pydicom import DataElement, Dataset  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_voi_lut, apply_windowing  # noqa: E402


FAULTS = Path(__file__).parents[2] / "data" / "faults"
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
UP = [0, 36, 73, 109, 146, 182, 219, 255]
SQUARE = [0, 5, 21, 47, 83, 130, 187, 255]  # 255 * (k / 7) ** 2
STEP = [0, 0, 0, 0, 255, 255, 255, 255]
DOWN, SQUARE_DOWN = UP[::-1], [255 - shade for shade in SQUARE]
SQUARE_8 = [0, 5, 21, 47, 84, 130, 188, 255]  # the same of the values UP
BITS_12 = {"BitsStored": 12, "HighBit": 11}


def ramp(highest: int = 4095, dtype=np.uint16, lowest: int = 0) -> np.ndarray:
    row = lowest + np.round((highest - lowest) * np.arange(64) / 63)
    return np.tile(row.astype(dtype), (64, 1))


def lut(entries, first: int = 0, bits: int = 16, data=None, vr: str = "OW", descriptor_vr: str = "US") -> Dataset:
    """An item of a LUT sequence; `data` instead of the entries as words."""
    entries = np.asarray(entries)
    dataset = item()
    dataset.add(DataElement("LUTDescriptor", descriptor_vr, [len(entries) % 65536, first, bits]))
    dataset.add(DataElement("LUTData", vr, entries.astype("<u2").tobytes() if data is None else data))
    return dataset


def curve(count: int = 4096, highest: int = 65535, power: float = 2, reverse: bool = False) -> np.ndarray:
    values = np.round((np.arange(count) / (count - 1)) ** power * highest).astype(int)
    return highest - values if reverse else values


def shades(source) -> list[int]:
    return np.asarray(to_8_bit(read_image(source)))[40, ::9].tolist()


def group(slope=None, intercept=None, **elements) -> list[Dataset]:
    """Return a functional group with a slope, and with a window or a VOI LUT."""
    macros = {"FrameVOILUTSequence": [item(**elements)]} if elements else {}
    if slope is not None:
        macros["PixelValueTransformationSequence"] = [item(**rescale(slope, intercept or 0))]
    return [item(**macros)]


def shared(keyword: str = "SharedFunctionalGroupsSequence", **content) -> dict:
    return {keyword: group(**content)}


per_frame = partial(shared, "PerFrameFunctionalGroupsSequence")


def voi(*luts: Dataset, keyword: str = "VOILUTSequence") -> dict:
    return {keyword: list(luts)}


modality = partial(voi, keyword="ModalityLUTSequence")


def window(center, width, function=None) -> dict:
    return {"WindowCenter": center, "WindowWidth": width} | ({"VOILUTFunction": function} if function else {})


def rescale(slope, intercept=0) -> dict:
    return {"RescaleSlope": slope, "RescaleIntercept": intercept}


WHOLE = window(2048, 4096)  # LINEAR, so 0 is black and 4095 is white
NEGATIVE = {"slope": -1, "intercept": 4095}
REAL_WORLD = item(RealWorldValueSlope=-1.0, RealWorldValueIntercept=4095.0)
# Elements that are added to a ramp of 0..4095 in 12 bits, and the expected brightness.
CHAINS = {
    "nothing": ({}, UP),
    "slope": (rescale(2, -1024), UP),
    "tiny slope": (rescale("0.0001"), UP),
    "negative slope": (rescale(-1, 4095), DOWN),
    "negative slope without intercept": ({"RescaleSlope": "-0.5"}, DOWN),
    "intercept alone": ({"RescaleIntercept": -1000}, UP),
    "intercept and window": ({"RescaleIntercept": -1000} | window(1048, 4096), UP),
    "empty slope": (rescale(None, None), UP),
    "modality LUT": (modality(lut(curve())), SQUARE),
    "falling modality LUT": (modality(lut(curve(power=1, reverse=True))), DOWN),
    "modality LUT of 12 bits": (modality(lut(curve(highest=4095), bits=12)), SQUARE),
    "modality LUT of 8 bits": (modality(lut(curve(highest=255), bits=8)), SQUARE),
    "modality LUT before slope": (modality(lut(curve())) | rescale(-1), SQUARE),
    # 255 * ((k - 1) / 6) ** 2
    "modality LUT that starts later": (modality(lut(curve(3511), first=585)), [0, 0, 7, 28, 64, 113, 177, 255]),
    "VOI LUT": (voi(lut(curve())), SQUARE),
    "falling VOI LUT": (voi(lut(curve(reverse=True))), SQUARE_DOWN),
    "VOI LUT of 10 bits": (voi(lut(curve(highest=1023), bits=10)), SQUARE),
    "VOI LUT of 8 bits": (voi(lut(curve(highest=255), bits=8)), SQUARE),
    "VOI LUT of packed bytes": (voi(lut(curve(), bits=8, data=curve(highest=255).astype("u1").tobytes())), SQUARE),
    "VOI LUT of numbers": (voi(lut(curve(), data=curve().tolist(), vr="US")), SQUARE),
    "VOI LUT of 12 bits that states 16": (voi(lut(curve(highest=4095))), SQUARE),
    "VOI LUT of 16 bits that states 12": (voi(lut(curve(), bits=12)), SQUARE),
    "VOI LUT one bit below its range": (voi(lut(curve(highest=32767))), [0, 3, 10, 23, 42, 65, 94, 127]),
    "VOI LUT before window": (voi(lut(curve())) | window(100, 10), SQUARE),
    "first of two VOI LUTs": (voi(lut(curve()), lut(curve(power=1))), SQUARE),
    "VOI LUT after slope": (voi(lut(curve(8191))) | rescale(2), SQUARE),
    "VOI LUT after small slope": (voi(lut(curve(64))) | rescale("0.015384615385"), SQUARE),
    "VOI LUT after a slope that was rounded down": (voi(lut(curve(64))) | rescale("0.015384615384"), SQUARE),
    "VOI LUT after negative values": (voi(lut(curve(), -1024, descriptor_vr="SS")) | rescale(1, -1024), SQUARE),
    "VOI LUT whose first value is written unsigned": (voi(lut(curve(), first=64512)) | rescale(1, -1024), SQUARE),
    "VOI LUT after modality LUT": (
        modality(lut(np.arange(4095, -1, -1), bits=12)) | voi(lut(curve(reverse=True))),
        SQUARE_DOWN[::-1],
    ),
    "window": (WHOLE, UP),
    "empty window": (window(None, None), UP),
    "window and slope": (window(0, 4096) | rescale(1, -2048), UP),
    "window and negative slope": (WHOLE | rescale(-1, 4095), DOWN),
    "window and modality LUT": (modality(lut(curve())) | window(32768, 65536), SQUARE),
    "first of two windows": (window([2048, 100], [4096, 10]), UP),
    "LINEAR_EXACT": (window(2047.5, 4095, "LINEAR_EXACT"), UP),
    "width below 1": (window("0.20475", "0.4095") | rescale("0.0001"), UP),
    "width 1": (window(2048, 1), STEP),
    "SIGMOID": (window(2047.5, 4095, "SIGMOID"), [30, 49, 76, 109, 146, 179, 206, 225]),
    "padded text of the function": (window(2047.5, 4095, "linear_exact "), UP),
    "window in a shared group": (shared(**WHOLE), UP),
    "slope in a shared group": (shared(**NEGATIVE), DOWN),
    "VOI LUT in a group": (per_frame(**voi(lut(curve()))), SQUARE),
    "group of the frame before the shared one": (
        shared(slope=1, **window(7, 2)) | per_frame(**NEGATIVE, **WHOLE),
        DOWN,
    ),
    "groups before the root": (per_frame(**NEGATIVE, **WHOLE) | window(7, 2) | rescale(3), DOWN),
    "window in a group, slope at the root": (shared(**WHOLE) | rescale(-1, 4095), DOWN),
    "real world values of a group are not displayed": (
        {"SharedFunctionalGroupsSequence": [item(RealWorldValueMappingSequence=[REAL_WORLD])]},
        UP,
    ),
}
QUARTER_MISSING = curve().astype("<u2").tobytes()[:6144]
UNUSABLE, VOI_ITEM = item(LUTExplanation="x"), "item 0 of VOILUTSequence"
# An element that cannot be used, the name in the warning, and the expected brightness.
FAULTY = {
    "width 0": (window(2048, 0), "WindowWidth 0.0", UP),
    "negative width": (window(2048, -5), "WindowWidth -5.0", UP),
    "width 0, then a window": (window([1, 2048], [0, 4096]), "WindowWidth 0.0", UP),
    "center alone": ({"WindowCenter": 50}, "WindowCenter", UP),
    "width alone": ({"WindowWidth": 50}, "WindowWidth", UP),
    "empty width": (window(50, None), "0 of WindowWidth", UP),
    "more centers than widths": (window([2048, 7], 4096), "2 values of WindowCenter", UP),
    "unknown function": (window(2048, 4096, "CUBIC"), "'CUBIC'", UP),
    "slope 0": (rescale(0, 7), "RescaleSlope 0.0", UP),
    "LUT without descriptor": (voi(UNUSABLE), VOI_ITEM, UP),
    "LUT without data": (voi(item(LUTDescriptor=[4096, 0, 16])) | window(2048, 1), VOI_ITEM, STEP),
    "LUT that is too short": (voi(lut(curve(), data=b"\0\1" * 9)), VOI_ITEM, UP),
    "LUT without its last quarter": (voi(lut(curve(), data=QUARTER_MISSING)), VOI_ITEM, UP),
    "LUT of no bits": (voi(lut(curve(), bits=0)), "0 bits", UP),
    "faulty LUT, then a good one": (voi(UNUSABLE, lut(curve())), VOI_ITEM, SQUARE),
    "faulty modality LUT, then a slope": (modality(UNUSABLE) | rescale(-1), "item 0 of ModalityLUTSequence", DOWN),
    "window in a group, width 0": (per_frame(**window(3, 0)) | shared(**WHOLE), "WindowWidth 0.0", UP),
    "padding of two values": ({"PixelPaddingValue": [1, 2]}, "PixelPaddingValue", UP),
}


@pytest.mark.parametrize("case", CHAINS)
def test_each_element_of_the_display_chain_is_applied(case, caplog):
    elements, expected = CHAINS[case]
    content = dicom(ramp(), **BITS_12, **elements)
    assert shades(content) == expected
    assert not [record for record in caplog.records if record.name.startswith("biomedclip.processing")]
    negative = dicom(ramp(), PhotometricInterpretation="MONOCHROME1", **BITS_12, **elements)
    assert shades(negative) == [255 - shade for shade in shades(content)]


@pytest.mark.parametrize("case", FAULTY)
def test_an_unusable_element_is_named_in_a_warning_and_ignored(case, caplog):
    elements, named, expected = FAULTY[case]
    with caplog.at_level(logging.WARNING):
        assert shades(dicom(ramp(), **BITS_12, **elements)) == expected
    (record,) = caplog.records
    assert named in record.getMessage() and record.getMessage().startswith("image: ")


# Cases that the functions of pydicom handle differently.
DIFFERENT_IN_PYDICOM = {
    "negative slope without intercept": "ignored",
    "intercept alone": "ignored",
    "intercept and window": "ignored",
    "empty slope": "an error",
    "empty window": "an error",
    "modality LUT of 12 bits": "an error: numpy has no type of 12 bits",
    "VOI LUT after modality LUT": "the same error",
    "VOI LUT of 8 bits": "indices are cut to 8 bits",
    "VOI LUT of packed bytes": "an error: words are expected",
    "VOI LUT of 12 bits that states 16": "taken as stated, nearly black",
    "VOI LUT of 16 bits that states 12": "taken as stated, above white",
    "VOI LUT after a slope that was rounded down": "one entry too low",
    "VOI LUT whose first value is written unsigned": "taken as stated, all values below it",
    "width below 1": "an error",
    "padded text of the function": "an error",
}


WINDOWS = [
    window(center, width, function) | rescale(0.5, -1024)
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID")
    for center, width in ((40, 400), ([300, 40], [1500, 80]), (5000, 100), (-600, 1))
]


@pytest.mark.filterwarnings("ignore:overflow")  # in pydicom, far outside a sigmoid of width 1
@pytest.mark.parametrize(
    "elements",
    [CHAINS[case][0] for case in CHAINS if "group" not in case and case not in DIFFERENT_IN_PYDICOM] + WINDOWS,
)
def test_the_chain_is_that_of_pydicom(elements):
    content = dicom(ramp(), **BITS_12, **elements)
    dataset = pydicom.dcmread(io.BytesIO(content))
    assert np.array_equal(to_8_bit(read_image(content)), plain_display(dataset, dataset.pixel_array))


def plain_display(dataset: Dataset, pixels: np.ndarray) -> np.ndarray:
    """pydicom's chain pixel by pixel, scaled to 8 bits."""
    values = apply_modality_lut(pixels, dataset)
    shown = apply_voi_lut(values, dataset).astype(float)
    if dataset.get("VOILUTSequence") or dataset.get("WindowWidth"):
        if dataset.get("VOILUTSequence"):
            black, white = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
        else:
            black, white = apply_windowing(np.array([-np.inf, np.inf]), dataset)
        shade = np.round((shown - black) / (white - black) * 255)
    else:
        black, white = (0, 2**dataset.BitsStored - 1) if dataset.BitsStored <= 8 else (shown.min(), shown.max())
        shade = np.round((shown - black) * 255 / (white - black))
    return 255 - shade if dataset.PhotometricInterpretation == "MONOCHROME1" else shade


def lifted(dataset: Dataset) -> Dataset:
    """The dataset with the values of its functional groups at the root, where pydicom looks for them."""
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            if dataset.get(keyword) and dataset[keyword][0].get(macro):
                dataset.update(dataset[keyword][0][macro][0])
    return dataset


def test_every_grayscale_file_of_pydicom_has_the_pixels_of_pydicom():
    data_store = pytest.importorskip("data_store", reason="pydicom-data is not installed")
    files = [*sorted(BUNDLED.rglob("*.dcm")), *sorted((Path(data_store.__file__).parent / "data").glob("*.dcm"))]
    compared = 0
    for file in files:
        try:
            image = read_image(file)
        except ImageError as error:
            assert "display step" not in str(error)
            continue
        dataset = lifted(pydicom.dcmread(file, force=True))
        if dataset.PhotometricInterpretation in ("MONOCHROME1", "MONOCHROME2"):
            dataset.file_meta.setdefault("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)
            pixels = pydicom.pixels.pixel_array(dataset, index=0)
            assert np.array_equal(to_8_bit(image), plain_display(dataset, pixels)), file
            compared += 1
    assert compared > 30


def test_the_groups_of_the_first_frame_of_an_enhanced_file_are_used():
    frames = np.stack([ramp(), ramp()[:, ::-1]])
    groups = [*group(**NEGATIVE, **WHOLE), *group(slope=1, **WHOLE)]
    content = dicom(frames, Rows=64, Columns=64, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=groups, **BITS_12)
    assert shades(content) == DOWN and read_image(content).size == (64, 64)


def padded(values: np.ndarray, *padding: int) -> np.ndarray:
    """The values with rows of padding at the top."""
    values = values.copy()
    values[: len(padding)] = np.array(padding).reshape(-1, 1)
    return values


def without_sign_bits(values: np.ndarray, *padding: int) -> np.ndarray:
    """Signed 12-bit values whose upper four bits are zero."""
    return (padded(values, *padding).astype(np.uint16) & 0x0FFF).astype(np.int16)


def pad(value: int, limit: int | None = None, **elements) -> dict:
    return {"PixelPaddingValue": value} | ({} if limit is None else {"PixelPaddingRangeLimit": limit}) | elements


SIGNED = ramp(1000, np.int16, -1000)
WITHOUT_SIGN_BITS = without_sign_bits(ramp(2047, np.int16, -2000), -2048)
PADDING = {
    "above the values": (padded(ramp(), 65000), pad(65000), UP),
    "below the values": (padded(ramp(5095, lowest=1000), 0), pad(0), UP),
    "a range": (padded(ramp(5095, lowest=1000), 0, 3, 7), pad(0, 7), UP),
    "a range from above": (padded(ramp(), 65535, 65000, 64000), pad(65535, 64000), UP),
    "a range beyond BitsStored": (padded(ramp(), 63000, 63500, 64000), pad(63000, 64000, **BITS_12), UP),
    "signed": (padded(SIGNED, -2000), pad(-2000), UP),
    "signed range": (padded(SIGNED, -2000, -1500), pad(-2000, -1200), UP),
    "smallest signed value": (padded(SIGNED, -32768), pad(-32768), UP),
    "largest signed value": (padded(SIGNED, 32767), pad(32767), UP),
    "smallest signed value beyond 12 bits": (padded(SIGNED, -32768), pad(-32768, **BITS_12), UP),
    "12 bits, without sign bits": (WITHOUT_SIGN_BITS, pad(-2048, **BITS_12), UP),
    "12 bits, written unsigned": (WITHOUT_SIGN_BITS, pad(2048, **BITS_12), UP),
    # The ends are compared with their sign: without it, -100 would be above 2047.
    "a range of 12 bits up to the largest value": (
        without_sign_bits(ramp(-200, np.int16, -2000), -100, 0, 2047),
        pad(2047, -100, **BITS_12),
        UP,
    ),
    "beyond BitsStored": (padded(ramp(), 63536), pad(63536, **BITS_12), UP),
    "with a slope": (padded(ramp(), 65000), pad(65000, **rescale(-1)), DOWN),
    "with a window": (padded(ramp(), 65000), pad(65000, **WHOLE), UP),
    "with a VOI LUT": (padded(ramp(), 65000), pad(65000, **voi(lut(curve()))), SQUARE),
    "with a modality LUT": (padded(ramp(), 65000), pad(65000, **modality(lut(curve(reverse=True)))), SQUARE_DOWN),
    "nothing else": (np.full((64, 64), 7, np.uint16), pad(7), [0] * 8),
    "8 bits": (padded(ramp(252, np.uint8), 255), pad(255), [0, 36, 72, 108, 144, 180, 216, 252]),
    "without the element": (padded(ramp(), 65520), {}, [0, 2, 5, 7, 9, 11, 14, 16]),
}


@pytest.mark.parametrize("case", PADDING)
@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
def test_padding_is_black_and_ignored_for_the_range(case, kind):
    pixels, elements, expected = PADDING[case]
    content = dicom(pixels, PhotometricInterpretation=kind, **elements)
    inverted = kind == "MONOCHROME1" and case != "nothing else"
    assert shades(content) == ([255 - shade for shade in expected] if inverted else expected)
    if elements:
        rows = 3 if case.startswith("a range") else 1
        assert not np.asarray(read_image(content))[:rows].any()


def test_signed_padding_that_was_written_as_an_unsigned_number_is_recognized():
    dataset = pydicom.dcmread(io.BytesIO(dicom(padded(SIGNED, -2000))))
    dataset.add(DataElement("PixelPaddingValue", "US", 63536))
    dataset.save_as(buffer := io.BytesIO())
    assert shades(buffer.getvalue()) == UP


def test_padding_beyond_bits_stored_does_not_hide_the_value_with_the_same_low_bits():
    pixels = padded(ramp(), 63536)
    pixels[50] = 63536 % 4096
    image = np.asarray(read_image(dicom(pixels, PixelPaddingValue=63536, **BITS_12)))
    assert not image[0].any() and (image[50] == 63536 % 4096).all()


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({}, UP),
        (rescale(1), UP),
        (rescale(2, -100), UP),
        (rescale(-1, 255), DOWN),
        (modality(lut(curve(256))), SQUARE_8),
        (modality(lut(curve(256, 255), bits=8)), SQUARE_8),
        (voi(lut(curve(256))), SQUARE_8),
        (voi(lut(curve(256, 255), bits=8)), SQUARE_8),
        (modality(lut(np.arange(255, -1, -1), bits=8)) | voi(lut(curve(256, 255), bits=8)), SQUARE_8[::-1]),
        (window(128, 256), UP),
        (window(128, 256) | rescale(-1, 255), DOWN),
        (window(128, 0), UP),
        (shared(**window(128, 256)), UP),
    ],
)
def test_images_of_8_bits_use_the_same_chain(elements, expected):
    image = read_image(dicom(ramp(255, np.uint8), **elements))
    assert np.asarray(to_8_bit(image))[40, ::9].tolist() == expected
    negative = read_image(dicom(ramp(255, np.uint8), PhotometricInterpretation="MONOCHROME1", **elements))
    assert image.mode == negative.mode and np.array_equal(to_8_bit(negative), 255 - np.asarray(to_8_bit(image)))


@pytest.mark.parametrize(("dtype", "bits"), [("u1", 1), ("u1", 4), ("u1", 6), ("u2", 8), ("u2", 6)])
def test_up_to_8_bits_the_range_is_that_of_bits_stored(dtype, bits):
    highest = 2**bits - 1
    values = np.tile(np.arange(64, dtype=dtype) % (highest + 1), (64, 1))
    image = read_image(dicom(values, BitsStored=bits, HighBit=bits - 1))
    assert image.mode == "L" and np.array_equal(image, np.round(values.astype(float) * 255 / highest))


def test_bits_above_bits_stored_are_ignored():
    assert shades(dicom(ramp() | 0xA000, **BITS_12)) == UP


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    # Files of the second kind state the same fact twice.
    [("INVERSE", "MONOCHROME2", DOWN), ("INVERSE", "MONOCHROME1", DOWN), ("IDENTITY", "MONOCHROME2", UP)],
)
def test_the_presentation_shape_inverse_inverts(shape, kind, expected):
    elements = {"PresentationLUTShape": shape, "PhotometricInterpretation": kind}
    assert shades(dicom(ramp(), **elements, **BITS_12, **WHOLE)) == expected


def color(values: np.ndarray, planar: int = 0, kind: str = "RGB", **elements) -> bytes:
    """An RGB file of these values in red, their mirror image in green, and zeros in blue."""
    pixels = np.stack([values, values[:, ::-1], np.zeros_like(values)], axis=0 if planar else 2)
    elements = {"SamplesPerPixel": 3, "PlanarConfiguration": planar, "PhotometricInterpretation": kind} | elements
    return dicom(pixels, Rows=64, Columns=64, **elements)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize(
    ("highest", "allocated", "bits"),
    [(255, 8, 8), (63, 8, 6), (1023, 16, 10), (4095, 16, 12), (65535, 16, 16), (4095, 16, 16), (255, 16, 8)],
)
def test_color_uses_the_range_of_bits_stored_or_of_the_data(highest, allocated, bits, planar):
    dtype = f"u{allocated // 8}"
    image = np.asarray(read_image(color(ramp(highest, dtype), planar, BitsStored=bits, HighBit=bits - 1)))
    assert np.abs(image[40, ::9, 0].astype(int) - UP).max() <= (1 if highest < 4095 else 0)
    assert np.array_equal(image[:, ::-1, 1], image[:, :, 0]) and not image[..., 2].any()
    if bits < 16 and highest > 255:  # dark color is not brightened if BitsStored specifies the range
        dark = read_image(color(ramp(highest // 2, dtype), planar, BitsStored=bits, HighBit=bits - 1))
        assert np.asarray(dark).max() == 127


def test_deep_ybr_is_the_color_of_the_same_image_in_8_bits():
    values = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    shallow = read_image(color(values, kind="YBR_FULL"))
    deep = read_image(color(values.astype(np.uint16) * 257, kind="YBR_FULL"))
    assert np.array_equal(deep, shallow)


def test_an_error_of_the_display_step_is_not_called_damage():
    with pytest.raises(ImageError, match="display step failed .*palette") as raised:
        read_image(dicom(ramp(255, np.uint8), PhotometricInterpretation="PALETTE COLOR"))
    assert "damaged" not in str(raised.value) and raised.value.reason == "image unreadable"


def test_values_that_are_clearly_below_an_integer_get_the_entry_of_the_integer_below():
    entries = np.arange(4096) % 2 * 65535
    content = dicom(ramp(), VOILUTSequence=[lut(entries)], **rescale(1, "-0.000004"), **BITS_12)
    below = np.clip(ramp().astype(int) - 1, 0, None)
    assert np.array_equal(read_image(content), entries[below] // 257)


@pytest.mark.parametrize("sequence", [modality, voi])
@pytest.mark.parametrize(("first", "count"), [(40_000, 4096), (0, 40_000), (0, 65_536)])
def test_a_lut_of_unsigned_values_may_start_above_32767_or_have_more_entries(sequence, first, count):
    content = dicom(ramp(first + count - 1, lowest=first), **sequence(lut(curve(count), first)))
    assert shades(content) == SQUARE


def test_entries_of_less_than_8_bits_may_be_packed():
    entries = curve(highest=63).astype(np.uint8)
    content = dicom(ramp(), VOILUTSequence=[lut(entries, bits=6, data=entries.tobytes())], **BITS_12)
    assert shades(content) == np.round(entries[ramp()[40, ::9]].astype(float) * 255 / 63).tolist()


@pytest.mark.parametrize(("bits", "factor"), [(8, 1), (16, 1), (16, 256), (16, 257)])
def test_a_palette_of_16_bits_may_contain_values_of_8_and_its_transparency_is_dropped(bits, factor):
    values = np.arange(256, dtype=np.uint8)
    elements = {}
    for name in ("Red", "Green", "Blue", *(["Alpha"] if bits == 8 else [])):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        elements[f"{name}PaletteColorLookupTableData"] = (values.astype(f"<u{bits // 8}") * factor).tobytes()
    image = read_image(dicom(values.reshape(16, 16), PhotometricInterpretation="PALETTE COLOR", **elements))
    assert image.mode == "RGB" and np.array_equal(image, np.stack([values.reshape(16, 16)] * 3, axis=-1))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dcm_voi_lut_sequence", [255, 187, 130, 83, 47, 21, 5, 0]),
        ("dcm_negative_slope", DOWN),
        ("dcm_pixel_padding", UP),
        ("dcm_pet_width_below_1", [0, 37, 75, 112, 149, 186, 224, 255]),
        ("dcm_rgb_12in16", UP),
    ],
)
def test_reported_faults(name, expected):
    image = np.asarray(to_8_bit(read_image(FAULTS / name / "in.dcm")))
    assert (image if image.ndim == 2 else image[..., 0])[40, ::9].tolist() == expected
