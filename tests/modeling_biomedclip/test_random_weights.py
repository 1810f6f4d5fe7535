"""Random weights have the distributions of open_clip, for each kind of tensor."""

import math
import re
from collections import defaultdict

import open_clip
import pytest
import torch
from helpers.open_clip_models import VISION, open_clip_model
from scipy.stats import kstest

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPModel,
    BiomedCLIPTextConfig,
    BiomedCLIPTextModelWithProjection,
    BiomedCLIPVisionConfig,
    BiomedCLIPVisionModelWithProjection,
)
from biomedclip.conversion.tensors import from_open_clip_tensors


LAYERS = {"num_hidden_layers": 2}
CLIP_TEXT = {"model_type": "clip_text_model", "hidden_act": "gelu", "vocab_size": 500, "eos_token_id": 499}
ERROR = 1e-9  # probability of a false alarm for a kind of tensor


def make_models(text: str, folder) -> tuple[open_clip.CLIP | open_clip.CustomTextCLIP, BiomedCLIPModel]:
    """Return the model of open_clip and ours with their own random weights."""
    if text == "bert":
        theirs, text_config = open_clip_model(folder, 2), LAYERS
    else:
        torch.manual_seed(0)
        text_cfg = {"context_length": 77, "vocab_size": 500, "width": 512, "heads": 8, "layers": 2}
        theirs, text_config = open_clip.CLIP(embed_dim=512, vision_cfg=VISION, text_cfg=text_cfg), CLIP_TEXT | LAYERS
        del theirs.visual.trunk.blocks[2:]
    torch.manual_seed(1)
    return theirs, BiomedCLIPModel(BiomedCLIPConfig(text_config=text_config, vision_config=LAYERS))


def by_kind(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return about 100,000 values of each kind of tensor, which is its name without the index of the layer."""
    kinds = defaultdict(list)
    for name, tensor in tensors.items():
        kinds[re.sub(r"\.\d+\.", ".N.", name)].append(tensor.detach().flatten())
    numbers = {kind: torch.cat(found) for kind, found in kinds.items()}
    return {kind: found[:: max(1, len(found) // 100_000)].double() for kind, found in numbers.items()}


@pytest.mark.parametrize("text", ["bert", "gpt"])
def test_each_kind_of_tensor_has_the_distribution_of_open_clip(text, tmp_path):
    theirs, ours = make_models(text, tmp_path)
    found = by_kind(ours.state_dict())
    expected = by_kind(from_open_clip_tensors(theirs.state_dict(), list(ours.state_dict())))
    assert found.keys() == expected.keys() and len(found) > 30
    for kind, numbers in found.items():
        others = expected[kind]
        if len(others.unique()) == 1:
            assert torch.equal(numbers.unique(), others.unique()), kind
            continue
        # Kolmogorov-Smirnov: the distance of the empirical distributions of n and m values is greater than
        # sqrt(-log(ERROR / 2) / 2 * (n + m) / (n * m)) with a probability of at most ERROR if they have the same
        # distribution. For 100,000 values each this is 0.015, which a difference in standard deviation of 7 % exceeds,
        # or a normal instead of a uniform distribution.
        n, m = len(numbers), len(others)
        bound = math.sqrt(-math.log(ERROR / 2) / 2 * (n + m) / (n * m))
        distance = kstest(numbers.numpy(), others.numpy()).statistic
        assert distance < bound, f"{kind}: std {numbers.std():.3g}, in open_clip {others.std():.3g}"


def test_the_projection_of_a_single_encoder_has_the_same_distribution():
    torch.manual_seed(0)
    image = BiomedCLIPVisionModelWithProjection(BiomedCLIPVisionConfig(num_hidden_layers=1)).visual_projection
    text = BiomedCLIPTextModelWithProjection(BiomedCLIPTextConfig(num_hidden_layers=1, vocab_size=99)).text_projection
    for layer in (image, text.fc1, text.fc2):
        bound = layer.in_features**-0.5
        assert 0.99 * bound < layer.weight.abs().max() <= bound


@torch.no_grad()
def test_the_text_encoder_of_clip_has_the_embeddings_of_open_clip(tmp_path):
    theirs, ours = make_models("gpt", tmp_path)
    ours.load_state_dict(from_open_clip_tensors(theirs.state_dict(), list(ours.state_dict())))
    texts = torch.randint(1, 499, (4, 77))
    for row, length in enumerate((3, 20, 60, 76)):
        texts[row, length:] = 0
        texts[row, length] = 499
    expected = theirs.eval().encode_text(texts)
    torch.testing.assert_close(ours.eval().get_text_features(texts).pooler_output, expected, atol=2e-6, rtol=0)
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(
        ours.get_image_features(images).pooler_output, theirs.encode_image(images), atol=2e-6, rtol=0
    )
