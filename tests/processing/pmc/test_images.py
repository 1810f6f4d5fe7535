"""Properties of images, their perceptual hashes, and the index of benchmark images."""

import io
import os
import pickle
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import png_bytes
from PIL import Image

from biomedclip.processing.images.perceptual_hash import NEAR_DUPLICATE_BITS, perceptual_hash
from biomedclip.processing.images.reading import ImageError
from biomedclip.processing.pmc.images import MAX_FRAMES, ImageIndex, count_duplicates, inspect_image


ROOT = Path(__file__).resolve().parents[3]


def distance(hash_a: str, hash_b: str) -> int:
    return (int(hash_a, 16) ^ int(hash_b, 16)).bit_count()


def picture(seed: int = 0, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """Return soft colored blobs, which like photographs have contrast at low frequencies."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of one bit per pixel that ends before its pixels."""
    fields = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    header = struct.pack(">I", 13) + fields + struct.pack(">I", zlib.crc32(fields))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 100) + b"IDAT"


def sixteen_bits(image: Image.Image) -> np.ndarray:
    """Return the image with 12 bits, like a radiograph. Most values would be clipped at 255."""
    return np.asarray(image.convert("L")).astype(np.uint16) * 12 + 1000


FILES = {
    "RGB": lambda image: encoded(image),
    "L": lambda image: encoded(image.convert("L")),
    "P": lambda image: encoded(image.quantize(256)),
    "CMYK": lambda image: encoded(image.convert("CMYK"), "TIFF"),
    "RGBA": lambda image: encoded(image.convert("RGBA")),
    "LA": lambda image: encoded(image.convert("LA")),
    "I;16": lambda image: encoded(Image.fromarray(sixteen_bits(image))),
    "I;16B": lambda image: encoded(
        Image.frombytes("I;16B", image.size, sixteen_bits(image).astype(">u2").tobytes()), "TIFF"
    ),
    "F": lambda image: encoded(Image.fromarray(sixteen_bits(image).astype(np.float32) / 7), "TIFF"),
}


@pytest.mark.parametrize("mode", FILES)
def test_the_mode_of_the_file_is_recorded_and_does_not_change_the_hash(mode):
    described = inspect_image(FILES[mode](picture()))
    assert (described.width, described.height, described.mode, described.frames) == (160, 120, mode, 1)
    assert distance(described.perceptual_hash, perceptual_hash(picture())) <= 2


def test_the_inverted_cmyk_of_adobe_is_not_read_as_a_negative():
    content = encoded(picture().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in content
    described = inspect_image(content)
    assert described.mode == "CMYK"
    assert distance(described.perceptual_hash, perceptual_hash(picture())) <= 2
    negative = Image.fromarray(255 - np.asarray(picture()))
    assert distance(perceptual_hash(negative), perceptual_hash(picture())) > 50


def test_a_bitonal_scan_has_the_hash_of_its_grayscale_version():
    page = picture().convert("1")
    described = inspect_image(encoded(page, "TIFF", compression="group4"))
    assert described.mode == "1"
    assert described.perceptual_hash == perceptual_hash(page.convert("L"))


@pytest.mark.parametrize(("format", "mode"), [("GIF", "P"), ("TIFF", "RGB")])
def test_the_first_frame_is_hashed_and_all_frames_are_counted(format, mode):
    first, *others = (picture(seed).quantize(64) if mode == "P" else picture(seed) for seed in range(3))
    described = inspect_image(encoded(first, format, save_all=True, append_images=others))
    assert (described.frames, described.mode) == (3, mode)
    assert distance(described.perceptual_hash, perceptual_hash(picture(0))) <= NEAR_DUPLICATE_BITS
    if format == "GIF":  # damage after the first frame does not affect it
        cut = encoded(first, format, save_all=True, append_images=others)[:-300]
        assert inspect_image(cut).perceptual_hash == described.perceptual_hash


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "image damaged"),
        (b"%PDF-1.7", "image of unknown format"),
        (encoded(picture())[:900], "image damaged"),
        (encoded(picture(), "JPEG")[:900], "image damaged"),
        (png_bytes(0, (15, 400)), "image too small"),
        (png_header(40_000, 40_000), "image too large"),
        (png_header(13_300, 13_200), "image too large"),
    ],
    ids=["empty", "PDF", "cut PNG", "cut JPEG", "small", "bomb", "beyond our limit"],
)
def test_an_unusable_image_has_a_reason(content, reason):
    with pytest.raises(ImageError) as raised:
        inspect_image(content)
    assert raised.value.reason == reason
    assert pickle.loads(pickle.dumps(raised.value)).reason == reason  # from a worker process


