"""Images that a classifier was trained on are recognized in other data, and the record of them names nothing."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers.benchmark_files import draw_images
from helpers.model_results import read_results
from PIL import Image

from biomedclip.processing import read_labeled_images
from biomedclip.processing.images.labeled import labeled_files
from biomedclip.run_scripts.classification.calibrations import Calibration, read_calibration
from biomedclip.run_scripts.classification.seen_images import (
    FILE,
    count_seen_images,
    notes_on_seen,
    write_seen_images,
)
from biomedclip.run_scripts.main import main


CLASSES = {"benign": 8, "malignant": 8, "other": 8}


@pytest.fixture
def scans(tmp_path):
    return draw_images(tmp_path / "scans", CLASSES)


@pytest.fixture
def model(fine_tuned, scans, tmp_path):
    """A classifier that was trained on the first 12 images, and validated on the next 6."""
    folder = shutil.copytree(fine_tuned[0], tmp_path / "model")
    images = read_labeled_images(scans)["train"]
    write_seen_images([folder], {"train": images.select(range(12)), "validation": images.select(range(12, 18))})
    return folder


def test_the_same_images_are_counted_in_a_folder_a_table_and_arrays(model, scans, tmp_path):
    images = read_labeled_images(scans)["train"]
    files = [scans / name for name in images.names]
    expected = {"train": 12, "validation": 6}
    assert count_seen_images(str(model), files) == expected
    copies = [shutil.copy(file, tmp_path / f"{number}.png") for number, file in enumerate(files)]
    assert count_seen_images(str(model), [tmp_path / copy for copy in copies]) == expected
    in_memory = [Image.open(file).copy() for file in files]
    assert count_seen_images(str(model), in_memory) == expected
    for number, image in enumerate(in_memory):
        image.save(tmp_path / f"{number}.tiff")
    converted = [tmp_path / f"{number}.tiff" for number in range(len(files))]
    assert count_seen_images(str(model), converted) == expected
    assert count_seen_images(str(model), [{"bytes": file.read_bytes()} for file in files]) == expected
    mirrored = [Image.fromarray(np.asarray(image)[:, ::-1].copy()) for image in in_memory]
    assert count_seen_images(str(model), mirrored) == {"train": 0, "validation": 0}


def test_blank_and_damaged_images_are_no_matches(fine_tuned, tmp_path):
    (tmp_path / "one.png").write_bytes(b"no image")
    (tmp_path / "two.png").write_bytes(b"no image either")
    for name, size in (("blank", 8), ("also blank", 8)):
        Image.new("L", (size, size), 7).save(tmp_path / f"{name}.png", compress_level=0 if name == "blank" else 9)
    seen = labeled_files(tmp_path, [tmp_path / "one.png", tmp_path / "blank.png"], ["a", "b"])
    folder = shutil.copytree(fine_tuned[0], tmp_path / "model")
    write_seen_images([folder], {"train": seen})
    assert count_seen_images(str(folder), [tmp_path / "two.png", tmp_path / "also blank.png"]) == {"train": 0}


def test_the_file_has_only_sorted_hashes(model):
    content = json.loads((model / FILE).read_text())
    assert set(content) == {"schema", "train", "validation"}
    for split, images in (("train", 12), ("validation", 6)):
        assert content[split] == sorted(content[split]) and len(content[split]) == 2 * images
        assert all(len(entry) == 16 and int(entry, 16) >= 0 for entry in content[split])


def test_an_evaluation_of_other_data_notes_the_images_of_the_training(model, scans, tmp_path):
    with (scans / "table.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label"])
        names = read_labeled_images(scans)["train"].names
        rows.writerows((name, name.split("/")[0]) for name in names[4:])
    command = ["image-classification", "--model", model, "--data", scans / "table.csv"]
    assert main(["evaluate", *map(str, command), "--output-dir", str(tmp_path / "out")]) == 0
    data = read_results(tmp_path / "out")["data"]
    assert data["seen_in_training"] == {"train": 8, "validation": 6}
    assert "8 of 20 images were used to train the classifier. Its metrics on them are too good." in data["notes"]
    assert any(note.startswith("6 of 20 images were validation images of the training") for note in data["notes"])
    options = ["--no-find-leaks", "--output-dir", str(tmp_path / "off")]
    assert main(["evaluate", *map(str, command), *options]) == 0
    assert read_results(tmp_path / "off")["data"]["seen_in_training"] is None


def test_decisions_that_are_fitted_on_images_of_the_training_have_a_note(model, scans, tmp_path, capsys):
    images = read_labeled_images(scans)["train"]
    for number, name in enumerate(images.names):
        split = "validation" if number % 2 else "test"
        (tmp_path / "data" / split / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scans / name, tmp_path / "data" / split / name)
    command = ["evaluate", "image-classification", "--model", str(model), "--data", str(tmp_path / "data")]
    assert main([*command, "--calibrate", "--output-dir", str(tmp_path / "out")]) == 0
    data = read_results(tmp_path / "out")["data"]
    notes = " ".join(data["notes"])
    counts = {"train": 6, "validation": 3}
    assert data["validation_seen_in_training"] == data["seen_in_training"] == counts
    assert "6 of 12 validation images were used to train the classifier, which is too certain about them." in notes
    assert "3 of 12 validation images were those of the training, on which settings or a checkpoint" in notes
    assert read_calibration(model / "calibration.json").fitted_on["seen_in_training"] == counts
    assert main([*command, "--output-dir", str(tmp_path / "again")]) == 0
    again = read_results(tmp_path / "again")["data"]
    assert any(note.startswith("6 of the images on which this calibration was fitted") for note in again["notes"])
    assert "validation_seen_in_training" not in again


def test_a_calibration_without_a_record_of_seen_images_counts_none():
    for fitted_on in ({}, {"seen_in_training": None}, {"seen_in_training": {"train": "x"}}, {"seen_in_training": {}}):
        assert Calibration(1.0, ["a", "b"], "00", fitted_on=fitted_on).seen_in_training == 0


def test_models_without_the_file_and_damaged_files(fine_tuned, model, scans):
    assert count_seen_images(str(fine_tuned[0]), []) is None and count_seen_images("lab/classifier", []) is None
    assert notes_on_seen(None, 3) == [] and notes_on_seen({"train": 0, "validation": 0}, 3) == []
    for content in ("{", "[]", '{"train": 3, "schema": 1}', '{"train": [], "schema": 2}'):
        (model / FILE).write_text(content)
        with pytest.raises(ValueError, match=r"seen_images.json is damaged"):
            count_seen_images(str(model), [])
