"""The `labels.csv` of a built dataset."""

import shutil

import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import png_bytes

from biomedclip.processing import load_benchmark, read_image, read_labeled_images
from biomedclip.processing.images.labeled_pairs import read_labels


@pytest.fixture(scope="module")
def ids(built) -> dict[str, list[str]]:
    shards = {split: sorted((built / "data").glob(f"{split}-*.parquet")) for split in ("train", "validation", "test")}
    return {split: pq.read_table(files)["pair_id"].to_pylist() for split, files in shards.items()}


@pytest.fixture
def labeled(built, tmp_path):
    """A copy of a built dataset, for a `labels.csv`."""
    shutil.copytree(built / "data", tmp_path / "set" / "data")
    return tmp_path / "set"


def test_one_file_may_label_the_pairs_of_all_splits(labeled, ids):
    rows = [f" {name} ; {'chart' if number % 2 else 'photo'} " for number, name in enumerate(sum(ids.values(), []))]
    (labeled / "labels.csv").write_text("\n\npair_id;label\n" + "\n\n".join(rows), encoding="utf-16")
    splits = read_labeled_images(labeled)
    assert {split: sorted(images.names) for split, images in splits.items()} == {
        split: sorted(names) for split, names in ids.items()
    }
    assert set(splits["test"].labels) == {"chart", "photo"} and not splits["test"].notes
    images = pq.read_table(sorted((labeled / "data").glob("test-*"))).select(["pair_id", "image"]).to_pylist()
    assert [row["pair_id"] for row in images] == splits["test"].names
    last = splits["test"][len(images) - 1]["image"]
    assert read_image(last).tobytes() == read_image(images[-1]["image"]).tobytes()


def test_pairs_without_a_label_are_counted_in_a_note(labeled, ids):
    (labeled / "labels.csv").write_text(f"pair_id,kind\n{ids['test'][0]},chart\n{ids['test'][0]},chart\n")
    benchmark = load_benchmark("imagefolder", labeled)
    assert benchmark.images.labels == ["chart"]
    assert benchmark.notes == [f"1 of {len(ids['test'])} pairs of the test split have a label in labels.csv."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{0},chart\n{1},photo\n", "no column pair_id. The columns are {0}, chart. Its first line must contain"),
        ("pair_id,label\n{0},chart\n{1},photo\n{0},photo\n", "line 4: pair_id '{0}' is labeled 'photo', but 'chart'"),
        ("pair_id,label\n{0},chart\nnobody,chart\n", "line 3: the dataset has no pair 'nobody' .1 such rows"),
        ("pair_id,label\n{0},\n", "line 2: label is empty"),
        ("pair_id\n{0}\n", "no column 'label'. The columns are pair_id"),
        ("pair_id,age,sex\n{0},1,m\n", "no column 'label'. The columns are pair_id, age, sex. Pass label_column"),
    ],
)
def test_invalid_labels_are_refused_with_their_line(labeled, ids, text, message):
    first, second = ids["test"][:2]
    (labeled / "labels.csv").write_text(text.format(first, second))
    with pytest.raises(ValueError, match=f"labels.csv.*{message.format(first)}"):
        load_benchmark("imagefolder", labeled)


def test_a_split_without_labels_is_an_error(labeled, ids):
    (labeled / "labels.csv").write_text(f"pair_id,label\n{ids['train'][0]},chart\n")
    with pytest.raises(ValueError, match="no test split with labeled images, only train"):
        load_benchmark("imagefolder", labeled)
    (labeled / "labels.csv").write_text(f"pair_id,label\n{ids['test'][0]},chart\n")
    with pytest.raises(ValueError, match="has splits .test. but no training split"):
        read_labeled_images(labeled)


def test_the_label_column_can_be_named(tmp_path):
    (tmp_path / "labels.csv").write_text("age,Pair_ID,diagnosis\n40,a,x\n")
    rows, label = read_labels(tmp_path / "labels.csv", "diagnosis")
    assert {name: row[label] for name, row in rows.items()} == {"a": "x"}
    with pytest.raises(ValueError, match="image_column='scan' has no effect on a built dataset"):
        load_benchmark("imagefolder", tmp_path, image_column="scan")


def test_labels_without_a_dataset_and_a_dataset_without_labels_are_errors(tmp_path, built):
    (tmp_path / "labels.csv").write_text("pair_id,label\na,x\n")
    (tmp_path / "a.png").write_bytes(png_bytes(0))
    with pytest.raises(FileNotFoundError, match="write a metadata.csv with the columns file_name and label"):
        load_benchmark("imagefolder", tmp_path)
    with pytest.raises(FileNotFoundError, match="a built dataset without a labels.csv"):
        load_benchmark("imagefolder", built)
