"""Zero-shot classification with prompts."""

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import pipeline

from biomedclip import ZeroShotClassifier


@pytest.fixture
def images():
    return [Image.new("RGB", (40 + n, 30), (25 * n, 200 - 20 * n, 99)) for n in range(7)]


def test_one_template_gives_the_logits_of_the_model(small_model, small_processor, images):
    names = ["chest x-ray", "brain mri", "line chart"]
    classifier = ZeroShotClassifier(small_model, small_processor, names, "this is a photo of {}")
    prompts = [f"this is a photo of {name}" for name in names]
    inputs = small_processor(text=prompts, images=images, return_tensors="pt")
    with torch.no_grad():
        expected = small_model(**inputs).logits_per_image
    # The model pads the prompts. Products of other shapes round differently.
    torch.testing.assert_close(classifier.logits(images), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(classifier(images), expected.softmax(dim=-1), rtol=0, atol=2e-6)
    cosines = expected / small_model.logit_scale.exp()
    torch.testing.assert_close(classifier.similarities(images), cosines.detach())


def test_the_stock_pipeline_gives_the_same_scores(small_model, small_processor, images):
    names = ["chest x-ray", "brain mri", "line chart", "figure"]
    stock = pipeline(
        "zero-shot-image-classification",
        model=small_model,
        tokenizer=small_processor.tokenizer,
        image_processor=small_processor.image_processor,
        device="cpu",
    )
    scores = ZeroShotClassifier(small_model, small_processor, names, "a photo of {}")(images, batch_size=1)
    for image, row in zip(images, scores, strict=True):
        answers = stock(image, candidate_labels=names, hypothesis_template="a photo of {}")
        found = dict(zip(names, row.tolist(), strict=True))
        # The pipeline pads the labels. Products of other shapes round differently.
        assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(found, rel=1e-5)


def test_labels_are_embedded_once(small_model, small_processor, images, monkeypatch):
    classifier = ZeroShotClassifier(small_model, small_processor, ["chest", "brain"])
    monkeypatch.setattr(small_model, "get_text_features", None)
    assert classifier(images).shape == classifier(images[:3] * 2 + images[:1]).shape


def test_long_labels_are_truncated_with_a_warning(small_model, small_processor, images, caplog):
    names = ["chest", "brain " * 80]
    classifier = ZeroShotClassifier(small_model, small_processor, names, "this is a photo of {}")
    assert "1 of 2 prompts have more than 64 tokens" in caplog.text and "this is a photo of brain" in caplog.text
    assert torch.isfinite(classifier(images)).all()
    caplog.clear()
    ZeroShotClassifier(small_model, small_processor, ["chest"])
    assert caplog.text == ""


def test_similarities_in_half_precision_are_computed_in_float32(small_model, small_processor, images):
    classifier = ZeroShotClassifier(small_model.bfloat16(), small_processor, ["chest", "brain"])
    logits = classifier.logits(images)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float()), "or near ones would tie"


def test_a_class_is_the_normalized_mean_of_its_templates(small_model, small_processor):
    templates = ["a photo of {}", "{} chart", "this is {}"]
    names = ["chest", "brain"]
    single = [ZeroShotClassifier(small_model, small_processor, names, [t]).class_embeds for t in templates]
    together = ZeroShotClassifier(small_model, small_processor, names, templates).class_embeds
    torch.testing.assert_close(together, normalize(sum(single) / 3, dim=-1))


def test_the_batch_size_does_not_change_scores(small_model, small_processor, images):
    classifier = ZeroShotClassifier(small_model, small_processor, ["chest", "brain"])
    torch.testing.assert_close(classifier.logits(images, batch_size=2), classifier.logits(images))
    assert classifier.logits([]).shape == (0, 2)


def test_invalid_arguments_are_refused(small_model, small_processor):
    with pytest.raises(ValueError, match="must not be empty"):
        ZeroShotClassifier(small_model, small_processor, [])
    with pytest.raises(ValueError, match="has no {}"):
        ZeroShotClassifier(small_model, small_processor, ["a"], ["a photo"])
