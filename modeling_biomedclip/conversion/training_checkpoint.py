"""Read checkpoint files of open_clip's training, whose run folders contain neither configuration nor tokenizer.

logs/RUN/params.txt                   options of the run, one `name: value` per line
logs/RUN/checkpoints/epoch_32.pt      epoch, weights, optimizer state
"""

import ast
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from .files import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, TOKENIZER_FILES, find_checkpoint, read_json
from .open_clip import PUBLISHED_NAMES
from .open_clip_settings import is_at_hand


PARAMS = "params.txt"
_PICKLED_WEIGHTS = "open_clip_pytorch_model.bin"
_TOKENIZER_CONFIG = "tokenizer_config.json"
# Options of open_clip's training that override the model's configuration: (option, section, setting).
_OVERRIDES = (
    ("force_image_size", "vision_cfg", "image_size"),
    ("force_patch_dropout", "vision_cfg", "patch_dropout"),
    ("force_context_length", "text_cfg", "context_length"),
    ("image_mean", "preprocess_cfg", "mean"),
    ("image_std", "preprocess_cfg", "std"),
    ("image_interpolation", "preprocess_cfg", "interpolation"),
    ("image_resize_mode", "preprocess_cfg", "resize_mode"),
)
_BIAS_OF_SIGLIP = -10  # initial value with open_clip's `--siglip`


@contextmanager
def local_checkpoint(source: str | os.PathLike[str], revision: str | None = None) -> Iterator[Path]:
    """Yield the local folder of a checkpoint: a folder, a Hub id, or a checkpoint file of open_clip's training.

    For a file, a temporary folder in open_clip's layout is created, with a link to the weights. Errors say where to put
    a missing configuration or tokenizer.
    """
    if not Path(source).is_file():
        yield find_checkpoint(source, revision)
        return
    with tempfile.TemporaryDirectory() as scratch:
        _assemble(Path(source), Path(scratch))
        yield Path(scratch)


def _assemble(checkpoint: Path, folder: Path) -> None:
    """Collect the configuration, the weights and the tokenizer of a training checkpoint in one folder."""
    places = [checkpoint.resolve().parent, checkpoint.resolve().parent.parent]
    params = _read_params(places)
    config = _with_overrides(_find_config(checkpoint, places, params), params)
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(config, indent=2, default=str), encoding="utf-8")
    name = OPEN_CLIP_WEIGHTS if checkpoint.suffix == ".safetensors" else _PICKLED_WEIGHTS
    try:
        (folder / name).symlink_to(checkpoint.resolve())
    except OSError:  # on Windows, creating links requires a special permission
        shutil.copyfile(checkpoint, folder / name)
    _find_tokenizer(checkpoint, places, config, folder)


def _read_params(places: list[Path]) -> dict[str, Any]:
    """Return the options of the training run from its `params.txt`."""
    path = next((place / PARAMS for place in places if (place / PARAMS).is_file()), None)
    if path is None:
        return {}
    params = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, text = line.partition(": ")
        try:
            params[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # a string, or nested too deeply for Python
            params[name] = text
    return params


def _find_config(checkpoint: Path, places: list[Path], params: Mapping[str, Any]) -> Any:
    """Return the configuration next to or above a checkpoint, or that of a named model of open_clip."""
    for place in places:
        if (place / OPEN_CLIP_CONFIG).is_file():
            return read_json(place / OPEN_CLIP_CONFIG)
        found = {path: content for path in sorted(place.glob("*.json")) if (content := _model_config(path)) is not None}
        named = {path: content for path, content in found.items() if path.stem == params.get("model")}
        if len(named or found) > 1:
            raise ValueError(
                f"{checkpoint}: several configurations in {place}: {', '.join(path.name for path in found)}. Name the "
                f"right one {OPEN_CLIP_CONFIG}."
            )
        if found:
            return next(iter((named or found).values()))
    name = params.get("model")
    if isinstance(name, str) and ":" not in name and find_spec("open_clip") is not None:
        from open_clip import get_model_config

        if (config := get_model_config(name)) is not None:
            return config
    model = f"the model {name!r} in its {PARAMS}" if name else "its model"
    raise FileNotFoundError(
        f"{checkpoint}: no configuration of the model in {places[0]} or {places[1]}. Copy the JSON file of {model} "
        f"there as {OPEN_CLIP_CONFIG}, with embed_dim, vision_cfg and text_cfg."
    )


def _model_config(path: Path) -> dict[str, Any] | None:
    """Return the content of a JSON file that describes an open_clip model."""
    try:
        content = read_json(path)
    except (ValueError, OSError):
        return None
    if not isinstance(content, dict):
        return None
    model_cfg = content.get("model_cfg", content)
    whole = isinstance(model_cfg, dict) and {"embed_dim", "vision_cfg", "text_cfg"} <= set(model_cfg)
    return content if whole else None


def _with_overrides(config: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a full configuration with the overrides from the options of the training run."""
    if isinstance(config, dict) and "model_cfg" not in config:  # open_clip's own model files contain only this section
        config = {"model_cfg": config, "preprocess_cfg": {}}
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        return config  # it is rejected later, when the configuration is read
    config = {**config, "model_cfg": dict(config["model_cfg"])}
    for option, section, setting in _OVERRIDES:
        if params.get(option) is not None:
            owner = config if section == "preprocess_cfg" else config["model_cfg"]
            owner[section] = {**(owner.get(section) or {}), setting: params[option]}
    if params.get("siglip") is True:
        config["model_cfg"]["init_logit_bias"] = _BIAS_OF_SIGLIP
    return config


def _find_tokenizer(checkpoint: Path, places: list[Path], config: Any, folder: Path) -> None:
    """Copy a tokenizer to `folder`: the one next to or above the checkpoint, or the one named by the configuration."""
    for place in places:
        if any((place / name).is_file() for name in TOKENIZER_FILES):
            # A vocabulary file does not state the tokenizer class. It is BERT's, because the text tower is a BERT.
            (folder / _TOKENIZER_CONFIG).write_text('{"tokenizer_class": "BertTokenizer"}', encoding="utf-8")
            for name in (*TOKENIZER_FILES, _TOKENIZER_CONFIG):
                if (place / name).is_file():
                    shutil.copyfile(place / name, folder / name)
            return
    try:
        wanted = config["model_cfg"]["text_cfg"]["hf_tokenizer_name"]
    except (KeyError, TypeError):
        wanted = None
    reason = "the configuration does not specify a tokenizer"
    if wanted in PUBLISHED_NAMES or is_at_hand(wanted):
        try:
            AutoTokenizer.from_pretrained(wanted, trust_remote_code=False).save_pretrained(folder)
            return
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
    elif wanted:
        reason = f"{wanted} is neither a folder nor in the cache; if you trust it: hf download {wanted}"
    raise FileNotFoundError(
        f"{checkpoint}: no tokenizer in {places[0]} or {places[1]} ({reason}). Copy the tokenizer.json or vocab.txt of "
        "the training there."
    )
