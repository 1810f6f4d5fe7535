"""The processor, compared with the tokenizer of open_clip."""

import json
import logging

import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from transformers import BertTokenizer

import biomedclip  # noqa: F401 (registers the parts that a saved processor is loaded from)
from biomedclip import embedding
from biomedclip.processing import (
    BiomedCLIPImageProcessor,
    BiomedCLIPProcessor,
    ContrastiveCollator,
    processing_biomedclip,
)
from biomedclip.processing.processing_biomedclip import CHARACTERS_PER_TOKEN, CONTEXT_LENGTH, clean_text, cut_text


@pytest.fixture(scope="module")
def published(shared_data) -> BiomedCLIPProcessor:
    """The processor with the tokenizer of the published checkpoint."""
    tokenizer = BertTokenizer.from_pretrained(shared_data / "biomedclip_tokenizer")
    return BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer)


def test_token_ids_are_those_of_the_published_checkpoint(published):
    inputs = published(text=["this is a photo of brain MRI"])
    assert inputs["input_ids"] == [[2, 1805, 1744, 42, 7745, 1685, 2826, 4668, 3]]
    inputs = published(text=["lung " * 400, "lung"], return_tensors="pt")
    assert inputs["attention_mask"].sum(dim=1).tolist() == [256, 3], "truncated and padded by default"


def test_a_saved_processor_does_not_keep_the_truncation_and_padding_of_a_call(small_processor, tmp_path):
    texts = ["brain mri " * 400, "brain"]
    small_processor(text=texts, padding="max_length", max_length=12)
    small_processor.save_pretrained(tmp_path)
    loaded = BiomedCLIPProcessor.from_pretrained(tmp_path)
    assert len(loaded(text=texts)["input_ids"][0]) == 64
    assert loaded(text=texts[1:])["input_ids"] == small_processor(text=texts[1:])["input_ids"]


@pytest.fixture(scope="module")
def open_clip_tokenizer(shared_data):
    return HFTokenizer(str(shared_data / "biomedclip_tokenizer"), context_length=CONTEXT_LENGTH)


def test_token_ids_of_real_captions_equal_open_clip(published, open_clip_tokenizer, shared_data):
    lines = (shared_data / "captions" / "captions.jsonl").read_text().splitlines()[::5]
    captions = [json.loads(line)["caption"] for line in lines]
    ours = published(text=captions, padding="max_length", return_tensors="pt")
    theirs = open_clip_tokenizer(captions)
    assert torch.equal(ours["input_ids"], theirs)
    assert (theirs[:, -1] != 0).sum() > 50, "some captions have more than 256 tokens"
    uncleaned = published.tokenizer(captions, truncation=True, padding="max_length", return_tensors="pt")["input_ids"]
    assert (uncleaned != theirs).any(dim=1).sum() > 50, "without cleaning, some differ"


@pytest.mark.parametrize(
    "text",
    [
        "p &lt; 0.05 &amp;amp; n &gt; 3",
        "&#945;-synuclein, &alpha; and \u03b2-catenin; \u0394F508",
        "x\u00b2, 10\u207b\u00b3, H\u2082O, \u00b5m and \u03bcm",
        "\u201cquoted\u201d and \u2018single\u2019 \u2014 dash \u2026",
        "\ufb01brosis and \ufb02uorescence",
        "caf\u00c3\u00a9 of broken encoding",
        "\uff21\uff22\uff23 full width",
        "line\nbreaks,\ttabs\u00a0and\u2003spaces  ",
        "\u4e2d\u6587 and \U0001f9ec",
        "zero\u200bwidth, soft\u00adhyphen, \ufeffmark",
        "",
        "   ",
        "[CLS] [SEP] [MASK] <b>bold</b> {}",
        "a" * 300,
        "word " * 1000,
    ],
)
def test_token_ids_of_unusual_texts_equal_open_clip(published, open_clip_tokenizer, text):
    for given in (text, [text]):
        ours = published(text=given, padding="max_length", return_tensors="pt")["input_ids"]
        assert torch.equal(ours.reshape(1, -1), open_clip_tokenizer([text]))


def test_without_ftfy_texts_are_prepared_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(processing_biomedclip, "_ftfy", lambda: None)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert clean_text("a  &lt;\nb") == "a < b"
    assert "pip install ftfy" in caplog.text


