"""Check before a model is loaded that it fits the task, and that results can be written."""

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PreTrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from biomedclip.conversion.community_port import is_port
from biomedclip.conversion.files import read_json
from biomedclip.export import DESCRIPTION
from biomedclip.processing.images.folders import find_images
from biomedclip.source_checks import ADAPTER_CONFIG, check_source

from ..cli.models import check_model_name, import_optional
from .dual_encoders import BIOVIL, BIOVIL_INSTALL
from .open_clip_folders import INSTALL, check_open_clip_weights, has_biomedclip_text_tower, is_open_clip_folder
from .visual_question_answering import NO_HEAD


CONFIG = "config.json"
QUESTIONS = "visual-question-answering"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
_CONTENTS = {
    "exported graphs, which cannot be evaluated. Pass the model that was exported.": (DESCRIPTION, "*.onnx", "*.xml"),
    "a dataset, not a model. Pass it as --data.": ("**/*.parquet", "dataset_dict.json", "dataset_info.json"),
    f"a processor without a model (no {CONFIG}). Pass the folder of a model.": _PROCESSOR_FILES + _TOKENIZER_FILES,
}
_SHOWN = 5


def check_model(name: str, task: str, *, trust_remote_code: bool = False) -> None:
    """Check that a model can be loaded and fits a task, from its configuration and file names.

    No code of the model is run, and only the headers of its weights are read. For a model on the Hub, only the
    configuration is read. The errors state what the model is and what to do: `FileNotFoundError` for a missing model,
    `ImportError` for a missing package, and `ValueError` for anything else.
    """
    where, folder = f"--model {name}", Path(name)
    if name in BIOVIL:
        import_optional("health_multimodal", where, BIOVIL_INSTALL)
        return _refuse_questions(where, task)
    check_model_name(name)
    check_source(name, trust_remote_code=trust_remote_code)
    if not folder.is_dir():
        config = config_on_hub(name, where)
        return None if config is None else _check_architecture(config, where, task, trust_remote_code)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file():
        return _check_adapter(folder, where, task, trust_remote_code)
    if is_open_clip_folder(folder):
        if not has_biomedclip_text_tower(folder):
            import_optional("open_clip", f"{where} is in open_clip's layout. It", INSTALL)
        check_open_clip_weights(folder)
        return _refuse_questions(where, task)
    if not (folder / CONFIG).is_file() or (folder / DESCRIPTION).is_file():
        raise ValueError(f"{where}: {_describe(folder)}")
    _check_architecture(read_json(folder / CONFIG), where, task, trust_remote_code)
    check_weights(folder, where)
    if not is_port(folder):
        _check_processor(folder, where)
    return None


def check_output(folders: Sequence[Path], task: str, benchmark: str | None) -> None:
    """Create the output folders of the models and of the comparison.

    Raise `ValueError` if a folder is a file, is not writable, or contains results of another task or benchmark.
    """
    for folder in folders:
        for name in ("results.json", "comparison.json"):
            _check_kind(folder / name, task, benchmark)
    for folder in folders:
        check_writable(folder, "--output-dir")


