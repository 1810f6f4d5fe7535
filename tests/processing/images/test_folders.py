"""Which files of a folder are images, and what becomes of the others."""

import io
import os
import shutil
import socket
import struct
from pathlib import Path

import numpy as np
import pytest
from helpers.mirror_writer import png_bytes
from PIL import Image

from biomedclip.processing import read_image, read_labeled_images
from biomedclip.processing.images.errors import MAX_BYTES, ImageError
from biomedclip.processing.images.folders import find_images, is_image_file
from biomedclip.processing.images.formats import format_of


FAULTS = Path(__file__).resolve().parents[2] / "data" / "faults" / "folder_extensions"


def encoded(format: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (20, 20), 90 if mode == "L" else None).save(buffer, format, **options)
    return buffer.getvalue()


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_all_images_of_both_class_folders_are_read_independently_of_their_names():
    pytest.importorskip("pydicom")
    images = read_labeled_images(FAULTS)["train"]
    assert images.labels == ["a"] * 9 + ["b"] * 9
    assert {read_image(images[number]["image"]).size for number in range(18)} == {(30, 30), (64, 64)}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("name", ["scan", "scan.img", "scan.0001", "SCAN.TXT"])
def test_an_image_format_is_detected_from_the_first_bytes(tmp_path, format, name):
    (tmp_path / name).write_bytes(encoded(format))
    assert names(find_images(tmp_path).images) == [name]
    assert read_image(tmp_path / name).size == (20, 20)


def test_both_byte_orders_and_big_tiff_are_detected():
    assert {format_of(start) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")} == {"TIFF"}


@pytest.mark.parametrize("preamble", [True, False])
@pytest.mark.parametrize("implicit", [True, False])
def test_dicom_is_detected_with_and_without_a_preamble_but_a_dicomdir_is_not_an_image(tmp_path, preamble, implicit):
    pydicom = pytest.importorskip("pydicom")
    from helpers.dicom_writer import dicom

    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    (tmp_path / "IM0001").write_bytes(dicom(pixels, preamble, implicit, ImageType=["ORIGINAL", "PRIMARY"]))
    shutil.copy(pydicom.data.get_testdata_file("DICOMDIR", download=False), tmp_path)
    content = find_images(tmp_path)
    assert names(content.images) == ["IM0001"] and content.dicom and names(content.others) == ["DICOMDIR"]


def test_content_decides_how_a_file_with_another_formats_suffix_is_decoded(tmp_path):
    for format, name in (("JPEG", "a.dcm"), ("PNG", "b.jpg")):
        (tmp_path / name).write_bytes(encoded(format))
        assert read_image(tmp_path / name).format == format


def test_damaged_images_count_as_images_and_other_files_are_listed(tmp_path):
    images = {"a.png": png_bytes(0), "cut": png_bytes(0)[:40], "cut.jpg": b"<html>not found</html>", "empty.TIFF": b""}
    others = {
        "HEIC": b"\0\0\0\x18ftypheic",
        "NIfTI": b"\x5c\x01\0\0" + bytes(600),
        "PDF": b"%PDF-1.7",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "start of a TIFF": b"II",
        "empty": b"",
        "future": b"GIF90a",
        "one byte": b"B",
        "sound": b"RIFF\0\0\0\0WAVEfmt ",
        "text": b"BMI,age\n22,40\n" * 50,
        "zeros": bytes(4096),
        "zip": b"PK\3\4" + bytes(300),
    }
    for name, content in (images | others).items():
        (tmp_path / name).write_bytes(content)
    found = find_images(tmp_path)
    assert names(found.images) == sorted(images) and names(found.others) == sorted(others)


def test_hidden_files_and_folders_of_archive_programs_are_ignored(tmp_path):
    for name in (".a.png", "__MACOSX/b.png", ".ipynb_checkpoints/c.png", "class/.d.png", "class/e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png_bytes(0))
    found = find_images(tmp_path)
    assert names(found.images) == ["e.png"] and not found.others


def test_only_regular_files_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link to a pipe.png").symlink_to(tmp_path / "pipe")
    (tmp_path / "broken link.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "device").symlink_to("/dev/zero")
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        found = find_images(tmp_path)
    assert not found.images and len(found.others) == 6
    assert not is_image_file(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="pipe.png: not a regular file"):
        read_image(tmp_path / "pipe.png")


def test_links_out_of_the_folder_are_listed_and_deep_ones_to_folders_are_not_followed(tmp_path, caplog):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "elsewhere" / f"{number}.png").write_bytes(png_bytes(number))
    data = tmp_path / "data"
    (data / "lung").mkdir(parents=True)
    (data / "lung" / "more").symlink_to(tmp_path / "elsewhere")
    (data / "lung" / "loop").symlink_to(data)
    (data / "lung" / "one.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    (data / "brain").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(data / "lung")
    found = find_images(data, link_depth=1)
    expected = ["brain/0.png", "brain/1.png", "brain/2.png", "lung/one.png"]
    assert [path.relative_to(data).as_posix() for path in found.images] == expected
    assert names(found.links_out) == ["brain", "one.png"]
    assert names(found.skipped_folders) == ["again", "loop", "more"]
    (data / "again").unlink()
    images = read_labeled_images(data)["train"]
    assert images.labels == ["brain"] * 3 + ["lung"]
    assert "lung/loop, lung/more" in caplog.text and "links that lead out of it (brain, lung/one.png)" in caplog.text


def test_ignored_files_are_logged_once_in_one_line(tmp_path, caplog):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes(png_bytes(0))
    for number in range(7):
        (tmp_path / "a" / f"{number}.txt").write_text("")
    (tmp_path / "b" / "line\nbreak\x1b[31m").write_text("")
    (tmp_path / "notes.md").write_text("")
    for _ in range(3):
        read_labeled_images(tmp_path)
    (record,) = caplog.records
    message = record.getMessage()
    assert "9 files are not images and are ignored (.txt 7, " in message and "\n" not in message
    assert "a/0.txt, a/1.txt, a/2.txt, a/3.txt, a/4.txt, ..." in message and "\x1b" not in message


def test_a_folder_without_read_permission_is_listed(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may read every folder")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed").chmod(0)
    found = find_images(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert names(found.skipped_folders) == ["closed"]


def test_a_file_with_an_images_suffix_is_not_opened_to_be_found(tmp_path, monkeypatch):
    def refuse(path, mode):
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr("biomedclip.processing.images.folders.open", refuse, raising=False)
    for name in ("a.png", "b.JPG", "c.dcm"):
        (tmp_path / name).touch()
    assert len(find_images(tmp_path).images) == 3
    (tmp_path / "no_suffix").touch()
    with pytest.raises(AssertionError, match="no_suffix was opened"):
        find_images(tmp_path)


def test_a_jpeg_2000_image_too_large_to_decode_is_refused_by_its_header():
    content = bytearray(encoded("JPEG2000"))
    side = int((MAX_BYTES / 28) ** 0.5) + 100
    for place in (content.index(b"ihdr") + 4, content.index(b"\xff\x51") + 6):
        struct.pack_into(">II", content, place, side, side)
    with pytest.raises(ImageError, match="may take more than") as raised:
        read_image(bytes(content))
    assert raised.value.reason == "image too large"


def test_jpeg_2000_of_16_bits_keeps_its_order(tmp_path):
    values = (np.arange(64 * 64).reshape(64, 64) * 15).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.jp2", irreversible=False)
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.jp2")), values)
