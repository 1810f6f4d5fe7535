"""RSNA pneumonia: DICOM and a table of opacities."""

import shutil

import numpy as np
import pytest
from benchmark_files import write_rsna, write_table

from processing import load_benchmark, read_image
from processing.benchmarks.rsna import split_patients
from processing.images import ImageError


pytest.importorskip("pydicom")

TABLE = "stage_2_train_labels.csv"


@pytest.fixture
def folder(tmp_path):
    write_rsna(tmp_path / "rsna", {f"patient-{number}": [1, 0] if number % 3 == 0 else [0] for number in range(30)})
    return tmp_path / "rsna"


def test_a_patients_largest_target_is_the_label_and_each_is_in_one_split(folder):
    splits = {split: load_benchmark("rsna", folder, split=split) for split in ("train", "validation", "test")}
    assert {split: len(benchmark) for split, benchmark in splits.items()} == {"train": 17, "validation": 3, "test": 10}
    patients = [patient for benchmark in splits.values() for patient in benchmark.images.groups]
    assert len(set(patients)) == 30
    for benchmark in splits.values():
        for patient, label in zip(benchmark.images.names, benchmark.images.labels, strict=True):
            assert label == ("pneumonia" if int(patient.split("-")[1]) % 3 == 0 else "normal")
    test = splits["test"]
    assert read_image(test.images[0]["image"]).size == (64, 64)
    assert test.class_names == ["normal lung", "pneumonia"]
    assert "seed 0: train 17, test 10, validation 3" in test.notes[0] and "9,069" in test.notes[0]
    assert splits["train"].paper == {}


def test_the_split_is_one_of_the_seed_alone():
    patients = [f"{number:08x}" for number in range(26_684)]
    splits = split_patients(patients)
    assert {split: len(members) for split, members in splits.items()} == {
        "train": 14_947,
        "validation": 2_668,
        "test": 9_069,
    }
    assert split_patients(np.random.default_rng(0).permutation(patients).tolist()) == splits
    assert splits["test"][:3] == ["00000003", "00000008", "0000000b"], "in every release"
    other = split_patients(patients, seed=1)
    assert 0.3 < len(set(other["test"]) & set(splits["test"])) / 9_069 < 0.38, "as chance has it"


def test_images_that_are_missing_are_counted_and_named(folder):
    for number in (4, 11):
        (folder / "stage_2_train_images" / f"patient-{number}.dcm").unlink()
    with pytest.raises(
        FileNotFoundError, match=f"2 of 30 images of {TABLE} are missing: patient-4.dcm, patient-11.dcm"
    ):
        load_benchmark("rsna", folder)
    shutil.rmtree(folder / "stage_2_train_images")
    with pytest.raises(FileNotFoundError, match="30 of 30 images .*kaggle.com/c/rsna"):
        load_benchmark("rsna", folder)
    (folder / TABLE).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {TABLE}"):
        load_benchmark("rsna", folder)


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (["patientId", "PredictionString"], ["a", ""], "no column Target; it has patientId, PredictionString"),
        (["patientId", "Target"], ["a", "0.5"], "Target is 0 or 1, and there are 0.5"),
        (["patientId", "Target"], ["../a", "1"], "is no name of a file"),
    ],
)
def test_a_table_that_holds_something_else_is_refused(folder, columns, row, message):
    write_table(folder / TABLE, columns, [row])
    with pytest.raises(ValueError, match=message):
        load_benchmark("rsna", folder)


def test_a_damaged_radiograph_is_found_only_when_it_is_read(folder):
    benchmark = load_benchmark("rsna", folder)
    damaged = benchmark.images.images[3]
    damaged.write_bytes(damaged.read_bytes()[:700])
    benchmark = load_benchmark("rsna", folder)
    read_image(benchmark.images[2]["image"])
    with pytest.raises(ImageError, match=damaged.name):
        read_image(benchmark.images[3]["image"])


def test_real_radiographs_are_read(shared_data):
    splits = [
        load_benchmark("rsna", shared_data / "rsna_sample", split=split) for split in ("train", "validation", "test")
    ]
    assert sum(len(benchmark) for benchmark in splits) == 14
    labels = [label for benchmark in splits for label in benchmark.images.labels]
    assert labels.count("pneumonia") == 6
    for benchmark in splits:
        assert {read_image(image).size for image in benchmark.images.images} == {(1024, 1024)}
