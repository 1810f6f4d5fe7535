"""Features on disk are reused and shared by processes, and never used for other weights or data."""

import json
import shutil

import numpy as np
import pytest
import torch
from helpers.commands import run_python
from PIL import Image

from biomedclip import embed_images, embed_texts
from biomedclip.run_scripts.evaluation import features as module
from biomedclip.run_scripts.evaluation.dual_encoders import DualEncoder, load_dual_encoder
from biomedclip.run_scripts.evaluation.features import FeatureStore
from biomedclip.weights_fingerprint import weights_fingerprint


@pytest.fixture(scope="module")
def encoder(small_checkpoint):
    return load_dual_encoder(str(small_checkpoint))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of 50 images. Numbers 7 and 33 are damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(50):
        Image.fromarray(generator.integers(256, size=(40, 48, 3), dtype=np.uint8)).save(folder / f"{number:02}.png")
    (folder / "07.png").write_bytes(b"not an image")
    (folder / "33.png").write_bytes((folder / "33.png").read_bytes()[:900])
    return sorted(folder.iterdir())


class Counting(list):
    """A list that records which of its items were read."""

    def __init__(self, items):
        super().__init__(items)
        self.asked = []

    def __getitem__(self, number):
        self.asked.append(number)
        return super().__getitem__(number)


def extract(encoder, images, folder, **options):
    store = FeatureStore(encoder, folder, batch_size=8, workers=2)
    return store.images(images, [f"{number:02}.png" for number in range(len(images))], "some-data", **options)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART", 16)


@pytest.fixture(scope="module")
def whole(encoder, pictures, tmp_path_factory):
    """Folder and features of one run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PART", 16)
        folder = tmp_path_factory.mktemp("whole")
        return folder, extract(encoder, pictures, folder)


def test_features_are_those_of_the_model_and_damaged_images_are_named(encoder, pictures, whole):
    _, features = whole
    assert features.damaged == [
        {"name": "07.png", "reason": "image of unknown format"},
        {"name": "33.png", "reason": "image damaged"},
    ]
    good = [number for number in range(50) if number not in (7, 33)]
    assert features.rows.tolist() == good
    expected = embed_images(encoder.model, encoder.processor, [Image.open(pictures[number]) for number in good])
    # Other batches sum float32 in another order.
    torch.testing.assert_close(features.embeds, expected, rtol=0, atol=2e-6)


def test_stored_features_are_reused_and_damaged_parts_are_computed_again(encoder, pictures, whole, tmp_path):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    parts = sorted(tmp_path.rglob("part-*.safetensors"))
    assert len(parts) == 4
    images = Counting(pictures)
    assert torch.equal(extract(encoder, images, tmp_path).embeds, whole[1].embeds) and images.asked == []
    parts[1].write_bytes(parts[1].read_bytes()[:-10])
    parts[3].unlink()
    parts[2].write_bytes(b"")
    repaired = extract(encoder, images, tmp_path)
    assert sorted(images.asked) == list(range(16, 50))
    assert torch.equal(repaired.embeds, whole[1].embeds) and repaired.damaged == whole[1].damaged


def test_an_interrupted_run_continues(encoder, pictures, whole, tmp_path, monkeypatch):
    embed, calls = DualEncoder.embed_pixels, []

    def interrupted(self, pixels, features="embeds"):
        calls.append(len(pixels))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return embed(self, pixels, features)

    with monkeypatch.context() as patch:
        patch.setattr(DualEncoder, "embed_pixels", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(encoder, pictures, tmp_path)
    assert len(list(tmp_path.rglob("part-*.safetensors"))) == 1
    assert torch.equal(extract(encoder, pictures, tmp_path).embeds, whole[1].embeds)


def test_other_weights_features_or_precision_are_stored_apart(
    encoder, small_model, small_processor, pictures, tmp_path
):
    pictures = pictures[:7]
    first = extract(encoder, pictures, tmp_path)
    hidden = extract(encoder, pictures, tmp_path, features="hidden")
    assert hidden.embeds.shape[1] == 32 and first.embeds.shape[1] == 16
    low = extract(DualEncoder("small", "biomedclip", encoder.model, small_processor, "bfloat16"), pictures, tmp_path)
    assert 0.99 < (first.embeds * low.embeds).sum(dim=1).min() and not torch.equal(first.embeds, low.embeds)
    assert low.embeds.dtype == torch.float32
    with torch.no_grad():
        small_model.visual_projection.weight[0, 0] += 1e-3
    changed = extract(DualEncoder("small", "biomedclip", small_model, small_processor), pictures, tmp_path)
    assert not torch.equal(changed.embeds, first.embeds)
    keys = [json.loads(path.read_text()) for path in tmp_path.glob("*/key.json")]
    assert len(keys) == 4 and {key["what"] for key in keys} == {"images, embeds", "images, hidden"}


def test_features_of_texts_are_those_of_the_model(encoder, tmp_path):
    texts = [f"caption of article {1000 + number}" for number in range(40)]
    features = FeatureStore(encoder, tmp_path).texts(texts, "data")
    expected = embed_texts(encoder.model, encoder.processor, texts)
    torch.testing.assert_close(features.embeds, expected, rtol=0, atol=1e-6)
    shorter = FeatureStore(encoder, tmp_path, max_length=4).texts(texts, "data")
    assert not torch.allclose(shorter.embeds, features.embeds)


def test_an_error_is_raised_if_no_image_can_be_read(encoder, pictures, tmp_path):
    with pytest.raises(ValueError, match="None of the 1 images can be read: 00.png: image of unknown format"):
        extract(encoder, [pictures[7]], tmp_path)


def test_the_fingerprint_of_weights_changes_with_every_weight(small_model):
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
from biomedclip.run_scripts.evaluation.pairs import EmbeddedPairs
from biomedclip.run_scripts.evaluation.retrieval import count_ranks
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
    torch.save({"embeds": found.embeds, "counts": {name: list(values) for name, values in counts.items()}}, sys.argv[4])
end_processes()
"""


@pytest.mark.slow
def test_two_processes_share_the_parts_and_give_the_result_of_one(small_checkpoint, pictures, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    outputs, parts = [], []
    for processes, name in enumerate(("one", "two"), 1):
        arguments = [program, small_checkpoint, pictures[0].parent, tmp_path / name, tmp_path / f"{name}.pt"]
        result = run_python(*arguments, processes=processes)
        assert result.returncode == 0, result.stderr[-3000:]
        outputs.append(torch.load(tmp_path / f"{name}.pt"))
        parts.append(sorted(path.name for path in (tmp_path / name).rglob("part-*")))
    one, two = outputs
    assert torch.equal(one["embeds"], two["embeds"]) and parts[0] == parts[1]
    for direction, counts in one["counts"].items():
        assert all(map(torch.equal, counts, two["counts"][direction]))
