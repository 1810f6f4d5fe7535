"""MedMNIST's `.npz` files."""

import subprocess
import zipfile

import numpy as np
import pytest
from helpers.benchmark_files import write_medmnist

from biomedclip.processing import load_benchmark, read_image


SIZES = {"train": 12, "val": 6, "test": 9}


def test_splits_classes_and_colors_are_read(tmp_path):
    write_medmnist(tmp_path / "pathmnist.npz", 9, SIZES, shape=(28, 28, 3))
    benchmark = load_benchmark("medmnist", tmp_path / "pathmnist.npz")
    assert benchmark.images.labels == [str(number) for number in range(9)]
    assert benchmark.class_names[:2] == ["adipose", "background"]
    assert benchmark.templates == ["this is a photo of {}"]
    with np.load(tmp_path / "pathmnist.npz") as arrays:
        assert np.array_equal(read_image(benchmark.images[4]["image"]), arrays["test_images"][4])
    assert benchmark.notes == ["pathmnist: images of 28 x 28 pixels."]
    assert len(load_benchmark("medmnist", tmp_path, split="validation")) == 6


def test_gray_images_of_any_size_and_the_positive_class(tmp_path):
    write_medmnist(tmp_path / "pneumoniamnist_64.npz", 2, SIZES, shape=(64, 64))
    benchmark = load_benchmark("medmnist", tmp_path)
    assert read_image(benchmark.images[0]["image"]).mode == "L"
    assert (benchmark.class_names, benchmark.positive) == (["normal", "pneumonia"], "1")


def test_classes_of_an_unknown_set_are_named_by_numbers(tmp_path):
    write_medmnist(tmp_path / "footmnist.npz", 3, SIZES)
    benchmark = load_benchmark("medmnist", tmp_path)
    assert benchmark.class_names == ["0", "1", "2"]
    assert "The class names of footmnist are not known" in benchmark.notes[1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("organmnist3d", {"classes": 11, "shape": (28, 28, 28)}, r"volumes of \(28, 28, 28\) voxels"),
        ("chestmnist", {"classes": 2, "labels": 14}, "14 labels for each image, as in ChestMNIST"),
        ("octmnist", {"classes": 9}, "label 4 is not one of 0 to 3 of octmnist"),
    ],
)
def test_volumes_and_several_labels_are_refused(tmp_path, name, options, message):
    write_medmnist(tmp_path / f"{name}.npz", images=SIZES, **options)
    with pytest.raises(ValueError, match=message):
        load_benchmark("medmnist", tmp_path)


def test_wrong_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected one .npz file, found none.*zenodo.org"):
        load_benchmark("medmnist", tmp_path)
    file = tmp_path / "bloodmnist.npz"
    write_medmnist(file, 8, SIZES, shape=(28, 28, 3))
    content = file.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 10):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match="not a MedMNIST file, or a truncated one"):
            load_benchmark("medmnist", file)
    np.savez(file, images=np.zeros(3))
    with pytest.raises(ValueError, match="it has no array 'test_images', only images"):
        load_benchmark("medmnist", file)
    np.savez(file, test_images=np.zeros((3, 28, 28), np.uint8), test_labels=np.zeros((2, 1), np.uint8))
    with pytest.raises(ValueError, match="2 labels for 3 images"):
        load_benchmark("medmnist", file)
    write_medmnist(tmp_path / "dermamnist.npz", 7, SIZES)
    with pytest.raises(FileNotFoundError, match="found bloodmnist.npz, dermamnist.npz"):
        load_benchmark("medmnist", tmp_path)


class _Payload:
    def __reduce__(self):
        return subprocess.check_call, (["false"],)


def test_pickled_arrays_are_not_loaded(tmp_path):
    file = tmp_path / "pathmnist.npz"
    np.savez(file, test_images=np.array([_Payload()], dtype=object), test_labels=np.zeros((1, 1), np.uint8))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_benchmark("medmnist", file)


def test_an_oversized_array_is_refused_before_it_is_read(tmp_path, monkeypatch):
    file = tmp_path / "pathmnist.npz"
    write_medmnist(file, 9, SIZES)
    with zipfile.ZipFile(file) as archive:
        size = archive.getinfo("test_images.npy").file_size
    monkeypatch.setattr("biomedclip.processing.benchmarks.medmnist.MAX_ARRAY_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"'test_images' would take {size:,} bytes"):
        load_benchmark("medmnist", file)
