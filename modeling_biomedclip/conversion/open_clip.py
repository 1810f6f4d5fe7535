"""Read and write folders in the layout of open_clip, and translate its configuration."""

import contextlib
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers import AutoConfig, AutoTokenizer, BertConfig, CLIPTextConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling

from .. import BiomedCLIPImageProcessor, BiomedCLIPProcessor
from ..configuration_biomedclip import BiomedCLIPConfig, BiomedCLIPTextConfig, BiomedCLIPVisionConfig
from ..modeling_biomedclip import BiomedCLIPModel
from .files import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, ORIGINAL_CONFIG, read_json, read_tokenizer, read_weights
from .open_clip_settings import channel_values, check_honored, check_known, is_at_hand, is_clip_text
from .tensors import fill_model, from_open_clip_tensors, to_open_clip_tensors
from .vision_text import SHARED_WITH_BERT, bert_config_of, text_config_of


logger = logging.getLogger(__name__)

# The BERT of the published checkpoint. open_clip builds the text tower from its configuration on the Hub.
PUBLISHED_BERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
# The model was renamed on the Hub. Its configuration (BERT base) is known, so it is not downloaded.
PUBLISHED_NAMES = (PUBLISHED_BERT, "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract")
# BLAKE2b hash of its 28,895 words, one per line in the order of their ids. open_clip loads tokenizers from the Hub by
# name.
PUBLISHED_VOCABULARY = "2444c4f523518b32"
# The tokenizer of CLIP, and the hash of its 49,408 entries.
PUBLISHED_CLIP = "openai/clip-vit-base-patch16"
PUBLISHED_CLIP_VOCABULARY = "1099d1a7a249a922"
# Plain image towers of timm (timm/models/vision_transformer.py) by the size in their name: width, layers, heads, and
# pairs of patch size and image size. open_clip builds an image tower from its name.
_TIMM_TOWERS: dict[str, tuple[int, int, int, set[tuple[int, int]]]] = {
    "tiny": (192, 12, 3, {(16, 224), (16, 384)}),
    "small": (384, 12, 6, {(8, 224), (16, 224), (16, 384), (32, 224), (32, 384)}),
    "base": (768, 12, 12, {(8, 224), (16, 224), (16, 384), (32, 224), (32, 384)}),
    "large": (1024, 24, 16, {(14, 224), (16, 224), (16, 384), (32, 224), (32, 384)}),
    "huge": (1280, 32, 16, {(14, 224)}),
}
_INTERPOLATIONS = {"bicubic": PILImageResampling.BICUBIC, "bilinear": PILImageResampling.BILINEAR}
# Defaults of open_clip.
_DEFAULT_CONTEXT_LENGTH = 77
_DEFAULT_IMAGE_SIZE = 224
_DEFAULT_TEXT_HEADS = 8
_TRAIN_OR_KEEP = "Train a model with that value, or use this one with transformers."
_END_OF_ARGMAX = 2  # with this `eos_token_id`, transformers pools at the largest id, like `argmax` in open_clip


def read_open_clip(folder: Path) -> tuple[BiomedCLIPModel, BiomedCLIPProcessor]:
    """Load a model and its processor from a folder in the layout of open_clip."""
    path = folder / OPEN_CLIP_CONFIG
    stored = read_json(path)
    tensors = read_weights(folder)
    try:
        config: Any = _config_of_open_clip(stored, tensors, path)
    except StrictDataclassError as error:
        raise ValueError(f"{path}: {error}") from error
    model = fill_model(config, from_open_clip_tensors, tensors, folder)
    context_length = stored["model_cfg"]["text_cfg"].get("context_length", _DEFAULT_CONTEXT_LENGTH)
    tokenizer = read_tokenizer(AutoTokenizer, folder, context_length)
    processor = BiomedCLIPProcessor(_image_processor_of_open_clip(stored, config.vision_config, path), tokenizer)
    # Keep the original if it contains more than the model does, so that converting back produces the same file.
    original, derived = path.read_text(encoding="utf-8"), None
    with contextlib.suppress(ValueError):
        derived = _portable_config(model, processor)
    if original != derived:
        model.open_clip_config = original
    return model, processor


