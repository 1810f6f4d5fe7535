"""Which images a command reads, from files, folders, patterns, lists and datasets."""

import io
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import png_bytes
from helpers.pair_shards import write_shards

from biomedclip.processing.images.errors import ImageError
from biomedclip.processing.images.inputs import find_inputs
from biomedclip.processing.images.reading import read_row_image


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder of images of several kinds, and other files, as the working directory."""
    (tmp_path / "scans" / "deep").mkdir(parents=True)
    (tmp_path / "scans" / "b.png").write_bytes(png_bytes(0))
    (tmp_path / "scans" / "a.PNG").write_bytes(png_bytes(1))
    (tmp_path / "scans" / "deep" / "no_suffix").write_bytes(png_bytes(2))
    (tmp_path / "scans" / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "scans" / "notes.txt").write_text("text")
    (tmp_path / "scans" / "article.xml").write_text("<article/>")
    (tmp_path / "other.png").write_bytes(png_bytes(3))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ids(inputs):
    """Return the ids, which are those of the rows."""
    found = list(inputs.ids())
    assert found == [row.id for row in inputs.rows(0, len(inputs))]
    return found


def test_a_folder_is_searched_and_files_that_are_not_images_are_listed(folder, caplog):
    found = ids(find_inputs(["scans"]))
    assert found == ["scans/a.PNG", "scans/b.png", "scans/broken.jpg", "scans/deep/no_suffix"]
    assert "2 files are not images and are ignored" in caplog.text and "notes.txt" in caplog.text


def test_the_metadata_of_a_folder_of_images_is_no_dataset(folder):
    pq.write_table(pa.table({"file_name": ["b.png"], "text": ["a"]}), folder / "scans" / "metadata.parquet")
    assert len(find_inputs(["scans"])) == 4


def test_files_folders_patterns_and_stdin_give_each_file_once_in_sorted_order(folder):
    stdin = io.StringIO("other.png\n\n./scans/b.png\r\nmissing.png\n")
    found = find_inputs(["scans/deep", "scans/*.png", "other.png", "scans/b.png", "-"], stdin=stdin)
    assert ids(found) == ["missing.png", "other.png", "scans/b.png", "scans/deep/no_suffix"]
    assert [row.id for row in found.rows(1, 3)] == ["other.png", "scans/b.png"]
    with pytest.raises(ImageError, match="missing.png: cannot be read"):
        read_row_image(next(found.rows(0, 1)).image)


def test_a_pattern_can_match_folders_and_parquet_files(folder):
    rows = [{"image": {"bytes": png_bytes(5), "path": None}, "id": "five"}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "scans" / "rows.parquet")
    assert ids(find_inputs(["scans/*"])) == [
        "scans/a.PNG",
        "scans/b.png",
        "scans/broken.jpg",
        "scans/deep/no_suffix",
        "five",
    ]
    assert ids(find_inputs(["**/deep/*"])) == ["scans/deep/no_suffix"]


def test_a_built_dataset_gives_its_pairs_and_columns(tmp_path):
    inputs = find_inputs([str(write_shards(tmp_path / "set", shards=3, rows=7, rows_per_group=3))])
    assert ids(inputs) == [f"PMC{number}.1/F1/g1" for number in range(21)]
    assert "image" not in inputs.schema.names and {"caption", "license"} <= set(inputs.schema.names)
    (row,) = inputs.rows(11, 12)
    assert row.columns["caption"] == "Caption 11." and row.path is None
    assert read_row_image(row.image).tobytes() == read_row_image(png_bytes(11, (8, 6))).tobytes()


@pytest.mark.parametrize("kind", ["parquet", "parquet files", "saved", "saved splits"])
def test_a_dataset_with_an_image_column_is_read_in_order(tmp_path, kind):
    rows = {"scan": [{"bytes": png_bytes(n), "path": None} for n in range(5)], "age": list(range(5))}
    dataset = datasets.Dataset.from_dict(rows).cast_column("scan", datasets.Image())
    name = tmp_path / "set"
    if kind == "parquet":
        name = tmp_path / "set.parquet"
        dataset.to_parquet(name)
    elif kind == "parquet files":
        name.mkdir()
        dataset.select(range(3)).to_parquet(name / "0.parquet")
        dataset.select(range(3, 5)).to_parquet(name / "1.parquet")
    elif kind == "saved":
        dataset.save_to_disk(name)
    else:
        datasets.DatasetDict({"train": dataset.select(range(3)), "test": dataset.select(range(3, 5))}).save_to_disk(
            name
        )
    inputs = find_inputs([str(name)], image_column="scan")
    assert ids(inputs) == [f"{name}#{number}" for number in range(5)]
    assert [row.columns["age"] for row in inputs.rows(1, 5)] == [1, 2, 3, 4]
    assert [read_row_image(row.image).size for row in inputs.rows(4, 5)] == [read_row_image(png_bytes(4)).size]
    with pytest.raises(ValueError, match="no column 'image'. The columns are scan, age. Pass image_column"):
        find_inputs([str(name)])


@pytest.mark.parametrize("names", [("id",), ("pair_id", "id")])
def test_the_ids_of_a_saved_dataset_are_its_own(tmp_path, names):
    rows = {"image": [{"bytes": png_bytes(n), "path": None} for n in range(3)]}
    rows |= {name: [f"{name}-{number}" for number in range(3)] for name in names}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    assert ids(find_inputs([str(tmp_path / "set")])) == [f"{names[0]}-{number}" for number in range(3)]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_of_image_paths_gives_its_images_and_columns(folder, kind):
    (folder / "tables").mkdir()
    rows = [("scans/b.png", "left", 3), ("other.png", "right", 5), ("scans/b.png", "again", 7)]
    table = datasets.Dataset.from_list([dict(zip(("scan", "side", "age"), row, strict=True)) for row in rows])
    (table.to_csv if kind == "csv" else table.to_json)(folder / "tables" / f"scans.{kind}")
    found = find_inputs([f"tables/scans.{kind}", "scans/deep"], image_column="scan", image_root=str(folder))
    assert ids(found) == ["scans/deep/no_suffix", f"{folder}/scans/b.png", f"{folder}/other.png"]
    assert [row.columns["side"] for row in found.rows(1, 3)] == ["left", "right"]
    assert found.schema.names == ["side", "age"]
    assert read_row_image(next(found.rows(2, 3)).image).tobytes() == read_row_image(png_bytes(3)).tobytes()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("image\n../other.png\n", {}, "list.csv, line 2: image is '../other.png', which may be outside"),
        ("image\nhttps://example.org/a.png\n", {}, "a URL or a drive"),
        ("image\ngone.png\n", {}, "1 of its 1 images are missing or are not files: gone.png"),
        ("scan\nb.png\n", {}, "no column 'file_name' or .*'image'.*Pass image_column"),
        ("id,image\n1,a.PNG\n1,b.png\n", {}, "line 3: another image has the id '1'"),
        ("image\nb.png\n", {"image_root": "nowhere"}, "image_root='nowhere': the folder does not exist"),
    ],
)
def test_a_table_that_is_wrong_says_where(folder, content, arguments, message):
    (folder / "scans" / "list.csv").write_text(content, encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_inputs(["scans/list.csv"], **arguments)


def test_a_folder_for_image_paths_has_no_effect_without_a_table(folder):
    with pytest.raises(ValueError, match="image_root='scans' has no effect on images that no CSV or JSON Lines file"):
        find_inputs(["other.png"], image_root="scans")


def test_a_path_in_a_row_is_not_opened(folder):
    pq.write_table(pa.table({"image": [str(folder / "other.png")]}), folder / "paths.parquet")
    (row,) = find_inputs(["paths.parquet"]).rows(0, 1)
    with pytest.raises(ImageError, match="paths inside data rows are not opened"):
        read_row_image(row.image)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (["nowhere"], FileNotFoundError, "nowhere: the file or folder does not exist"),
        (["scans/*.tif"], FileNotFoundError, "no file matches this pattern"),
        (["scans/notes.txt"], ValueError, "scans/notes.txt is not an image. Pass image files, folders"),
        (["empty"], FileNotFoundError, "empty: no images found"),
        ([], FileNotFoundError, "no input: no images found"),
        (["queue"], ValueError, "queue is a FIFO"),
        (["link"], ValueError, "link is a broken link"),
    ],
)
def test_an_input_without_images_is_an_error(folder, values, error, message):
    (folder / "empty").mkdir()
    os.mkfifo(folder / "queue")
    (folder / "link").symlink_to("nowhere")
    with pytest.raises(error, match=message):
        find_inputs(values)
