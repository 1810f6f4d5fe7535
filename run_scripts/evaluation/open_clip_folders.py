"""Load models in open_clip's layout with open_clip, after their settings are checked."""

import importlib.util
from pathlib import Path
from typing import Any

from biomedclip.conversion.files import OPEN_CLIP_CONFIG, read_json
from biomedclip.conversion.open_clip import PUBLISHED_NAMES
from biomedclip.conversion.open_clip_settings import check_safe

from ..cli.trust import questions_are_errors


_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")  # names that open_clip looks for; from pickles, only tensors are read


def load_with_open_clip(folder: Path) -> tuple[Any, Any, Any]:
    """Load a folder with open_clip. Nothing in the folder is trusted.

    Args:
        folder: Folder with `open_clip_config.json`, weights, and the files of the tokenizer that the settings name.

    Returns:
        The model in float32, the transform of images, and the tokenizer.

    Raises:
        ImportError: If open_clip is not installed.
        FileNotFoundError: If there are no weights. open_clip would download those that the settings name.
        ValueError: If a setting is unknown or not safe, or if the folder needs its own code.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise ImportError(f"{folder} is in open_clip's layout: pip install 'biomedclip[open_clip]'")
    path = folder / OPEN_CLIP_CONFIG
    stored = read_json(path)
    check_safe(stored, path, reachable=PUBLISHED_NAMES)
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise FileNotFoundError(f"{folder}: no weights there; looked for {', '.join(_WEIGHTS)}.")
    import open_clip

    name = f"local-dir:{folder}"
    # Only transformers tokenizers have this argument.
    trust = {"trust_remote_code": False} if (stored["model_cfg"].get("text_cfg") or {}).get("hf_tokenizer_name") else {}
    with questions_are_errors():
        model, preprocess = open_clip.create_model_from_pretrained(name, precision="fp32")
        return model, preprocess, open_clip.get_tokenizer(name, **trust)
