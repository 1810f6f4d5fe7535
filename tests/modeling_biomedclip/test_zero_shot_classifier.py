"""Zero-shot classification with prompts."""

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from modeling_biomedclip import ZeroShotClassifier


@pytest.fixture
def images():
    return [Image.new("RGB", (40 + n, 30), (25 * n, 200 - 20 * n, 99)) for n in range(7)]


def test_one_template_gives_the_models_own_logits(small_model, small_processor, images):
    names = ["chest x-ray", "brain mri", "line chart"]
    classifier = ZeroShotClassifier(small_model, small_processor, names, ["this is a photo of {}"])
    prompts = [f"this is a photo of {name}" for name in names]
    inputs = small_processor(text=prompts, images=images, return_tensors="pt")
    with torch.no_grad():
        expected = small_model(**inputs).logits_per_image
    torch.testing.assert_close(classifier.logits(images), expected)
    torch.testing.assert_close(classifier(images), expected.softmax(dim=-1))


def test_a_class_is_the_normalised_mean_of_its_templates(small_model, small_processor):
    templates = ["a photo of {}", "{} chart", "this is {}"]
    names = ["chest", "brain"]
    single = [ZeroShotClassifier(small_model, small_processor, names, [t]).class_embeds for t in templates]
    together = ZeroShotClassifier(small_model, small_processor, names, templates).class_embeds
    torch.testing.assert_close(together, normalize(sum(single) / 3, dim=-1))


def test_batches_change_nothing(small_model, small_processor, images):
    classifier = ZeroShotClassifier(small_model, small_processor, ["chest", "brain"])
    torch.testing.assert_close(classifier.logits(images, batch_size=2), classifier.logits(images))
    assert classifier.logits([]).shape == (0, 2)


def test_what_makes_no_sense_is_refused(small_model, small_processor):
    with pytest.raises(ValueError, match="at least one class"):
        ZeroShotClassifier(small_model, small_processor, [])
    with pytest.raises(ValueError, match="has no {}"):
        ZeroShotClassifier(small_model, small_processor, ["a"], ["a photo"])
