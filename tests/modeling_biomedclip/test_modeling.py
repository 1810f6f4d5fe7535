"""The model: its size, its parts, its start from other checkpoints, and its behavior in transformers."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    BertConfig,
    BertModel,
    ViTConfig,
    ViTModel,
    pipeline,
)

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPForImageClassification,
    BiomedCLIPModel,
    BiomedCLIPTextConfig,
    BiomedCLIPTextModel,
    BiomedCLIPTextModelWithProjection,
    BiomedCLIPVisionModel,
    BiomedCLIPVisionModelWithProjection,
)
from biomedclip.conversion import from_vision_text_pretrained


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 60, (3, 9), generator=generator)
    input_ids[1, 6:] = 0
    return {"input_ids": input_ids, "pixel_values": torch.randn(3, 3, 32, 32, generator=generator)}


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.detach(), second.detach())


def test_the_defaults_are_the_published_architecture():
    with torch.device("meta"):
        model = BiomedCLIPModel(BiomedCLIPConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 195_902_721
    assert model.text_projection.fc1.weight.shape == (640, 768)
    assert model.config.vision_config.layer_norm_eps == 1e-6
    assert model.config.text_config.layer_norm_eps == 1e-12
    assert BiomedCLIPConfig().logit_scale_init_value == pytest.approx(2.6593, abs=1e-4)


def test_embeddings_are_normalized_and_logits_are_scaled_products(small_model, batch):
    outputs = small_model(**batch, return_loss=True)
    torch.testing.assert_close(outputs.image_embeds.norm(dim=-1), torch.ones(3))
    expected = small_model.logit_scale.exp() * outputs.image_embeds @ outputs.text_embeds.T
    torch.testing.assert_close(outputs.logits_per_image, expected)
    assert same(outputs.logits_per_image, outputs.logits_per_text.T)
    # The loss of a plain loop in float64.
    logits = outputs.logits_per_image.double()
    rows = [-(logits[i].log_softmax(0)[i] + logits[:, i].log_softmax(0)[i]) / 2 for i in range(3)]
    assert outputs.loss.item() == pytest.approx(sum(rows).item() / 3, abs=1e-6)


def test_logits_have_a_bias_only_if_configured(small_model, batch, tmp_path):
    assert "logit_bias" not in small_model.state_dict()
    small_model.save_pretrained(tmp_path / "without")
    with_bias = BiomedCLIPModel.from_pretrained(tmp_path / "without", logit_bias_init_value=-10.0)
    assert with_bias.logit_bias.item() == -10.0 and with_bias.logit_bias.shape == ()
    assert same(with_bias(**batch).logits_per_image, small_model(**batch).logits_per_image - 10)
    with_bias.logit_bias.data.fill_(-7.0)
    with_bias.save_pretrained(tmp_path / "with")
    assert BiomedCLIPModel.from_pretrained(tmp_path / "with").logit_bias.item() == -7.0


def test_padding_is_masked_whether_or_not_a_mask_is_given(small_model, batch):
    mask = (batch["input_ids"] != 0).long()
    given = small_model.get_text_features(batch["input_ids"], mask).pooler_output
    worked_out = small_model.get_text_features(batch["input_ids"]).pooler_output
    assert same(given, worked_out)
    alone = small_model.get_text_features(batch["input_ids"][1:2, :6]).pooler_output
    torch.testing.assert_close(given[1:2], alone)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_other_attention_implementations_agree_with_sdpa(small_model, batch, implementation, tmp_path):
    small_model.save_pretrained(tmp_path)
    other = BiomedCLIPModel.from_pretrained(tmp_path, attn_implementation=implementation)
    assert other.config.vision_config._attn_implementation == implementation
    with torch.no_grad():  # flex attention has no backward on a CPU
        expected, outputs = small_model(**batch), other(**batch)
    # Sums in another order: float32 rounding of values near 1.
    torch.testing.assert_close(outputs.image_embeds, expected.image_embeds, rtol=0, atol=2e-6)
    torch.testing.assert_close(outputs.text_embeds, expected.text_embeds, rtol=0, atol=2e-6)


def test_gradient_checkpointing_changes_no_gradient(small_model, batch):
    def gradients() -> list[torch.Tensor]:
        small_model.zero_grad()
        small_model(**batch, return_loss=True).loss.backward()
        return [p.grad.clone() for p in small_model.parameters()]  # each parameter has one

    small_model.train()
    plain = gradients()
    small_model.gradient_checkpointing_enable()
    checkpointed = gradients()
    first = small_model.vision_model.layers[0]
    assert first.self_attn.gradient_checkpointing and first.mlp.gradient_checkpointing
    assert all(same(a, b) for a, b in zip(plain, checkpointed, strict=True))


def test_gradient_checkpointing_does_not_repeat_the_last_products_of_attention_and_mlp(batch):
    wide = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = BiomedCLIPModel(BiomedCLIPConfig(vision_config=wide | {"image_size": 32}, text_config=wide)).train()

    def operations() -> int:
        with FlopCounterMode(display=False) as counted:
            model(**batch, return_loss=True).loss.backward()
        return counted.get_total_flops()

    plain = operations()
    model.gradient_checkpointing_enable()
    # 7 of the 12 products of a block, each of which is computed three times without checkpointing. The ends of the
    # model are computed once.
    repeated = operations() / plain - 1
    assert 0.1 < repeated < 7 / 36


@pytest.mark.parametrize(
    ("mask", "dtype"),
    [
        (None, torch.float32),
        (torch.ones(2, 1, 5, 5, dtype=torch.bool), torch.float32),
        (torch.zeros(5, 5, dtype=torch.bfloat16), torch.bfloat16),  # torch wants such masks in the type of the states
    ],
    ids=["no mask", "boolean", "added"],
)
def test_attention_is_trained_in_float32_where_bfloat16_would_be_slow(small_model, mask, dtype):
    attention = small_model.text_model.layers[0].self_attn
    states = torch.randn(2, 5, 32, requires_grad=True)
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.scaled_dot_product_attention:
                seen.append(args[0].dtype)
            return function(*args, **kwargs or {})

    def run() -> torch.Tensor:
        with Watch(), torch.autocast("cpu", torch.bfloat16):
            return attention(states, mask)[0]

    in_bfloat16 = run()  # as in inference
    small_model.train()
    trained = run()
    assert seen == [torch.bfloat16, dtype]
    assert trained.dtype == torch.bfloat16
    torch.testing.assert_close(trained, in_bfloat16, rtol=0.02, atol=0.01)  # 8 bits of precision
    with torch.no_grad():
        assert same(run(), trained), "cached gradients need equal values without gradients"


def test_images_of_another_size_need_interpolation(small_model):
    larger = torch.randn(1, 3, 48, 64)
    with pytest.raises(ValueError, match="48 x 64 .*interpolate_pos_encoding"):
        small_model.get_image_features(larger)
    outputs = small_model.vision_model(larger, interpolate_pos_encoding=True)
    assert outputs.last_hidden_state.shape == (1, 6 * 8 + 1, 32)
    same_size = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(
        small_model.vision_model(same_size, interpolate_pos_encoding=True).pooler_output,
        small_model.vision_model(same_size).pooler_output,
    )


def test_bad_inputs_get_a_clear_error(small_model, batch):
    with pytest.raises(ValueError, match="65 tokens, but the model has only 64 positions"):
        small_model.text_model(torch.ones(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match="exactly one of"):
        small_model.text_model()
    with pytest.raises(ValueError, match="pairs, but there are 2 images and 3 texts"):
        small_model(batch["input_ids"], batch["pixel_values"][:2], return_loss=True)
    with pytest.raises(StrictDataclassError, match="multiple of patch_size"):
        BiomedCLIPConfig(vision_config={"image_size": 225})
    with pytest.raises(StrictDataclassError, match="multiple of"):
        BiomedCLIPTextConfig(num_attention_heads=7)


def test_parts_load_from_the_whole_model(small_model, batch, tmp_path):
    small_model.save_pretrained(tmp_path)
    images, texts = batch["pixel_values"], batch["input_ids"]
    whole = small_model.get_image_features(images), small_model.get_text_features(texts)
    vision, text = BiomedCLIPVisionModel.from_pretrained(tmp_path), BiomedCLIPTextModel.from_pretrained(tmp_path)
    assert same(vision(images).last_hidden_state, whole[0].last_hidden_state)
    assert same(text(texts).last_hidden_state, whole[1].last_hidden_state)
    vision = BiomedCLIPVisionModelWithProjection.from_pretrained(tmp_path)
    text = BiomedCLIPTextModelWithProjection.from_pretrained(tmp_path)
    assert same(vision(images).image_embeds, whole[0].pooler_output)
    assert same(text(texts).text_embeds, whole[1].pooler_output)


def test_a_classifier_starts_from_the_image_tower(small_model, batch, tmp_path):
    small_model.save_pretrained(tmp_path)
    classifier = BiomedCLIPForImageClassification.from_pretrained(tmp_path, num_labels=4)
    outputs = classifier(batch["pixel_values"], labels=torch.tensor([0, 1, 3]))
    assert outputs.logits.shape == (3, 4) and outputs.loss > 0
    features = small_model.vision_model(batch["pixel_values"]).pooler_output
    assert same(outputs.logits, classifier.classifier(features))


@pytest.mark.parametrize("epsilon", [1e-12, 1e-6])
def test_the_towers_start_from_saved_vit_and_bert_checkpoints(epsilon, tmp_path, caplog):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = ViTConfig(**size, image_size=32, patch_size=8, layer_norm_eps=epsilon)
    vit = ViTModel(config, add_pooling_layer=False).eval()
    bert = BertModel(BertConfig(**size, vocab_size=64), add_pooling_layer=True).eval()
    for model in (vit, bert):  # biases and norms that are not zeros and ones
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    vit.save_pretrained(tmp_path / "vit")
    bert.save_pretrained(tmp_path / "bert")
    model = from_vision_text_pretrained(tmp_path / "vit", tmp_path / "bert", projection_dim=16)
    assert model.config.vision_config.layer_norm_eps == 1e-6, "timm's and the paper's"
    assert model.config.text_config.layer_norm_eps == bert.config.layer_norm_eps == 1e-12
    assert caplog.text.count("layer_norm_eps is 1e-12. The image tower uses 1e-06") == (epsilon == 1e-12)
    for module in vit.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    images, texts = torch.randn(2, 3, 32, 32), torch.randint(1, 60, (2, 7))
    with torch.no_grad():
        assert same(model.vision_model(images).last_hidden_state, vit(images).last_hidden_state)
        assert same(model.text_model(texts).last_hidden_state, bert(texts).last_hidden_state)
    assert model.visual_projection.weight.shape == (16, 32)
    one_layer = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = from_vision_text_pretrained(None, tmp_path / "bert", vision_config=one_layer)
    assert model.config.vision_config.hidden_size == 16
    assert same(model.text_model(texts).last_hidden_state, bert(texts).last_hidden_state)
    model = from_vision_text_pretrained(tmp_path / "vit", None, text_config=one_layer | {"vocab_size": 99})
    assert model.config.text_config.vocab_size == 99
    assert same(model.vision_model(images).last_hidden_state, vit(images).last_hidden_state)
    with pytest.raises(ValueError, match="ViT checkpoint, not from a 'bert'"):
        from_vision_text_pretrained(tmp_path / "bert", tmp_path / "bert")


def test_one_import_registers_the_auto_classes_and_the_pipeline(small_model, small_processor, tmp_path):
    from PIL import Image

    small_model.save_pretrained(tmp_path)
    small_processor.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is BiomedCLIPConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is BiomedCLIPModel
    assert type(AutoModelForZeroShotImageClassification.from_pretrained(tmp_path)) is BiomedCLIPModel
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is BiomedCLIPForImageClassification
    assert type(AutoImageProcessor.from_pretrained(tmp_path)).__name__ == "BiomedCLIPImageProcessor"
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "BiomedCLIPProcessor"
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path), device="cpu")
    answers = classify(Image.new("RGB", (40, 30)), candidate_labels=["chest x-ray", "brain mri", "chart"])
    assert sum(answer["score"] for answer in answers) == pytest.approx(1)
