"""Select the files of a model folder to publish: files on an allow-list, and code of the installed package only."""

import filecmp
import re
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

import biomedclip.processing
from biomedclip import BiomedCLIPConfig
from biomedclip.conversion import load_any_layout
from biomedclip.model_cards.reading import find_file, read_json, refuse_links_out
from biomedclip.modeling_biomedclip import SENTENCE_TRANSFORMERS_FILES

from ..cli.options import WRITTEN_RECIPE
from .card_facts import CARD, CARD_FACTS
from .publishing import as_json


# No other files of the folder are published.
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
INDEX = "model.safetensors.index.json"
JSON_FILES = ("config.json", "processor_config.json", "tokenizer_config.json", INDEX)
_OTHER_FILES = ("tokenizer.json", "vocab.txt", "original_open_clip_config.json", CARD, CARD_FACTS)
DATA_FILES = (*JSON_FILES, *SENTENCE_TRANSFORMERS_FILES, *_OTHER_FILES)
CODE_FILES = re.compile(r".*_biomedclip\.py", re.DOTALL)
_REQUIRED = ("config.json", "processor_config.json", "tokenizer.json", "modeling_biomedclip.py", CARD, CARD_FACTS)
# Files that a push creates. Those of an earlier push are deleted if they are not part of the new one.
_CREATED = ("open_clip_*", "results/*.json", WRITTEN_RECIPE, "calibration.json", "preprocessor_config.json")
_UNSAFE_WEIGHTS = re.compile(r".*\.(bin|pt|pth|ckpt|pkl|pickle|h5|msgpack|npz)", re.DOTALL)
_TRAINING_STATE = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt")
_CLASS = re.compile(r"(\w+_biomedclip)\.\w+")
_TEXT = (".json", ".md", ".py", ".txt", ".yaml")
_ACCESS_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")


def is_published(name: str) -> bool:
    """Return whether a file of a model folder is on the allow-list. `name` is its path in the folder."""
    return bool(WEIGHTS.fullmatch(name) or CODE_FILES.fullmatch(name)) or name in DATA_FILES


def is_from_push(name: str) -> bool:
    """Return whether a file of a repository is one that `biomedclip push` uploads."""
    return is_published(name) or any(fnmatch(name, pattern) for pattern in _CREATED)


def package_code() -> dict[str, Path]:
    """Return the code files that are saved with a model, by file name, from the installed package."""
    folders = [Path(str(package.__file__)).parent for package in (biomedclip, biomedclip.processing)]
    return {path.name: path for folder in folders for path in sorted(folder.glob("*_biomedclip.py"))}