def test_small_and_very_wide_images_are_accepted():
    assert inspect_image(png_bytes(0, (16, 400))).width == 16
    assert inspect_image(encoded(picture(0, (40_000, 53)))).width == 40_000


MEASURED_IN_A_SEPARATE_PROCESS = """
import sys
from biomedclip.processing.images.reading import ImageError
from biomedclip.processing.pmc.images import inspect_image
try:
    inspect_image(open(sys.argv[1], "rb").read())
    outcome = "taken"
except ImageError as error:
    outcome = error.reason
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(outcome, int(peak) // 1024, sep="|")
"""


# The largest images of each kind within MAX_BYTES, and one that is larger.
@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
@pytest.mark.parametrize(
    ("mode", "size", "format", "options", "outcome"),
    [
        ("CMYK", (7_500, 7_700), "JPEG", {"progressive": True, "subsampling": 0}, "taken"),
        ("CMYK", (7_500, 7_900), "JPEG", {"progressive": True, "subsampling": 0}, "image too large"),
        ("RGBA", (11_000, 12_600), "PNG", {"compress_level": 1}, "taken"),
        ("P", (13_200, 13_200), "GIF", {}, "taken"),
        ("CMYK", (7_500, 7_700), "TIFF", {"compression": "tiff_lzw", "strip_size": 2**31 - 1}, "taken"),
        ("F", (7_500, 7_700), "TIFF", {"compression": "tiff_adobe_deflate", "strip_size": 2**31 - 1}, "taken"),
        ("RGB", (6_500, 6_700), "WEBP", {"method": 0}, "taken"),
    ],
)
def test_the_largest_accepted_images_need_less_than_1_gib(mode, size, format, options, outcome, tmp_path):
    path = tmp_path / "large"
    path.write_bytes(encoded(Image.new(mode, size), format, **options))
    output = subprocess.run(
        [sys.executable, "-c", MEASURED_IN_A_SEPARATE_PROCESS, str(path)], cwd=ROOT, capture_output=True, text=True
    ).stdout
    measured, peak = output.split("|")
    assert measured == outcome
    assert int(peak) < 1024


def test_the_hash_equals_that_of_imagehash(shared_data):
    imagehash = pytest.importorskip("imagehash")
    small_and_gray = sorted((shared_data / "mednist").glob("*/*.jpeg"))[::20]
    figures = sorted((shared_data / "pmc_mirror").glob("PMC*/*.jpg"))[::5]
    assert len(small_and_gray) > 50 and len(figures) > 50
    for file in small_and_gray:
        image = Image.open(file)
        assert perceptual_hash(image) == str(imagehash.phash(image)), file
    for file in figures:  # resized in color and in two steps, so gray values are rounded differently
        image = Image.open(file)
        assert distance(perceptual_hash(image), str(imagehash.phash(image))) <= NEAR_DUPLICATE_BITS, file


def test_a_hash_never_changes():
    assert perceptual_hash(picture(0)) == "c0a7ecd64252ecba"


@pytest.mark.slow
def test_copies_have_similar_hashes_and_other_images_do_not(shared_data):
    files = [
        *sorted((shared_data / "pmc_mirror").glob("PMC*/*.jpg"))[::8],
        *sorted((shared_data / "jats_with_images").glob("*/*.*g"))[::4],
        *sorted((shared_data / "mednist").glob("*/*.jpeg"))[::60],
        *sorted((shared_data / "crc_he").rglob("*.jpg"))[::4],
    ]
    assert len(files) > 100
    hashes = []
    for file in files:
        image = Image.open(file).convert("RGB")
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        copies = [encoded(image), encoded(image, "JPEG", quality=85), encoded(half, "JPEG", quality=85)]
        original, *others = (inspect_image(content).perceptual_hash for content in [file.read_bytes(), *copies])
        if original:
            assert all(distance(original, other) <= NEAR_DUPLICATE_BITS for other in others), file
            hashes.append(int(original, 16))
    integers = np.array(hashes, dtype=np.uint64)
    distances = np.bitwise_count(integers[:, None] ^ integers)[np.triu_indices(len(integers), 1)]
    assert np.mean(distances <= NEAR_DUPLICATE_BITS) < 1e-3


