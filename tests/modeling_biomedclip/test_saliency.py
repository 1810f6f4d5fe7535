"""Saliency maps."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from biomedclip import ExportedModel, prompt_sensitivity, saliency_map
from biomedclip.processing import BiomedCLIPImageProcessor
from biomedclip.saliency import patch_relevance, to_image_resolution


PROMPTS = ["chest x-ray", "brain mri", "line chart"]


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))


@pytest.fixture
def clip_model():
    """A model of transformers with the same sizes as the small model."""
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = CLIPConfig(
        vision_config=tower | {"image_size": 32, "patch_size": 8, "initializer_range": 0.2},
        text_config=tower | {"vocab_size": 128, "max_position_embeddings": 64, "eos_token_id": 3},
        projection_dim=16,
        initializer_factor=5.0,
    )
    return CLIPModel(config).eval()


@pytest.fixture
def clip_processor(small_processor):
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return CLIPProcessor(image_processor, small_processor.tokenizer)


@pytest.fixture(params=["biomedclip", "clip"])
def pair(request, small_model, small_processor):
    """A model and its processor: ours, and CLIP of transformers."""
    if request.param == "biomedclip":
        return small_model, small_processor
    return request.getfixturevalue("clip_model"), request.getfixturevalue("clip_processor")


def test_a_map_has_the_size_of_the_image(pair, image):
    model, processor = pair
    one = saliency_map(model, processor, image, PROMPTS[0])
    assert one.shape == (40, 56) and one.dtype == torch.float32
    several = saliency_map(model, processor, image, PROMPTS)
    assert several.shape == (3, 40, 56)
    torch.testing.assert_close(several[0], one, equal_nan=True)
    seen = torch.isfinite(one).any(dim=0)
    assert torch.isfinite(one[:, seen]).all() and seen.tolist() == [False] * 8 + [True] * 40 + [False] * 8
    assert one[:, seen].std() > 0


def test_relevance_equals_the_method_with_finite_differences_in_float64(pair, monkeypatch):
    model = pair[0].double()
    changes: dict[torch.nn.Module, torch.Tensor] = {}

    def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **options):
        weights = (query @ key.transpose(-1, -2) * scaling).softmax(dim=-1)  # transformers' is in float32
        weights = weights + changes.get(module, 0)
        return (weights @ value).transpose(1, 2), weights

    for module in ("transformers.models.clip.modeling_clip", "biomedclip.modeling_biomedclip"):
        monkeypatch.setattr(f"{module}.eager_attention_forward", attend)
    random = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, 3, 32, 32, generator=random, dtype=torch.float64)
    text_embeds = normalize(torch.randn(2, 16, generator=random, dtype=torch.float64), dim=-1)
    relevance = patch_relevance(model, pixel_values, text_embeds)
    assert relevance.shape == (2, 4, 4)

    heads, tokens, step = 4, 17, 1e-4
    tower = model.vision_model
    layers = [layer.self_attn for layer in getattr(tower, "encoder", tower).layers]
    single = step * torch.eye(heads * tokens * tokens, dtype=torch.float64).unflatten(-1, (heads, tokens, tokens))
    expected = torch.zeros(2, 16, dtype=torch.float64)
    model.set_attn_implementation({"vision_config": "eager"})
    probabilities = model.get_image_features(pixel_values, output_attentions=True).attentions
    for number, (attention, probability) in enumerate(zip(layers, probabilities, strict=True), 1):
        similarities = []
        for sign in (1, -1):
            changes = {attention: sign * single}
            with torch.no_grad():
                outputs = model.get_image_features(
                    pixel_values.expand(len(single), -1, -1, -1), output_hidden_states=True
                )
                pooled = tower.post_layernorm(outputs.hidden_states[number][:, 0])
                similarities.append(text_embeds @ normalize(model.visual_projection(pooled), dim=-1).t())
        gradients = (similarities[0] - similarities[1]).unflatten(1, (heads, tokens, tokens)) / (2 * step)
        expected += (probability.detach() * gradients).sum(dim=2).mean(dim=1)[:, 1:]
    assert (expected < 0).any() and (expected > 0).any()
    torch.testing.assert_close(relevance.flatten(1), expected.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("processor_class", [BiomedCLIPImageProcessor, CLIPImageProcessor])
@pytest.mark.parametrize("size", [(200, 200), (333, 150), (97, 240), (40, 56)])
@pytest.mark.parametrize("settings", ["crop", "stretch", "crop only"])
def test_maps_undo_the_resizing_and_the_crop_of_the_processor(processor_class, size, settings):
    """A horizontal and a vertical ramp, averaged over the patches that the model sees, become the ramps again."""
    arguments = {
        "crop": {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
        "stretch": {"size": {"height": 64, "width": 64}, "do_center_crop": False},
        "crop only": {"do_resize": False, "crop_size": {"height": 32, "width": 32}},
    }[settings]
    processor = processor_class(**arguments, do_normalize=False, do_rescale=False)
    width, height = size
    across = np.broadcast_to(np.linspace(0, 250, width), (height, width))
    down = np.broadcast_to(np.linspace(0, 250, height)[:, None], (height, width))
    image = Image.fromarray(np.stack([across, down, down], axis=-1).round().astype(np.uint8))
    pixels = processor([image], return_tensors="pt")["pixel_values"][0, :2].float()
    patches = torch.nn.functional.avg_pool2d(pixels, 8)
    maps = to_image_resolution(patches, processor, size, pixels.shape[-2:])
    assert maps.shape == (2, height, width)
    for ramp, back, steps in ((across, maps[0], width), (down, maps[1].t(), height)):
        ramp = torch.from_numpy(ramp.copy() if ramp is across else ramp.T.copy()).float()
        seen = torch.isfinite(back).any(dim=0)
        assert torch.equal(torch.isfinite(back), seen & torch.isfinite(back).any(dim=1, keepdim=True))
        inner = seen.nonzero().flatten()
        margin = len(inner) // len(patches[0]) // 2 + 1  # in the outer half of the outer patches, a map is constant
        error = (back - ramp)[:, inner[margin:-margin]]
        assert error[torch.isfinite(error)].abs().max() < 1.5 + 250 / steps


def test_the_map_of_a_color_is_highest_where_the_color_is(small_model):
    """A tower that only averages the colors of the patches, and a text whose embedding is the direction of red."""
    tower, hidden = small_model.vision_model, small_model.config.vision_config.hidden_size
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if (
                not name.endswith("norm1.weight")
                and not name.endswith("norm2.weight")
                and "layernorm.weight" not in name
            ):
                parameter.zero_()
        for color in range(3):
            tower.embeddings.patch_embedding.weight[color, color] = 1 / 64
        for projection in (tower.layers[-1].self_attn.v_proj, tower.layers[-1].self_attn.out_proj):
            projection.weight.copy_(torch.eye(hidden))
        small_model.visual_projection.weight.zero_()
        small_model.visual_projection.weight[:, :16] = torch.eye(16)
    pixel_values = torch.zeros(1, 3, 32, 32)
    pixel_values[0, 0, :16, 16:] = 1.0  # red above right
    pixel_values[0, 2, 16:, :16] = 1.0  # blue below left
    red, blue = patch_relevance(small_model, pixel_values, torch.eye(16)[[0, 2]])
    assert red[:2, 2:].min() > red[2:].max() and red[:2, 2:].min() > red[:2, :2].max()
    assert blue[2:, :2].min() > blue[:2].max() and blue[2:, :2].min() > blue[2:, 2:].max()


def test_the_mean_map_of_the_neutral_prompts_is_subtracted(small_model, small_processor, image):
    def maps(text, neutral_prompts):
        return saliency_map(small_model, small_processor, image, text, neutral_prompts=neutral_prompts)

    chest, brain, chart = maps(PROMPTS, ())
    torch.testing.assert_close(maps(PROMPTS[0], PROMPTS[1:]), chest - (brain + chart) / 2, equal_nan=True)
    assert torch.nan_to_num(maps("figure", ["figure"])).abs().max() < 1e-6
    torch.testing.assert_close(saliency_map(small_model, small_processor, image, PROMPTS[0]), chest, equal_nan=True)


def test_a_map_is_smoothed_by_the_mean_of_neighbors_and_a_repeated_border(
    small_model, small_processor, image, monkeypatch
):
    patches = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("biomedclip.saliency.patch_relevance", lambda *arguments: patches)
    padded = np.pad(patches[0].numpy(), 1, mode="edge")
    means = [[padded[row : row + 3, column : column + 3].mean() for column in range(4)] for row in range(4)]
    expected = to_image_resolution(torch.tensor([means]), small_processor.image_processor, image.size, (32, 32))
    torch.testing.assert_close(saliency_map(small_model, small_processor, image, "chest"), expected[0], equal_nan=True)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_state_of_the_model_is_restored(pair, image, implementation):
    model, processor = pair
    model.set_attn_implementation(implementation)
    model.train()
    expected = saliency_map(model, processor, image, PROMPTS[0])
    assert model.training and model.vision_model.training
    configs = (model.config, model.config.vision_config, model.config.text_config)
    assert [config._attn_implementation for config in configs] == [implementation] * 3
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(False)
    with torch.no_grad():
        frozen = saliency_map(model, processor, image, PROMPTS[0])
    with torch.inference_mode():
        inferred = saliency_map(model, processor, image, PROMPTS[0])
    assert torch.equal(torch.nan_to_num(frozen), torch.nan_to_num(expected))
    assert torch.equal(torch.nan_to_num(inferred), torch.nan_to_num(expected))


def test_the_attention_implementation_is_restored_after_an_error(small_model, small_processor, image, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(small_model, "get_image_features", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        saliency_map(small_model, small_processor, image, PROMPTS[0])
    assert small_model.config.vision_config._attn_implementation == "sdpa"


def test_half_precision_gives_nearly_the_same_map(small_model, small_processor, image):
    expected = saliency_map(small_model, small_processor, image, PROMPTS)
    maps = saliency_map(small_model.bfloat16(), small_processor, image, PROMPTS)
    assert maps.dtype == torch.float32
    both = torch.stack([expected.nan_to_num().flatten(), maps.nan_to_num().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.98


def test_sensitivity_is_the_correlation_of_the_visible_pixels():
    maps = torch.randn(3, 8, 10, generator=torch.Generator().manual_seed(0))
    maps[:, :, :2] = torch.nan
    expected = np.corrcoef(maps[:, :, 2:].reshape(3, -1).numpy())
    torch.testing.assert_close(prompt_sensitivity(maps), torch.from_numpy(expected).float())
    assert prompt_sensitivity(maps[:1]).shape == (1, 1)
    with pytest.raises(ValueError, match=r"must have shape \(texts, height, width\)"):
        prompt_sensitivity(maps[0])


def test_models_without_gradients_or_class_token_are_refused(small_model, small_processor, image, monkeypatch):
    with pytest.raises(
        TypeError, match="ExportedModel computes no gradients, which saliency needs. Load the PyTorch model"
    ):
        saliency_map(ExportedModel.__new__(ExportedModel), small_processor, image, "chest")
    with pytest.raises(ValueError, match="`text` is empty"):
        saliency_map(small_model, small_processor, image, [])
    monkeypatch.setattr(small_model.config.vision_config, "patch_size", 16)
    with pytest.raises(ValueError, match="a class token and 2 x 2 patches, which the image tower of BiomedCLIPModel"):
        saliency_map(small_model, small_processor, image, "chest")