def to_open_clip(model: BiomedCLIPModel, processor: BiomedCLIPProcessor, folder: str | os.PathLike[str]) -> None:
    """Write a folder that open_clip loads under the name `local-dir:FOLDER`.

    Args:
        model: The model.
        processor: Processor of the model.
        folder: Output folder for `open_clip_config.json`, `open_clip_model.safetensors` and the tokenizer.

    Raises:
        ValueError: If open_clip does not support the towers or the image processing.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPModel, BiomedCLIPProcessor, to_open_clip

    >>> model = BiomedCLIPModel.from_pretrained("published")
    >>> to_open_clip(model, BiomedCLIPProcessor.from_pretrained("published"), "open_clip_folder")
    ```
    """
    if not isinstance(model, BiomedCLIPModel):
        raise ValueError(f"`model` is a {type(model).__name__}. Only a BiomedCLIPModel can be written for open_clip.")
    config: Any = model.config
    path = Path(folder).resolve()
    open_clip_config = _portable_config(model, processor)
    if open_clip_config is None:
        open_clip_config = _open_clip_config_of(config, processor, str(path))
        if not isinstance(config.text_config, CLIPTextConfig):
            bert_config_of(config.text_config).save_pretrained(path)
            logger.warning(
                "No BERT on the Hub has the shape of this text tower, so %s refers to its own folder. If you move the "
                "folder, change text_cfg.hf_model_name.",
                path / OPEN_CLIP_CONFIG,
            )
    tensors = to_open_clip_tensors(model.state_dict())
    path.mkdir(parents=True, exist_ok=True)
    (path / OPEN_CLIP_CONFIG).write_text(open_clip_config, encoding="utf-8")
    save_file(tensors, path / OPEN_CLIP_WEIGHTS)
    processor.tokenizer.save_pretrained(path)
    processor.tokenizer.backend_tokenizer.model.save(str(path))  # for programs that do not read tokenizer.json


def open_clip_obstacle(model: BiomedCLIPModel, processor: BiomedCLIPProcessor) -> str | None:
    """Return the reason why open_clip cannot load a model from a Hub repository, or `None` if it can."""
    try:
        text = _portable_config(model, processor)
    except ValueError as error:
        return str(error)
    if isinstance(model.config.text_config, CLIPTextConfig):
        if _published_name(model.config.text_config, processor.tokenizer):
            return None
        return (
            f"open_clip loads tokenizers by name from the Hub, and the vocabulary of this one differs "
            f"from {PUBLISHED_CLIP}. For "
            "local use, `biomedclip convert --to open_clip` writes a folder with this tokenizer."
        )
    text_cfg = json.loads(text)["model_cfg"]["text_cfg"] if text else {}
    if not text_cfg or os.path.isabs(text_cfg["hf_model_name"]):
        differences = "; ".join(_differences_from_published(model.config.text_config))
        return (
            "open_clip builds text towers from a BERT on the Hub, and none has the shape of this one: "
            f"{differences or 'its configuration refers to a folder'}. For local use, `biomedclip convert --to "
            "open_clip` writes a folder with the configuration of this BERT."
        )
    if text_cfg.get("hf_tokenizer_name") in PUBLISHED_NAMES:
        if _vocabulary(processor.tokenizer) != PUBLISHED_VOCABULARY:
            return "open_clip loads the tokenizer of the BERT from the Hub, and the vocabulary of this one differs."
    return None


def _vocabulary(tokenizer: Any) -> str:
    """Return a hash of the entries of a tokenizer."""
    ids = tokenizer.get_vocab()
    words = "\n".join(sorted(ids, key=ids.__getitem__))
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest()


def _published_name(config: Any, tokenizer: Any) -> str | None:
    """Return the Hub id of the BERT or the CLIP tokenizer that matches a text tower, or `None` if none matches."""
    if isinstance(config, CLIPTextConfig):
        return PUBLISHED_CLIP if _vocabulary(tokenizer) == PUBLISHED_CLIP_VOCABULARY else None
    return None if any(_differences_from_published(config)) else PUBLISHED_BERT


