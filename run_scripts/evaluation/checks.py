"""Checks before a model is loaded: whether each model fits the task, and whether results can be written."""

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig

from biomedclip.conversion.community_port import is_port
from biomedclip.conversion.files import OPEN_CLIP_CONFIG, read_json
from biomedclip.conversion.open_clip_settings import check_known
from biomedclip.processing.images.folders import find_images
from biomedclip.source_checks import ADAPTER_CONFIG, check_source

from .dual_encoders import BIOVIL, BIOVIL_REMEDY


CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
_DATASET_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")
_SHOWN = 5


def check_model(name: str, task: str, *, trust_remote_code: bool = False) -> None:
    """Check that a model can be loaded and fits a task, from its configuration and file names.

    No code of the model is run, and only the headers of its weights are read. For a model on the Hub, only the
    configuration is read.

    Args:
        name: Value of `--model`: a folder, a Hub id, `biovil` or `biovil-t`.
        task: `retrieval`, `zero-shot`, `linear-probe` or `visual-question-answering`.
        trust_remote_code: Whether code of the model may be run when it is loaded.

    Raises:
        FileNotFoundError: If the folder or model does not exist.
        ImportError: If a package that the model needs is not installed.
        ValueError: If it is not a model, is a model for another task, or needs its own code. The message states what it
            is and what to do.
    """
    _check_kind_of_model(name, task, trust_remote_code)
    if name not in BIOVIL:
        check_source(name, trust_remote_code=trust_remote_code)


def _check_kind_of_model(name: str, task: str, trusted: bool) -> None:
    where, folder = f"--model {name}", Path(name)
    if name in BIOVIL:
        _check_package("health_multimodal", where, BIOVIL_REMEDY)
        return _refuse_for_questions(where, task, "a model of two towers")
    if folder.is_file():
        raise ValueError(f"{where} is a file. Name the folder of the model.")
    if not folder.is_dir():
        return _check_on_hub(name, where, task, trusted)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        return _check_adapter(folder, where, task, trusted)
    if (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / CONFIG).is_file():
        _check_open_clip(folder, where)
        return _refuse_for_questions(where, task, "an open_clip model of two towers")
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{where}: {_what_else(folder)}")
    _check_architecture(read_json(folder / CONFIG), where, task, trusted)
    _check_weights(folder, where)
    if not is_port(folder):
        _check_processor(folder, where)
    return None


def check_output(folders: Sequence[Path], task: str, benchmark: str | None) -> None:
    """Create the output folders. Check that they are writable and do not contain other results.

    Args:
        folders: The output folder of each model, and that of the comparison.
        task: The task.
        benchmark: The benchmark, if any.

    Raises:
        ValueError: If a folder is a file, is not writable, or contains results of another task or benchmark.
    """
    for folder in folders:
        for name in ("results.json", "comparison.json"):
            _check_kind(folder / name, task, benchmark)
    for folder in folders:
        check_writable(folder, "--output-dir")


