"""Read the files of a checkpoint from a folder or the Hub. Their contents are not trusted."""

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..configuration_biomedclip import BiomedCLIPConfig
from ..source_checks import read_json


OPEN_CLIP_CONFIG = "open_clip_config.json"
# The original `open_clip_config.json` of a converted model, saved next to it under this name.
ORIGINAL_CONFIG = "original_open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
# In open_clip's order of preference. The last two are the files of the community port.
_WEIGHTS = (
    OPEN_CLIP_WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
# Buffers that contain 0, 1, 2, ... Older versions of transformers saved them in checkpoints.
_STALE_BUFFER = re.compile(r"\.embeddings\.position_ids$")


def find_checkpoint(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return the local folder of a checkpoint. Download it first if `source` is a Hub id."""
    if Path(source).is_dir():
        return Path(source)
    try:
        small = ["*.json", "*.txt"]
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=small))
        # One weights file (784 MB) is enough. The small files show which one to download.
        ours = "model*.safetensors"
        for weights in [ours] if is_transformers_layout(folder) else _WEIGHTS:
            snapshot_download(str(source), revision=revision, allow_patterns=[*small, weights])
            if any(folder.glob(weights)):
                break
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"{source} is neither a folder nor a Hub id that can be reached ({reason})") from error
    return folder


def is_transformers_layout(folder: Path) -> bool:
    """Return whether a folder contains BiomedCLIP in the layout of transformers."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == BiomedCLIPConfig.model_type


def read_tokenizer(tokenizer_class: Any, folder: Path, context_length: int) -> Any:
    """Load the tokenizer from a folder, and set it to truncate texts to `context_length` tokens."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FileNotFoundError(f"{folder} contains no tokenizer: neither {' nor '.join(TOKENIZER_FILES)} exists.")
    return tokenizer_class.from_pretrained(folder, model_max_length=context_length, trust_remote_code=False)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name, without stale buffers. Large tensors are memory-mapped."""
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has no weights. Expected one of: {', '.join(_WEIGHTS)}.")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}).") from error
    return {name: tensor for name, tensor in tensors.items() if not _STALE_BUFFER.search(name)}


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors in a pickle file. Reject a file that could run code."""
    whole = zipfile.is_zipfile(path)
    if not whole and path.open("rb").read(2) == b"PK":
        raise ValueError(f"{path} is damaged or truncated (the end of the zip archive is missing).")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} contains more than tensors and could run code when it is loaded. Save only its state dictionary, "
            "as safetensors if possible."
        ) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)  # training checkpoints of open_clip
    if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise ValueError(f"{path} does not contain a state dictionary (tensors by name).")
    # Remove the prefixes of parallel and compiled models, which can be nested in either order.
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in content.items()}