def _differences_from_published(config: Any) -> Iterator[str]:
    published = BiomedCLIPTextConfig()
    for name in SHARED_WITH_BERT:
        value, theirs = getattr(config, name), getattr(published, name)
        if value != theirs:
            yield f"text_config.{name} is {value!r}, but the published BERT has {theirs!r}"


def _portable_config(model: BiomedCLIPModel, processor: BiomedCLIPProcessor) -> str | None:
    """Return the configuration for open_clip, or `None` if the BERT or the tokenizer of CLIP is not on the Hub."""
    config: Any = model.config
    stored = getattr(model, "open_clip_config", None)
    _check_vision_config(config.vision_config)
    _check_image_processor(processor.image_processor, config.vision_config.image_size)
    if isinstance(config.text_config, CLIPTextConfig):
        _check_clip_text_config(config.text_config, processor.tokenizer.model_max_length)
    if stored is not None:
        try:
            content = json.loads(stored)
        except ValueError as error:
            raise ValueError(f"{ORIGINAL_CONFIG} is not JSON: {error}") from error
        check_honored(content, Path(ORIGINAL_CONFIG))  # It came with the model, which is untrusted.
        if _still_describes(content, config, processor):
            return stored
    name = _published_name(config.text_config, processor.tokenizer)
    return _open_clip_config_of(config, processor, name) if name else None


def _config_of_open_clip(stored: Any, tensors: Mapping[str, torch.Tensor], path: Path) -> BiomedCLIPConfig:
    """Derive our configuration from that of open_clip and the shapes of its tensors."""
    check_known(stored, path)
    try:
        model_cfg = stored["model_cfg"]
        vision_cfg, text_cfg = model_cfg["vision_cfg"], model_cfg["text_cfg"]
        timm_name, embed_dim = vision_cfg["timm_model_name"], model_cfg["embed_dim"]
        is_clip = is_clip_text(text_cfg)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error} is missing. The weights are not from a model like BiomedCLIP.") from error
    check_honored(stored, path)
    matched = re.fullmatch(r"vit_([a-z]+)_patch\d+_\d+(\.\w+)?", str(timm_name))
    if matched is None or matched[1] not in _TIMM_TOWERS:
        raise ValueError(
            f"{path}: timm_model_name is {timm_name!r}, not one of the plain vit_*_patch*_* towers of timm."
        )
    vision_shapes = _vision_shapes(tensors, heads=_TIMM_TOWERS[matched[1]][2])
    side = vision_shapes["image_size"]
    if vision_cfg.get("image_size", _DEFAULT_IMAGE_SIZE) not in (side, [side], [side, side]):
        raise ValueError(
            f"{path}: vision_cfg.image_size is {vision_cfg.get('image_size')!r}, but the weights are for images of "
            f"{side} pixels."
        )
    text_shapes = _clip_text_shapes(tensors, model_cfg, path) if is_clip else _text_shapes(tensors, text_cfg)
    positions = text_shapes["max_position_embeddings"]
    context_length = text_cfg.get("context_length", _DEFAULT_CONTEXT_LENGTH)
    least = positions if is_clip else 1  # open_clip resamples the positions of CLIP's text tower
    if not isinstance(context_length, int) or not least <= context_length <= positions:
        raise ValueError(
            f"{path}: text_cfg.context_length is {context_length!r}. It must be a number from {least} to {positions}, "
            "the positions of the weights."
        )
    return BiomedCLIPConfig(
        vision_config=vision_shapes | {"patch_dropout": vision_cfg.get("patch_dropout", 0.0)},
        text_config=text_shapes,
        projection_dim=embed_dim,
        logit_bias_init_value=model_cfg.get("init_logit_bias"),
    )


