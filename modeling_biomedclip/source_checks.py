"""Check the JSON files of a model for settings that run code or load other models without the user's consent."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file


ADAPTER_CONFIG = "adapter_config.json"
FEW_SHOT = "biomedclip_few_shot"  # model type of heads, which are saved without their dual encoder
# A kernel `owner/name` is downloaded and run. A backbone `owner/name` or a timm model `hf-hub:...` is downloaded.
_KERNELS = ("attn_implementation", "experts_implementation")
_OTHER_MODELS = ("architecture", "backbone")
_REMEDY = "Remove it, or pass `trust_remote_code=True` if you trust the model."


def check_source(name: str, *, trust_remote_code: bool) -> None:
    """Raise `ValueError` if a model, or the base model of an adapter or a few-shot head, has such settings.

    `name` is a folder or a Hub id. If the user trusts the model (`trust_remote_code`), nothing is checked.
    """
    if trust_remote_code:
        return
    checked: set[str] = set()
    waiting: str | None = name
    while waiting is not None and waiting not in checked:
        checked.add(waiting)
        name, waiting = waiting, None
        for file, check in _CHECKS.items():
            path = find_file(name, file)
            content = read_json(path) if path is not None else None
            if path is not None and isinstance(content, dict):
                check(path, content)
                if file == ADAPTER_CONFIG or content.get("model_type") == FEW_SHOT:
                    waiting = content.get("base_model_name_or_path")
                    if not isinstance(waiting, str):
                        raise ValueError(f"{path}: base_model_name_or_path is {waiting!r}. It must be a folder or id.")


def find_file(name: str, file: str) -> Path | None:
    """Return the path of a file in a folder or of a model on the Hub, or None if it is missing or unreachable."""
    try:
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return None
    return Path(found) if found else None


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raise `ValueError` with its path if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _check_config(path: Path, content: Mapping[str, Any]) -> None:
    for key, value in content.items():
        if key.endswith(_KERNELS):
            names = value.values() if isinstance(value, Mapping) else [value]
            if any(isinstance(item, str) and "/" in item for item in names):
                raise ValueError(f"{path}: {key} is {value!r}, a kernel that would be downloaded and run. {_REMEDY}")
        elif key in _OTHER_MODELS and isinstance(value, str) and ("/" in value or ":" in value):
            raise ValueError(f"{path}: {key} is {value!r}, another model that would be loaded. {_REMEDY}")
        elif isinstance(value, Mapping):
            _check_config(path, value)


def _check_processor(path: Path, content: Mapping[str, Any]) -> None:
    if "audio_tokenizer" in content or path.name.startswith("audio_tokenizer"):
        raise ValueError(f"{path}: audio_tokenizer would load another model. {_REMEDY}")


def _check_adapter(path: Path, content: Mapping[str, Any]) -> None:
    """Accept only LoRA without Megatron. Other adapters load models or import modules listed in the file."""
    if content.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type is {content.get('peft_type')!r}. Only LORA adapters are loaded.")
    if content.get("megatron_config"):
        raise ValueError(f"{path}: megatron_config would import a module that it specifies. Remove it.")
    if (path.parent / "adapter_model.bin").is_file() and not (path.parent / "adapter_model.safetensors").is_file():
        raise ValueError(
            f"{path.parent / 'adapter_model.bin'} is a pickle. Load the adapter and save it again as safetensors."
        )
    base = content.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ValueError(f"{path}: base_model_name_or_path is {base!r}. It must be the adapted model.")


_CHECKS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    "config.json": _check_config,
    "processor_config.json": _check_processor,
    "audio_tokenizer_config.json": _check_processor,
    ADAPTER_CONFIG: _check_adapter,
}
