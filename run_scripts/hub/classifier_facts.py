"""Collect the facts of the card of an image classifier: fine-tuned, an adapter, or a few-shot head."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, model_info
from huggingface_hub.errors import HTTPError

from biomedclip.model_cards.classifier_card import includes_training_images
from biomedclip.model_cards.classifier_results import public_measurement, public_recipe, public_training
from biomedclip.model_cards.formatting import PLACEHOLDER, public_name
from biomedclip.model_cards.model_card import is_hub_id
from biomedclip.model_cards.reading import find_file, read_json, read_text, read_yaml
from biomedclip.model_cards.results import RESULT, measures
from biomedclip.source_checks import ADAPTER_CONFIG, FEW_SHOT

from ..classification.calibrations import FILE, read_calibration
from ..classification.classifiers import MULTI_LABEL, check_fine_tuned, config_of_classifier, load_classifier_model
from ..cli.errors import UsageError
from ..cli.options import WRITTEN_RECIPE
from ..cli.reporting import UNDEFINED, say, show_table, versions
from .card_facts import TRAIN_RESULTS, read_part, select_results
from .fingerprints import evaluated_fingerprint


TASK = "image-classification"
_COUNTS = {str: int}
_TRAINING = {
    "classes": [str],
    "steps?": int,
    "images?": _COUNTS,
    "labels?": {str: _COUNTS},
    "groups?": _COUNTS,
    "split_images?": _COUNTS,
    "validation?": {str: object},
    "test?": {str: object},
    "versions": {"biomedclip": str},
}
FACTS = {
    "classifier": bool,
    "model": {"weights": str, "labels": [str]},
    "base": {"name": str, "weights?": str},
    "training?": {str: object},
    "calibration?": {"temperature": (int, float, list)},
    "results": [RESULT],
}


def is_classifier(folder: Path) -> bool:
    """Return whether a folder contains a classifier: fine-tuned, an adapter, or a few-shot head. Nothing is loaded."""
    return folder.is_dir() and config_of_classifier(str(folder)) is not None


def classifier_facts(
    folder: Path,
    *,
    train_run: str | None,
    results: Sequence[str],
    license: str | None,
    base_model: str | None,
    dataset: str | None,
    title: str | None,
    subgroups: Sequence[str] = (),
    name: str = PLACEHOLDER,
) -> tuple[dict[str, Any], list[Path]]:
    """Return the facts that [`fill_classifier_card`] requires, and the files with results of other weights.

    The facts contain no names of files and patients. Of the columns, they contain the findings, and `subgroups` with
    their values.

    Raises:
        FileNotFoundError: If the model, the training run or results do not exist.
        UsageError: If `base_model` or `dataset` is not an id on the Hub, or no result has metrics of a column of
            `subgroups`.
        ValueError: If the model is damaged, or if `results` contains results of other tasks.
    """
    for option, value in (("base-model", base_model), ("dataset", dataset)):
        if value is not None:
            _check_id(option, value)
    config = config_of_classifier(str(folder)) or {}
    several = config.get("problem_type") == MULTI_LABEL
    labels = check_fine_tuned(str(folder), several=several)
    model, _ = load_classifier_model(str(folder))
    weights = evaluated_fingerprint(model)
    run = Path(train_run) if train_run else folder
    trained = read_part(run, TRAIN_RESULTS, _TRAINING)
    if trained is None and train_run is not None:
        raise FileNotFoundError(f"--train-run {run} contains no {TRAIN_RESULTS} from biomedclip train.")
    if trained is not None and trained["classes"] != labels:
        raise ValueError(
            f"{run / TRAIN_RESULTS} is of a classifier of {', '.join(trained['classes'])}, but the labels of {folder} "
            f"are {', '.join(labels)}. Pass --train-run with the run of this model."
        )
    recipe = read_part(run, WRITTEN_RECIPE, {str: object}, read_yaml) or {}
    selected, left_out = select_results(weights, results)
    if others := [result["task"] for result in selected if result["task"] != TASK]:
        raise ValueError(f"--results contains results of {others[0]}. The card of a classifier states those of {TASK}.")
    _check_subgroups(subgroups, selected)
    base = _base(folder, config, recipe, base_model)
    facts = {
        "classifier": True,
        "title": title
        or (f"Classifier of {len(labels)} findings" if several else f"Classifier of {len(labels)} classes"),
        "name": name,
        "license": license,
        "model": {
            "weights": weights,
            "labels": labels,
            "several": several,
            "type": model.config.model_type,
            "method": config.get("method") if config.get("model_type") == FEW_SHOT else None,
            "needs_package": model.config.model_type.startswith("biomedclip"),
            "parameters": model.num_parameters(),
        },
        "base": base,
        "dataset": dataset,
        "training": trained and public_training(trained),
        "recipe": public_recipe(recipe),
        "calibration": _calibration(folder, labels, weights),
        "results": [public_measurement(result, labels, subgroups) for result in selected],
        "date": date.today().isoformat(),
        "versions": versions(),
    }
    return facts, left_out


def _check_id(option: str, value: str) -> None:
    """Raise `UsageError` unless a value is an id on the Hub that transformers cannot take for a folder."""
    if not is_hub_id(value):
        raise UsageError(f"--{option} {value} of a classifier must be an id on the Hub, such as my-lab/{option}.")
    if Path(value).is_dir():
        raise UsageError(
            f"--{option} {value} of a classifier must be an id on the Hub, but {value} is a folder here, which would "
            "be used instead. Pass the id under which it is published. If this is that id, run the command elsewhere."
        )


def _check_subgroups(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> None:
    measured = list(dict.fromkeys(column for result in results for column in result.get("subgroups") or {}))
    if unknown := [name for name in names if name not in measured]:
        raise UsageError(
            f"--subgroups {unknown[0]}: the results have no metrics of this column, but of "
            f"{', '.join(measured) or 'none'}. Measure them with biomedclip evaluate --subgroup-column."
        )


def _base(folder: Path, config: Mapping[str, Any], recipe: Mapping[str, Any], given: str | None) -> dict[str, Any]:
    """Return the name, license and fingerprint of the base model. A local folder is only named by its last part."""
    adapter = folder / ADAPTER_CONFIG
    stated = config.get("base_model_name_or_path") or recipe.get("model_name_or_path")
    if stated is None and adapter.is_file():
        stated = read_json(adapter).get("base_model_name_or_path")
    place = str(stated or "not recorded")
    name = given or public_name(place)
    return {"name": name, "license": _license_of(given or place), "weights": config.get("base_weights")}


def _license_of(model: str) -> str | None:
    """Return the license that the card of a model in a folder or on the Hub states, or None if it is not known."""
    try:
        if Path(model).is_dir():
            card = find_file(Path(model), "README.md")
            data = None if card is None else ModelCard(read_text(card), ignore_metadata_errors=True).data
        else:
            data = model_info(model, timeout=10).card_data if is_hub_id(model) else None
    except (HTTPError, OSError, ValueError, TypeError, AttributeError):
        return None
    license = None if data is None else data.get("license")
    return license if isinstance(license, str) and license != "unknown" else None


def _calibration(folder: Path, labels: Sequence[str], weights: str) -> dict[str, Any] | None:
    """Return the temperature of the model's `calibration.json`, with what it was fitted on, or None."""
    path = folder / FILE
    if not path.is_file():
        return None
    calibration = read_calibration(path)
    calibration.check(labels, {}, weights)
    fitted_on = calibration.fitted_on
    images = fitted_on.get("images")
    return {
        "temperature": calibration.temperature,
        "images": images if isinstance(images, int) else None,
        "fingerprint": str(fitted_on.get("fingerprint")),
        "seen_in_training": calibration.seen_in_training,
    }


