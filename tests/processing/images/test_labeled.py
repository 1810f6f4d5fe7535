"""Labeled images of class folders and of the `datasets` library."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
from helpers.mirror_writer import png_bytes

from biomedclip.processing import read_image, read_labeled_images
from biomedclip.processing.images.labeled import check_readable


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png_bytes(seed + number))


@pytest.fixture
def rows(tmp_path, monkeypatch) -> datasets.Dataset:
    monkeypatch.chdir(tmp_path)
    features = datasets.Features({"scan": datasets.Image(), "organ": datasets.ClassLabel(names=["lung", "brain"])})
    images = [{"bytes": png_bytes(number), "path": None} for number in range(6)]
    return datasets.Dataset.from_dict({"scan": images, "organ": [0, 1, 0, 1, 0, 1]}, features=features)


def test_class_folders_give_their_names_as_labels(tmp_path):
    write_images(tmp_path / "lung", 2)
    write_images(tmp_path / "brain" / "patient 1", 1)
    write_images(tmp_path / ".ipynb_checkpoints", 1)
    (tmp_path / "lung" / "._0.png").write_bytes(b"left by a file manager")
    (tmp_path / "lung" / "notes.txt").write_text("")
    splits = read_labeled_images(tmp_path)
    assert list(splits) == ["train"]
    assert splits["train"].labels == ["brain", "lung", "lung"]
    assert splits["train"].names == ["brain/patient 1/0.png", "lung/0.png", "lung/1.png"]
    assert read_image(splits["train"][1]["image"]).size == (40, 30)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "Valid", "Testing")])
def test_folders_of_splits_are_recognized_by_the_names_that_datasets_give_them(tmp_path, names):
    for count, split in enumerate(names, start=1):
        for kind in ("lung", "brain"):
            write_images(tmp_path / split / kind, count)
    splits = read_labeled_images(tmp_path)
    assert {split: len(images) for split, images in splits.items()} == {"train": 2, "validation": 4, "test": 6}
    assert splits["validation"].names[0] == f"{names[1]}/brain/0.png"
    assert splits["test"].labels == ["brain"] * 3 + ["lung"] * 3
    shutil.rmtree(tmp_path / names[0])
    with pytest.raises(ValueError, match=f"has splits .{names[1]}, {names[2]}. but no training split"):
        read_labeled_images(tmp_path)


def test_a_path_that_is_no_folder_of_class_folders_says_what_is_needed(tmp_path):
    (tmp_path / "0.png").write_bytes(png_bytes(0))
    with pytest.raises(FileNotFoundError, match="one folder of images for each class"):
        read_labeled_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="the folder does not exist"):
        read_labeled_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="0.png is a file. Pass the folder"):
        read_labeled_images(tmp_path / "0.png")


def read_saved(content) -> dict:
    """Save a dataset in the current folder and read it."""
    content.save_to_disk("set")
    return read_labeled_images("set", image_column="scan", label_column="organ")


@pytest.mark.parametrize("layout", ["save_to_disk", "parquet"])
def test_a_dataset_is_read_from_its_folder(rows, layout):
    if layout == "parquet":
        rows.to_parquet("set/train-00000-of-00001.parquet")
        splits = read_labeled_images("set", image_column="scan", label_column="organ")
    else:
        splits = read_saved(rows)
    assert splits["train"].labels == ["lung", "brain"] * 3
    assert read_image(splits["train"][5]["image"]).tobytes() == read_image(png_bytes(5)).tobytes()


def test_the_splits_of_a_dataset_are_read_or_named(rows):
    splits = read_saved(datasets.DatasetDict({"train": rows, "valid": rows.select([0, 1])}))
    assert {split: len(images) for split, images in splits.items()} == {"train": 6, "validation": 2}
    with pytest.raises(ValueError, match="there is no train split. The splits are fold 1, fold 2"):
        read_saved(datasets.DatasetDict({"fold 1": rows, "fold 2": rows}))


def test_a_column_that_is_not_there_names_those_that_are(rows):
    rows.save_to_disk("set")
    with pytest.raises(ValueError, match="no column 'label'. The columns are scan, organ. Pass label_column"):
        read_labeled_images("set", image_column="scan")
    with pytest.raises(ValueError, match="no column 'image'.*Pass image_column"):
        read_labeled_images("set")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 1], None),
        ([[0], [1], [0]], "'organ' contains list, not one label"),
        (["a", " a ", ""], "1 of 3 rows have no label in 'organ', the first is row 2"),
        (["a", None, "b"], "1 of 3 rows have no label in 'organ', the first is row 1"),
        ([1.0, float("nan"), 2.0], "1 of 3 rows have no label in 'organ', the first is row 1"),
    ],
)
def test_labels_may_be_texts_or_numbers_but_not_lists_or_empty(rows, labels, message):
    rows = rows.select(range(3)).remove_columns("organ").add_column("organ", labels)
    if message is None:
        assert read_saved(rows)["train"].labels == ["0", "0", "1"]
    else:
        with pytest.raises(ValueError, match=message):
            read_saved(rows)


def test_class_minus_one_is_a_missing_label(rows):
    rows = rows.remove_columns("organ").add_column("organ", [0, -1, 1, 0, 1, 0])
    with pytest.raises(ValueError, match="1 of 6 rows have no label in 'organ', the first is row 1"):
        read_saved(rows.cast_column("organ", datasets.ClassLabel(names=["lung", "brain"])))


def test_a_class_without_a_readable_image_is_named(tmp_path):
    for label in ("lung", "brain"):
        write_images(tmp_path / label, 3)
    images = read_labeled_images(tmp_path)["train"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: no images .*Add some, or remove the folder"):
        read_labeled_images(tmp_path)
    (tmp_path / "lung" / "0.png").write_bytes(b"")
    check_readable(images, "data")
    for number in range(3):
        (tmp_path / "lung" / f"{number}.png").write_bytes(png_bytes(0)[:60])
    with pytest.raises(ValueError, match="data: none of the 3 images of the class 'lung' can be read.*0.png"):
        check_readable(images, "data")


def test_images_next_to_class_folders_are_reported_and_a_second_folder_of_a_split_is_refused(tmp_path, caplog):
    for folder in ("train/lung", "train/brain", "val/lung", "val/brain", "other/lung"):
        write_images(tmp_path / folder, 1)
    (tmp_path / "overview.png").write_bytes(png_bytes(0))
    assert len(read_labeled_images(tmp_path)["train"]) == 2
    assert "2 images are not in a class folder and are ignored: other/lung/0.png, overview.png" in caplog.text
    (tmp_path / "validation").mkdir()
    with pytest.raises(ValueError, match="both val and validation are folders of the validation split"):
        read_labeled_images(tmp_path)


@pytest.mark.parametrize("file", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize(
    "place",
    ["https://example.org/rows.parquet", "hf://datasets/someone/else/rows.parquet", "/etc/rows.csv", "../rows.csv"],
)
@pytest.mark.parametrize("form", ["data_files: {place}", "data_files: [{{split: train, path: ['{place}']}}]"])
def test_the_dataset_card_of_a_folder_does_not_load_data_from_elsewhere(tmp_path, monkeypatch, file, place, form):
    monkeypatch.setattr("datasets.load_dataset", lambda *arguments: pytest.fail("datasets has seen the folder"))
    (tmp_path / "rows.parquet").write_bytes(b"")
    text = f"configs:\n- config_name: default\n  {form.format(place=place)}\n"
    (tmp_path / file).write_text(f"---\n{text}---\n# Set\n" if file == "README.md" else text)
    with pytest.raises(ValueError, match=f"{file}: data_files refers to") as error:
        read_labeled_images(tmp_path)
    assert place in str(error.value)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("train/state.json", {"_data_files": [{"filename": "../../outside/data-00000-of-00001.arrow"}]}),
        ("train/state.json", {"_data_files": [{"filename": "/outside/data-00000-of-00001.arrow"}]}),
        ("dataset_dict.json", {"splits": ["train", "../outside"]}),
        ("dataset_dict.json", {"splits": [".."]}),
    ],
)
def test_a_saved_dataset_cannot_read_other_folders(rows, tmp_path, file, change):
    rows.save_to_disk(tmp_path / "outside")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "set")
    path = tmp_path / "set" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match="is not in the same folder"):
        read_labeled_images("set", image_column="scan", label_column="organ")
