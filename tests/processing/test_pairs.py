"""Own image-text pairs: tables, folders and datasets, the stream over them, and the validation split."""

import csv
import pickle
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import png_bytes
from torch.utils.data import DataLoader

from biomedclip.processing import load_pairs, read_image
from biomedclip.processing.images.reading import read_row_image


COLUMNS = {"image_column": "image_path", "text_column": "report"}


def report_rows(count):
    """Rows of three images for each patient."""
    return [
        {"image_path": f"images/{number}.png", "report": f"Report {number}.", "patient": f"p{number // 3}"}
        for number in range(count)
    ]


def write_images(folder, rows):
    for number, row in enumerate(rows):
        path = folder / row["image_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(number))


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[path.suffix](path)
    return path


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The path of a CSV file of 60 pairs of 20 patients."""
    folder = tmp_path_factory.mktemp("reports")
    write_images(folder, report_rows(60))
    return write_table(folder / "reports.csv", report_rows(60))


def texts(rows):
    return [row["caption"] for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_gives_the_rows_that_datasets_reads(tmp_path, suffix):
    write_images(tmp_path, report_rows(6))
    path = write_table(tmp_path / f"reports{suffix}", report_rows(6))
    pairs = load_pairs(path, **COLUMNS, group_column="patient", validation_fraction=0)
    kind = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}[suffix]
    theirs = datasets.load_dataset(kind, data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
    assert list(pairs) == ["train"] and len(pairs["train"]) == 6
    for row, expected in zip(pairs["train"], theirs, strict=True):
        assert row["caption"] == expected["report"]
        assert row["image"] == tmp_path / expected["image_path"]
        assert read_row_image(row["image"]).tobytes() == read_image(tmp_path / expected["image_path"]).tobytes()
    assert list(pairs["train"]["patient"]) == theirs["patient"][:]


def test_excel_s_semicolons_and_line_breaks_in_reports_are_read(tmp_path):
    write_images(tmp_path, report_rows(2))
    with (tmp_path / "reports.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerows([("image_path", "report"), ("images/0.png", "a;\nb"), ("images\\1.png", " über ")])
    pairs = load_pairs(tmp_path / "reports.csv", **COLUMNS, validation_fraction=0)["train"]
    assert texts(pairs) == ["a;\nb", "über"]


def test_image_paths_may_be_relative_to_another_folder_or_absolute_below_one(tmp_path):
    rows = report_rows(3)
    write_images(tmp_path / "scans", rows)
    write_images(tmp_path / "tables", rows[:1])
    rows[1]["image_path"] = str(tmp_path / "scans" / rows[1]["image_path"])
    rows[2]["image_path"] = str(tmp_path / "tables" / rows[0]["image_path"])
    path = write_table(tmp_path / "tables" / "reports.csv", rows)
    pairs = load_pairs(path, **COLUMNS, image_root=tmp_path / "scans", validation_fraction=0)["train"]
    places = ["scans/images/0.png", "scans/images/1.png", "tables/images/0.png"]
    assert list(pairs["image"]) == [tmp_path / place for place in places]
    with pytest.raises(ValueError, match="reports.csv, line 3: image_path is .*, which may be outside"):
        load_pairs(path, **COLUMNS)
    with pytest.raises(FileNotFoundError, match="nowhere.*the folder does not exist"):
        load_pairs(path, **COLUMNS, image_root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://example.org/a.png", "a URL or a drive"),
        ("hf://datasets/a/b.png", "a URL or a drive"),
        ("../outside.png", "may be outside"),
        ("/etc/hostname", "may be outside"),
        ("link.png", "a link that leads out of"),
        ("linked/outside.png", "a link that leads out of"),
        ("", "is empty"),
    ],
)
def test_an_image_outside_the_folder_is_refused_with_its_line(tmp_path, name, message):
    folder = tmp_path / "data"
    write_images(folder, report_rows(1))
    (tmp_path / "outside.png").write_bytes(png_bytes(0))
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    path = write_table(folder / "reports.csv", [*report_rows(1), {"image_path": name, "report": "x", "patient": "p"}])
    for image_root in (None, folder):
        with pytest.raises(ValueError, match=f"reports.csv, line 3: image_path.*{message}"):
            load_pairs(path, **COLUMNS, image_root=image_root)


def test_missing_images_are_counted_before_anything_is_trained(tmp_path):
    write_images(tmp_path, report_rows(2))
    path = write_table(tmp_path / "reports.csv", report_rows(9))
    with pytest.raises(FileNotFoundError, match=r"7 of its 9 images are missing.*images/2.png \(line 4\).*\.\.\."):
        load_pairs(path, **COLUMNS)


def test_rows_without_a_text_are_skipped_and_listed(tmp_path, caplog):
    rows = report_rows(5)
    rows[1]["report"], rows[3]["report"] = "", "  "
    write_images(tmp_path, rows)
    pairs = load_pairs(write_table(tmp_path / "reports.csv", rows), **COLUMNS, validation_fraction=0)["train"]
    assert texts(pairs) == ["Report 0.", "Report 2.", "Report 4."]
    assert texts(pairs.rows(0, 0, 5)) != [] and len(pairs.rows(0, 0, 5)) == 3
    assert pairs.empty_texts == ["reports.csv, line 3", "reports.csv, line 5"]
    assert "2 of 5 pairs have no text and are skipped: reports.csv, line 3" in caplog.text
    with pytest.raises(ValueError, match="all texts are empty"):
        load_pairs(write_table(tmp_path / "empty.csv", [rows[1]]), **COLUMNS)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("image_path,report\n", COLUMNS, "the table has no rows"),
        ("image_path,text\nimages/0.png,a\n", COLUMNS, "'report'. The columns are image_path, text. Pass text"),
        ("a,report\nimages/0.png,a\n", COLUMNS, "no column 'image_path_file_name' or 'image_path'.*Pass image_column"),
        ("image_path,report\nimages/0.png,a\n", COLUMNS | {"group_column": "patient"}, "'patient'.*Pass group_column"),
        ("image_path,report,g\nimages/0.png,a,\n", COLUMNS | {"group_column": "g"}, "line 2: g is empty"),
        ("image_path,report\nimages/0.png,a\n", COLUMNS, "all pairs belong to one group.*validation_fraction=0"),
        ("image_path,report\nimages/0.png,a\n", COLUMNS | {"validation_fraction": 1.0}, "validation_fraction must be"),
    ],
)
def test_a_table_that_is_wrong_says_where(tmp_path, content, arguments, message):
    write_images(tmp_path, report_rows(1))
    (tmp_path / "reports.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_pairs(tmp_path / "reports.csv", **arguments)


def test_other_paths_name_the_accepted_forms(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.xlsx").write_bytes(b"PK\x03\x04")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "reports.csv").write_text("image_path,report\n", encoding="utf-8")
    for name in ("nowhere", "table.xlsx", "folder", "https://example.org/reports.csv"):
        with pytest.raises((FileNotFoundError, ValueError), match=f"{name}.*CSV, JSON Lines or Parquet.*on the Hub"):
            load_pairs(name)
    with pytest.raises(FileNotFoundError, match="contains reports.csv: pass the file itself"):
        load_pairs("folder")
    with pytest.raises(FileNotFoundError, match="missing.csv: the file does not exist"):
        load_pairs("missing.csv")


def test_an_imagefolder_uses_its_own_validation_split(tmp_path):
    for split, count in (("train", 4), ("val", 2), ("test", 1)):
        rows = [{"file_name": row["image_path"], "text": row["report"]} for row in report_rows(count)]
        write_images(tmp_path / split, report_rows(count))
        write_table(tmp_path / split / "metadata.csv", rows)
    pairs = load_pairs(tmp_path, text_column="text")
    assert {split: len(found) for split, found in pairs.items()} == {"train": 4, "validation": 2, "test": 1}
    assert pairs["validation"][1]["image"] == tmp_path / "val" / "images" / "1.png"
    with pytest.raises(ValueError, match="validation_fraction=0.2 has no effect on .*its own validation split"):
        load_pairs(tmp_path, text_column="text", validation_fraction=0.2)
    with pytest.raises(ValueError, match="image_root=.* has no effect"):
        load_pairs(tmp_path, text_column="text", image_root=tmp_path)


def embedded(count):
    features = datasets.Features(
        {"scan": datasets.Image(), "report": datasets.Value("string"), "patient": datasets.Value("int64")}
    )
    images = [{"bytes": png_bytes(number), "path": None} for number in range(count)]
    columns = {
        "scan": images,
        "report": [f"Report {n}." for n in range(count)],
        "patient": [n // 3 for n in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("form", ["file", "folder", "save_to_disk"])
def test_images_may_be_stored_in_the_dataset(tmp_path, form):
    path = tmp_path / "set"
    if form == "file":
        path = tmp_path / "set.parquet"
        embedded(12).to_parquet(path)
    elif form == "folder":
        path.mkdir()
        embedded(12).to_parquet(path / "part.parquet")
    else:
        embedded(12).save_to_disk(path)
    options = {"image_column": "scan", "text_column": "report", "group_column": "patient"}
    pairs = load_pairs(path, **options, validation_fraction=0.25)
    assert len(pairs["train"]) == 9 and len(pairs["validation"]) == 3
    assert len(set(pairs["validation"]["patient"])) == 1
    for row in [*pairs["train"], *pairs["validation"]]:
        number = int(row["caption"].removeprefix("Report ").removesuffix("."))
        assert read_row_image(row["image"]).tobytes() == read_image(png_bytes(number)).tobytes()
        assert row["pair_id"] == f"train/{number}"
    with pytest.raises(
        ValueError, match="the train split has no column 'caption'. The columns are scan.*Pass text_column"
    ):
        load_pairs(path, image_column="scan")


@pytest.mark.parametrize("name", ["owner/scans", "hf://datasets/owner/scans"])
def test_a_dataset_on_the_hub_uses_its_own_splits(monkeypatch, name):
    names = []
    opened = datasets.DatasetDict({"train": embedded(6), "dev": embedded(3)})
    monkeypatch.setattr(datasets, "load_dataset", lambda hub_id: names.append(hub_id) or opened)
    pairs = load_pairs(name, image_column="scan", text_column="report")
    assert names == ["owner/scans"]
    assert {split: len(found) for split, found in pairs.items()} == {"train": 6, "validation": 3}
    assert read_row_image(pairs["validation"][2]["image"]).tobytes() == read_image(png_bytes(2)).tobytes()
    assert not pairs["train"].held_out


def test_paths_inside_a_dataset_are_not_images(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bytes(0))
    rows = [{"image": "a.png", "caption": "x"}] * 2
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match="'image' contains string, not images. Store the bytes"):
        load_pairs(tmp_path / "set")
    rows = [{"image": {"bytes": content, "path": "a.png"}, "caption": "x"} for content in (png_bytes(0), None)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    with pytest.raises(ValueError, match="1 of 2 rows have no bytes in 'image', the first is row 1"):
        load_pairs(tmp_path / "set.parquet")


def test_no_patient_is_on_both_sides_of_the_validation_split(reports):
    pairs = load_pairs(reports, **COLUMNS, group_column="patient")
    train, validation = pairs["train"], pairs["validation"]
    assert len(validation) == 6 and len(train) == 54
    assert not set(train["patient"]) & set(validation["patient"])
    assert sorted([*train["image"], *validation["image"]]) == sorted((reports.parent / "images").iterdir())
    assert train.notes == ["6 of 60 pairs are held out for validation, with 2 of 20 groups of 'patient'."]


def test_the_validation_split_does_not_depend_on_seed_order_or_place(reports, tmp_path, monkeypatch):
    monkeypatch.chdir(reports.parent)
    held_out = set(load_pairs(reports, **COLUMNS)["validation"]["caption"])
    assert len(held_out) == 6
    assert set(load_pairs("reports.csv", **COLUMNS, seed=7)["validation"]["caption"]) == held_out
    write_images(tmp_path, report_rows(60))
    moved = write_table(tmp_path / "other.csv", report_rows(60)[::-1])
    assert set(load_pairs(moved, **COLUMNS)["validation"]["caption"]) == held_out


def test_texts_of_one_image_and_patients_who_share_an_image_stay_together(tmp_path):
    rows = [row | {"report": f"{row['report']} {n}"} for row in report_rows(20) for n in range(2)]
    for number, row in enumerate(rows):
        row["patient"] = f"p{number}"  # the two texts of an image name different patients
    write_images(tmp_path, rows)
    path = write_table(tmp_path / "reports.csv", rows)
    for group in (None, "patient"):
        pairs = load_pairs(path, **COLUMNS, group_column=group, validation_fraction=0.3)
        assert not set(pairs["train"]["image"]) & set(pairs["validation"]["image"])
        assert len(pairs["validation"]) == 12


def first_batches(stream, count, *, world_size=1, workers=0, samples_seen=0):
    """The pairs and epochs of the first batches of 16 pairs, with the parts of all ranks joined."""
    batches = [[] for _ in range(count)]
    for rank in range(world_size):
        pairs = stream.batches(16, rank=rank, world_size=world_size, samples_seen=samples_seen)
        loader = iter(DataLoader(pairs, batch_size=None, num_workers=workers))
        for batch in batches:
            batch += [(row["pair_id"], row["epoch"], row["caption"], row["image"]) for row in next(loader)]
    return batches


@pytest.mark.parametrize(("world_size", "workers"), [(2, 0), (4, 0), (1, 3), (2, 2)])
def test_batches_are_the_same_for_every_number_of_ranks_and_workers(reports, world_size, workers):
    stream = load_pairs(reports, **COLUMNS, seed=1)["train"]
    batches = first_batches(stream, 9)
    assert first_batches(stream, 9, world_size=world_size, workers=workers) == batches
    assert batches[-1][0][1] == 2, "more than two epochs"


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2)])
def test_resuming_continues_with_the_next_batch(reports, world_size, workers):
    stream = load_pairs(reports, **COLUMNS)["train"]
    resumed = first_batches(stream, 4, world_size=world_size, workers=workers, samples_seen=5 * 16)
    assert resumed == first_batches(stream, 9)[5:]


@pytest.mark.parametrize(
    ("seed", "epoch", "order"),
    [
        (0, 0, [2, 4, 3, 6, 5, 0, 1, 7]),
        (0, 1, [1, 3, 7, 6, 0, 4, 2, 5]),
        (7, 3, [3, 5, 0, 4, 2, 7, 1, 6]),
        (3, 7, [1, 2, 7, 4, 0, 3, 5, 6]),
    ],
)
def test_the_order_of_rows_is_the_one_of_earlier_versions(tmp_path, seed, epoch, order):
    write_images(tmp_path, report_rows(8))
    path = write_table(tmp_path / "reports.csv", report_rows(8))
    stream = load_pairs(path, **COLUMNS, validation_fraction=0, seed=seed)["train"]
    assert texts(stream.rows(epoch, 0, 8)) == [f"Report {number}." for number in order]
    assert texts(stream.rows(epoch, 3, 6)) == [f"Report {number}." for number in order[3:6]]
    assert order == np.random.default_rng([seed, epoch]).permutation(8).tolist()


def test_pairs_can_be_pickled_and_selected(reports):
    pairs = load_pairs(reports, **COLUMNS)["train"]
    pairs.rows(0, 0, 3)
    assert pickle.loads(pickle.dumps(pairs)).rows(1, 5, 20) == pairs.rows(1, 5, 20)
    assert texts(pairs.select([3, 1])) == [pairs[3]["caption"], pairs[1]["caption"]]
    assert isinstance(pairs[0]["image"], Path) and set(pairs[0]) == {"pair_id", "image", "caption"}
    with pytest.raises(ValueError, match="batch_size=64 is larger than the train split"):
        pairs.batches(64)
