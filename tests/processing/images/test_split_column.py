"""Splits that a column of a table or dataset states."""

import csv
import logging
from pathlib import Path

import datasets
import pytest
from PIL import Image

from biomedclip.processing import read_labeled_images
from biomedclip.processing.images.finding_tables import read_finding_splits
from biomedclip.processing.images.folders import warn_once
from biomedclip.processing.images.labeled import read_splits


SPLITS = ["train", "Training ", "val", "VALID", "dev", "validation", "test", "testing"]


@pytest.fixture
def table(tmp_path):
    def write(splits: list[str], *, column: str = "split", names: list[str] | None = None) -> Path:
        path = tmp_path / "table.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "label", column, "cyst", "mass"])
            for number, split in enumerate(splits):
                name = f"{number}.png" if names is None else names[number]
                Image.new("L", (8, 8), number).save(tmp_path / name)
                rows.writerow([name, "ab"[number % 2], split, number % 2, 1])
        return path

    return write


def test_all_names_of_the_splits_are_accepted_in_any_case(table):
    splits = read_labeled_images(table(SPLITS), split_column="split")
    assert {name: images.names for name, images in splits.items()} == {
        "train": ["0.png", "1.png"],
        "validation": ["2.png", "3.png", "4.png", "5.png"],
        "test": ["6.png", "7.png"],
    }
    assert splits["test"].labels == ["a", "b"]


def test_several_findings_and_datasets_have_the_same_splits_as_a_table(table, tmp_path):
    path = table(SPLITS)
    findings = read_finding_splits(path, label_columns=["cyst", "mass"], split_column="split")
    assert {name: images.names for name, images in findings.items()} == {
        name: images.names for name, images in read_splits(path, split_column="split").items()
    }
    assert findings["test"].targets.tolist() == [[0, 1], [1, 1]]
    content = {"image": [str(tmp_path / f"{number}.png") for number in range(8)], "label": list("abababab")}
    rows = datasets.Dataset.from_dict({**content, "fold": SPLITS}).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "embedded.parquet")
    embedded = read_splits(tmp_path / "embedded.parquet", split_column="fold")
    assert {name: len(images) for name, images in embedded.items()} == {"train": 2, "validation": 4, "test": 2}
    coded = rows.cast_column("fold", datasets.ClassLabel(names=SPLITS))
    coded.save_to_disk(tmp_path / "saved")
    assert len(read_splits(tmp_path / "saved", split_column="fold")["validation"]) == 4


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "held out"], "table.csv, line 3: split is 'held out'. It must be train, validation or test (also "),
        (["train", ""], "table.csv, line 3: split is empty. It must be train"),
        (["train", "1"], "line 3: split is '1'"),
        (["train", "training"], "by the column 'split', all rows are in the train split. State two or more splits"),
    ],
)
def test_other_values_are_errors_with_the_file_the_row_and_the_value(table, splits, message):
    for read in (read_splits, lambda path, **also: read_finding_splits(path, label_columns=["cyst", "mass"], **also)):
        with pytest.raises(ValueError) as error:
            read(table(splits), split_column="split")
        assert message in str(error.value)


def test_an_image_in_two_splits_is_an_error(table):
    with pytest.raises(
        ValueError, match=r"line 4: a.png is in the test split, but in the train split in line 2\. Keep"
    ):
        read_splits(table(["train", "train", "test"], names=["a.png", "b.png", "a.png"]), split_column="split")


def test_a_missing_column_and_data_with_splits_are_errors(table, tmp_path):
    with pytest.raises(ValueError, match="no column 'fold'.*Pass split_column"):
        read_splits(table(SPLITS), split_column="fold")
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / "folders" / split / label).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / "folders" / split / label / "0.png")
    with pytest.raises(ValueError, match=r"split_column='split' has no effect"):
        read_splits(tmp_path / "folders", split_column="split")
    rows = datasets.Dataset.from_dict({"image": ["a"], "label": ["a"], "split": ["train"]})
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"split_column='split' has no effect on .*, which has splits already"):
        read_splits(tmp_path / "saved", split_column="split")


def test_a_column_named_split_that_is_not_used_is_a_warning(table, caplog):
    warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert list(read_splits(table(SPLITS))) == ["train"]
        read_splits(table(SPLITS))
    assert caplog.text.count("the column 'split' is not used. To use it, pass split_column='split'.") == 1


def test_a_folder_without_classes_but_with_a_table_is_an_error_that_names_the_table(table):
    with pytest.raises(
        FileNotFoundError, match=r"no class folders with images\. Pass the table .*table\.csv, or the folder"
    ):
        read_splits(table(SPLITS).parent)
