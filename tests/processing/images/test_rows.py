"""Images of data rows are read from their bytes. A path or URL in a row is never opened."""

import io
import os
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import png_bytes
from helpers.pair_shards import pair_row, write_shards
from PIL import Image

from biomedclip.processing import (
    ContrastiveCollator,
    LabelCollator,
    VisualQuestionCollator,
    load_pmc15m,
    read_image,
    read_labeled_images,
)
from biomedclip.processing.benchmarks.fingerprint import content_of, fingerprint_of
from biomedclip.processing.images import errors
from biomedclip.processing.images.reading import ImageError, read_row_image
from biomedclip.processing.pmc.images import ImageIndex
from biomedclip.processing.pmc.shards import pair_schema
from biomedclip.run_scripts.evaluation.features import FeatureStore


@pytest.fixture(autouse=True)
def opened(monkeypatch, tmp_path):
    """Calls that open paths and URLs through fsspec during a test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with mock.patch("fsspec.open", wraps=fsspec.open) as calls:
        yield calls.call_args_list


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(png_bytes(1))
    return path


# The image of a row that names a readable file or a server.
KINDS = {
    "path": str,
    "url": lambda picture: "http://127.0.0.1:9/picture.png",
    "file url": lambda picture: f"file://{picture}",
    "relative": os.path.relpath,
    "dict": lambda picture: {"bytes": None, "path": str(picture)},
    "dict without bytes": lambda picture: {"path": str(picture)},
    "dict url": lambda picture: {"bytes": None, "path": "memory://picture.png"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
def test_collators_refuse_a_path_in_a_row_and_name_the_row(small_processor, picture, opened, kind, training):
    row = {"pair_id": "PMC7", "name": "scan 7", "image": KINDS[kind](picture), "caption": "chest", "label": "a"}
    row |= {"question": "chest?", "answer": "yes"}
    for collator, name in (
        (ContrastiveCollator(small_processor, training=training), "PMC7"),
        (LabelCollator(small_processor.image_processor, {"a": 0}, training=training), "scan 7"),
        (VisualQuestionCollator(small_processor, {"yes": 0}, training=training), "scan 7"),
    ):
        with pytest.raises(ValueError, match=f"Row '{name}' cannot be used: the image is given by its path"):
            collator([row])
    substituting = ContrastiveCollator(small_processor, on_error="substitute", training=training)
    substituting([row, {"pair_id": "b", "image": {"bytes": png_bytes(2), "path": None}, "caption": "brain"}])
    assert substituting.substituted_rows == 1 and opened == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_of_a_row_is_not_read_from_a_path(picture, opened, kind):
    value = KINDS[kind](picture)
    with pytest.raises(ImageError, match="paths inside data rows are not opened"):
        read_row_image(value)
    if isinstance(value, dict):
        with pytest.raises(ImageError, match="paths inside data rows are not opened"):
            read_image(value)
    assert opened == []
    assert content_of(value) == b""


def test_features_count_a_row_with_a_path_as_unreadable(small_processor, picture, opened, tmp_path, monkeypatch):
    store = FeatureStore.__new__(FeatureStore)
    store.batch_size, store.workers, store.encoder = 8, 1, SimpleNamespace(processor=small_processor)
    rows = [{"bytes": png_bytes(1), "path": None}, str(picture), {"bytes": None, "path": str(picture)}]
    ((kept, pixels, failed),) = store._prepared(rows, range(3))
    assert kept == [0] and len(pixels) == 1 and opened == []
    assert failed == [(1, "image missing"), (2, "image missing")]


def test_fingerprints_do_not_read_the_paths_of_rows(picture):
    rows = [("a", "label")]
    nothing = fingerprint_of(rows, [{"bytes": None, "path": str(picture)}])
    assert nothing == fingerprint_of(rows, [{"bytes": None, "path": "/nowhere"}]) == fingerprint_of(rows, ["/nowhere"])
    assert fingerprint_of(rows, [picture]) != nothing


def test_rows_of_a_table_with_paths_as_images_cannot_be_read(tmp_path, picture, small_processor, opened):
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"image": [str(picture)] * 2, "label": ["a", "b"]}), tmp_path / "table" / "train.parquet")
    read = read_labeled_images(tmp_path / "table")["train"]
    collator = LabelCollator(small_processor.image_processor, {"a": 0, "b": 1})
    with pytest.raises(ValueError, match="Row 'train/0' cannot be used: the image is given by its path"):
        collator([read[0]])
    assert opened == []


def test_a_path_in_a_dataset_to_decontaminate_is_not_read(tmp_path, picture, caplog):
    table = pa.table({"image": [str(picture), None]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="none of the 2 images .*can be compared"):
        ImageIndex.from_path(tmp_path / "a.parquet")


def test_image_files_of_a_hub_dataset_are_only_read_from_the_cache(tmp_path, monkeypatch, picture):
    # `datasets` returns rows with the paths of the files that it has downloaded.
    cache = tmp_path / "cache" / "downloads"
    for label in ("a", "b"):
        (cache / label).mkdir(parents=True)
        (cache / label / "1.png").write_bytes(png_bytes(3))
    (cache / "b" / "2.png").symlink_to(picture)
    opened = datasets.load_dataset("imagefolder", data_dir=str(cache), split="train")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: opened)
    read = read_labeled_images("someone/images")["train"]
    for row in (0, 1):
        assert np.array_equal(read_row_image(read[row]["image"]), read_image(png_bytes(3)))
    with pytest.raises(ImageError, match="paths inside data rows are not opened"):
        read_row_image(read[2]["image"])


def write_table(folder: Path, table: pa.Table) -> Path:
    """Write a dataset of one shard."""
    (folder / "data").mkdir(parents=True)
    pq.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("streaming", [True, False])
def test_load_pmc15m_refuses_a_path_in_a_row_and_names_the_row(tmp_path, picture, streaming):
    rows = [pair_row(number) for number in range(3)]
    rows[1]["image"] = {"bytes": None, "path": str(picture)}
    folder = write_table(tmp_path / "set", pa.Table.from_pylist(rows, schema=pair_schema()))
    with pytest.raises(ValueError, match=r"(?s)PMC1\.1/F1/g1.*paths inside data are not opened"):
        list(load_pmc15m(folder, streaming=streaming))
    if streaming:
        undecoded = list(load_pmc15m(folder, decode=False))
        assert undecoded[1]["image"]["bytes"] is None, "the collator names or replaces the row"
    else:
        # `datasets` would store the file that the row names if the dataset is saved.
        with pytest.raises(ValueError, match="paths inside data are not opened"):
            load_pmc15m(folder, streaming=False, decode=False)


@pytest.mark.parametrize("streaming", [True, False])
def test_load_pmc15m_refuses_a_text_as_image(tmp_path, picture, streaming, opened):
    folder = write_table(tmp_path / "set", pa.table({"pair_id": ["a", "b"], "image": [None, str(picture)]}))
    with pytest.raises(ValueError, match=r"(?s)ow b has no bytes.*paths inside data are not opened"):
        list(load_pmc15m(folder, streaming=streaming))
    assert opened == []


@pytest.mark.parametrize("streaming", [True, False])
def test_load_pmc15m_decodes_with_the_size_limits(tmp_path, streaming, monkeypatch):
    monkeypatch.setattr(errors, "MAX_PIXELS", 40)
    folder = write_shards(tmp_path / "set", shards=1, rows=2)
    pairs = load_pmc15m(folder, streaming=streaming, columns=["pair_id", "image"])
    for rows in (pairs, pairs.map(lambda row: {"more": 1})):
        with pytest.raises(ImageError, match="8 x 6 pixels are more than 40"):
            list(rows)


@pytest.mark.parametrize("streaming", [True, False])
def test_load_pmc15m_returns_pillow_images_for_every_access(tmp_path, streaming, monkeypatch):
    folder = write_shards(tmp_path / "set", shards=1, rows=4)
    pairs = load_pmc15m(folder, streaming=streaming, columns=["pair_id", "image"])
    expected = [np.asarray(Image.open(io.BytesIO(pair_row(n)["image"]["bytes"]))) for n in range(4)]
    assert isinstance(pairs.features["image"], datasets.Image)
    rows = list(pairs)
    assert all(isinstance(row["image"], Image.Image) for row in rows)
    assert all(np.array_equal(row["image"], pixels) for row, pixels in zip(rows, expected, strict=True))
    sizes = [row["width"] for row in pairs.map(lambda row: {"width": row["image"].width})]
    assert sizes == [8] * 4
    assert len(list(pairs.filter(lambda row: row["image"].height == 6))) == 4
    tensors = [row["image"] for row in pairs.with_format("torch")]
    assert tensors[2].shape == (3, 6, 8)
    undecoded = pairs.cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in undecoded] == [pair_row(n)["image"]["bytes"] for n in range(4)]
    if not streaming:
        assert np.array_equal(pairs[1:3]["image"][1], expected[2])
        assert np.array_equal(pairs.shuffle(seed=0).sort("pair_id")[0]["image"], expected[0])