def _temperature(calibration: Mapping[str, Any] | None) -> Any:
    if calibration is None:
        return "not calibrated"
    return "one for each finding" if isinstance(calibration["temperature"], list) else calibration["temperature"]


def show_classifier(facts: Mapping[str, Any], left_out: Sequence[Path]) -> None:
    """Print the facts of the card of a classifier, and the excluded results."""
    training, calibration = facts["training"], facts["calibration"]
    rows: list[tuple[Any, ...]] = [
        ("labels", len(facts["model"]["labels"])),
        ("weights", facts["model"]["weights"]),
        ("base model", facts["base"]["name"]),
        ("license", facts["license"] or "not stated"),
        ("license of the base model", facts["base"]["license"] or "not stated"),
        ("training run", "stated" if training else "not stated"),
        ("training images", (training or {}).get("split_images", {}).get("train", "not recorded")),
        ("temperature", _temperature(calibration)),
    ]
    for result in facts["results"]:
        first = measures(result)[0]
        split = f"{result['data']['split']} split of {result['benchmark'] or 'own data'}"
        split += " (includes training images)" if includes_training_images(result) else ""
        rows.append((f"{split}: {' '.join(first.path)}", UNDEFINED if first.value is None else first.value))
    if not facts["results"]:
        rows.append(("results", "not measured"))
    show_table(f"Card of {facts['title']}", rows, ["", "value"])
    if left_out:
        say(f"Left out: {len(left_out):,} results of other weights, such as {left_out[0]}")