def _vision_shapes(tensors: Mapping[str, torch.Tensor], heads: int) -> dict[str, Any]:
    """Derive the configuration fields of the image tower from its tensors."""
    patches = _shape(tensors, "visual.trunk.patch_embed.proj.weight")
    return {
        "hidden_size": patches[0],
        "num_channels": patches[1],
        "patch_size": patches[2],
        "image_size": math.isqrt(_shape(tensors, "visual.trunk.pos_embed")[1] - 1) * patches[2],
        "num_hidden_layers": _layers(tensors, "visual.trunk.blocks."),
        "num_attention_heads": heads,
        "intermediate_size": _shape(tensors, "visual.trunk.blocks.0.mlp.fc1.weight")[0],
        "layer_norm_eps": BiomedCLIPVisionConfig.layer_norm_eps,
    }


def _clip_text_shapes(tensors: Mapping[str, torch.Tensor], model_cfg: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Derive the configuration fields of CLIP's text tower from its tensors and its settings."""
    text_cfg = model_cfg["text_cfg"]
    vocab_size, hidden_size = _shape(tensors, "token_embedding.weight")
    heads = text_cfg.get("heads", _DEFAULT_TEXT_HEADS)
    if not isinstance(heads, int) or heads < 1 or hidden_size % heads:
        raise ValueError(f"{path}: text_cfg.heads is {heads!r}. It must divide the width, {hidden_size}.")
    end = text_cfg.get("eos_id", _END_OF_ARGMAX)
    if text_cfg.get("pool_type", "argmax") == "argmax":
        end = _END_OF_ARGMAX
    elif end == _END_OF_ARGMAX:
        raise ValueError(f"{path}: text_cfg.eos_id is {end} with pool_type 'eos'. transformers has no such pooling.")
    return {
        "model_type": CLIPTextConfig.model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": _layers(tensors, "transformer.resblocks."),
        "num_attention_heads": heads,
        "intermediate_size": _shape(tensors, "transformer.resblocks.0.mlp.c_fc.weight")[0],
        "max_position_embeddings": _shape(tensors, "positional_embedding")[0],
        "hidden_act": "quick_gelu" if model_cfg.get("quick_gelu") else "gelu",
        "eos_token_id": end,
        "bos_token_id": None,  # unused by the model, like the next one
        "pad_token_id": None,
    }


def _text_shapes(tensors: Mapping[str, torch.Tensor], text_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Derive the fields of the text tower from the configuration of its BERT or, if unavailable, from its tensors."""
    bert_name = text_cfg["hf_model_name"]
    if is_at_hand(bert_name):
        return text_config_of(AutoConfig.from_pretrained(bert_name, trust_remote_code=False))
    prefix = "text.transformer."
    vocab_size, hidden_size = _shape(tensors, f"{prefix}embeddings.word_embeddings.weight")
    if bert_name not in PUBLISHED_NAMES:
        # The number of heads, the epsilon and the activation cannot be derived from the tensors.
        logger.warning(
            "The configuration of %s is neither in a folder nor in the cache. A BERT with heads of 64 channels is "
            "assumed. If this is wrong, embeddings are wrong. Download it first: hf download %s config.json",
            bert_name,
            bert_name,
        )
    return text_config_of(
        BertConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            num_hidden_layers=_layers(tensors, f"{prefix}encoder.layer."),
            num_attention_heads=max(1, hidden_size // 64),  # as in every BERT of Google and Microsoft
            intermediate_size=_shape(tensors, f"{prefix}encoder.layer.0.intermediate.dense.weight")[0],
            max_position_embeddings=_shape(tensors, f"{prefix}embeddings.position_embeddings.weight")[0],
            type_vocab_size=_shape(tensors, f"{prefix}embeddings.token_type_embeddings.weight")[0],
        )
    )


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Size:
    if name not in tensors:
        raise ValueError(f"The weights are not from a model like BiomedCLIP: {name} is missing.")
    return tensors[name].shape


def _layers(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Return the number of blocks whose names start with `prefix` and a number."""
    numbers = {name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)}
    return max(map(int, numbers), default=-1) + 1


def _image_processor_of_open_clip(stored: Any, config: BiomedCLIPVisionConfig, path: Path) -> BiomedCLIPImageProcessor:
    preprocess = stored.get("preprocess_cfg") or {}
    interpolation = preprocess.get("interpolation") or "bicubic"
    statistics = {
        f"image_{name}": channel_values(preprocess.get(name), name, path, default)
        for name, default in (("mean", OPENAI_CLIP_MEAN), ("std", OPENAI_CLIP_STD))
    }
    return BiomedCLIPImageProcessor(
        size=config.image_size,
        crop_size=config.image_size,
        # `random` applies only to training. open_clip then evaluates with bicubic interpolation.
        resample=_INTERPOLATIONS.get(interpolation, PILImageResampling.BICUBIC),
        **statistics,
    )


def _open_clip_config_of(config: Any, processor: BiomedCLIPProcessor, name: str) -> str:
    """Return open_clip's configuration of a model in the form of the published file, with the name of its tokenizer."""
    image_processor = processor.image_processor
    if isinstance(config.text_config, CLIPTextConfig):
        text_cfg = _clip_text_cfg(config.text_config, name)
    else:
        text_cfg = {
            "hf_model_name": name,
            "hf_tokenizer_name": name,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
        }
    interpolation = _interpolation(image_processor)
    content = {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "vision_cfg": {
                "timm_model_name": _timm_name(config.vision_config),
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "image_size": config.vision_config.image_size,
            },
            "text_cfg": text_cfg | {"context_length": processor.tokenizer.model_max_length},
        },
        "preprocess_cfg": {"mean": list(image_processor.image_mean), "std": list(image_processor.image_std)},
    }
    if config.text_config.hidden_act == "quick_gelu":
        content["model_cfg"]["quick_gelu"] = True
    if config.logit_bias_init_value is not None:
        content["model_cfg"]["init_logit_bias"] = config.logit_bias_init_value
    if interpolation != "bicubic":
        content["preprocess_cfg"]["interpolation"] = interpolation
    return json.dumps(content, indent=2, ensure_ascii=False)


