"""Select the files of a model folder to publish: an allow-list, with the code of the installed package."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import biomedclip.processing
from biomedclip import BiomedCLIPConfig
from biomedclip.model_cards.reading import find_file, read_json, refuse_links_out

from ..card import CARD, CARD_FACTS


# No other files of the folder are published.
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
INDEX = "model.safetensors.index.json"
JSON_FILES = ("config.json", "processor_config.json", "tokenizer_config.json", INDEX)
DATA_FILES = (*JSON_FILES, "tokenizer.json", "vocab.txt", "original_open_clip_config.json")
CODE_FILES = re.compile(r".*_biomedclip\.py", re.DOTALL)
_NEEDED = ("config.json", "processor_config.json", "tokenizer.json", "modeling_biomedclip.py", CARD, CARD_FACTS)
_OTHER_WEIGHTS = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle|h5|msgpack|npz)", re.DOTALL)
_OF_A_RUN = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt")
_CLASS_OF_OURS = re.compile(r"(\w+_biomedclip)\.\w+")


def is_published(name: str) -> bool:
    """Return whether a file of a model folder is on the allow-list. `name` is its path in the folder."""
    return bool(WEIGHTS.fullmatch(name) or CODE_FILES.fullmatch(name)) or name in (*DATA_FILES, CARD, CARD_FACTS)


def package_code() -> dict[str, Path]:
    """Return the code files that are saved with a model, by file name, from the installed package."""
    folders = [Path(str(package.__file__)).parent for package in (biomedclip, biomedclip.processing)]
    return {path.name: path for folder in folders for path in sorted(folder.glob("*_biomedclip.py"))}


def find_model_files(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Find the files of a model folder to publish. Nothing is loaded and no code is run.

    Args:
        folder: Folder in transformers' layout, with a model card.

    Returns:
        The paths of the files by name, with links resolved. Code files are those of the installed package. The second
        value contains the names of all other files, each with the reason.

    Raises:
        FileNotFoundError: If the folder or a required file is missing.
        ValueError: If a link points outside the folder or to a file that is not published; a code file differs from the
            installed package; a configuration refers to other code; weights are not safetensors; or the folder is not
            in transformers' layout.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--model {folder}: there is no such folder.")
    code = package_code()
    refuse_links_out(folder)
    files: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        if not is_published(name):
            left_out[name] = _reason(folder / name)
        elif target := find_file(folder, name, allowed=is_published):
            files[name] = target
    for name in [name for name in files if CODE_FILES.fullmatch(name)]:
        if name not in code:
            raise ValueError(
                f"{folder / name} is not a module of the installed biomedclip, so it is not published. Remove it."
            )
        if (
            files[name].stat().st_size != code[name].stat().st_size
            or files[name].read_bytes() != code[name].read_bytes()
        ):
            raise ValueError(
                f"{folder / name} is not identical to {name} of the installed biomedclip, so it is not published. Save "
                "model and processor again with this version."
            )
        files[name] = code[name]
    if other := [name for name in left_out if _OTHER_WEIGHTS.fullmatch(name) and name not in _OF_A_RUN]:
        raise ValueError(
            f"{folder / other[0]} is not safetensors, and could run code when it is read. Load the model and save it "
            "again with save_pretrained, and take the file away."
        )
    if not any(WEIGHTS.fullmatch(name) for name in files):
        raise FileNotFoundError(f"{folder}: no model.safetensors there.")
    for name in _NEEDED:
        if name not in files:
            remedy = "biomedclip card fills it" if name in (CARD, CARD_FACTS) else "save model and processor again"
            raise FileNotFoundError(f"{folder / name} is missing: {remedy}.")
    settings = {name: read_json(files[name]) for name in JSON_FILES if name in files}
    for name, content in settings.items():
        _check_settings(folder / name, content, files)
    if settings.get("config.json", {}).get("model_type") != BiomedCLIPConfig.model_type:
        raise ValueError(f"{folder} holds no BiomedCLIP in transformers' layout. See: biomedclip convert --help")
    return files, left_out


def _check_settings(path: Path, content: Any, files: Mapping[str, Path]) -> None:
    """Raise an error if a configuration refers to code or weights outside of the folder."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold an object.")
    for where, name in _named_code(content):
        matched = _CLASS_OF_OURS.fullmatch(name) if isinstance(name, str) else None
        if matched is None or f"{matched[1]}.py" not in files:
            raise ValueError(f"{path}: {where} names {name!r}, which is not code of this folder. Save the model again.")
    if path.name == INDEX:
        shards = content.get("weight_map")
        for name in shards.values() if isinstance(shards, Mapping) else [shards]:
            if not (isinstance(name, str) and WEIGHTS.fullmatch(name) and name in files):
                raise ValueError(f"{path}: weight_map names {name!r}, which is not a file of weights of this folder.")


def _named_code(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every class in `auto_map` or a custom pipeline, at any depth."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key == "auto_map" and value:
                named = value.values() if isinstance(value, Mapping) else [value]
                for name in named:
                    yield from ((key, part) for part in (name if isinstance(name, list | tuple) else [name]) if part)
            elif key == "custom_pipelines" and value:
                pipelines = value.values() if isinstance(value, Mapping) else [value]
                yield from ((key, part.get("impl") if isinstance(part, Mapping) else part) for part in pipelines)
            else:
                yield from _named_code(value)
    elif isinstance(content, list):
        for value in content:
            yield from _named_code(value)


def _reason(path: Path) -> str:
    """Return why a file of the folder is not published."""
    if path.is_dir() and not path.is_symlink():
        return "a folder; only files beside config.json are published"
    if path.name in _OF_A_RUN:
        return "state of a training run"
    return "not on the list of published files"