@pytest.mark.parametrize(("bits", "same"), [(0, True), (1, True), (6, True), (7, False), (8, False), (64, False)])
def test_images_are_the_same_if_their_hashes_differ_in_at_most_6_bits(bits, same):
    one = 0x0123456789ABCDEF
    for shift in (0, 64 - bits):  # at both ends of the hash
        other = one ^ (((1 << bits) - 1) << shift)
        hashes = (f"{one:016x}", f"{other:016x}")
        assert ImageIndex([hashes[0]]).contains(hashes[1]) is same
        assert ImageIndex([hashes[0]]).nearest(hashes[1]) == (hashes[0] if same else None)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (100, 100), "white"),
        Image.new("L", (100, 100), 7),
        Image.new("I;16", (100, 100), 40_000),
        Image.fromarray(np.random.default_rng(0).normal(200, 8, (300, 300)).astype(np.uint8)),
        Image.fromarray(np.full((30, 30), np.nan, dtype=np.float32)),
    ],
    ids=["white", "gray", "16 bits", "noise", "not a number"],
)
def test_blank_images_have_no_hash_and_equal_no_image(image):
    assert perceptual_hash(image) == ""
    assert not ImageIndex(["", "0123456789abcdef"]).contains("")
    assert ImageIndex([]).nearest("0123456789abcdef") is None


def test_an_index_agrees_with_pairwise_comparison():
    generator = np.random.default_rng(0)
    known = [f"{number:016x}" for number in generator.integers(0, 2**63, 50)]
    index = ImageIndex(known)
    found = 0
    for _ in range(200):
        flips = sum(1 << int(bit) for bit in generator.choice(64, generator.integers(0, 12), replace=False))
        asked = f"{int(known[generator.integers(50)], 16) ^ flips:016x}"
        nearest = min(known, key=lambda other: distance(asked, other))
        assert index.nearest(asked) == (nearest if distance(asked, nearest) <= NEAR_DUPLICATE_BITS else None)
        assert index.contains(asked) == (index.nearest(asked) is not None)
        found += index.contains(asked)
    assert 50 < found < 150
    copy = pickle.loads(pickle.dumps(index))
    assert copy.contains(known[0]) and len(copy) == 50
    assert repr(copy) == repr(index) != repr(ImageIndex(known[1:]))


def test_a_lookup_in_an_index_takes_less_than_a_millisecond():
    index = ImageIndex(f"{number:016x}" for number in np.random.default_rng(0).integers(0, 2**63, 32_768))
    started = time.process_time()
    for number in range(200):
        index.contains(f"{number:016x}")
    assert (time.process_time() - started) / 200 < 1e-3  # 0.03 ms on an idle core


def test_an_index_of_a_built_dataset(built):
    index = ImageIndex.from_path(built)
    rows = pq.read_table(next((built / "data").glob("test-*.parquet")), columns=["image"]).column("image").to_pylist()
    hashes = [inspect_image(row["bytes"]).perceptual_hash for row in rows]
    assert all(index.contains(hash_) for hash_ in hashes if hash_) and len(index) > 100


def test_recorded_hashes_are_used_without_decoding(tmp_path):
    table = pa.table({"image": [b"not looked at"] * 3, "perceptual_hash": ["00000000ffffffff", "", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert len(ImageIndex.from_path(tmp_path)) == 1


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda path: path.rmdir(), FileNotFoundError, "does not exist"),
        (lambda path: None, ValueError, "contains no images"),
        (lambda path: (path / "a.png").write_bytes(b"?"), ValueError, "1 unreadable, 0 blank"),
        (lambda path: Image.new("L", (50, 50)).save(path / "a.png"), ValueError, "0 unreadable, 1 blank"),
        (lambda path: (path / "a.parquet").write_bytes(b"?"), ValueError, "not a readable Parquet file"),
        (lambda path: pq.write_table(pa.table({"x": [1]}), path / "a.parquet"), ValueError, "needs a column 'image'"),
    ],
)
def test_a_path_without_images_is_refused(prepare, error, message, tmp_path):
    (tmp_path / "benchmark").mkdir()
    prepare(tmp_path / "benchmark")
    with pytest.raises(error, match=f"`decontaminate`.*benchmark.*{message}"):
        ImageIndex.from_path(tmp_path / "benchmark")


