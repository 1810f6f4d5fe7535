"""Images of data rows are read from their bytes. A path or URL in a row is never opened."""

import io
import os
from pathlib import Path

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
def opened(monkeypatch, tmp_path) -> list[str]:
    """Paths and URLs that are opened through fsspec during a test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names: list[str] = []
    real = fsspec.open

    def noted(urlpath, *arguments, **options):
        names.append(str(urlpath))
        return real(urlpath, *arguments, **options)

    monkeypatch.setattr("fsspec.open", noted)
    return names


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(png_bytes(1))
    return path


KINDS = ["path", "url", "file url", "relative", "dict", "dict without bytes", "dict url"]


def value_of(kind: str, picture: Path):
    """Return the image of a row that names a readable file or a server."""
    return {
        "path": str(picture),
        "url": "http://127.0.0.1:9/picture.png",
        "file url": f"file://{picture}",
        "relative": os.path.relpath(picture),
        "dict": {"bytes": None, "path": str(picture)},
        "dict without bytes": {"path": str(picture)},
        "dict url": {"bytes": None, "path": "memory://picture.png"},
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("which", ["contrastive", "labels", "questions"])
def test_collators_refuse_a_path_in_a_row_and_name_the_row(small_processor, picture, opened, kind, training, which):
    row = {"pair_id": "PMC7", "name": "scan 7", "image": value_of(kind, picture), "caption": "chest", "label": "a"}
    row |= {"question": "chest?", "answer": "yes"}
    collator = {
        "contrastive": lambda: ContrastiveCollator(small_processor, training=training),
        "labels": lambda: LabelCollator(small_processor.image_processor, {"a": 0}, training=training),
        "questions": lambda: VisualQuestionCollator(small_processor, {"yes": 0}, training=training),
    }[which]()
    name = "PMC7" if which == "contrastive" else "scan 7"
    with pytest.raises(ValueError, match=f"Row '{name}' cannot be used: the image is given by its path"):
        collator([row])
    assert opened == []


def test_a_row_with_a_path_can_be_substituted(small_processor, picture, opened):
    good = {"pair_id": "a", "image": {"bytes": png_bytes(2), "path": None}, "caption": "brain"}
    bad = {"pair_id": "b", "image": {"bytes": None, "path": str(picture)}, "caption": "chest"}
    collator = ContrastiveCollator(small_processor, on_error="substitute")
    batch = collator([good, bad])
    assert collator.substituted_rows == 1 and opened == []
    assert batch["pixel_values"][0].equal(batch["pixel_values"][1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_of_a_row_is_not_read_from_a_path(picture, opened, kind):
    value = value_of(kind, picture)
    with pytest.raises(ImageError, match="paths inside data rows are not opened"):
        read_row_image(value)
    if isinstance(value, dict):
        with pytest.raises(ImageError, match="paths inside data rows are not opened"):
            read_image(value)
    assert opened == []
    assert content_of(value) == b""


def test_features_count_a_row_with_a_path_as_unreadable(small_processor, picture, opened, tmp_path, monkeypatch):
    store = FeatureStore.__new__(FeatureStore)
    store.batch_size, store.workers = 8, 1

    class Encoder:
        processor = small_processor

    store.encoder = Encoder()
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
    folder = tmp_path / "table"
    folder.mkdir()
    pq.write_table(pa.table({"image": [str(picture)] * 2, "label": ["a", "b"]}), folder / "train.parquet")
    read = read_labeled_images(folder)["train"]
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
    expected = np.asarray(read_image(png_bytes(3)))
    assert np.array_equal(read_row_image(read[0]["image"]), expected)
    assert np.array_equal(read_row_image(read[1]["image"]), expected)
    with pytest.raises(ImageError, match="paths inside data rows are not opened"):
        read_row_image(read[2]["image"])


def write_rows(folder: Path, image, count: int = 3) -> Path:
    """Write a dataset whose second row has this image."""
    rows = [pair_row(number) for number in range(count)]
    rows[1]["image"] = image
    (folder / "data").mkdir(parents=True)
    path = folder / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=pair_schema()), path)
    return folder


@pytest.mark.parametrize("streaming", [True, False])
def test_load_pmc15m_refuses_a_path_in_a_row_and_names_the_row(tmp_path, picture, streaming, monkeypatch):
    folder = write_rows(tmp_path / "set", {"bytes": None, "path": str(picture)})
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
def test_load_pmc15m_refuses_a_text_as_image(tmp_path, picture, streaming, monkeypatch, opened):
    (tmp_path / "set" / "data").mkdir(parents=True)
    table = pa.table({"pair_id": ["a", "b"], "image": [None, str(picture)]})
    pq.write_table(table, tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=r"(?s)ow b has no bytes.*paths inside data are not opened"):
        list(load_pmc15m(tmp_path / "set", streaming=streaming))
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
