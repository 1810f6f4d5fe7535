"""Check the settings of open_clip's configuration file: which are known, which are safe, and which BiomedCLIP supports.

If a setting is silently ignored, pixels, token ids or the model can differ from open_clip's. If a setting is passed on
unchecked, open_clip can run code, download a model or open a file. Therefore, every key is listed here by name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from ..source_checks import check_source


# Fields of open_clip's CLIPVisionCfg, CLIPTextCfg, MultimodalCfg and PreprocessCfg, and arguments of its models.
_TOWER = """
    layers width mlp_ratio ls_init_value final_ln_after_pool pool_type output_tokens act_kwargs norm_kwargs block_type
    qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc
"""
_TEXT = f"""
    {_TOWER} context_length vocab_size hf_tokenizer_name tokenizer_mode tokenizer_kwargs heads embed_cls pad_id eos_id
    no_causal_mask proj_bias proj_type hf_model_name hf_model_pretrained hf_proj_type hf_pooler_type proj pooler_type
"""
KNOWN: dict[str, frozenset[str]] = {
    "model_cfg": frozenset(
        "embed_dim vision_cfg text_cfg multimodal_cfg quick_gelu custom_text init_logit_scale init_logit_bias "
        "nonscalar_logit_scale".split()
    ),
    "vision_cfg": frozenset(
        f"""
        {_TOWER} head_width patch_size image_size patch_dropout attentional_pool attn_pooler_queries attn_pooler_heads
        no_ln_pre pos_embed_type timm_model_name timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop
        timm_drop_path
        """.split()
    ),
    "text_cfg": frozenset(_TEXT.split()),
    "multimodal_cfg": frozenset(f"{_TEXT} dim_head n_queries attn_pooler_heads".split()),
    "preprocess_cfg": frozenset("size mode mean std interpolation resize_mode fill_color".split()),
}
_HONORED_TEXT: dict[str, tuple[Any, ...]] = {"output_tokens": (False,), "tokenizer_mode": (None, "")}
# Supported values of the settings that change the model. The other known settings are read from the file or from the
# weights, or open_clip does not use them for a timm or BERT tower.
_HONORED: dict[str, dict[str, tuple[Any, ...]]] = {
    "model_cfg": {"multimodal_cfg": (None,)},
    "vision_cfg": {
        "timm_pool": ("", "token"),
        "timm_proj": ("linear",),
        "timm_proj_bias": (False,),
        "timm_drop": (0,),
        "timm_drop_path": (None, 0),
    },
    "text_cfg": {"hf_proj_type": ("mlp",), "hf_pooler_type": ("cls_last_hidden_state_pooler",), **_HONORED_TEXT},
    "preprocess_cfg": {
        "mode": ("RGB",),
        "resize_mode": ("shortest",),
        "interpolation": ("bicubic", "bilinear", "random"),
    },
    "tokenizer_kwargs": {"clean": ("whitespace",), "strip_sep_token": (False,), "language": (None,)},
}
# The same for CLIP's text tower, for which open_clip uses more settings.
_HONORED_CLIP: dict[str, dict[str, tuple[Any, ...]]] = _HONORED | {
    "model_cfg": {**_HONORED["model_cfg"], "custom_text": (False,)},
    "text_cfg": {
        **dict.fromkeys("embed_cls no_causal_mask proj_bias qk_norm scaled_cosine_attn".split(), (False,)),
        **dict.fromkeys("scale_heads scale_attn_inner scale_attn scale_fc".split(), (False,)),
        **dict.fromkeys("ls_init_value act_kwargs norm_kwargs".split(), (None,)),
        "block_type": (None, "default"),
        "pool_type": ("argmax", "eos"),
        "proj_type": ("linear",),
        **_HONORED_TEXT,
    },
}
# Defaults of open_clip that are not among the supported values.
_DEFAULTS = {"timm_pool": "avg", "hf_pooler_type": "mean_pooler"}
_OLDER_KEYS = {"hf_proj_type": "proj", "hf_pooler_type": "pooler_type"}
# Arguments of open_clip's tokenizers that only change token ids.
_SAFE_TOKENIZER_ARGUMENTS: dict[str, type | tuple[type, ...]] = {
    "clean": str,
    "strip_sep_token": bool,
    "language": (str, type(None)),
    "reduction_mask": str,
}
_TIMM_NAME = re.compile(r"\w+(\.\w+)?")  # without "hf-hub:" or "local-dir:", which load from elsewhere


def check_known(stored: Any, path: Path) -> None:
    """Check that the sections of a file are mappings, and that open_clip documents every setting."""
    if not isinstance(stored, Mapping) or not isinstance(stored.get("model_cfg"), Mapping):
        raise ValueError(f"{path}: model_cfg is missing. It must contain the settings of the model.")
    for name, section in _sections(stored).items():
        if not isinstance(section, Mapping):
            raise ValueError(f"{path}: {name} is {section!r}. It must be a mapping of settings.")
        if unknown := sorted(set(section) - KNOWN[name]):
            raise ValueError(f"{path}: unknown settings in {name}: {', '.join(unknown)}. Remove them from the file.")


def check_safe(stored: Any, path: Path, *, reachable: tuple[str, ...] = ()) -> None:
    """Check that open_clip can read the file without running code, downloading a model or opening other files.

    Text models in `reachable` may be looked up on the Hub. All others must be local or cached.
    """
    check_known(stored, path)
    for name, section in _sections(stored).items():
        timm_name = section.get("timm_model_name")
        if timm_name is not None and not (isinstance(timm_name, str) and _TIMM_NAME.fullmatch(timm_name)):
            raise ValueError(
                f"{path}: {name}.timm_model_name is {timm_name!r}. It must be a plain name of a timm model."
            )
        bert_name = section.get("hf_model_name")
        if bert_name is not None and bert_name not in reachable and not is_at_hand(bert_name):
            raise ValueError(
                f"{path}: {name}.hf_model_name is {bert_name!r}, which is neither a folder nor in the cache. If you "
                f"trust it, fetch it first: hf download {bert_name} config.json"
            )
        if is_at_hand(bert_name):
            check_source(bert_name, trust_remote_code=False)  # open_clip builds the tower from that config.json
        for key, value in _tokenizer_arguments(section, name, path).items():
            wanted = _SAFE_TOKENIZER_ARGUMENTS.get(key)
            if wanted is None or not isinstance(value, wanted):
                raise ValueError(
                    f"{path}: {name}.tokenizer_kwargs contains {key!r}: {value!r}, which is not allowed. Remove it."
                )


def check_honored(stored: Any, path: Path) -> None:
    """Check that BiomedCLIP's model and processor support the settings of a file."""
    check_known(stored, path)
    sections = _sections(stored)
    sections["tokenizer_kwargs"] = _tokenizer_arguments(sections["text_cfg"], "text_cfg", path)
    for name, wanted_values in (_HONORED_CLIP if is_clip_text(sections["text_cfg"]) else _HONORED).items():
        section = sections.get(name, {})
        for key, wanted in wanted_values.items():
            older = _OLDER_KEYS.get(key, key)
            value = section.get(key, section.get(older, _DEFAULTS.get(key, wanted[0])))
            if value is None and name == "preprocess_cfg":
                continue  # open_clip uses its default for null
            if value not in wanted:
                setting = f"{name} has {key}={value!r}" if name == "preprocess_cfg" else f"{name}.{key} is {value!r}"
                raise ValueError(f"{path}: {setting}, but BiomedCLIP supports only {' or '.join(map(repr, wanted))}.")
    if unknown := sorted(set(sections["tokenizer_kwargs"]) - set(_HONORED["tokenizer_kwargs"])):
        raise ValueError(f"{path}: text_cfg.tokenizer_kwargs contains {', '.join(unknown)}, which is not supported.")
    if not sections["text_cfg"].get("hf_tokenizer_name"):
        raise ValueError(
            f"{path}: text_cfg.hf_tokenizer_name is missing. Without it open_clip uses its own tokenizer instead of "
            "the files in the folder. Set it to the name of the tokenizer."
        )


