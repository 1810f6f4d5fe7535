"""The engine gives the results of the library, from many threads."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers.benchmark_files import save_drawn
from helpers.embedding_shards import write_embedding_shards
from PIL import Image

from biomedclip import (
    BiomedCLIPModel,
    BiomedCLIPProcessor,
    EmbeddingIndex,
    ZeroShotClassifier,
    embed_images,
    embed_texts,
    export_model,
    read_image,
    saliency_map,
)
from biomedclip.processing.images.errors import ImageError
from biomedclip.run_scripts.classification.classifiers import load_zero_shot
from biomedclip.run_scripts.classification.labels import read_labels
from biomedclip.run_scripts.cli.overlays import draw_overlay
from biomedclip.run_scripts.embedding.encoders import load_encoder
from biomedclip.run_scripts.serving.batching import Batcher, BusyError
from biomedclip.run_scripts.serving.engine import InputError, load_engine, read_upload


LABELS = ["chest x-ray", "brain mri", "line chart"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> list[Image.Image]:
    folder = tmp_path_factory.mktemp("scans")
    for number in range(12):
        save_drawn(folder / f"{number:02}.png", [number, 12], 40 + number, number % 2 == 0)
    return [read_image(path) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def loaded(small_checkpoint):
    return BiomedCLIPModel.from_pretrained(small_checkpoint), BiomedCLIPProcessor.from_pretrained(small_checkpoint)


@pytest.fixture(scope="module")
def vectors(small_checkpoint, loaded, scans, tmp_path_factory):
    """Return a folder of the embeddings of the scans."""
    encoder = load_encoder(str(small_checkpoint), "float32")
    fingerprints = {"weights": encoder.weights, "processing": encoder.processing}
    names = [f"scan-{number:02}" for number in range(len(scans))]
    columns = {"year": [2010 + number for number in range(len(scans))]}
    embeds = embed_images(*loaded, scans).numpy()
    return write_embedding_shards(tmp_path_factory.mktemp("vectors"), embeds, names, columns=columns, **fingerprints)


@pytest.fixture(scope="module")
def engine(small_checkpoint, vectors):
    prompts = read_labels(["taxonomy:imagetypes"])
    engine = load_engine(str(small_checkpoint), index=vectors, prompts=prompts, device="cpu", batch_size=5)
    yield engine
    engine.close()


def test_classification_equals_that_of_the_zero_shot_classifier(engine, loaded, scans):
    expected = ZeroShotClassifier(*loaded, LABELS)([scans[3]])[0]
    found = engine.classify(scans[3], LABELS)
    assert [row["label"] for row in found] == [LABELS[at] for at in expected.argsort(descending=True)]
    assert [row["probability"] for row in found] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-6)


def test_classification_with_listed_prompts_equals_that_of_the_command(engine, small_checkpoint, scans):
    classifier = load_zero_shot(str(small_checkpoint), engine.prompts, precision="float32", device=torch.device("cpu"))
    probabilities, _ = classifier.predict(classifier.image_processor([scans[3]], return_tensors="pt")["pixel_values"])
    found = {row["label"]: row["probability"] for row in engine.classify(scans[3], engine.labels)}
    assert [found[label] for label in classifier.labels] == pytest.approx(probabilities[0].tolist(), abs=1e-6)


def test_embeddings_of_many_threads_equal_those_of_single_calls(engine, loaded, scans):
    expected = [embed_images(*loaded, [scan]).numpy()[0] for scan in scans]
    texts = [f"caption of figure {number}" for number in range(20)]
    expected_texts = [embed_texts(*loaded, [text]).numpy()[0] for text in texts]
    with ThreadPoolExecutor(8) as threads:
        of_images = threads.map(lambda scan: engine.embed_images([scan])[0], scans)
        of_texts = threads.map(lambda text: engine.embed_texts([text])[0], texts)
    np.testing.assert_allclose(list(of_images), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(list(of_texts), expected_texts, rtol=0, atol=1e-6)
    assert engine.embed_images([]).shape == (0, engine.dimension)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_search_equals_that_of_the_index(engine, loaded, scans, vectors, kind):
    query = scans[4] if kind == "image" else "a line chart"
    embeds = embed_images(*loaded, [query]) if kind == "image" else embed_texts(*loaded, [query])
    rows = EmbeddingIndex(vectors).search(embeds, top_k=12)[0]
    expected = [row["id"] for row in rows if row["year"] > 2013]
    assert [row["id"] for row in engine.search(query, 5, "year > 2013")] == expected[:5]
    with pytest.raises(InputError, match="`where` .*no column 'yaer'"):
        engine.search(query, where="yaer > 2013")


def test_saliency_is_the_overlay_of_the_map(engine, loaded, scans):
    expected = draw_overlay(scans[0], saliency_map(*loaded, scans[0], "line chart"))
    assert np.abs(np.asarray(engine.saliency(scans[0], "line chart"), dtype=int) - np.asarray(expected)).max() <= 1
    assert engine.saliency(scans[0].resize((3000, 600)), "line chart").size == (1024, 205)


def test_an_exported_model_serves_all_but_saliency(loaded, scans, tmp_path):
    pytest.importorskip("onnxruntime")
    export_model(loaded[0], tmp_path / "onnx", format="onnx")
    loaded[1].save_pretrained(tmp_path / "onnx")
    engine = load_engine(str(tmp_path / "onnx"))
    expected = ZeroShotClassifier(*loaded, LABELS)([scans[3]])[0]
    probabilities = {row["label"]: row["probability"] for row in engine.classify(scans[3], LABELS)}
    assert [probabilities[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-4)
    with pytest.raises(TypeError, match="onnx is exported and computes no gradients"):
        engine.saliency(scans[0], "line chart")
    engine.close()


@pytest.mark.parametrize(
    ("labels", "template", "message"),
    [
        (["scan"], "{}", "at least two"),
        (["scan", " "], "{}", "empty label"),
        (["scan", "scan"], "{}", "'scan' twice"),
        (["scan", "chart"], "a photo", "has no {}"),
        (["a" * 1000, "b"], "{}" * 500, "500,000 characters, and 10,000 are allowed"),
        ([str(number) for number in range(1001)], "{}", "at most 1,000 labels"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(engine, scans, labels, template, message):
    with pytest.raises(InputError, match=message):
        engine.classify(scans[0], labels, template)


def test_kept_prompts_have_a_limited_number_of_characters(engine, monkeypatch):
    monkeypatch.setattr("biomedclip.run_scripts.serving.engine.MAX_KEPT_CHARACTERS", 50)
    prompts = [f"a prompt of 20 chars{number}"[1:] for number in range(4)]
    assert len(engine.submit_prompts(prompts)) == 4
    assert list(engine._kept) == prompts[2:]


def test_everything_is_checked_before_the_model_is_loaded(small_checkpoint, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr("biomedclip.run_scripts.serving.engine.load_encoder", lambda *_: pytest.fail("loaded"))
    for arguments, message in (
        ({"index": tmp_path}, "no shards"),
        ({"prompts": {"scan": ["a scan"]}}, "at least two"),
        ({"prompts": {"scan": ["a"] * 4096, "chart": ["b"]}}, "4,097 prompts"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"precision": "int8"}, "float32 or bfloat16"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            load_engine(str(small_checkpoint), **arguments)


def test_an_index_of_another_model_is_refused(small_checkpoint, vectors, loaded, tmp_path):
    torch.manual_seed(1)
    BiomedCLIPModel(loaded[0].config).save_pretrained(tmp_path)
    loaded[1].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not the model that computed the embeddings"):
        load_engine(str(tmp_path), index=vectors)


def test_an_upload_has_the_limits_of_files_and_its_errors_name_no_folder():
    with pytest.raises(ImageError, match=r"^scan.png: not an image") as caught:
        read_upload(b"no image", "/home/someone/scan.png")
    assert caught.value.reason == "image of unknown format"
    with pytest.raises(ImageError, match="^scan.bmp: more than 175,000,000 pixels"):
        read_upload(
            b"BM" + bytes(12) + (40).to_bytes(4, "little") + b"\xff\xff\0\0" * 2 + b"\1\0\1\0" + bytes(24),
            "C:\\scan.bmp",
        )


def test_a_batch_is_shared_and_an_item_that_fails_does_not_fail_the_others():
    sizes, started, go_on = [], threading.Event(), threading.Event()

    def run(values):
        started.set()
        go_on.wait(10)
        sizes.append(len(values))
        return [1 // value for value in values]

    batcher = Batcher({"x": 5}, batch_size=4)
    first = batcher.submit("x", None, run, [1])
    started.wait(10)
    others = batcher.submit("x", None, run, [1, 0, 1, 1, 1])
    with pytest.raises(BusyError):
        batcher.submit("x", None, run, [1])
    go_on.set()
    assert first[0].result(10) == 1
    assert isinstance(others[1].exception(10), ZeroDivisionError)
    assert [other.result(10) for at, other in enumerate(others) if at != 1] == [1] * 4
    assert sizes == [1, 4, 1, 1, 1, 1, 1]  # the batch of four failed, and its items ran alone
    batcher.close()
    with pytest.raises(BusyError, match="stopping"):
        batcher.submit("x", None, run, [1])


def test_a_wrong_number_of_results_is_an_error_of_its_items_only():
    batcher = Batcher({"x": 5}, batch_size=4)
    futures = batcher.submit("x", None, lambda values: [], [1, 2])
    assert [type(future.exception(10)) for future in futures] == [ValueError, ValueError]
    assert batcher.submit("x", None, lambda values: values, [3])[0].result(10) == 3
    batcher.close()
