"""RSNA pneumonia: DICOM and a table of opacities."""

import hashlib
import shutil

import numpy as np
import pytest
from helpers.benchmark_files import write_rsna, write_table

from biomedclip.processing import load_benchmark, read_image
from biomedclip.processing.benchmarks.rsna import split_patients
from biomedclip.processing.images.reading import ImageError


pytest.importorskip("pydicom")

TABLE = "stage_2_train_labels.csv"


@pytest.fixture
def folder(tmp_path):
    write_rsna(tmp_path / "rsna", {f"patient-{number}": [1, 0] if number % 3 == 0 else [0] for number in range(30)})
    return tmp_path / "rsna"


def test_the_largest_target_of_a_patient_is_the_label(folder):
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
    assert "18,678, validation 4,003, test 9,069, which is more than the 26,684 patients" in test.notes[0]
    assert test.selection == {
        "rsna_split": "paper-test",
        "seed": 0,
        "patients": {"train": 17, "test": 10, "validation": 3},
        "positive": test.images.labels.count("pneumonia"),
        "positive_fraction": test.images.labels.count("pneumonia") / 10,
    }
    assert splits["train"].paper == {}


def test_the_split_depends_only_on_the_ids_and_the_seed():
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


def digest(patients):
    return hashlib.sha256("\n".join(patients).encode()).hexdigest()[:16]


def test_the_papers_fractions_give_its_training_and_validation_sizes_without_overlap():
    patients = [f"{number:08x}" for number in range(26_684)]
    splits = split_patients(patients, rule="paper-fractions")
    assert {split: len(members) for split, members in splits.items()} == {
        "train": 18_678,
        "validation": 4_003,
        "test": 4_003,
    }
    assert len({patient for members in splits.values() for patient in members}) == 26_684
    assert set(splits["test"]) < set(split_patients(patients)["test"]), "images that no rule trains on"
    assert split_patients(patients, seed=1, rule="paper-fractions")["test"] != splits["test"]
    with pytest.raises(ValueError, match="rsna_split='half' is unknown. Choose one of paper-test, paper-fractions"):
        split_patients(patients, rule="half")


@pytest.mark.parametrize(
    ("rule", "digests"),
    [
        ("paper-test", ["963a1a7514168f3f", "9d6d6b9036552bd9", "7918703a6f4d73ff"]),
        ("paper-fractions", ["08bbbee5519c984a", "89b585a86f389ebe", "915293f22c051fc5"]),
    ],
)
def test_the_drawn_patients_are_pinned(rule, digests):
    splits = split_patients([f"{number:08x}" for number in range(26_684)], rule=rule)
    assert [digest(splits[split]) for split in ("train", "validation", "test")] == digests


def test_the_rule_is_an_option(folder):
    splits = {
        split: load_benchmark("rsna", folder, split=split, rsna_split="paper-fractions")
        for split in ("train", "validation", "test")
    }
    assert {split: len(benchmark) for split, benchmark in splits.items()} == {"train": 21, "validation": 4, "test": 5}
    assert len({name for benchmark in splits.values() for name in benchmark.images.names}) == 30
    test = splits["test"]
    assert test.selection["rsna_split"] == "paper-fractions" and "rule paper-fractions" in test.notes[0]
    assert "paper-fractions is inferred" in test.notes[1]


def test_missing_images_are_counted_and_named(folder):
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
        (["patientId", "PredictionString"], ["a", ""], "no column Target. The columns are patientId, PredictionString"),
        (["patientId", "Target"], ["a", "0.5"], "Target must be 0 or 1, but there are 0.5"),
        (["patientId", "Target"], ["../a", "1"], "is not a file name"),
    ],
)
def test_a_table_with_unexpected_content_is_refused(folder, columns, row, message):
    write_table(folder / TABLE, columns, [row])
    with pytest.raises(ValueError, match=message):
        load_benchmark("rsna", folder)


def test_a_damaged_radiograph_is_an_error_only_when_it_is_read(folder):
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