def check_writable(folder: Path, option: str) -> None:
    """Create a folder. Raise `ValueError` if the path is a file, or if the folder is not writable."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir():
        raise ValueError(f"{option} {folder}: {place} is a file. Choose a folder.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"{option} {folder}: cannot be written ({error.strerror}). Choose another folder.") from error


def check_empty_folder(folder: Path, option: str) -> None:
    """Create a folder. Raise `ValueError` if it is not writable, or has files, which new ones could be mixed with."""
    check_writable(folder, option)
    if any(folder.iterdir()):
        raise ValueError(f"{option} {folder} contains files. Choose a new or empty folder.")


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
            f"{path} contains results of {kinds[0]}, and {kinds[1]} would replace them. Choose another --output-dir."
        )


def config_on_hub(name: str, where: str) -> dict[str, Any] | None:
    """Return the configuration of a model on the Hub, or None for an adapter."""
    try:
        if find_adapter_config_file(name) is not None:
            return None
        config, _ = PreTrainedConfig.get_config_dict(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FileNotFoundError(f"{where} is neither a folder nor a model on the Hub ({reason}).") from error
    return config


def _check_adapter(folder: Path, where: str, task: str, trust_remote_code: bool) -> None:
    config = read_json(folder / ADAPTER_CONFIG)
    check_weights(folder, where)
    whole = config.get("modules_to_save") or []
    if "classifier" in whole:
        raise ValueError(
            f"{where} is an adapter with a head ({', '.join(map(str, whole))}), which predicts its own classes. "
            f"{_advice(task)} After training with --merge-adapter, the folder merged/ contains the whole model."
        )
    _refuse_questions(where, task)
    base = str(config.get("base_model_name_or_path"))
    try:
        check_model(base, task, trust_remote_code=trust_remote_code)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(
            f"{where} is an adapter, and its base model cannot be used: {str(error).removeprefix('--model ')} If the "
            f"base was moved, correct base_model_name_or_path in {ADAPTER_CONFIG}."
        ) from error


def _refuse_questions(where: str, task: str) -> None:
    if task == QUESTIONS:
        raise ValueError(NO_HEAD.format(where=where))


def _advice(task: str) -> str:
    return f"{task} requires a dual encoder, such as the model that it was trained from."


def _check_architecture(config: Any, where: str, task: str, trust_remote_code: bool) -> None:
    """Check the model type and the architecture in a configuration."""
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ValueError(f"{where}: its {CONFIG} has no model_type, so it is not a model of transformers.")
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    answers = architecture.endswith(("ForVisualQuestionAnswering", "ForQuestionAnswering"))
    if task == QUESTIONS:
        if architecture and not answers:
            _refuse_questions(f"{where} ({architecture})", task)
        return
    if answers:
        remedy = f"Measure it with biomedclip evaluate {QUESTIONS}. {_advice(task)}"
        raise ValueError(f"{where} is a model for visual question answering ({architecture}). {remedy}")
    if "Classification" in architecture and "ZeroShot" not in architecture:
        raise ValueError(
            f"{where} is a classifier ({architecture}), which has no text tower. Measure it with biomedclip evaluate "
            f"image-classification. {_advice(task)}"
        )
    model_type = config["model_type"]
    if model_type not in CONFIG_MAPPING:
        if trust_remote_code:
            return
        own_code = " It has its own code, which needs --trust-remote-code." if config.get("auto_map") else ""
        known = f"transformers {version('transformers')} does not have the model_type {model_type!r}"
        raise ValueError(f"{where}: {known}.{own_code}")
    classes = MODEL_MAPPING.get(CONFIG_MAPPING[model_type], None)
    model_class = classes[0] if isinstance(classes, tuple) else classes
    for method in ("get_image_features", "get_text_features"):
        if not hasattr(model_class, method):
            kind = model_type if model_class is None else model_class.__name__
            raise ValueError(f"{where} is a {kind}, not a dual encoder: it has no {method}. {_advice(task)}")


def check_weights(folder: Path, where: str) -> None:
    """Check that a folder has weights, and that none of their files is truncated. Only their headers are read."""
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not files:
        names = _names_in(folder)
        raise FileNotFoundError(f"{where}: no weights, such as model.safetensors. The folder contains {names}.")
    for index in folder.glob("*.index.json"):
        shards = read_json(index).get("weight_map", {})
        if missing := sorted({str(shard) for shard in shards.values() if not (folder / str(shard)).is_file()}):
            raise FileNotFoundError(f"{where}: {index.name} lists {missing[0]}, which is missing.")
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
                f"{where}: no {what} ({' or '.join(names)}). Save the processor with the model: "
                "processor.save_pretrained(folder)."
            )


def _describe(folder: Path) -> str:
    """Return what a folder without a model configuration contains, and what to do."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: path.name.split("-")[-1].zfill(12))
    if checkpoints:
        return (
            f"no {CONFIG}, so its training did not end. Finish it with --resume-from-checkpoint true, or pass a "
            f"checkpoint, such as {checkpoints[-1]}."
        )
    for what, patterns in _CONTENTS.items():
        if any(any(folder.glob(pattern)) for pattern in patterns):
            return what
    if find_images(folder, link_depth=1).images:
        return "a folder of images, not a model. Pass it as --data."
    return f"no {CONFIG}, so it is not a model. It contains {_names_in(folder)}."


def _names_in(folder: Path) -> str:
    names = [path.name for path in sorted(folder.iterdir())]
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") if names else "no files"
