"""Load models in open_clip's layout with open_clip, after their settings are checked."""

from pathlib import Path
from typing import Any

from biomedclip.conversion.files import OPEN_CLIP_CONFIG, read_json
from biomedclip.conversion.open_clip import PUBLISHED_NAMES
from biomedclip.conversion.open_clip_settings import check_known, check_safe

from ..cli.models import import_optional
from ..cli.trust import questions_are_errors


INSTALL = "pip install 'biomedclip[open_clip]'"
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # names that open_clip looks for; from pickles, only tensors are read


def is_open_clip_folder(folder: Path) -> bool:
    """Return whether a folder has open_clip's layout and does not also have that of transformers."""
    return (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / "config.json").is_file()


def has_biomedclip_text_tower(folder: Path) -> bool:
    """Return whether the text tower of a folder in open_clip's layout is a BiomedBERT, which our own reader can load.

    Raise `ValueError` if a setting is unknown.
    """
    path = folder / OPEN_CLIP_CONFIG
    stored = read_json(path)
    check_known(stored, path)
    name = str((stored["model_cfg"].get("text_cfg") or {}).get("hf_model_name"))
    return "BiomedBERT" in name or "PubMedBERT" in name


def check_open_clip_weights(folder: Path) -> None:
    """Raise `FileNotFoundError` if a folder has no weights, which open_clip would otherwise download."""
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise FileNotFoundError(f"{folder}: no weights, such as open_clip_model.safetensors.")


def load_with_open_clip(folder: Path) -> tuple[Any, Any, Any]:
    """Return the model in float32, the image transform and the tokenizer of a folder, loaded with open_clip.

    Nothing in the folder is trusted. Raise `ValueError` if a setting is unknown or not safe, or if the folder needs its
    own code, `FileNotFoundError` without weights, and `ImportError` without open_clip.
    """
    open_clip = import_optional("open_clip", f"{folder} is in open_clip's layout. It", INSTALL)
    path = folder / OPEN_CLIP_CONFIG
    stored = read_json(path)
    check_safe(stored, path, reachable=PUBLISHED_NAMES)
    check_open_clip_weights(folder)
    name = f"local-dir:{folder}"
    # Only transformers tokenizers have this argument.
    trust = {"trust_remote_code": False} if (stored["model_cfg"].get("text_cfg") or {}).get("hf_tokenizer_name") else {}
    with questions_are_errors():
        model, preprocess = open_clip.create_model_from_pretrained(name, precision="fp32")
        return model, preprocess, open_clip.get_tokenizer(name, **trust)
