"""Rename the tensors of open_clip and the community port, and fill a model with them."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..configuration_biomedclip import BiomedCLIPConfig
from ..modeling_biomedclip import BiomedCLIPModel
from .vision_text import BERT_NAMES


# Names inside the image tower: (timm's, ours). They are applied in order, and in reverse order from ours to timm's.
_TIMM_NAMES = [
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("blocks.", "layers."),
    ("attn.qkv", "self_attn.qkv"),
    ("attn.proj", "self_attn.out_proj"),
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
    ("norm.", "post_layernorm."),
]
# Names inside a block of CLIP's text tower.
_CLIP_BLOCK_NAMES = [
    ("attn.in_proj_", "self_attn.qkv."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
]
_CLIP_TEXT_PROJECTION = "text_projection.weight"  # transposed in open_clip
# Parts of the model: open_clip's prefix, our prefix, and the names after the prefix. The first matching prefix is used.
_OPEN_CLIP_PARTS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("visual.trunk.", "vision_model.", _TIMM_NAMES),
    ("visual.head.proj.", "visual_projection.", []),
    ("transformer.resblocks.", "text_model.encoder.layers.", _CLIP_BLOCK_NAMES),
    ("token_embedding.", "text_model.embeddings.token_embedding.", []),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight", []),
    ("ln_final.", "text_model.final_layer_norm.", []),
    ("text_projection", _CLIP_TEXT_PROJECTION, []),
    ("text.transformer.", "text_model.", BERT_NAMES),
    ("text.proj.0.", "text_projection.fc1.", []),
    ("text.proj.2.", "text_projection.fc2.", []),
    ("logit_scale", "logit_scale", []),
    ("logit_bias", "logit_bias", []),
]
# The community port `chuhac/BiomedCLIP-vit-bert-hf`: (its name, ours).
_PORT_NAMES = [
    ("vision_model.embeddings.position_embedding.weight", "vision_model.embeddings.position_embedding"),
    ("embeddings.token_embedding.", "embeddings.word_embeddings."),
    ("text_model.embeddings.position_embedding.", "text_model.embeddings.position_embeddings."),
    ("embeddings.token_type_embedding.", "embeddings.token_type_embeddings."),
    ("encoder.layers.", "layers."),
]
_FUSED = re.compile(r"^((?:vision_model|text_model\.encoder)\.layers\.\d+\.self_attn\.)([qkv])_proj\.")


def _check_names(expected: set[str], found: set[str]) -> None:
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    complaints = [f"missing {_some(missing)}"] * bool(missing) + [f"unexpected {_some(unexpected)}"] * bool(unexpected)
    if complaints:
        raise ValueError("; ".join(complaints))


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def open_clip_name(name: str) -> str:
    """Return the name of a tensor in open_clip. Except in a BERT, q, k and v of a block share one tensor."""
    name = _FUSED.sub(r"\1qkv.", name)
    theirs, ours, pieces = next(part for part in _OPEN_CLIP_PARTS if name.startswith(part[1]))
    rest = name.removeprefix(ours)
    for their_piece, our_piece in reversed(pieces):
        rest = rest.replace(our_piece, their_piece)
    return theirs + rest


def from_open_clip_tensors(theirs: Mapping[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
    """Rename the tensors of open_clip to our `names`. Raise `ValueError` if one is missing or unexpected."""
    _check_names({open_clip_name(name) for name in names}, set(theirs))
    ours = {}
    for name in names:
        tensor, fused = theirs[open_clip_name(name)], _FUSED.match(name)
        # Copy it, because transformers does not save tensors that share memory.
        ours[name] = tensor.chunk(3)["qkv".index(fused[2])].clone() if fused else tensor
        if name in ("logit_scale", "logit_bias") and tensor.numel() == 1:
            ours[name] = tensor.reshape(())  # open_clip's `nonscalar_logit_scale` has one dimension
        elif name == _CLIP_TEXT_PROJECTION:
            ours[name] = tensor.t().contiguous()
    return ours


def to_open_clip_tensors(ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename our tensors to the names of open_clip."""
    if _CLIP_TEXT_PROJECTION in ours:
        ours = {**ours, _CLIP_TEXT_PROJECTION: ours[_CLIP_TEXT_PROJECTION].t().contiguous()}
    parts: dict[str, list[torch.Tensor]] = {}
    for name in sorted(ours, key=lambda name: "qkv".find(fused[2]) if (fused := _FUSED.match(name)) else 0):
        parts.setdefault(open_clip_name(name), []).append(ours[name])
    return {name: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for name, tensors in parts.items()}


def from_port_tensors(theirs: Mapping[str, torch.Tensor], names: list[str]) -> dict[str, torch.Tensor]:
    """Rename the tensors of the port to our `names`. Raise `ValueError` if one is missing or unexpected."""
    their_name = {}
    for name in names:
        renamed = name
        for their_piece, our_piece in _PORT_NAMES:
            renamed = renamed.replace(our_piece, their_piece)
        their_name[name] = renamed
    _check_names(set(their_name.values()), set(theirs))
    ours = {name: theirs[renamed] for name, renamed in their_name.items()}
    # These tensors have one and two dimensions in the port, and three in our model.
    for name, leading in (("class_embedding", 2), ("position_embedding", 1)):
        ours[f"vision_model.embeddings.{name}"] = ours[f"vision_model.embeddings.{name}"][(None,) * leading]
    return ours


def fill_model(
    config: BiomedCLIPConfig,
    rename: Callable[[Mapping[str, torch.Tensor], list[str]], dict[str, torch.Tensor]],
    tensors: dict[str, torch.Tensor],
    folder: Path,
) -> BiomedCLIPModel:
    """Return a model that uses the tensors of a file as parameters, without copying them."""
    with torch.device("meta"):
        expected = BiomedCLIPModel(config).state_dict()
    try:
        renamed = rename(tensors, list(expected))
    except ValueError as mismatch:
        raise ValueError(f"{folder} does not contain the weights of BiomedCLIP: {mismatch}.") from None
    shapes = [
        f"{name} has shape {tuple(renamed[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if renamed[name].shape != tensor.shape
    ]
    if shapes:
        raise ValueError(f"{folder}: the shapes of weights do not match the configuration: {_some(shapes)}.")
    dtype = max((tensor.dtype for tensor in renamed.values()), key=lambda dtype: dtype.itemsize)
    return BiomedCLIPModel.from_pretrained(
        None, config=config, state_dict=renamed, dtype=dtype, trust_remote_code=False
    )