def is_clip_text(text_cfg: Mapping[str, Any]) -> bool:
    """Return whether open_clip builds CLIP's text tower from a `text_cfg`, rather than a BERT."""
    return "hf_model_name" not in text_cfg


def is_at_hand(name: Any) -> bool:
    """Return whether the configuration of a text model is in a folder or in the Hub cache."""
    if not isinstance(name, str):
        return False
    try:
        return Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)
    except (HFValidationError, OSError, ValueError):
        return False


def channel_values(value: Any, name: str, path: Path, default: Any) -> list[float]:
    """Return the mean or the standard deviation of the three channels, as open_clip reads one or three numbers."""
    value = value or default
    values = list(value) if isinstance(value, list | tuple) else [value]
    numbers = all(isinstance(item, int | float) and not isinstance(item, bool) for item in values)
    if not numbers or len(values) not in (1, 3) or (name == "std" and not all(values)):
        raise ValueError(f"{path}: preprocess_cfg.{name} is {value!r}. It must be one number or three.")
    return values * 3 if len(values) == 1 else values


def _sections(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of a file by name. Sections that are null become empty."""
    model_cfg = stored["model_cfg"]
    sections = {"model_cfg": model_cfg, "preprocess_cfg": stored.get("preprocess_cfg") or {}}
    for name in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        sections[name] = model_cfg.get(name) or {}
    return sections


def _tokenizer_arguments(section: Mapping[str, Any], name: str, path: Path) -> Mapping[str, Any]:
    arguments = section.get("tokenizer_kwargs") or {}
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{path}: {name}.tokenizer_kwargs is {arguments!r}. It must be a mapping of settings.")
    return arguments