def test_duplicates_are_counted_by_bytes_and_by_hash():
    md5s = [digit * 32 for digit in "abaca"]
    hashes = ["00000000ffffffff", "00000000ffffffff", "00000000ffffffff", "", ""]
    assert count_duplicates(iter(md5s), iter(hashes)) == {"same_bytes": 2, "same_image": 2}
    assert count_duplicates([], []) == {"same_bytes": 0, "same_image": 0}


def pages(count: int) -> bytes:
    """A TIFF of that many pages, all of the same pixels: an IFD takes 90 bytes."""
    content = bytearray(encoded(picture(size=(32, 32)).convert("L"), "TIFF"))
    first = struct.unpack_from("<I", content, 4)[0]
    (entries,) = struct.unpack_from("<H", content, first)
    directory = bytes(content[first : first + 2 + 12 * entries])
    content += b"\0" * (len(content) % 2)
    following = len(content)
    struct.pack_into("<I", content, first + 2 + 12 * entries, following if count > 1 else 0)
    for number in range(1, count):
        size = len(directory) + 6
        content += directory + struct.pack("<I", following + size * number if number < count - 1 else 0) + b"\0\0"
    return bytes(content)


@pytest.mark.parametrize(("count", "recorded"), [(1, 1), (2, 2), (499, 499), (500, MAX_FRAMES), (20_000, MAX_FRAMES)])
def test_the_pages_of_a_tiff_are_counted_up_to_a_limit(count, recorded):
    started = time.process_time()
    assert inspect_image(pages(count)).frames == recorded
    assert time.process_time() - started < 2  # 20,000 pages took 5 s, and time grows with their square


def test_benchmark_images_are_recognized_by_content(tmp_path, caplog):
    pytest.importorskip("pydicom")
    folder = tmp_path / "benchmark"
    folder.mkdir()
    for name, format in (("IM0001", "PNG"), ("b.jfif", "JPEG"), ("c.jp2", "JPEG2000"), ("d.txt", "TIFF")):
        (folder / name).write_bytes(encoded(picture(ord(name[0])), format))
    pq.write_table(pa.table({"image": [encoded(picture(5))]}), folder / "shard")
    (folder / "notes.txt").write_text("no image")
    (folder / "class" / "deep").mkdir(parents=True)
    (folder / "class" / "deep" / "a.JPG").write_bytes(encoded(picture(6), "JPEG"))
    (folder / "broken.png").write_bytes(encoded(picture(7))[:500])
    os.mkfifo(folder / "pipe.png")
    index = ImageIndex.from_path(folder)
    seeds = [*map(ord, "Ibcd"), 5, 6]
    assert len(index) == 6 and all(index.contains(perceptual_hash(picture(seed))) for seed in seeds)
    assert not index.contains(perceptual_hash(picture(7)))
    assert "1 of 7 images cannot be read" in caplog.text and "broken.png" in caplog.text
    assert "2 files are not images and are ignored (.txt 1, .png 1; notes.txt, pipe.png)" in caplog.text
    assert len(ImageIndex.from_path(folder / "IM0001")) == 1
    with pytest.raises(ValueError, match="contains no images and no Parquet files"):
        ImageIndex.from_path(folder / "notes.txt")


def test_dicom_files_are_benchmark_images(caplog):
    pytest.importorskip("pydicom")
    faults = ROOT / "tests" / "data" / "faults" / "folder_extensions"
    index = ImageIndex.from_path(faults)
    hashes = [inspect_image(path).perceptual_hash for path in sorted(faults.rglob("*")) if path.is_file()]
    assert len(hashes) == 18 and all(index.contains(found) for found in hashes if found)
    assert "cannot be read" not in caplog.text and "not images" not in caplog.text