def check_writable(folder: Path, option: str) -> None:
    """Create a folder and check that it is writable.

    Raises:
        ValueError: If the path is a file, or if the folder is not writable.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"{option} {folder}: {place} is a file. Choose a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{option} {folder}: cannot be written ({error.strerror}). Choose another folder.") from error


def _check_kind(path: Path, task: str, benchmark: str | None) -> None:
    if not path.is_file():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        before = (found["task"], found.get("benchmark"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not results of biomedclip evaluate. Choose another --output-dir.") from error
    if before != (task, benchmark):
        kinds = [f"{kind}{f' on {name}' if name else ''}" for kind, name in (before, (task, benchmark))]
        raise ValueError(
            f"{path} holds results of {kinds[0]}, which {kinds[1]} would replace. Choose another --output-dir."
        )


def _check_on_hub(name: str, where: str, task: str, trusted: bool) -> None:
    if "/" not in name.removeprefix("./"):
        raise FileNotFoundError(f"{where}: there is no such folder (and an id on the Hub would be owner/name).")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"{where}: there is no such folder.")
    try:
        config, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        # An adapter has no model configuration.
        if ADAPTER_CONFIG in str(error) or _has_adapter_on_hub(name):
            return
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(
            f"{where}: there is no such folder, and no such model on the Hub that can be reached ({reason})"
        ) from error
    _check_architecture(config, where, task, trusted)


def _has_adapter_on_hub(name: str) -> bool:
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        return find_adapter_config_file(name) is not None
    except (OSError, ValueError):
        return False


def _check_adapter(folder: Path, where: str, task: str, trusted: bool) -> None:
    config = read_json(folder / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not base or not isinstance(base, str):
        raise ValueError(
            f"{where} is an adapter that names no base model. Set base_model_name_or_path in {ADAPTER_CONFIG}, or "
            "merge the adapter and evaluate the merged model."
        )
    _check_weights(folder, where)
    whole = config.get("modules_to_save") or []
    if "classifier" in whole:
        raise ValueError(
            f"{where} is an adapter with a head ({', '.join(map(str, whole))}), which answers with its own classes. "
            f"{_advice(task)} Of a run with --merge-adapter, the folder merged/ holds the whole model."
        )
    _refuse_for_questions(where, task, "an adapter of two towers")
    try:
        _check_kind_of_model(base, task, trusted)
    except (FileNotFoundError, ValueError) as error:
        reason = str(error).removeprefix(f"--model {base}").removeprefix(":").strip()
        raise type(error)(
            f"{where} is an adapter, and its base model {base} cannot be used: {reason} If the base was moved, correct "
            f"base_model_name_or_path in {ADAPTER_CONFIG}."
        ) from error


def _check_open_clip(folder: Path, where: str) -> None:
    config = read_json(folder / OPEN_CLIP_CONFIG)
    check_known(config, folder / OPEN_CLIP_CONFIG)
    text = config["model_cfg"].get("text_cfg")
    name = str(text.get("hf_model_name")) if isinstance(text, dict) else ""
    if "BiomedBERT" not in name and "PubMedBERT" not in name:
        _check_package("open_clip", f"{where} is in open_clip's layout", 'pip install "biomedclip[open_clip]"')
    if not any(path.suffix in (".safetensors", ".bin", ".pt") for path in folder.iterdir()):
        raise FileNotFoundError(f"{where}: no weights there, such as open_clip_model.safetensors.")


def _check_package(package: str, why: str, remedy: str) -> None:
    if find_spec(package) is None:
        raise ImportError(f"{why}: the model needs the package {package}: {remedy}.")


def _refuse_for_questions(where: str, task: str, what: str) -> None:
    if task == "visual-question-answering":
        raise ValueError(f"{where} is {what} and has no head for questions. {_advice(task)}")


def _advice(task: str) -> str:
    if task == "visual-question-answering":
        return (
            "Train one: biomedclip train --config vqa_rad --model-name-or-path MODEL --train-data ... "
            "--output-dir answers"
        )
    return f"{task} needs a dual encoder, such as the model that it was trained from."


def _check_architecture(config: Any, where: str, task: str, trusted: bool) -> None:
    """Check the model type in a configuration."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"{where}: its {CONFIG} has no model_type, so it is not a model of transformers.")
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    answers = architecture.endswith(("ForVisualQuestionAnswering", "ForQuestionAnswering"))
    if task == "visual-question-answering":
        if architecture and not answers:
            raise ValueError(
                f"{where} has no head for questions ({architecture}): it would answer at random. {_advice(task)}"
            )
        return
    if answers:
        raise ValueError(
            f"{where} answers questions ({architecture}): measure it with biomedclip evaluate "
            f"visual-question-answering. {_advice(task)}"
        )
    if "Classification" in architecture and "ZeroShot" not in architecture:
        raise ValueError(
            f"{where} is a classifier ({architecture}), which has no text tower. {_advice(task)} The accuracy of the "
            "classifier itself is in its train_results.json, and pipeline('image-classification', model=...) gives its "
            "answers."
        )
    if config["model_type"] not in CONFIG_MAPPING:
        if not trusted:
            raise ValueError(
                f"{where}: its model_type {config['model_type']!r} is not one of transformers "
                f"{version('transformers')}."
                + (" Its own code runs with --trust-remote-code alone." if config.get("auto_map") else "")
            )
        return  # the loader handles models with their own code
    model_class = MODEL_MAPPING.get(CONFIG_MAPPING[config["model_type"]], None)
    classes = model_class if isinstance(model_class, tuple) else (model_class,)
    for method in ("get_image_features", "get_text_features"):
        if classes[0] is None or not hasattr(classes[0], method):
            kind = classes[0].__name__ if classes[0] is not None else config["model_type"]
            raise ValueError(f"{where} is a {kind}, not a dual encoder: it has no {method}. {_advice(task)}")


def _check_weights(folder: Path, where: str) -> None:
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    files += sorted(folder.glob("adapter_model.bin"))
    if not files:
        what = "exported graphs, which are not evaluated" if _graphs(folder) else "none of a model"
        raise FileNotFoundError(f"{where}: no weights there (model.safetensors or pytorch_model.bin); it holds {what}.")
    for index in folder.glob("*.index.json"):
        shards = read_json(index).get("weight_map", {})
        if missing := sorted({str(shard) for shard in shards.values() if not (folder / str(shard)).is_file()}):
            raise FileNotFoundError(f"{where}: {index.name} names {missing[0]}, which is missing.")
    for file in files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt"):  # compares the length of the file with its header
                    pass
            except (OSError, SafetensorError) as error:
                raise ValueError(f"{file}: damaged or truncated ({error}).") from error


def _check_processor(folder: Path, where: str) -> None:
    for what, names in (("image processor", _PROCESSOR_FILES), ("tokenizer", _TOKENIZER_FILES)):
        if not any((folder / name).is_file() for name in names):
            raise FileNotFoundError(
                f"{where}: no {what} there ({' or '.join(names)}). Save the processor beside the model: "
                "processor.save_pretrained(folder)."
            )


def _graphs(folder: Path) -> bool:
    return any(folder.glob("*.onnx")) or any(folder.glob("*.xml"))


def _what_else(folder: Path) -> str:
    """Return a description of a folder without a model configuration, and what to do."""
    if not any(folder.iterdir()):
        return "the folder is empty. Name the folder of a model."
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: path.name.split("-")[-1].zfill(12))
    if checkpoints:
        return (
            f"no {CONFIG} there, so its training did not end. Finish it with --resume-from-checkpoint true, or name a "
            f"checkpoint, such as {checkpoints[-1]}."
        )
    if (folder / "report.json").is_file() and (folder / "data").is_dir():
        return "a dataset that biomedclip build wrote, not a model. Pass it as --data."
    if _graphs(folder):
        return "exported graphs, which are not evaluated. Name the model that they were exported from."
    if any((folder / name).is_file() for name in _DATASET_FILES) or any(folder.rglob("*.parquet")):
        return "a dataset, not a model. Pass it as --data."
    if any((folder / name).is_file() for name in (*_PROCESSOR_FILES, *_TOKENIZER_FILES)):
        return f"a processor without a model (no {CONFIG} and no weights). Name the folder of a model."
    if find_images(folder, link_depth=1).images:
        return "a folder of images, not a model. Pass it as --data."
    names = [path.name for path in sorted(folder.iterdir())]
    shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return f"no {CONFIG} there, so it is not a model. It holds {shown}."
