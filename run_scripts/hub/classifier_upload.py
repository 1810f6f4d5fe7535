"""Publish an image classifier: saved again, so that nothing else of its folder can leave this machine."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from transformers import AutoImageProcessor, AutoProcessor

from biomedclip.configuration_few_shot import FewShotConfig
from biomedclip.model_cards.checking import find_problems
from biomedclip.model_cards.classifier_results import public_training
from biomedclip.model_cards.formatting import PLACEHOLDER
from biomedclip.model_cards.model_card import is_hub_id
from biomedclip.model_cards.reading import check_shape, find_file, read_json, read_text, refuse_links_out
from biomedclip.modeling_few_shot import FewShotForImageClassification
from biomedclip.source_checks import FEW_SHOT

from ..classification.calibrations import FILE, read_calibration
from ..classification.classifiers import MULTI_LABEL, check_fine_tuned, config_of_classifier, load_classifier_model
from ..evaluation.verification import LARGEST_DIFFERENCE
from . import model_outputs
from .card_facts import CARD, CARD_FACTS
from .classifier_facts import FACTS
from .fingerprints import base_fingerprint, evaluated_fingerprint
from .model_files import CODE_FILES, INDEX, WEIGHTS, files_from_card, package_code
from .model_upload import Publication, largest_differences, outputs_differ, outputs_in_new_process, write_inputs
from .publishing import as_json, hub_errors


# Files that `save_pretrained` writes. No others are published, except the card and its facts.
_SAVED = {"config.json", INDEX, "preprocessor_config.json", "processor_config.json", "tokenizer.json"}
_SAVED |= {"tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt"}
# Files of a dual encoder on the Hub that transformers does not load in PyTorch.
_NOT_LOADED = ["open_clip_*", "results/*", "onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack"]


def prepare_classifier(folder: Path, repo_id: str, scratch: Path) -> Publication:
    """Load a classifier, and save it below the folder `scratch`. An adapter is merged with its base model.

    Raises:
        FileNotFoundError: If the model or its card is missing.
        ValueError: If the card is incomplete or of other weights, the folder has links that point outside, or the dual
            encoder of a few-shot head has no id on the Hub.
    """
    refuse_links_out(folder)
    config = config_of_classifier(str(folder)) or {}
    labels = check_fine_tuned(str(folder), several=config.get("problem_type") == MULTI_LABEL)
    card, facts = _read_card(folder, repo_id)
    model, processor = load_classifier_model(str(folder))
    weights = evaluated_fingerprint(model)
    if facts["model"]["weights"] != weights:
        raise ValueError(f"{folder / CARD} describes other weights. Run biomedclip card again.")
    is_head, local_base = model.config.model_type == FEW_SHOT, None
    if is_head:
        base = facts["base"]["name"]
        if not is_hub_id(base):
            raise ValueError(
                f"{folder} is a few-shot head, which is loaded with its dual encoder, and {base!r} is not on the Hub. "
                "Publish the dual encoder with biomedclip push, and pass its id to biomedclip card --base-model."
            )
        local_base, model.config.base_model_name_or_path = model.config.base_model_name_or_path, base
        model.config.training = public_training(model.config.training or {})
    saved = scratch / "published"
    model.save_pretrained(saved)
    (AutoProcessor.from_pretrained(folder, trust_remote_code=False) if is_head else processor).save_pretrained(saved)
    files: dict[str, Path | bytes] = {path.name: path for path in sorted(saved.iterdir()) if _is_saved(path.name)}
    files |= {name: path for name, path in package_code().items() if name in files}
    if calibration := find_file(folder, FILE):
        found = read_calibration(calibration)
        found.check(labels, {}, weights)
        fitted_on = {name: found.fitted_on[name] for name in ("fingerprint", "images") if name in found.fitted_on}
        if "seen_in_training" in found.fitted_on:
            fitted_on["seen_in_training"] = {"train": found.seen_in_training}
        files[FILE] = as_json(replace(found, fitted_on=fitted_on).content())
    files |= {CARD: card.encode(), **files_from_card(facts)}
    return Publication(
        title=str(facts["title"]),
        files=files,
        card=card,
        weights=weights,
        left_out={
            name: "not needed to load the model"
            for name in sorted(path.name for path in folder.iterdir())
            if name not in files
        },
        without_open_clip="it is a classifier.",
        compare=partial(_compare, repo_id, model, processor, local_base, scratch),
        check=partial(_check_base, folder, model.config) if is_head else lambda: None,
    )


def _read_card(folder: Path, repo_id: str) -> tuple[str, dict[str, Any]]:
    """Return the card and its facts, with the repository in the code examples."""
    found = {name: find_file(folder, name) for name in (CARD, CARD_FACTS)}
    for name, path in found.items():
        if path is None:
            raise FileNotFoundError(f"{folder / name} is missing. Run biomedclip card.")
    facts = read_json(found[CARD_FACTS])  # type: ignore[arg-type]
    if not isinstance(facts, Mapping) or facts.get("classifier") is not True:
        raise ValueError(f"{folder / CARD_FACTS} is not of a classifier. Run biomedclip card again.")
    check_shape(folder / CARD_FACTS, facts, FACTS)
    card = read_text(found[CARD]).replace(PLACEHOLDER, repo_id)  # type: ignore[arg-type]
    if problems := find_problems(card):
        raise ValueError("\n  ".join([f"{folder / CARD} is not complete. Run biomedclip card, or edit it:", *problems]))
    return card, {**facts, "name": repo_id}


def _is_saved(name: str) -> bool:
    return name in _SAVED or bool(WEIGHTS.fullmatch(name)) or bool(CODE_FILES.fullmatch(name))


def _check_base(folder: Path, config: FewShotConfig) -> None:
    """Raise `ValueError` if the dual encoder of a few-shot head on the Hub has other weights."""
    name = config.base_model_name_or_path
    with hub_errors(f"{name} cannot be read"):
        # from_pretrained(name) would prefer a folder of this name, and no revision could be one of the cache.
        found = base_fingerprint(
            snapshot_download(name, revision=HfApi().model_info(name).sha, ignore_patterns=_NOT_LOADED)
        )
    if found != config.base_weights:
        raise ValueError(
            f"{folder} was fitted on a model with the weights {config.base_weights}, but {name} on the Hub has the "
            f"weights {found}. Pass the id of the same model to biomedclip card --base-model."
        )


def _compare(
    repo_id: str, model: Any, processor: Any, local_base: str | None, scratch: Path, folder: Path
) -> dict[str, float]:
    """Return the largest difference of each output of a downloaded classifier. Raise `ValueError` if they differ.

    A few-shot head needs this package, so it is loaded in this process, with the dual encoder on this machine.
    """
    inputs = write_inputs(scratch)
    if local_base is None:
        outputs = outputs_in_new_process(folder, inputs, scratch)
    else:
        head = FewShotForImageClassification.from_pretrained(
            folder, base_model_name_or_path=local_base, trust_remote_code=False
        )
        own = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        outputs = model_outputs.classifier_outputs(head, own, inputs)
    expected = model_outputs.classifier_outputs(model, processor, inputs)
    differences = largest_differences(outputs, expected)
    # Matrix products may round differently in another process. The error of a logit grows with its size.
    most = LARGEST_DIFFERENCE * max(10.0, expected["logits"].abs().max().item())
    if differences["pixels"] > 0 or differences["logits"] > most:
        raise outputs_differ(repo_id, differences)
    return differences
