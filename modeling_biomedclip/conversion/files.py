"""Reading the files of a checkpoint, from a folder or the Hub; nothing in them is trusted."""

import json
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
# Beside a converted model: the `open_clip_config.json` that it came with.
ORIGINAL_CONFIG = "original_open_clip_config.json"
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
# In open_clip's order of preference; the last two are the community port's.
_WEIGHTS = (
    OPEN_CLIP_WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
# Buffers that older versions of transformers wrote into checkpoints: 0, 1, 2, ... and nothing learned.
_STALE_BUFFER = re.compile(r"\.embeddings\.position_ids$")


def find_checkpoint(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The local folder of a checkpoint, downloaded first where `source` is a Hub id.

    Raises:
        FileNotFoundError: Neither a folder nor a Hub id that can be reached.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        small = ["*.json", "*.txt"]
        folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=small))
        # One file of weights is enough: they are 784 MB each. Which one, the small files say.
        ours = "model*.safetensors"
        for weights in [ours] if is_transformers_layout(folder) else _WEIGHTS:
            snapshot_download(str(source), revision=revision, allow_patterns=[*small, weights])
            if any(folder.glob(weights)):
                break
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"{source}: neither a folder nor a Hub id that can be reached ({reason})") from error
    return folder


def is_transformers_layout(folder: Path) -> bool:
    """Whether a folder is in the layout that BiomedCLIP has in transformers."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("model_type") == BiomedCLIPConfig.model_type


def read_tokenizer(tokenizer_class: Any, folder: Path, context_length: int) -> Any:
    """The tokenizer whose files lie in a folder; it cuts texts at `context_length` tokens."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise FileNotFoundError(f"{folder}: no tokenizer there, neither {' nor '.join(TOKENIZER_FILES)}.")
    return tokenizer_class.from_pretrained(folder, model_max_length=context_length, trust_remote_code=False)


def parse_json(text: str, source: object) -> Any:
    """Return the content of a JSON text. Raise `ValueError` with the name of its source if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}") from error


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, less what no model has learned; large ones stay on the disk until used."""
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: no weights there; looked for {', '.join(_WEIGHTS)}.")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path}: damaged or truncated ({error}).") from error
    return {name: tensor for name, tensor in tensors.items() if not _STALE_BUFFER.search(name)}


def _read_pickle(path: Path) -> dict[str, torch.Tensor]:
    """Tensors alone: a pickle that would run code is refused."""
    whole = zipfile.is_zipfile(path)
    if not whole and path.open("rb").read(2) == b"PK":
        raise ValueError(f"{path}: damaged or truncated (a zip archive without its end).")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, which could run code when it is read; it is refused. Save its state "
            "dictionary alone, best as safetensors."
        ) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)  # open_clip's training checkpoints
    if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise ValueError(f"{path} holds no state dictionary: tensors by name.")
    # The prefixes of parallel and of compiled models, which nest either way.
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): tensor for name, tensor in content.items()}
