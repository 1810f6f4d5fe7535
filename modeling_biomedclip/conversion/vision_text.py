"""Initialize BiomedCLIP from a ViT and a BERT checkpoint of transformers."""

import logging
from typing import Any

from torch import nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from ..configuration_biomedclip import BiomedCLIPConfig, BiomedCLIPTextConfig, BiomedCLIPVisionConfig
from ..modeling_biomedclip import BiomedCLIPModel


logger = logging.getLogger(__name__)

# Module names in transformers' ViTModel and BertModel and in our model: (theirs, ours), applied in order. The names in
# checkpoints differ, because transformers saves both models with older names.
_VIT_NAMES = [
    ("embeddings.cls_token", "embeddings.class_embedding"),
    ("embeddings.position_embeddings", "embeddings.position_embedding"),
    ("embeddings.patch_embeddings.projection", "embeddings.patch_embedding"),
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "self_attn.q_proj"),
    ("attention.attention.key", "self_attn.k_proj"),
    ("attention.attention.value", "self_attn.v_proj"),
    ("attention.output.dense", "self_attn.out_proj"),
    (".attention.o_proj", ".self_attn.out_proj"),
    (".attention.", ".self_attn."),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("layernorm_before", "layer_norm1"),
    ("layernorm_after", "layer_norm2"),
    ("layernorm.", "post_layernorm."),
]
BERT_NAMES = [
    ("embeddings.LayerNorm", "embeddings.layer_norm"),
    ("encoder.layer.", "layers."),
    ("attention.self.query", "self_attn.q_proj"),
    ("attention.self.key", "self_attn.k_proj"),
    ("attention.self.value", "self_attn.v_proj"),
    ("attention.output.dense", "self_attn.out_proj"),
    ("attention.output.LayerNorm", "layer_norm1"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
    ("output.LayerNorm", "layer_norm2"),
]
# Fields with the same name in `BertConfig` and in our configuration of the text tower.
SHARED_WITH_BERT = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings "
    "type_vocab_size hidden_act layer_norm_eps initializer_range pad_token_id"
).split()
_SHARED_WITH_VIT = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size patch_size hidden_act "
    "initializer_range"
).split()


def from_vision_text_pretrained(vision: str | None, text: str | None, **config_kwargs: Any) -> BiomedCLIPModel:
    """Load the towers from `ViTModel` and `BertModel` checkpoints. The rest is newly initialized.

    The image tower uses the LayerNorm epsilon of timm's ViT (1e-6), as in the paper. Checkpoints of transformers' ViT
    use 1e-12. If the two differ, a warning states both values.

    Args:
        vision: Folder or Hub id of a ViT, such as `google/vit-base-patch16-224`. If `None`, the tower is initialized
            randomly from the field `vision_config`.
        text: Folder or Hub id of a BERT, such as `microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract`. If `None`, the
            tower is initialized randomly from the field `text_config`.
        config_kwargs: Other fields of [`BiomedCLIPConfig`], such as `projection_dim`.

    Returns:
        The model in evaluation mode, with the weights of the two checkpoints.

    Raises:
        ValueError: If a checkpoint has a different architecture, or if its tensors do not match.
    """
    vit = bert = None
    if vision is not None:
        vit = ViTModel.from_pretrained(vision, add_pooling_layer=False, trust_remote_code=False)
        config_kwargs["vision_config"] = vision_config_of(vit.config)
        if epsilon := changed_epsilon(vit.config):
            logger.warning("%s: %s", vision, epsilon)
    if text is not None:
        bert = BertModel.from_pretrained(text, add_pooling_layer=False, trust_remote_code=False)
        config_kwargs["text_config"] = text_config_of(bert.config)
    model = BiomedCLIPModel(BiomedCLIPConfig(**config_kwargs))
    if vit is not None:
        _copy_tower(vit, model.vision_model, _VIT_NAMES)
    if bert is not None:
        _copy_tower(bert, model.text_model, BERT_NAMES)
    return model.eval()


def vision_config_of(vit_config: ViTConfig) -> dict[str, Any]:
    """Return the fields of our image tower for a `ViTConfig`. The epsilon is timm's (see [`changed_epsilon`])."""
    if vit_config.model_type != "vit":
        raise ValueError(f"The image tower starts from a ViT checkpoint, not from a {vit_config.model_type!r}.")
    return {name: getattr(vit_config, name) for name in _SHARED_WITH_VIT} | {
        "hidden_dropout": vit_config.hidden_dropout_prob,
        "attention_dropout": vit_config.attention_probs_dropout_prob,
        "layer_norm_eps": BiomedCLIPVisionConfig.layer_norm_eps,
    }


def changed_epsilon(vit_config: ViTConfig) -> str | None:
    """Describe how the LayerNorm epsilon of a `ViTConfig` is changed. Return `None` if it is not changed."""
    given, used = vit_config.layer_norm_eps, BiomedCLIPVisionConfig.layer_norm_eps
    if given == used:
        return None
    return f"its layer_norm_eps is {given}. The image tower uses {used} instead, as in timm's ViT and in the paper."


def text_config_of(bert_config: BertConfig) -> dict[str, Any]:
    """Return the fields of our text tower for a `BertConfig`."""
    if bert_config.model_type != "bert":
        raise ValueError(f"The text tower starts from a BERT checkpoint, not from a {bert_config.model_type!r}.")
    return {name: getattr(bert_config, name) for name in SHARED_WITH_BERT} | {
        "hidden_dropout": bert_config.hidden_dropout_prob,
        "attention_dropout": bert_config.attention_probs_dropout_prob,
    }


def bert_config_of(config: BiomedCLIPTextConfig) -> BertConfig:
    """Return the `BertConfig` of our text tower. This is the inverse of [`text_config_of`]."""
    shared = {name: getattr(config, name) for name in SHARED_WITH_BERT}
    return BertConfig(
        **shared, hidden_dropout_prob=config.hidden_dropout, attention_probs_dropout_prob=config.attention_dropout
    )


def _copy_tower(source: nn.Module, tower: nn.Module, names: list[tuple[str, str]]) -> None:
    """Copy the weights of `source` into `tower` under our names. Every tensor must match."""
    renamed = {}
    for name, tensor in source.state_dict().items():
        for theirs, ours in names:
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    mismatch = tower.load_state_dict(renamed, strict=False)
    if mismatch.missing_keys or mismatch.unexpected_keys:
        raise ValueError(
            f"{type(source).__name__} does not fit {type(tower).__name__}: missing {mismatch.missing_keys}, unexpected "
            f"{mismatch.unexpected_keys}."
        )
