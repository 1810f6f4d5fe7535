"""The same weights in open_clip's model give the same embeddings."""

import open_clip
import pytest
import torch
from helpers.open_clip_models import open_clip_model, with_same_weights

from biomedclip.conversion.tensors import from_open_clip_tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """open_clip's model of the published widths with three layers and random weights, and ours with the same."""
    theirs = open_clip_model(tmp_path_factory.mktemp("bert"), 3).eval()
    for parameter in theirs.parameters():  # biases and norms that are not zeros and ones
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.mean() > 0.5), std=0.1)
    return theirs, with_same_weights(theirs, 3).eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 5])
def test_image_embeddings_are_equal_bit_for_bit(models, size):
    theirs, ours = models
    images = torch.randn(size, 3, 224, 224)
    assert torch.equal(theirs.encode_image(images), ours.get_image_features(images).pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("length", [20, 256])
def test_text_embeddings_are_equal_bit_for_bit(models, length):
    theirs, ours = models
    texts = torch.randint(5, 28_000, (4, length))
    texts[1, length // 2 :] = 0
    assert torch.equal(theirs.encode_text(texts), ours.get_text_features(texts).pooler_output)


@pytest.mark.slow
def test_gradients_are_equal_to_rounding(models):
    theirs, ours = models
    images, texts = torch.randn(3, 3, 224, 224), torch.randint(5, 28_000, (3, 12))
    theirs.zero_grad(), ours.zero_grad()
    image_embeds, text_embeds, scale = theirs(images, texts)
    open_clip.ClipLoss()(image_embeds, text_embeds, scale).backward()
    loss = ours(texts, images, return_loss=True).loss
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    expected = from_open_clip_tensors(gradients, [name for name, _ in ours.named_parameters()])
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        # One product for q, k and v there, three here: sums in another order. Gradients that are nothing but rounding
        # (attention does not depend on the keys' bias) are measured by the largest of all.
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * largest.item())
