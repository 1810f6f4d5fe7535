"""`datasets`' imagefolder layout: images whose labels are in a metadata file."""

import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import png_bytes

from biomedclip.processing import load_benchmark, read_image, read_labeled_images


ROWS = [("a.png", "lung"), ("deep/b.png", "brain"), ("c.png", "lung")]


def write_images(folder, rows=ROWS):
    for number, (name, _) in enumerate(rows):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png_bytes(number))


def write_metadata(folder, kind, rows=ROWS, columns=("file_name", "diagnosis")):
    folder.mkdir(parents=True, exist_ok=True)
    dicts = [dict(zip(columns, row, strict=True)) for row in rows]
    if kind == "csv":
        lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
        (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    elif kind == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dicts))
    else:
        pq.write_table(pa.Table.from_pylist(dicts), folder / "metadata.parquet")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_images_and_labels_are_those_that_datasets_reads(tmp_path, kind):
    folder = tmp_path / "images"
    write_images(folder)
    write_metadata(folder, kind)
    ours = read_labeled_images(folder, label_column="diagnosis")["train"]
    theirs = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    pairs = {(read_image(ours[number]["image"]).tobytes(), ours.labels[number]) for number in range(len(ours))}
    assert pairs == {(row["image"].tobytes(), row["diagnosis"]) for row in theirs} and len(ours) == len(theirs) == 3
    assert ours.names == ["a.png", "deep/b.png", "c.png"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_split_folders_may_each_have_a_metadata_file(tmp_path, kind):
    for split, rows in (("train", ROWS), ("val", ROWS[:2]), ("test", ROWS[:1])):
        write_images(tmp_path / split, rows)
        write_metadata(tmp_path / split, kind, rows)
    splits = read_labeled_images(tmp_path, label_column="diagnosis")
    assert {split: images.labels for split, images in splits.items()} == {
        "train": ["lung", "brain", "lung"],
        "validation": ["lung", "brain"],
        "test": ["lung"],
    }
    assert splits["validation"].names == ["val/a.png", "val/deep/b.png"]
    benchmark = load_benchmark("imagefolder", tmp_path, split="validation", label_column="diagnosis")
    assert benchmark.classes == ["brain", "lung"]


def test_one_metadata_file_may_name_images_of_all_splits(tmp_path):
    rows = [("train/a.png", "x"), ("test/a.png", "y"), ("train/b.png", "y")]
    write_images(tmp_path, rows)
    write_metadata(tmp_path, "csv", rows)
    splits = read_labeled_images(tmp_path, label_column="diagnosis")
    assert {split: images.labels for split, images in splits.items()} == {"train": ["x", "y"], "test": ["y"]}


def test_the_image_column_names_the_column_of_paths(tmp_path):
    write_images(tmp_path)
    write_metadata(tmp_path, "csv", [(name, label, 1) for name, label in ROWS], ("scan_file_name", "label", "age"))
    assert read_labeled_images(tmp_path, image_column="scan")["train"].labels == ["lung", "brain", "lung"]
    with pytest.raises(ValueError, match="no column 'diagnosis'. It has scan_file_name, label, age.*Pass label_column"):
        read_labeled_images(tmp_path, image_column="scan", label_column="diagnosis")


def test_numbers_are_labels_too(tmp_path):
    rows = [(name, number) for number, (name, _) in enumerate(ROWS)]
    write_images(tmp_path)
    write_metadata(tmp_path, "jsonl", rows)
    assert read_labeled_images(tmp_path, label_column="diagnosis")["train"].labels == ["0", "1", "2"]


def test_images_that_no_row_names_are_reported(tmp_path, caplog):
    write_images(tmp_path)
    (tmp_path / "extra.png").write_bytes(png_bytes(9))
    write_metadata(tmp_path, "csv")
    read_labeled_images(tmp_path, label_column="diagnosis")
    assert "1 images are not listed in a metadata file and are ignored: extra.png" in caplog.text


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/hostname", "may be outside "),
        ("../outside.png", "may be outside "),
        ("deep/../../outside.png", "may be outside "),
        ("..\\outside.png", "may be outside "),
        ("~/outside.png", "may be outside "),
        ("file:///etc/hostname", "a URL or a drive"),
        ("https://example.org/a.png", "a URL or a drive"),
        ("zip://a.png::b.zip", "a URL or a drive"),
        ("C:\\images\\a.png", "a URL or a drive"),
        ("link.png", "a link that leads out of"),
        ("linked/outside.png", "a link that leads out of"),
        ("", "is empty"),
    ],
)
def test_a_path_that_leaves_the_folder_is_refused_with_its_line(tmp_path, kind, name, message):
    folder = tmp_path / "data"
    write_images(folder, ROWS[:2])
    (tmp_path / "outside.png").write_bytes(png_bytes(0))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    write_metadata(folder, kind, [*ROWS[:2], (name, "x")])
    line = {"csv": "line 4", "jsonl": "line 3", "parquet": "row 2"}[kind]
    with pytest.raises(ValueError, match=f"metadata.{kind}, {line}: file_name.*{message}"):
        read_labeled_images(folder, label_column="diagnosis")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metadata.csv", "file_name,diagnosis\na.png,\n", "line 2: diagnosis is empty"),
        ("metadata.csv", "file_name,diagnosis\na.png,x\na.png,y\n", "line 3: a.png is labeled 'y', but 'x' in line 2"),
        ("metadata.csv", "file_name,diagnosis\nb.png,x\n", "1 of its 1 images are missing .*b.png .line 2"),
        ("metadata.csv", "file_name,diagnosis\n", "the table has no rows"),
        ("metadata.csv", "file_name,diagnosis\na.png,x,y\n", "line 2: the row has too many values"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n', "no column 'diagnosis'"),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "diagnosis": "x"}\n{"file_name": "a.png"}',
            "line 2: diagnosis is empty",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "diagnosis": ["x"]}', "line 1: diagnosis is ..'x'.., not one label"),
        ("metadata.jsonl", '{"file_name": 3, "diagnosis": "x"}', "line 1: file_name is 3, not the path"),
        ("metadata.jsonl", '\n{"file_name": "a.png",\n', "line 2: not JSON"),
        ("metadata.jsonl", "[1]", "line 1: not a JSON object"),
        ("metadata.jsonl", '{"file_names": ["a.png"], "diagnosis": "x"}', "names several images"),
        ("metadata.parquet", "PAR1", "not a readable Parquet file"),
    ],
)
def test_a_metadata_file_that_is_wrong_says_where(tmp_path, file, content, message):
    (tmp_path / "a.png").write_bytes(png_bytes(0))
    (tmp_path / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{file}.*{message}"):
        read_labeled_images(tmp_path, label_column="diagnosis")


def test_two_metadata_files_of_one_folder_are_refused(tmp_path):
    write_images(tmp_path)
    write_metadata(tmp_path, "csv")
    write_metadata(tmp_path, "jsonl")
    with pytest.raises(ValueError, match="are in one folder. Keep one"):
        read_labeled_images(tmp_path, label_column="diagnosis")


def test_a_split_without_a_metadata_file_is_named(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split)
    write_metadata(tmp_path / "train", "csv")
    with pytest.raises(ValueError, match="no metadata file lists images of test"):
        read_labeled_images(tmp_path, label_column="diagnosis")


def test_a_row_may_not_name_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    write_metadata(tmp_path, "csv", [("pipe.png", "x")])
    with pytest.raises(FileNotFoundError, match="are missing or are not files: pipe.png .line 2"):
        read_labeled_images(tmp_path, label_column="diagnosis")


def test_columns_are_refused_for_class_folders_which_have_none(tmp_path):
    for label in ("lung", "brain"):
        write_images(tmp_path / label, ROWS[:1])
    with pytest.raises(ValueError, match="label_column='diagnosis' has no effect on class folders"):
        read_labeled_images(tmp_path, label_column="diagnosis")
    with pytest.raises(ValueError, match="image_column='scan' has no effect on class folders"):
        read_labeled_images(tmp_path, image_column="scan")


def test_a_metadata_file_of_something_else_leaves_class_folders_as_they_are(tmp_path, caplog):
    for label in ("lung", "brain"):
        write_images(tmp_path / label, ROWS[:1])
    (tmp_path / "metadata.csv").write_text("patient,age\n1,40\n")
    assert read_labeled_images(tmp_path)["train"].labels == ["brain", "lung"]
    assert "metadata.csv" in caplog.text