def _clip_text_cfg(config: CLIPTextConfig, tokenizer_name: str) -> dict[str, Any]:
    """Return open_clip's settings for CLIP's text tower."""
    width, inner = config.hidden_size, config.intermediate_size
    pooling = {"pool_type": "argmax"}
    if config.eos_token_id != _END_OF_ARGMAX:
        pooling = {"pool_type": "eos", "eos_id": config.eos_token_id}
    return {
        "hf_tokenizer_name": tokenizer_name,
        "vocab_size": config.vocab_size,
        "width": width,
        "heads": config.num_attention_heads,
        "layers": config.num_hidden_layers,
        "mlp_ratio": inner / width if inner % width == 0 else (inner + 0.5) / width,  # open_clip rounds down
        **pooling,
    }


def _check_clip_text_config(config: CLIPTextConfig, context_length: int) -> None:
    """Check the fields of CLIP's text tower that BiomedCLIP cannot read from open_clip's settings."""
    _check_field("text_config", config, "hidden_act", ("gelu", "quick_gelu"), _TRAIN_OR_KEEP)
    _check_field("text_config", config, "layer_norm_eps", (CLIPTextConfig.layer_norm_eps,), _TRAIN_OR_KEEP)
    if config.max_position_embeddings != context_length:
        raise ValueError(
            f"text_config.max_position_embeddings is {config.max_position_embeddings}, and model_max_length of the "
            f"tokenizer is {context_length}. open_clip pads texts to the number of positions, so they must be equal. "
            "Train a model with equal values, or use this one with transformers."
        )


def _check_field(part: str, config: Any, name: str, supported: tuple[Any, ...], remedy: str) -> None:
    value = getattr(config, name)
    if value not in supported:
        supported_values = " or ".join(map(repr, supported))
        raise ValueError(f"{part}.{name} is {value!r}, but open_clip supports only {supported_values}. {remedy}")