def test_a_call_returns_the_named_inputs_before_and_after_saving(small_processor, tmp_path):
    inputs = small_processor(text="caption " * 300, images=Image.new("RGB", (50, 40)), return_tensors="pt")
    assert set(inputs) == set(small_processor.model_input_names) == {"input_ids", "attention_mask", "pixel_values"}
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert inputs["input_ids"].shape == (1, 64), "the limit of the tokenizer"
    assert "token_type_ids" in small_processor(text="caption", return_token_type_ids=True)
    small_processor.save_pretrained(tmp_path)
    loaded = BiomedCLIPProcessor.from_pretrained(tmp_path)
    arguments = {"text": ["chest x-ray", "brain"], "images": Image.new("L", (50, 40), 99), "return_tensors": "pt"}
    ours, theirs = small_processor(**arguments), loaded(**arguments)
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert isinstance(loaded.image_processor, BiomedCLIPImageProcessor)


def test_a_long_text_keeps_its_tokens_when_it_is_cut(published):
    texts = [
        "Axial CT shows ground-glass opacities, “consolidation” &amp; nodules. " * 700,
        "肺" * 50_000,
        ("x" * 99 + " ") * 500,
        ("y" * 101 + " ") * 500,
        "z" * 100_000,
        "&lt;p&gt; \u03b1-synuclein\n" * 3000,
    ]
    cut = published(text=texts)["input_ids"]
    cleaned = [clean_text(text) for text in texts]
    assert cut == published.tokenizer(cleaned, truncation=True, padding=True, max_length=256)["input_ids"]
    text = "a " * (CHARACTERS_PER_TOKEN * 5)
    assert cut_text(text, 10) == text and cut_text(text + "b", 10) == text
    assert CHARACTERS_PER_TOKEN == embedding.CHARACTERS_PER_TOKEN
    for max_length in (2, 7, 64):
        ids = published(text=texts, max_length=max_length)["input_ids"]
        assert ids == published.tokenizer(cleaned, truncation=True, padding=True, max_length=max_length)["input_ids"]


@pytest.mark.parametrize(
    ("options", "characters"),
    [
        ({}, 64 * CHARACTERS_PER_TOKEN),
        ({"max_length": 10}, 10 * CHARACTERS_PER_TOKEN),
        ({"text_kwargs": {"max_length": 10}}, 10 * CHARACTERS_PER_TOKEN),
        ({"truncation": False}, 50_000),
        ({"truncation": "do_not_truncate"}, 50_000),
        ({"truncation": "longest_first"}, 64 * CHARACTERS_PER_TOKEN),
    ],
)
def test_only_the_first_characters_of_a_truncated_text_are_cleaned(small_processor, monkeypatch, options, characters):
    seen = []
    monkeypatch.setattr(processing_biomedclip, "clean_text", lambda text: seen.append(len(text)) or "chest")
    small_processor(text="x " * 25_000, **options)
    small_processor(text=["x " * 25_000], **options)
    assert seen == [characters] * 2


def test_a_tokenizer_that_truncates_on_the_left_gets_the_whole_text(small_processor, monkeypatch):
    monkeypatch.setattr(small_processor.tokenizer, "truncation_side", "left")
    ids = small_processor(text="chest " * 30_000 + "brain mri", max_length=4)["input_ids"]
    assert ids == small_processor.tokenizer("brain mri", truncation=True, max_length=4)["input_ids"]


def test_every_text_path_cuts_long_texts_before_tokenizing(small_processor, small_model, monkeypatch):
    longest = []

    class Other:  # a processor of another library
        tokenizer = small_processor.tokenizer
        image_processor = small_processor.image_processor

        def __call__(self, text, **options):
            longest.append(max(map(len, text)))
            return self.tokenizer(text, **options)

    long = "chest x-ray " * 10_000
    bound = 64 * CHARACTERS_PER_TOKEN
    expected = embedding.embed_texts(small_model, small_processor, ["chest x-ray " * 100])
    assert embedding.embed_texts(small_model, Other(), [long]).equal(expected)
    assert longest.pop() == bound
    (tokens,) = embedding.count_tokens(small_model, Other(), [long])
    assert tokens > 64 and max(longest) == bound
    longest.clear()
    row = {"pair_id": "a", "image": Image.new("RGB", (40, 40)), "caption": long}
    batch = ContrastiveCollator(Other())([row])
    assert longest == [bound] and batch["input_ids"].shape == (1, 64)
