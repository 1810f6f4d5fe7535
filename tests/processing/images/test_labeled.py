"""Labeled images out of folders and `datasets` sets, and the batches that are made of them."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from helpers.mirror_writer import png_bytes

from biomedclip.processing import LabelCollator, read_image, read_labeled_images
from biomedclip.processing.collator import IGNORED_LABEL
from biomedclip.processing.images.labeled import check_readable


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png_bytes(seed + number))


@pytest.fixture
def rows() -> datasets.Dataset:
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


def test_folders_of_splits_are_recognised_by_the_names_that_sets_give_them(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for kind in ("lung", "brain"):
            write_images(tmp_path / split / kind, count)
    splits = read_labeled_images(tmp_path)
    assert {split: len(images) for split, images in splits.items()} == {"train": 6, "validation": 4, "test": 2}
    assert splits["validation"].names[0] == "val/brain/0.png"


def test_names_of_splits_are_recognised_in_every_case_and_never_taken_for_classes(tmp_path):
    for split in ("Training", "Testing"):
        for kind in ("lung", "brain"):
            write_images(tmp_path / "kaggle" / split / kind, 1)
            if split == "Testing":
                write_images(tmp_path / "no_training" / split / kind, 1)
    splits = read_labeled_images(tmp_path / "kaggle")
    assert {split: images.labels for split, images in splits.items()} == dict.fromkeys(
        ("train", "test"), ["brain", "lung"]
    )
    with pytest.raises(ValueError, match="has splits .Testing. but no training split"):
        read_labeled_images(tmp_path / "no_training")


def test_a_class_folder_without_images_is_named(tmp_path):
    write_images(tmp_path / "lung", 1)
    (tmp_path / "brain").mkdir()
    (tmp_path / "brain" / "scan.nii").write_bytes(b"")
    with pytest.raises(ValueError, match="brain: no images .*Add some, or remove the folder"):
        read_labeled_images(tmp_path)


def test_a_folder_without_class_folders_says_what_is_needed(tmp_path):
    (tmp_path / "0.png").write_bytes(png_bytes(0))
    with pytest.raises(FileNotFoundError, match="one folder of images for each class"):
        read_labeled_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="the folder does not exist"):
        read_labeled_images(tmp_path / "nowhere")


@pytest.mark.parametrize("layout", ["save_to_disk", "splits saved to disk", "parquet"])
def test_a_datasets_set_is_read_from_its_folder(rows, layout, tmp_path):
    if layout == "save_to_disk":
        rows.save_to_disk(tmp_path / "set")
    elif layout == "splits saved to disk":
        datasets.DatasetDict({"train": rows, "valid": rows.select([0, 1])}).save_to_disk(tmp_path / "set")
    else:
        rows.to_parquet(tmp_path / "set" / "train-00000-of-00001.parquet")
    splits = read_labeled_images(tmp_path / "set", image_column="scan", label_column="organ")
    assert splits["train"].labels == ["lung", "brain"] * 3
    assert read_image(splits["train"][5]["image"]).tobytes() == read_image(png_bytes(5)).tobytes()
    if layout == "splits saved to disk":
        assert len(splits["validation"]) == 2


def test_texts_and_numbers_are_labels_too(rows, tmp_path):
    rows.remove_columns("organ").add_column("label", [0, 0, 1, 1, 2, 2]).save_to_disk(tmp_path / "set")
    assert read_labeled_images(tmp_path / "set", image_column="scan")["train"].labels == list("001122")


def test_a_column_that_is_not_there_names_those_that_are(rows, tmp_path):
    rows.save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match="no column 'label'. It has scan, organ. Pass label_column"):
        read_labeled_images(tmp_path / "set", image_column="scan")
    with pytest.raises(ValueError, match="no column 'image'.*Pass image_column"):
        read_labeled_images(tmp_path / "set")


@pytest.mark.parametrize(("labels", "message"), [([0, -1, 1], "1 of 3 rows have no label"), ([[0], [1], [0]], "list")])
def test_labels_that_are_none_are_refused(rows, labels, message, tmp_path):
    few = rows.select(range(3)).remove_columns("organ").add_column("organ", labels)
    if message != "list":
        few = few.cast_column("organ", datasets.ClassLabel(names=["lung", "brain"]))
    few.save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        read_labeled_images(tmp_path / "set", image_column="scan", label_column="organ")


def test_a_set_without_a_training_split_names_those_that_it_has(rows, tmp_path):
    datasets.DatasetDict({"fold 1": rows, "fold 2": rows}).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match="there is no train split. It has fold 1, fold 2"):
        read_labeled_images(tmp_path / "set", image_column="scan", label_column="organ")


@pytest.fixture
def collator(small_processor):
    def make(**options) -> LabelCollator:
        return LabelCollator(small_processor.image_processor, {"brain": 0, "lung": 1}, **options)

    return make


@pytest.fixture
def batch() -> list[dict]:
    rows = [{"image": png_bytes(number), "label": "lung", "name": str(number)} for number in range(4)]
    rows[2] |= {"image": png_bytes(2)[:100], "label": "brain"}
    return rows


def test_crops_depend_on_name_and_epoch_and_not_on_the_place_in_the_batch(collator, batch):
    training = collator(training=True)
    rows = [batch[0], batch[1], batch[3]]
    pixels = training(rows)["pixel_values"]
    assert pixels.shape == (3, 3, 32, 32)
    assert torch.equal(training(rows[::-1])["pixel_values"].flip(0), pixels)
    training.set_epoch(1)
    assert not torch.equal(training(rows)["pixel_values"], pixels)


def test_a_damaged_image_gives_its_place_and_label_to_another_one_in_training(collator, batch):
    training = collator(training=True, on_error="substitute")
    tensors = training(batch)
    assert tensors["labels"].tolist() == [1, 1, 1, 1] and training.substituted_rows == 1
    assert any(torch.equal(tensors["pixel_values"][2], tensors["pixel_values"][other]) for other in (0, 1, 3))


def test_a_damaged_image_is_left_out_of_an_evaluation(collator, batch):
    evaluation = collator(on_error="substitute")
    assert evaluation(batch)["labels"].tolist() == [1, 1, IGNORED_LABEL, 1] and evaluation.substituted_rows == 1
    assert evaluation(batch[2:3])["labels"].tolist() == [IGNORED_LABEL], "a batch of it alone"


def test_a_damaged_image_is_named_where_it_is_to_raise(collator, batch):
    with pytest.raises(ValueError, match="Row '2' cannot be used"):
        collator()(batch)


def test_a_class_without_a_readable_image_is_named(tmp_path):
    for label in ("lung", "brain"):
        write_images(tmp_path / label, 3)
    images = read_labeled_images(tmp_path)["train"]
    (tmp_path / "lung" / "0.png").write_bytes(b"")
    check_readable(images, "data")
    for number in range(3):
        (tmp_path / "lung" / f"{number}.png").write_bytes(png_bytes(0)[:60])
    with pytest.raises(ValueError, match="data: none of the 3 images of the class 'lung' can be read.*0.png"):
        check_readable(images, "data")


def test_two_folders_of_one_split_are_refused(tmp_path):
    for split in ("val", "validation", "train"):
        write_images(tmp_path / split / "lung", 1)
    with pytest.raises(ValueError, match="both val and validation are folders of the validation split"):
        read_labeled_images(tmp_path)


def test_images_next_to_class_folders_are_reported(tmp_path, caplog):
    for folder in ("train/lung", "train/brain", "other/lung"):
        write_images(tmp_path / folder, 1)
    (tmp_path / "overview.png").write_bytes(png_bytes(0))
    assert len(read_labeled_images(tmp_path)["train"]) == 2
    assert "2 images are not in a class folder and are ignored: other/lung/0.png, overview.png" in caplog.text


def test_a_file_is_refused_where_a_folder_is_needed(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name,label\n")
    with pytest.raises(ValueError, match="metadata.csv is a file. Pass the folder"):
        read_labeled_images(tmp_path / "metadata.csv")


@pytest.mark.parametrize("labels", [["a", " a ", ""], ["a", None, "b"], [1.0, float("nan"), 2.0]])
def test_empty_labels_of_a_datasets_set_are_refused_with_their_row(rows, labels, tmp_path):
    few = rows.select(range(3)).remove_columns("organ").add_column("organ", labels)
    few.save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match="1 of 3 rows have no label in 'organ', the first is row [12]"):
        read_labeled_images(tmp_path / "set", image_column="scan", label_column="organ")


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
    with pytest.raises(ValueError, match=f"{file}: data_files names") as error:
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
        read_labeled_images(tmp_path / "set", image_column="scan", label_column="organ")
