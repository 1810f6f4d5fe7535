"""Labels that users provide: `labels.csv` in a built dataset, and images in folders."""

import shutil
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import png_bytes

from biomedclip.run_scripts.evaluation.own_images import labeled_images, read_labels, unpublished_benchmark
from biomedclip.run_scripts.quickstart import Quickstart


@pytest.fixture(scope="module")
def ids(built) -> dict[str, list[str]]:
    found = {}
    for split in ("train", "validation", "test"):
        shards = sorted((built / "data").glob(f"{split}-*.parquet"))
        found[split] = pq.read_table(shards, columns=["pair_id"]).column("pair_id").to_pylist()
    return found


@pytest.fixture
def labeled(built, tmp_path):
    """A built dataset that a `labels.csv` can be put beside."""
    shutil.copytree(built / "data", tmp_path / "set" / "data")
    return tmp_path / "set"


def test_labels_of_all_splits_may_be_in_one_file(labeled, ids):
    rows = [f" {name} ; {'chart' if number % 2 else 'photo'} " for number, name in enumerate(sum(ids.values(), []))]
    (labeled / "labels.csv").write_text("\n\npair_id;label\n" + "\n\n".join(rows), encoding="utf-16")
    images, notes = labeled_images(str(labeled), "test")
    assert sorted(images.names) == sorted(ids["test"]) and set(images.labels) == {"chart", "photo"} and not notes
    assert set(labeled_images(str(labeled), "train")[0].names) == set(ids["train"])


def test_pairs_without_a_label_are_counted_in_a_note(labeled, ids):
    (labeled / "labels.csv").write_text(f"pair_id,kind\n{ids['test'][0]},chart\n{ids['test'][0]},chart\n")
    images, notes = labeled_images(str(labeled), "test")
    assert images.labels == ["chart"]
    assert notes == [f"1 of {len(ids['test'])} pairs of the test split have a label in labels.csv."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{0},chart\n{1},photo\n", "no column pair_id; it has {0}, chart. Its first line must name the columns"),
        ("pair_id,label\n{0},chart\n{1},photo\n{0},photo\n", "line 4: pair_id '{0}' is labeled 'photo', and 'chart'"),
        ("pair_id,label\n{0},chart\nnobody,chart\n", "line 3: the dataset has no pair 'nobody' .1 such rows"),
        ("pair_id,label\n{0},\n", "line 2: label is empty"),
        ("pair_id,label\n{0}\n", "line 2: the row ends too early"),
        ("pair_id\n{0}\n", "no column 'label'; it has pair_id"),
        ("pair_id,age,sex\n{0},1,m\n", "no column 'label'; it has pair_id, age, sex. Name it with --label-column"),
        ("", "the file is empty"),
    ],
)
def test_labels_that_are_wrong_are_refused_with_their_line(labeled, ids, text, message):
    first, second = ids["test"][:2]
    (labeled / "labels.csv").write_text(text.format(first, second))
    with pytest.raises(ValueError, match=f"labels.csv.*{message.format(first)}"):
        labeled_images(str(labeled), "test")


def test_labels_of_other_splits_only_are_an_error(labeled, ids):
    (labeled / "labels.csv").write_text(f"pair_id,label\n{ids['train'][0]},chart\n")
    with pytest.raises(ValueError, match="no pair of the test split has a label"):
        labeled_images(str(labeled), "test")


def test_the_column_of_labels_can_be_named(tmp_path):
    (tmp_path / "labels.csv").write_text("age,Pair_ID,diagnosis\n40,a,x\n")
    rows, label = read_labels(tmp_path / "labels.csv", "diagnosis")
    assert {name: row[label] for name, row in rows.items()} == {"a": "x"}
    with pytest.raises(ValueError, match="--image-column scan has no effect on a built dataset"):
        labeled_images(str(tmp_path), "test", image_column="scan")


def test_labels_without_a_dataset_state_the_format_for_files(tmp_path):
    (tmp_path / "labels.csv").write_text("pair_id,label\na,x\n")
    (tmp_path / "a.png").write_bytes(png_bytes(0))
    with pytest.raises(FileNotFoundError, match="write a metadata.csv with file_name and label"):
        labeled_images(str(tmp_path), "test")


def test_a_built_dataset_without_labels_says_what_it_needs(built):
    with pytest.raises(FileNotFoundError, match="a built dataset without a labels.csv"):
        labeled_images(str(built), "test")


def test_folders_may_have_a_test_split_alone_and_other_splits_are_named(tmp_path):
    for label in ("lung", "brain"):
        (tmp_path / "test" / label).mkdir(parents=True)
        (tmp_path / "test" / label / "0").write_bytes(png_bytes(0))
    assert labeled_images(str(tmp_path), "test")[0].names == ["test/brain/0", "test/lung/0"]
    with pytest.raises(ValueError, match="there is no validation split, only test"):
        labeled_images(str(tmp_path), "validation")
    with pytest.raises(ValueError, match="come without splits.*there is no validation split"):
        labeled_images(str(tmp_path / "test"), "validation")


def test_classes_that_differ_only_in_case_or_spaces_are_noted(tmp_path):
    for label in ("Lung", "lung", "left lung", "left  lung", "brain"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes(png_bytes(0))
    notes = unpublished_benchmark(str(tmp_path), "test", ["a {}"]).notes
    assert "The classes 'Lung', 'lung' differ only in case or spaces and count as 2 classes." in notes
    assert "The classes 'left  lung', 'left lung' differ only in case or spaces and count as 2 classes." in notes


def test_quickstart_keeps_the_labels_of_pairs_that_were_built(labeled, ids, tmp_path):
    (tmp_path / "source").mkdir()
    text = f"pair_id,kind\n{ids['train'][0]},chart\nleft out by an option,photo\n{ids['test'][0]},photo\n"
    (tmp_path / "source" / "figure_kinds.csv").write_text(text)
    Quickstart._copy_labels(SimpleNamespace(output_dir=labeled), str(tmp_path / "source"))
    assert (labeled / "labels.csv").read_text() == text.replace("left out by an option,photo\n", "")
    assert labeled_images(str(labeled), "test")[0].labels == ["photo"]
