"""Embeddings on disk: gone on with, shared by processes, never of other weights or data."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.commands import ENVIRONMENT, ON_TWO_PROCESSES, ROOT
from PIL import Image

from biomedclip import embed_images, embed_texts
from biomedclip.run_scripts.evaluation import features as module
from biomedclip.run_scripts.evaluation.dual_encoders import DualEncoder
from biomedclip.run_scripts.evaluation.features import FeatureStore
from biomedclip.run_scripts.hub.fingerprints import weights_fingerprint


@pytest.fixture
def encoder(small_model, small_processor):
    return DualEncoder("small", "biomedclip", small_model, small_processor)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of 50 images, of which numbers 7 and 33 are damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(50):
        Image.fromarray(generator.integers(256, size=(40, 48, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    (folder / "07.png").write_bytes(b"not an image")
    (folder / "33.png").write_bytes((folder / "33.png").read_bytes()[:900])
    return sorted(folder.iterdir())


class Counting(list):
    """A list that notes which of its items were asked for."""

    def __init__(self, items):
        super().__init__(items)
        self.asked = []

    def __getitem__(self, number):
        self.asked.append(number)
        return super().__getitem__(number)


def extract(encoder, images, folder, **options):
    store = FeatureStore(encoder, folder, batch_size=8, workers=2)
    return store.images(images, [path.name for path in images], "some-data", **options)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART", 16)


def test_features_are_the_models_and_damaged_images_are_named(encoder, pictures, tmp_path):
    features = extract(encoder, pictures, tmp_path)
    assert features.damaged == [
        {"name": "07.png", "reason": "image of unknown format"},
        {"name": "33.png", "reason": "image damaged"},
    ]
    good = [number for number in range(50) if number not in (7, 33)]
    assert features.rows.tolist() == good
    images = [Image.open(pictures[number]) for number in good]
    expected = embed_images(encoder.model, encoder.processor, images)
    # Other batches: float32 sums in another order.
    torch.testing.assert_close(features.embeds, expected, rtol=0, atol=2e-6)


def test_what_is_there_is_not_worked_out_again_and_truncated_parts_are(encoder, pictures, tmp_path):
    whole = extract(encoder, pictures, tmp_path)
    parts = sorted(tmp_path.rglob("part-*.safetensors"))
    assert len(parts) == 4
    again = Counting(pictures)
    assert torch.equal(extract(encoder, again, tmp_path).embeds, whole.embeds)
    again.asked.clear()

    parts[1].write_bytes(parts[1].read_bytes()[:-10])
    parts[3].unlink()
    parts[2].write_bytes(b"")
    store = FeatureStore(encoder, tmp_path, batch_size=8)
    repaired = store.images(again, [path.name for path in pictures], "some-data")
    assert sorted(again.asked) == list(range(16, 50))
    assert torch.equal(repaired.embeds, whole.embeds) and repaired.damaged == whole.damaged


def test_an_interrupted_extraction_goes_on(encoder, pictures, tmp_path, monkeypatch):
    whole = extract(encoder, pictures, tmp_path / "whole")
    embed, calls = DualEncoder.embed_pixels, []

    def interrupted(self, pixels, features="embeds"):
        calls.append(len(pixels))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return embed(self, pixels, features)

    monkeypatch.setattr(DualEncoder, "embed_pixels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(encoder, pictures, tmp_path / "cut")
    assert len(list((tmp_path / "cut").rglob("part-*.safetensors"))) == 1
    monkeypatch.setattr(DualEncoder, "embed_pixels", embed)
    assert torch.equal(extract(encoder, pictures, tmp_path / "cut").embeds, whole.embeds)


def test_other_weights_data_or_features_are_other_parts(encoder, small_model, small_processor, pictures, tmp_path):
    first = extract(encoder, pictures, tmp_path)
    hidden = extract(encoder, pictures, tmp_path, features="hidden")
    assert hidden.embeds.shape[1] == 32 and first.embeds.shape[1] == 16
    with torch.no_grad():
        small_model.visual_projection.weight[0, 0] += 1e-3
    changed = extract(DualEncoder("small", "biomedclip", small_model, small_processor), pictures, tmp_path)
    assert not torch.equal(changed.embeds, first.embeds)
    assert len(list(tmp_path.glob("*/key.json"))) == 3
    keys = [json.loads(path.read_text()) for path in tmp_path.glob("*/key.json")]
    assert {key["what"] for key in keys} == {"images, embeds", "images, hidden"}


def test_texts_are_embedded_as_the_model_does(encoder, tmp_path):
    texts = [f"caption of article {1000 + number}" for number in range(40)]
    features = FeatureStore(encoder, tmp_path).texts(texts, "data")
    expected = embed_texts(encoder.model, encoder.processor, texts)
    torch.testing.assert_close(features.embeds, expected, rtol=0, atol=1e-6)
    shorter = FeatureStore(encoder, tmp_path, max_length=4).texts(texts, "data")
    assert not torch.allclose(shorter.embeds, features.embeds)


def test_of_images_that_are_all_damaged_nothing_is_made(encoder, pictures, tmp_path):
    with pytest.raises(ValueError, match="None of the 1 images can be read: 07.png: image of unknown format"):
        extract(encoder, [pictures[7]], tmp_path)


def test_lower_precision_is_near_and_kept_apart(small_model, small_processor, encoder, pictures, tmp_path):
    exact = extract(encoder, pictures, tmp_path)
    low = extract(DualEncoder("small", "biomedclip", small_model, small_processor, "bfloat16"), pictures, tmp_path)
    similarity = (exact.embeds * low.embeds).sum(dim=1)
    assert 0.99 < similarity.min() and not torch.equal(exact.embeds, low.embeds)
    assert low.embeds.dtype == torch.float32


def test_the_fingerprint_of_weights_tells_every_change(small_model):
    first = weights_fingerprint(small_model)
    assert len(first) == 16 and first == weights_fingerprint(small_model)
    with torch.no_grad():
        small_model.logit_scale += 1e-6
    assert weights_fingerprint(small_model) != first


PROGRAM = """
import sys, torch
from pathlib import Path
from accelerate import PartialState
from biomedclip.run_scripts.evaluation import features
from biomedclip.run_scripts.evaluation.dual_encoders import load_dual_encoder
from biomedclip.run_scripts.evaluation.retrieval import EmbeddedPairs, count_ranks
from biomedclip.run_scripts.evaluation import retrieval
from biomedclip.run_scripts.training.runs import end_processes
features.PART, retrieval.BLOCK = 16, 128
state = PartialState(cpu=True)
images = sorted(Path(sys.argv[2]).iterdir())
store = features.FeatureStore(load_dual_encoder(sys.argv[1]), Path(sys.argv[3]), batch_size=8)
found = store.images(images, [path.name for path in images], "some-data")
generator = torch.Generator().manual_seed(0)
embeds = torch.randint(-2, 3, (2, 600, 8), generator=generator).float()
pairs = EmbeddedPairs(embeds[0], embeds[1], None, torch.arange(600), [], "")
counts = count_ranks(pairs, Path(sys.argv[3]), {})
if state.is_main_process:
    torch.save({"embeds": found.embeds, "counts": counts}, sys.argv[4])
end_processes()
"""


def test_two_processes_share_the_parts_and_give_what_one_gives(small_checkpoint, pictures, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    outputs = []
    for name, start in (("one", ()), ("two", ON_TWO_PROCESSES)):
        arguments = [program, small_checkpoint, pictures[0].parent, tmp_path / name, tmp_path / f"{name}.pt"]
        result = subprocess.run(
            [sys.executable, *start, *map(str, arguments)], capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT
        )
        assert result.returncode == 0, result.stderr[-3000:]
        outputs.append(torch.load(tmp_path / f"{name}.pt"))
    one, two = outputs
    assert torch.equal(one["embeds"], two["embeds"])
    for direction, counts in one["counts"].items():
        for kind, values in counts.items():
            assert torch.equal(values, two["counts"][direction][kind])
    assert sorted(path.name for path in (tmp_path / "one").rglob("part-*")) == sorted(
        path.name for path in (tmp_path / "two").rglob("part-*")
    )
