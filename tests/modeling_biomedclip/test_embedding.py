"""Embedding of many images and texts."""

import pytest
import torch
from PIL import Image

from biomedclip import BiomedCLIPModel
from biomedclip.embedding import embed_images, embed_texts


TEXTS = ["chest x-ray", "a", "caption of article figure " * 3, "", "brain mri", "line chart " * 90, "photo"]


@torch.no_grad()
def test_texts_keep_their_order_in_any_batches(small_model, small_processor):
    expected = [
        small_model.get_text_features(**small_processor(text=text, return_tensors="pt")).pooler_output for text in TEXTS
    ]
    expected = torch.nn.functional.normalize(torch.cat(expected), dim=-1)
    for batch_size in (1, 2, 100):
        embeds = embed_texts(small_model, small_processor, TEXTS, batch_size=batch_size)
        # Other batches round float32 another way.
        torch.testing.assert_close(embeds, expected, rtol=0, atol=2e-6)


def test_little_padding_is_computed_by_models_that_need_it(small_model, small_processor, monkeypatch):
    monkeypatch.setattr(BiomedCLIPModel, "supports_packed_texts", False)
    shapes = []
    original = small_model.get_text_features

    def spy(input_ids, attention_mask):
        shapes.append((attention_mask.sum().item(), attention_mask.numel()))
        return original(input_ids=input_ids, attention_mask=attention_mask)

    monkeypatch.setattr(small_model, "get_text_features", spy)
    for count in (60, 600):  # few texts are far apart in length, many are not
        shapes.clear()
        embed_texts(small_model, small_processor, ["caption " * (n % 50) for n in range(count)], batch_size=8)
        words, worked_on = map(sum, zip(*shapes, strict=True))
        assert worked_on < words / (1 - 1 / 8)
        assert max(size for _, size in shapes) <= 8 * 52, "no batch has more tokens than eight of the longest"
    assert len(shapes) < 60, "many texts fill their batches"


def test_images_are_read_when_they_are_needed(small_model, small_processor):
    class Pictures(list):
        most, alive = 0, 0

        def __getitem__(self, index):
            batch = super().__getitem__(index)
            Pictures.most = max(Pictures.most, len(batch))
            return batch

    pictures = Pictures(Image.new("RGB", (40 + n, 30), (20 * n, 0, 99)) for n in range(10))
    embeds = embed_images(small_model, small_processor, pictures, batch_size=3)
    assert Pictures.most == 3 and embeds.shape == (10, 16)
    with torch.no_grad():
        pixels = small_processor.image_processor(list(pictures)[3:6], return_tensors="pt")["pixel_values"]
        expected = torch.nn.functional.normalize(small_model.get_image_features(pixels).pooler_output, dim=-1)
    assert torch.equal(embeds[3:6], expected)


def test_empty_inputs_give_empty_embeddings(small_model, small_processor):
    assert embed_images(small_model, small_processor, []).shape == (0, 16)
    assert embed_texts(small_model, small_processor, []).shape == (0, 16)


def test_the_error_of_a_damaged_image_is_raised(small_model, small_processor):
    class Damaged(list):
        def __getitem__(self, index):
            raise ValueError("scan_7.png: truncated")

    with pytest.raises(ValueError, match="scan_7.png"):
        embed_images(small_model, small_processor, Damaged([1, 2]))


def test_a_model_in_training_mode_embeds_without_dropout(small_model, small_processor):
    expected = embed_texts(small_model, small_processor, TEXTS)
    small_model.train()
    for module in small_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert torch.equal(embed_texts(small_model, small_processor, TEXTS), expected)
    assert small_model.training


def test_a_tokenizer_without_a_limit_uses_that_of_the_model(small_model, small_processor, monkeypatch):
    monkeypatch.setattr(small_processor.tokenizer, "model_max_length", 10**30)
    assert embed_texts(small_model, small_processor, ["line chart " * 90]).shape == (1, 16)