def find_model_files(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Find the files of a model folder to publish. Nothing is loaded and no code is run.

    Return the paths of the files by name, with links resolved and code files from the installed package, and the names
    of all other files with the reason. Links to other files, code that differs from the installed package,
    configurations that refer to other code, and weights that are not safetensors raise a `ValueError`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--model {folder}: the folder does not exist.")
    refuse_links_out(folder)
    files: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for name in sorted(path.name for path in folder.iterdir()):
        if not is_published(name):
            left_out[name] = _reason(folder / name)
        elif path := find_file(folder, name, allowed=is_published):
            files[name] = _installed_code(folder / name, path) if CODE_FILES.fullmatch(name) else path
    if unsafe := [name for name in left_out if _UNSAFE_WEIGHTS.fullmatch(name) and name not in _TRAINING_STATE]:
        raise ValueError(
            f"{folder / unsafe[0]} is not safetensors, and loading it could run code. Save the model again with "
            "save_pretrained, and remove the file."
        )
    if not any(WEIGHTS.fullmatch(name) for name in files):
        raise FileNotFoundError(f"{folder} contains no model.safetensors.")
    for name in _REQUIRED:
        if name not in files:
            remedy = "Run biomedclip card" if name in (CARD, CARD_FACTS) else "Save model and processor again"
            raise FileNotFoundError(f"{folder / name} is missing. {remedy}.")
    settings = {name: read_json(files[name]) for name in JSON_FILES if name in files}
    for name, content in settings.items():
        _check_settings(folder / name, content, files)
    for name in SENTENCE_TRANSFORMERS_FILES.keys() & files.keys():
        if read_json(files[name]) != SENTENCE_TRANSFORMERS_FILES[name]:  # it can refer to other code
            raise ValueError(
                f"{folder / name} is not what save_pretrained of the installed biomedclip writes, so it is not "
                "published. Remove it, or save the model again."
            )
    if settings["config.json"].get("model_type") != BiomedCLIPConfig.model_type:
        raise ValueError(
            f"{folder} contains no BiomedCLIP model in transformers' layout. See: biomedclip convert --help"
        )
    return files, left_out


def load_published(files: Mapping[str, Path], folder: Path, scratch: Path) -> tuple[Any, Any]:
    """Load model and processor using only the files to publish, linked into the new folder `scratch`."""
    scratch.mkdir()
    for name, path in files.items():
        try:
            (scratch / name).symlink_to(path)
        except OSError:  # Windows requires a permission to create links
            shutil.copyfile(path, scratch / name)
    try:
        return load_any_layout(scratch)
    except ValueError as error:
        raise ValueError(str(error).replace(str(scratch), str(folder))) from error


def files_from_card(facts: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the files that are generated from the facts of a card: the facts, each result, and the recipe."""
    files = {CARD_FACTS: as_json(facts)}
    for result in facts["results"]:
        name = re.sub(r"[^\w-]+", "_", f"{result['task']}_{result['benchmark'] or 'own'}")
        number = sum(known.startswith(f"results/{name}") for known in files)
        files[f"results/{name}{f'_{number + 1}' if number else ''}.json"] = as_json(result)
    # The facts of a classifier have the recipe beside the training.
    if recipe := facts.get("recipe") or (facts.get("training") or {}).get("recipe"):
        files[WRITTEN_RECIPE] = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).encode()
    return files


def check_private_content(files: Mapping[str, Path | bytes], folder: Path) -> None:
    """Raise an error if a text file contains a local path or an access token."""
    private = {f"{path}/".encode() for path in (Path.home(), folder.resolve().parent) if len(path.parts) > 1}
    for name, file in files.items():
        if name.endswith(_TEXT):
            content = file if isinstance(file, bytes) else file.read_bytes()
            if found := next((path.decode() for path in private if path in content), None):
                raise ValueError(f"{folder / name} contains {found}, a path of this machine. Remove it.")
            if _ACCESS_TOKEN.search(content):
                raise ValueError(f"{folder / name} contains an access token of the Hub. Remove it.")


def _installed_code(path: Path, resolved: Path) -> Path:
    """Return the file of the installed package if a code file is identical to it."""
    installed = package_code().get(path.name)
    if installed is None:
        raise ValueError(f"{path} is not a module of the installed biomedclip, so it is not published. Remove it.")
    if not filecmp.cmp(resolved, installed, shallow=False):
        raise ValueError(
            f"{path} is not identical to {path.name} of the installed biomedclip, so it is not published. Save model "
            "and processor again with this version."
        )
    return installed


def _check_settings(path: Path, content: Any, files: Mapping[str, Path]) -> None:
    """Raise an error if a configuration refers to code or weights outside of the folder."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must contain an object.")
    for field, name in _named_code(content):
        matched = _CLASS.fullmatch(name) if isinstance(name, str) else None
        if matched is None or f"{matched[1]}.py" not in files:
            raise ValueError(
                f"{path}: {field} refers to {name!r}, which is not code of this folder. Save the model again."
            )
    if path.name == INDEX:
        shards = content.get("weight_map")
        for name in shards.values() if isinstance(shards, Mapping) else [shards]:
            if not (isinstance(name, str) and WEIGHTS.fullmatch(name) and name in files):
                raise ValueError(f"{path}: weight_map refers to {name!r}, which is not a weights file of this folder.")


def _named_code(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every class in `auto_map` or a custom pipeline, at any depth."""
    if isinstance(content, list):
        for value in content:
            yield from _named_code(value)
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if key not in ("auto_map", "custom_pipelines") or not value:
            yield from _named_code(value)
            continue
        for entry in value.values() if isinstance(value, Mapping) else [value]:
            if key == "custom_pipelines":
                yield key, entry.get("impl") if isinstance(entry, Mapping) else entry
            else:
                yield from ((key, name) for name in (entry if isinstance(entry, list) else [entry]) if name)


def _reason(path: Path) -> str:
    """Return why a file of the folder is not published."""
    if path.is_dir() and not path.is_symlink():
        return "a folder; only files next to config.json are published"
    return "state of a training run" if path.name in _TRAINING_STATE else "not on the list of published files"
