"""Leaks between the splits of a benchmark: planted ones, and those of published benchmarks."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark_files import draw_slake_images, drawn_pixels, save_drawn, write_pcam, write_rsna, write_tcga_til
from PIL import Image

from biomedclip.processing import load_benchmark
from biomedclip.processing.benchmarks.leaks import find_copies, find_leaks
from biomedclip.processing.images.labeled import LabeledImages


def save_distinct(path, number, size=64):
    """Save random gray blocks. No two numbers look alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST).save(path)


@pytest.fixture
def folder(tmp_path):
    for split, first in (("train", 0), ("test", 100)):
        for label in ("a", "b"):
            for number in range(8):
                save_distinct(tmp_path / split / label / f"{number}.png", first + number + 50 * (label == "b"))
    return tmp_path


def leaks_of(name, folder, **options):
    return find_leaks(*[load_benchmark(name, folder, split=split, **options) for split in ("train", "test")])


def test_splits_without_leaks_have_counts_of_zero(folder):
    leaks = leaks_of("imagefolder", folder)
    assert json.loads(json.dumps(leaks.as_dict())) == {
        "train_images": 16,
        "test_images": 16,
        "same_group": None,
        "same_name": None,
        "same_bytes": 0,
        "same_pixels": 0,
        "same_picture": 0,
        "similar": 0,
        "leaked": 0,
        "unreadable": [],
        "examples": {},
    }


def test_a_renamed_file_is_found(folder):
    (folder / "test" / "a" / "renamed.png").write_bytes((folder / "train" / "b" / "3.png").read_bytes())
    leaks = leaks_of("imagefolder", folder)
    assert (leaks.same_bytes, leaks.same_picture, leaks.leaked) == (1, 1, 1)
    assert leaks.examples["same_bytes"] == [{"test": "test/a/renamed.png", "train": "train/b/3.png"}]


@pytest.mark.parametrize("suffix", ["jpg", "webp", "png"])
def test_a_picture_in_another_format_and_size_is_found(folder, suffix):
    with Image.open(folder / "train" / "a" / "5.png") as image:
        image.resize((48, 48), Image.Resampling.BICUBIC).save(folder / "test" / "b" / f"again.{suffix}")
    leaks = leaks_of("imagefolder", folder)
    assert (leaks.same_bytes, leaks.same_picture, leaks.leaked) == (0, 1, 1)
    assert leaks.examples["same_picture"] == [{"test": f"test/b/again.{suffix}", "train": "train/a/5.png"}]


def test_a_patient_in_two_splits_is_found(tmp_path):
    write_tcga_til(tmp_path, ["luad"], {"train": (4, 2), "test": (4, 2)})
    assert leaks_of("tcga_til", tmp_path).same_group == 0
    patches = tmp_path / "TCGA-TILs" / "images-tcga-tils" / "luad" / "test" / "til-negative"
    save_distinct(patches / "TCGA-TR-0001-01Z-00-DX1-77.png", 7)
    leaks = leaks_of("tcga_til", tmp_path)
    assert leaks.same_group == 1
    assert leaks.examples["same_group"][0]["test"].endswith("TCGA-TR-0001-01Z-00-DX1-77.png")
    assert "TCGA-TR-0001" in leaks.examples["same_group"][0]["train"]


def test_the_split_of_rsna_by_patient_leaks_none(tmp_path):
    pytest.importorskip("pydicom")
    write_rsna(tmp_path, {f"p{number}": [number % 2] for number in range(20)})
    assert leaks_of("rsna", tmp_path).same_group == 0


def test_rows_of_an_array_are_compared(tmp_path):
    h5py = pytest.importorskip("h5py")
    for part in ("train", "test"):
        write_pcam(tmp_path, part, images=20, distinct=20)
    name = str(tmp_path / "camelyonpatch_level_2_split_{}_x.h5")
    with h5py.File(name.format("test"), "r+") as test, h5py.File(name.format("train")) as train:
        test["x"][4] = train["x"][11]
    leaks = leaks_of("pcam", tmp_path)
    assert leaks.same_bytes == 1
    assert leaks.examples["same_bytes"] == [{"test": "test/4", "train": "train/11"}]


def test_unreadable_images_are_named(folder):
    (folder / "test" / "a" / "renamed.png").write_bytes((folder / "train" / "b" / "3.png").read_bytes())
    (folder / "test" / "a" / "0.png").write_bytes(b"damaged")
    (folder / "train" / "a" / "0.png").write_bytes(b"damaged too")
    leaks = leaks_of("imagefolder", folder)
    assert leaks.same_bytes == 1
    assert [entry.split(" (")[0] for entry in leaks.unreadable] == ["train: train/a/0.png", "test: test/a/0.png"]


def test_blank_images_do_not_count_as_alike(folder):
    for split in ("train", "test"):
        Image.new("RGB", (64, 64), split == "test" and "white" or "black").save(folder / split / "a" / "blank.png")
    assert leaks_of("imagefolder", folder).leaked == 0


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
        ("bmp.bmp", "other.png", "the same pixels", 1),
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


@pytest.mark.slow
def test_the_published_split_of_vqa_rad_leaks(shared_data):
    root = shared_data / "vqa_rad"
    leaks = leaks_of("vqa_rad", root)
    assert (leaks.test_images, leaks.same_name, leaks.same_bytes, leaks.same_picture) == (203, 202, 202, 202)
    assert leaks.leaked == 202
    images = root / "data" / "osfstorage" / "VQA_RAD Image Folder"
    assert leaks_of("vqa_rad", root / "awenbocc_split", image_folder=images).same_name == 203


@pytest.mark.slow
def test_the_chinese_questions_of_slake_leak(shared_data, tmp_path):
    folder = shared_data / "slake" / "Slake1.0"
    draw_slake_images(tmp_path, folder.glob("*.json"), size=16)
    leaks = leaks_of("slake", folder, language="all", image_folder=tmp_path)
    assert (leaks.test_images, leaks.same_name, leaks.same_bytes) == (180, 142, 142)
    english = leaks_of("slake", folder, image_folder=tmp_path)
    assert (english.test_images, english.same_name, english.same_bytes) == (96, 0, 0)
