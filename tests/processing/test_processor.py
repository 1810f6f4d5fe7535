"""The processor: texts and images in one object."""

import json

import pytest
from PIL import Image
from transformers import BertTokenizer

import modeling_biomedclip  # noqa: F401 (registers the parts that a saved processor is loaded from)
from processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor


@pytest.fixture(scope="module")
def published(shared_data) -> BiomedCLIPProcessor:
    """The processor with the published checkpoint's tokenizer."""
    tokenizer = BertTokenizer.from_pretrained(shared_data / "biomedclip_tokenizer")
    return BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer)


def test_token_ids_are_those_of_the_published_checkpoint(published):
    inputs = published(text=["this is a photo of brain MRI"])
    assert inputs["input_ids"] == [[2, 1805, 1744, 42, 7745, 1685, 2826, 4668, 3]]


def test_texts_are_cut_at_256_tokens_and_padded_by_default(published):
    inputs = published(text=["lung " * 400, "lung"], return_tensors="pt")
    assert inputs["input_ids"].shape == (2, 256)
    assert inputs["attention_mask"].sum(dim=1).tolist() == [256, 3]
    assert "token_type_ids" not in inputs


def test_real_captions_give_the_ids_of_the_tokenizer_alone(published, shared_data):
    tokenizer = BertTokenizer.from_pretrained(shared_data / "biomedclip_tokenizer")
    lines = (shared_data / "captions" / "captions.jsonl").read_text().splitlines()[:500]
    captions = [json.loads(line)["caption"] for line in lines]
    expected = tokenizer(captions, truncation=True, max_length=256)["input_ids"]
    assert published(text=captions, padding=False)["input_ids"] == expected
    assert max(map(len, expected)) == 256, "one caption at least is longer"


def test_a_tokenizer_with_a_limit_keeps_it(small_processor):
    inputs = small_processor(text="caption " * 300, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 64)


def test_images_and_texts_come_together(small_processor):
    inputs = small_processor(text=["a", "caption"], images=Image.new("RGB", (50, 40)), return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values"}
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)


def test_saving_and_loading_changes_nothing(small_processor, tmp_path):
    small_processor.save_pretrained(tmp_path)
    loaded = BiomedCLIPProcessor.from_pretrained(tmp_path)
    arguments = {"text": ["chest x-ray", "brain"], "images": Image.new("L", (50, 40), 99), "return_tensors": "pt"}
    ours, theirs = small_processor(**arguments), loaded(**arguments)
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert isinstance(loaded.image_processor, BiomedCLIPImageProcessor)
