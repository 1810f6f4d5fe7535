"""The same weights in open_clip's model give the same embeddings."""

import open_clip
import pytest
import torch

from modeling_biomedclip import BiomedCLIPConfig, BiomedCLIPModel


NAMES = [
    ("visual.trunk.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual.trunk.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual.trunk.patch_embed.proj", "vision_model.embeddings.patch_embedding"),
    ("visual.trunk.blocks.", "vision_model.layers."),
    ("visual.trunk.norm.", "vision_model.post_layernorm."),
    ("visual.head.proj", "visual_projection"),
    ("text.proj.0", "text_projection.fc1"),
    ("text.proj.2", "text_projection.fc2"),
    ("text.transformer.embeddings.LayerNorm", "text_model.embeddings.layer_norm"),
    ("text.transformer.embeddings.", "text_model.embeddings."),
    ("text.transformer.encoder.layer.", "text_model.layers."),
    (".attention.self.query", ".self_attn.q_proj"),
    (".attention.self.key", ".self_attn.k_proj"),
    (".attention.self.value", ".self_attn.v_proj"),
    (".attention.output.dense", ".self_attn.out_proj"),
    (".attention.output.LayerNorm", ".layer_norm1"),
    (".intermediate.dense", ".mlp.fc1"),
    (".output.dense", ".mlp.fc2"),
    (".output.LayerNorm", ".layer_norm2"),
    (".norm1", ".layer_norm1"),
    (".norm2", ".layer_norm2"),
    (".attn.proj", ".self_attn.out_proj"),
]


def renamed(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ours = {}
    for name, tensor in theirs.items():
        for old, new in NAMES:
            name = name.replace(old, new)
        if ".attn.qkv" in name:
            for part, piece in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
                ours[name.replace("attn.qkv", f"self_attn.{part}")] = piece
        else:
            ours[name] = tensor
    return ours


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """open_clip's model of the published widths with random weights, and ours with the same; three layers each."""
    from transformers import BertConfig

    folder = tmp_path_factory.mktemp("bert")
    BertConfig(num_hidden_layers=3).save_pretrained(folder)
    torch.manual_seed(0)
    theirs = open_clip.CustomTextCLIP(
        embed_dim=512,
        vision_cfg={
            "timm_model_name": "vit_base_patch16_224",
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        text_cfg={
            "hf_model_name": str(folder),
            "hf_tokenizer_name": str(folder),
            "hf_model_pretrained": False,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 256,
        },
    ).eval()
    del theirs.visual.trunk.blocks[3:]
    for parameter in theirs.parameters():  # biases and norms that are not zeros and ones
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.mean() > 0.5), std=0.1)
    layers = {"num_hidden_layers": 3}
    ours = BiomedCLIPModel(BiomedCLIPConfig(text_config=layers, vision_config=layers)).eval()
    ours.load_state_dict(renamed(theirs.state_dict()), strict=True)
    return theirs, ours


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 5])
def test_image_embeddings_are_equal_to_the_last_bit(models, size):
    theirs, ours = models
    images = torch.randn(size, 3, 224, 224)
    assert torch.equal(theirs.encode_image(images), ours.get_image_features(images).pooler_output)


@torch.no_grad()
@pytest.mark.parametrize("length", [20, 256])
def test_text_embeddings_are_equal_to_the_last_bit(models, length):
    theirs, ours = models
    texts = torch.randint(5, 28_000, (4, length))
    texts[1, length // 2 :] = 0
    assert torch.equal(theirs.encode_text(texts), ours.get_text_features(texts).pooler_output)


def test_gradients_are_equal_to_rounding(models):
    theirs, ours = models
    images, texts = torch.randn(3, 3, 224, 224), torch.randint(5, 28_000, (3, 12))
    theirs.zero_grad(), ours.zero_grad()
    image_embeds, text_embeds, scale = theirs(images, texts)
    open_clip.ClipLoss()(image_embeds, text_embeds, scale).backward()
    loss = ours(texts, images, return_loss=True).loss
    loss.backward()
    expected = renamed({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None})
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, parameter in ours.named_parameters():
        # One product for q, k and v there, three here: sums in another order. Gradients that are nothing but rounding
        # (attention does not depend on the keys' bias) are measured by the largest of all.
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5 * largest.item())
