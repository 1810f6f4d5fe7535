"""`datasets`' imagefolder layout: images whose labels are in a metadata file."""

import os

import datasets
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
    table = datasets.Dataset.from_list([dict(zip(columns, row, strict=True)) for row in rows])
    write = {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[kind]
    write(folder / f"metadata.{kind}")


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
    with pytest.raises(ValueError, match="'diagnosis'. The columns are scan_file_name, label, age.*Pass label_column"):
        read_labeled_images(tmp_path, image_column="scan", label_column="diagnosis")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_may_be_numbers_and_images_that_no_row_names_are_reported(tmp_path, caplog, kind):
    write_images(tmp_path)
    (tmp_path / "extra.png").write_bytes(png_bytes(9))
    write_metadata(tmp_path, kind, [(name, number) for number, (name, _) in enumerate(ROWS)])
    assert read_labeled_images(tmp_path, label_column="diagnosis")["train"].labels == ["0", "1", "2"]
    assert "1 images are not listed in a metadata file and are ignored: extra.png" in caplog.text


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("message", "names"),
    [
        (
            "may be outside ",
            ["/etc/hostname", "../outside.png", "deep/../../outside.png", "..\\outside.png", "~/outside.png"],
        ),
        ("a URL or a drive", ["file:///etc/hosts", "https://example.org/a.png", "zip://a.png::b.zip", "C:\\a\\a.png"]),
        ("a link that leads out of", ["link.png", "linked/outside.png"]),
        ("is empty", [""]),
    ],
)
def test_a_path_that_leaves_the_folder_is_refused_with_its_line(tmp_path, kind, names, message):
    folder = tmp_path / "data"
    write_images(folder, ROWS[:2])
    (tmp_path / "outside.png").write_bytes(png_bytes(0))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    line = {"csv": "line 4", "jsonl": "line 3", "parquet": "row 2"}[kind]
    for name in names:
        write_metadata(folder, kind, [*ROWS[:2], (name, "x")])
        with pytest.raises(ValueError, match=f"metadata.{kind}, {line}: file_name.*{message}"):
            read_labeled_images(folder, label_column="diagnosis")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metadata.csv", "file_name,diagnosis\na.png,\n", "line 2: diagnosis is empty"),
        ("metadata.csv", "file_name,diagnosis\na.png,x\na.png,y\n", "line 3: a.png is labeled 'y', but 'x' in line 2"),
        ("metadata.csv", "file_name,diagnosis\nb.png,x\n", "1 of its 1 images are missing .*b.png .line 2"),
        ("metadata.csv", "file_name,diagnosis\npipe,x\n", "images are missing or are not files: pipe .line 2"),
        ("metadata.csv", "file_name,diagnosis\n", "the table has no rows"),
        ("metadata.csv", "file_name,diagnosis\na.png,x,y\n", "line 2: the row has too many values"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n', "no column 'diagnosis'"),
        (
            "metadata.jsonl",
            '{"diagnosis": "x", "file_name": "a.png"}\n{"file_name": "a.png"}',
            "line 2: diagnosis is empty",
        ),
        ("metadata.jsonl", '{"file_name": "a.png", "diagnosis": ["x"]}', "line 1: diagnosis is ..'x'.., not one label"),
        ("metadata.jsonl", '{"file_name": 3, "diagnosis": "x"}', "line 1: file_name is 3, not the path"),
        ("metadata.jsonl", '\n{"file_name": "a.png",\n', "line 2: not JSON"),
        ("metadata.jsonl", "[1]", "line 1: not a JSON object"),
        ("metadata.jsonl", '{"file_names": ["a.png"], "diagnosis": "x"}', "lists several images"),
        ("metadata.parquet", "PAR1", "not a readable Parquet file"),
    ],
)
def test_a_metadata_file_that_is_wrong_says_where(tmp_path, file, content, message):
    (tmp_path / "a.png").write_bytes(png_bytes(0))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / file).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{file}.*{message}"):
        read_labeled_images(tmp_path, label_column="diagnosis")