def _still_describes(stored: Mapping[str, Any], config: Any, processor: BiomedCLIPProcessor) -> bool:
    """Return whether widths, sizes, lengths and image processing still match a stored configuration."""
    model_cfg, preprocess = stored["model_cfg"], stored.get("preprocess_cfg") or {}
    image_processor, path = processor.image_processor, Path(OPEN_CLIP_CONFIG)
    return (
        model_cfg["embed_dim"] == config.projection_dim
        and model_cfg.get("init_logit_bias") == config.logit_bias_init_value
        and model_cfg["vision_cfg"].get("image_size", _DEFAULT_IMAGE_SIZE) == config.vision_config.image_size
        and model_cfg["text_cfg"].get("context_length", _DEFAULT_CONTEXT_LENGTH) == processor.tokenizer.model_max_length
        and (preprocess.get("interpolation") or "bicubic") == _interpolation(image_processor)
        and channel_values(preprocess.get("mean"), "mean", path, OPENAI_CLIP_MEAN) == list(image_processor.image_mean)
        and channel_values(preprocess.get("std"), "std", path, OPENAI_CLIP_STD) == list(image_processor.image_std)
    )


def _check_image_processor(image_processor: BiomedCLIPImageProcessor, image_size: int) -> None:
    """Raise `ValueError` unless images are processed as in open_clip: shortest side, center crop, normalize."""
    usual = BiomedCLIPImageProcessor(size=image_size, crop_size=image_size)
    steps = "do_resize size do_center_crop crop_size do_rescale rescale_factor do_normalize do_convert_rgb"
    for name in steps.split():
        given, wanted = getattr(image_processor, name), getattr(usual, name)
        if given != wanted:
            raise ValueError(f"`{name}` of the image processor is {given!r}, but open_clip supports only {wanted!r}.")


def _interpolation(image_processor: BiomedCLIPImageProcessor) -> str:
    for name, resample in _INTERPOLATIONS.items():
        if image_processor.resample == resample:
            return name
    raise ValueError(
        f"`resample` of the image processor is {image_processor.resample!r}, which open_clip does not support."
    )


def _check_vision_config(config: BiomedCLIPVisionConfig) -> None:
    """Check the fields of an image tower that open_clip cannot set. They have the same value in every ViT of timm."""
    remedies = {
        "layer_norm_eps": "Set the field to that value in config.json. The weights do not change. The image "
        "embeddings change by about the difference between the two values.",
        "hidden_act": "Train a model with that activation. The weights of this one do not fit another activation.",
        "num_channels": "Train a model on images with that number of channels.",
    }
    for name, remedy in remedies.items():
        _check_field("vision_config", config, name, (getattr(BiomedCLIPVisionConfig, name),), remedy)


def _timm_name(config: BiomedCLIPVisionConfig) -> str:
    """Return the name of an image tower in timm."""
    shape = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    fields = (
        f"{config.num_hidden_layers} layers of width {config.hidden_size} with {config.num_attention_heads} heads "
        "(num_hidden_layers, hidden_size and num_attention_heads of vision_config)"
    )
    for size, (*known, sides) in _TIMM_TOWERS.items():
        if shape != tuple(known):
            continue
        remedy = f"That is 4 times hidden_size. {_TRAIN_OR_KEEP}"
        _check_field("vision_config", config, "intermediate_size", (4 * config.hidden_size,), remedy)
        if (config.patch_size, config.image_size) in sides:
            return f"vit_{size}_patch{config.patch_size}_{config.image_size}"
        raise ValueError(
            f"vision_config.image_size is {config.image_size} and patch_size is {config.patch_size}. open_clip builds "
            f"image towers by timm's names, and for {fields} timm has the image sizes "
            f"{', '.join(f'{side} with patches of {patch}' for patch, side in sorted(sides))}. Train or resize "
            "(--image-size) the model for one of them, or use this one with transformers."
        )
    known_shapes = (f"{size} ({layers}, {width}, {heads})" for size, (width, layers, heads, _) in _TIMM_TOWERS.items())
    raise ValueError(
        f"open_clip builds image towers by timm's names, and timm has none for {fields}. It has "
        f"{', '.join(known_shapes)}. Train a tower of one of these shapes, or use this one with transformers."
    )
