"""What users of transformers expect of any model: devices, precision, attention, compilation, saving and loading."""

import copy
import pickle

import pytest
import torch
from transformers import AutoConfig, AutoModel

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPForImageClassification,
    BiomedCLIPForVisualQuestionAnswering,
    BiomedCLIPModel,
    BiomedCLIPTextConfig,
    BiomedCLIPTextModel,
    BiomedCLIPTextModelWithProjection,
    BiomedCLIPVisionConfig,
    BiomedCLIPVisionModel,
    BiomedCLIPVisionModelWithProjection,
)


def pairs(count: int = 3, length: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(count + length)
    input_ids = torch.randint(5, 60, (count, length), generator=generator)
    input_ids[0, 5:] = 0
    return {"input_ids": input_ids, "pixel_values": torch.randn(count, 3, 32, 32, generator=generator)}


def logits(model: BiomedCLIPModel, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(**pairs(), **options).logits_per_image


@pytest.fixture
def saved(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# Where it is put

ON_CPU = dict.fromkeys(["vision_model.embeddings", "vision_model.layers.0", "vision_model.post_layernorm"], "cpu")
ON_CPU |= dict.fromkeys(["text_model", "text_projection", "visual_projection", "logit_scale"], "cpu")


@pytest.mark.parametrize(
    "placement",
    [
        {"device_map": {"": "cpu"}},
        {"device_map": "auto", "max_memory": {"cpu": "1GB"}},
        {"device_map": "auto", "max_memory": {"cpu": 100_000}},  # half of the model does not fit
        {"device_map": ON_CPU | {"vision_model.layers.1": "disk", "text_model": "disk", "visual_projection": "disk"}},
    ],
)
def test_parts_on_other_devices_give_the_same_bits(small_model, saved, tmp_path, placement):
    model = AutoModel.from_pretrained(saved, offload_folder=tmp_path / "offload", **placement)
    offloaded = [name for name, parameter in model.named_parameters() if parameter.device.type == "meta"]
    assert bool(offloaded) == ("disk" in getattr(model, "hf_device_map", {}).values())
    assert torch.equal(logits(model), logits(small_model))
    texts = pairs()["input_ids"]
    assert torch.equal(model.get_text_features(texts).pooler_output, small_model.get_text_features(texts).pooler_output)


def test_no_block_is_split_between_devices(small_model):
    modules, whole = small_model.named_modules(), small_model._no_split_modules
    parts = {name for name, module in modules if type(module).__name__ in whole}
    assert parts == {
        f"{tower}.{part}" for tower in ("text_model", "vision_model") for part in ("embeddings", "layers.0", "layers.1")
    }


# In which precision


@pytest.mark.parametrize("option", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "bfloat16"])
def test_all_weights_have_the_requested_precision(saved, option, dtype):
    model = AutoModel.from_pretrained(saved, **{option: dtype})
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.config.dtype == model.config.text_config.dtype == model.config.vision_config.dtype == expected
    # Pixels come in float32 whatever the model's precision is.
    assert logits(model).dtype == expected and torch.isfinite(logits(model)).all()


def test_half_precision_is_close_to_float32(small_model):
    expected = small_model(**pairs()).image_embeds
    halved = small_model.half()(**pairs()).image_embeds
    assert halved.dtype == torch.float16
    # float16 has 11 bits: values below 1 are rounded by up to 2^-12, in each of some ten operations.
    torch.testing.assert_close(halved.float(), expected, rtol=0, atol=10 * 2**-12)


# By which attention


@pytest.mark.parametrize(
    "asked, text, vision",
    [
        ("eager", "eager", "eager"),
        ("sdpa", "sdpa", "sdpa"),
        ("flex_attention", "flex_attention", "flex_attention"),
        ({"text_config": "eager", "vision_config": "sdpa"}, "eager", "sdpa"),
    ],
)
def test_attention_is_chosen_for_both_towers_or_for_each(small_model, saved, asked, text, vision):
    small_model.set_attn_implementation(asked)
    for model in (small_model, AutoModel.from_pretrained(saved, attn_implementation=asked)):
        assert model.text_model.layers[0].self_attn.config._attn_implementation == text
        assert model.vision_model.layers[0].self_attn.config._attn_implementation == vision


def test_attention_of_one_tower_can_be_changed_alone(small_model):
    small_model.text_model.set_attn_implementation("eager")
    outputs = small_model(**pairs(), output_attentions=True, output_hidden_states=True)
    assert outputs.text_model_output.attentions[0].shape == (3, 4, 9, 9)
    states = outputs.vision_model_output.hidden_states
    last = small_model.vision_model.post_layernorm(states[-1])
    assert len(states) == 3 and torch.equal(last, outputs.vision_model_output.last_hidden_state)
    assert small_model.config.vision_config._attn_implementation == "sdpa"


# Compiled


@pytest.mark.slow
@pytest.mark.parametrize("part", ["forward", "get_text_features", "get_image_features", "text_model", "vision_model"])
def test_three_graphs_serve_all_lengths_and_batches(small_model, part):
    """One graph for the first shapes, one for any length, one for any batch. Inductor would take a minute."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    function = getattr(small_model, part)
    names = {"get_text_features": ["input_ids"], "text_model": ["input_ids"], "forward": ["input_ids", "pixel_values"]}
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    with torch.no_grad():
        for count, length in [(3, 9), (3, 12), (5, 20), (2, 50), (4, 33)]:
            inputs = {name: pairs(count, length)[name] for name in names.get(part, ["pixel_values"])}
            # Compiled, attention masks are applied even where they hide nothing: sums in another order.
            torch.testing.assert_close(compiled(**inputs)[0], function(**inputs)[0], rtol=1e-5, atol=1e-5)
    assert 1 <= len(graphs) <= 3


# Built, saved and copied


@pytest.mark.parametrize(
    "model_class",
    [
        BiomedCLIPModel,
        BiomedCLIPTextModel,
        BiomedCLIPTextModelWithProjection,
        BiomedCLIPVisionModel,
        BiomedCLIPVisionModelWithProjection,
        BiomedCLIPForImageClassification,
        BiomedCLIPForVisualQuestionAnswering,
    ],
)
def test_a_model_from_the_meta_device_is_complete_after_loading(saved, model_class):
    """The state dictionary contains everything, buffers included."""
    model = model_class.from_pretrained(saved)
    inputs = pairs()
    if len(model.input_modalities) == 1:
        inputs = {model.main_input_name: inputs[model.main_input_name]}
    for fill in ("assign", "to_empty"):
        with torch.device("meta"):
            built = model_class(model.config).eval()
        assert {tensor.device.type for tensor in [*built.parameters(), *built.buffers()]} == {"meta"}
        if fill == "to_empty":
            built.to_empty(device="cpu")
        built.load_state_dict(model.state_dict(), assign=fill == "assign")
        assert torch.equal(built(**inputs)[0], model(**inputs)[0])


def test_copies_give_the_same_bits(small_model):
    for model in (copy.deepcopy(small_model), pickle.loads(pickle.dumps(small_model))):
        assert torch.equal(logits(model), logits(small_model))
    outputs = small_model(**pairs())
    assert torch.equal(pickle.loads(pickle.dumps(outputs)).logits_per_image, outputs.logits_per_image)


# Configurations that belong together


def widths(config: BiomedCLIPConfig) -> set[int]:
    return {config.projection_dim, config.text_config.projection_dim, config.vision_config.projection_dim}


def test_both_towers_have_the_projection_size_of_the_model(saved, tmp_path):
    text, vision = BiomedCLIPTextConfig(projection_dim=99), BiomedCLIPVisionConfig()
    config = BiomedCLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    assert config.text_config is text and config.vision_config is vision and widths(config) == {16}
    config.projection_dim = 24
    assert widths(config) == {24}
    config.text_config = BiomedCLIPTextConfig(projection_dim=77)
    assert widths(config) == {24}
    config.save_pretrained(tmp_path)
    for loaded in (AutoConfig.from_pretrained(tmp_path), BiomedCLIPConfig.from_dict(config.to_dict())):
        assert widths(loaded) == {24}
        assert loaded.to_diff_dict() == config.to_diff_dict()
    assert widths(AutoConfig.from_pretrained(saved, projection_dim=8)) == {8}


def test_the_projection_size_can_be_changed_at_loading(saved):
    model = BiomedCLIPModel.from_pretrained(saved, projection_dim=8, ignore_mismatched_sizes=True)
    assert model(**pairs()).image_embeds.shape == model(**pairs()).text_embeds.shape == (3, 8)


def test_a_field_of_one_tower_can_be_changed_at_loading(saved):
    config = AutoConfig.from_pretrained(saved, text_config={"hidden_dropout": 0.3})
    assert config.text_config.hidden_dropout == 0.3
    assert config.text_config.vocab_size == 128, "all others are those of the checkpoint"


@pytest.mark.parametrize(
    "name, config_class", [("text_config", BiomedCLIPTextConfig), ("vision_config", BiomedCLIPVisionConfig)]
)
def test_a_tower_that_is_saved_alone_is_found_by_the_auto_classes(saved, tmp_path, name, config_class):
    whole = AutoModel.from_pretrained(saved)
    tower = getattr(whole, name.replace("config", "model"))
    tower.save_pretrained(tmp_path / "tower")
    assert config_class.from_pretrained(saved).projection_dim == 16
    assert type(AutoConfig.from_pretrained(tmp_path / "tower")) is config_class
    loaded = AutoModel.from_pretrained(tmp_path / "tower")
    inputs = pairs()[tower.main_input_name]
    assert type(loaded) is type(tower) and torch.equal(loaded(inputs).pooler_output, tower(inputs).pooler_output)