def test_a_split_has_one_metadata_file(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / split)
    write_metadata(tmp_path / "train", "csv")
    with pytest.raises(ValueError, match="no metadata file lists images of test"):
        read_labeled_images(tmp_path, label_column="diagnosis")
    write_metadata(tmp_path / "train", "jsonl")
    with pytest.raises(ValueError, match="are in one folder. Keep one"):
        read_labeled_images(tmp_path, label_column="diagnosis")


def test_columns_and_a_metadata_file_of_something_else_are_not_for_class_folders(tmp_path, caplog):
    for label in ("lung", "brain"):
        write_images(tmp_path / label, ROWS[:1])
    (tmp_path / "metadata.csv").write_text("patient,age\n1,40\n")
    assert read_labeled_images(tmp_path)["train"].labels == ["brain", "lung"]
    assert "metadata.csv" in caplog.text
    with pytest.raises(ValueError, match="label_column='diagnosis' has no effect on class folders"):
        read_labeled_images(tmp_path, label_column="diagnosis")
    with pytest.raises(ValueError, match="image_column='scan' has no effect on class folders"):
        read_labeled_images(tmp_path, image_column="scan")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_outside_the_folder_of_its_images_gives_labels_and_groups(tmp_path, kind):
    write_images(tmp_path / "scans")
    rows = [(name, label, f"p{number // 2}") for number, (name, label) in enumerate(ROWS)]
    rows[2] = (str(tmp_path / "scans" / "c.png"), *rows[2][1:])
    write_metadata(tmp_path / "tables", kind, rows, ("scan", "diagnosis", "patient"))
    path = tmp_path / "tables" / f"metadata.{kind}"
    options = {"image_column": "scan", "label_column": "diagnosis", "image_root": tmp_path / "scans"}
    images = read_labeled_images(path, **options, group_column="patient")["train"]
    assert images.labels == ["lung", "brain", "lung"] and images.groups == ["p0", "p0", "p1"]
    assert list(images.images) == [tmp_path / "scans" / name for name, _ in ROWS]
    with pytest.raises(FileNotFoundError, match=f"metadata.{kind}: 2 of its .* images are missing"):
        read_labeled_images(path, **options | {"image_root": tmp_path})


def test_a_parquet_file_with_images_and_labels_is_a_table(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    rows = {"image": [{"bytes": png_bytes(number), "path": None} for number in range(2)], "label": ["x", "y"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "labels.parquet")
    images = read_labeled_images(tmp_path / "labels.parquet")["train"]
    assert images.labels == ["x", "y"]
    assert read_image(images[1]["image"]).tobytes() == read_image(png_bytes(1)).tobytes()


def test_options_of_tables_have_no_effect_on_folders(tmp_path):
    for label in ("lung", "brain"):
        write_images(tmp_path / label, ROWS[:1])
    for options in ({"image_root": tmp_path}, {"group_column": "patient"}):
        with pytest.raises(ValueError, match=f"{min(options)}=.* has no effect on data that is not a CSV"):
            read_labeled_images(tmp_path, **options)


@pytest.mark.parametrize("form", ["table", "folder", "save_to_disk"])
def test_own_data_of_every_form_have_groups(tmp_path, form):
    rows = [(f"{number}.png", "xy"[number % 2], f"p{number // 2}") for number in range(20)]
    write_images(tmp_path, [row[:2] for row in rows])
    path = tmp_path
    if form == "save_to_disk":
        text = datasets.Value("string")
        features = datasets.Features({"image": datasets.Image(), "label": text, "patient": text})
        values = [{"image": {"bytes": png_bytes(0), "path": None}, "label": row[1], "patient": row[2]} for row in rows]
        path = tmp_path / "set"
        datasets.Dataset.from_list(values, features=features).save_to_disk(path)
    else:
        write_metadata(tmp_path, "csv", rows, ("file_name", "label", "patient"))
        path = tmp_path / "metadata.csv" if form == "table" else tmp_path
    parts = {
        split: load_benchmark("imagefolder", path, split=split, held_out=0.2, group_column="patient").images
        for split in ("train", "validation", "test")
    }
    assert sorted(len(part) for part in parts.values()) == [4, 4, 12]
    groups = [set(part.groups) for part in parts.values()]
    assert len(set.union(*groups)) == sum(map(len, groups)) == 10, "no patient is in two splits"
