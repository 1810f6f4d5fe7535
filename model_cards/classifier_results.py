"""Select what may be published of the training and the results of a classifier.

The data of a classifier is often private. The fields of training, recipe, evaluation, metrics and decisions, and the
options of commands, are selected from allow-lists. In them are numbers, class names, findings and settings. Subgroups
are published only for the columns that the user names. Names of files, folders, tables and patients stay here.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any


# Options of `train` that the recipe of a card may contain. Others name files, columns or this machine.
RECIPE = frozenset(
    """
    task method shots validation_fraction class_weights uncertain blank label_columns
    lora_rank lora_alpha lora_dropout lora_targets
    learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps
    warmup_steps weight_decay lr_scheduler_type max_grad_norm optim adam_beta1 adam_beta2 adam_epsilon
    seed data_seed bf16 fp16 tf32 load_best_model_at_end metric_for_best_model label_smoothing_factor
    """.split()
)
# Fields of `train_results.json`.
TRAINING = (
    *("task", "method", "shots", "seed", "problem_type", "uncertain", "blank", "chosen"),
    *("split_images", "validation_split", "groups", "images", "labels", "validation", "test", "saved_checkpoint"),
    *("steps", "samples", "batch_size", "processes", "loss", "seconds", "peak_memory_mib", "peak_device_memory_mib"),
    *("substituted_rows", "validation_images", "validation_accuracy", "versions"),
)
_SETTINGS = ("precision", "batch_size", "seed", "labels", "positive", "label_columns", "uncertain", "blank")
_DATA = ("split", "fingerprint", "rows", "selection")
_SEEN = ("train", "validation")  # splits of the training whose images are recognized
_DECISIONS = (
    *("temperature", "bias", "findings", "before_calibration", "calibration", "abstention", "validation_images"),
    *("operating_points", "without_threshold", "prediction_sets", "not_calibrated", "undefined"),
)
_KEPT = ("schema", "task", "benchmark", "date", "paper", "seconds", "versions")
_METRICS = frozenset(
    """
    accuracy accuracy_interval balanced_accuracy balanced_accuracy_interval auroc auroc_interval
    average_precision average_precision_interval chance most_frequent_class images classes recall_of_class
    confusion_matrix findings undefined robustness positives negatives ignored of_class few
    """.split()
)
# Options of `evaluate` whose values a command shows.
_SHOWN = frozenset(
    """
    task benchmark cancer rsna-split split validation-fraction find-leaks label-columns label-separator uncertain blank
    report calibrate sensitivity specificity coverage corruptions batch-size seed workers precision device
    trust-remote-code
    """.split()
)
# Other options, and the word that a command has instead of their values. The rest has VALUE.
_HIDDEN = {
    "model": "MODEL",
    "data": "DATA",
    "output-dir": "RESULTS",
    **dict.fromkeys(("image-root", "image-folder", "features-dir"), "FOLDER"),
    **dict.fromkeys(("config", "prompts"), "FILE"),
    **dict.fromkeys(("image-column", "label-column", "group-column", "split-column"), "COLUMN"),
    "subgroup-column": "COLUMN",
}
# A class or finding as `repr` writes it. Such names are published only if they are labels of the classifier.
_NAME = r"""(?:'[^']*'|"[^"]*")"""
_NAMES = rf"{_NAME}(?:, {_NAME})*"
_OF_LABELS = rf"{_NAME} \([\d,]+ positive, [\d,]+ negative\)"
_LACKING = rf"the images that are (?:kept|held out) have none of {_NAMES}(?: and [\d,]+ more)?"
_RIGHT = r"(?:nearly )?all [\d,]+ validation images are classified right"
_NOT_FINITE = r"of the validation images are NaN or infinite"
# Notes that state numbers only, and the part of others that does. The rest of the notes can name files and patients.
# The card states how many notes have no pattern.
_NOTES = [
    re.compile(pattern)
    for pattern in (
        r"The images have no splits, so all of them are the test split\.",
        r"The \w+ split was drawn from the training images: [\d,]+ of [\d,]+, [^,]*, seed \d+"
        r"(\. Images of one patient may be in both\.?)?",
        r"Leak: [\d,]+ groups",
        r"Leak: [\d,]+ of [\d,]+ \w+ images are, or look like, validation images, on which decisions were fitted\.",
        r"The classifier has no seen_images\.json, so whether it was trained on these images is unknown\.",
        r"[\d,]+ of [\d,]+ validation images were used to train the classifier, which is too certain about them\.",
        r"[\d,]+ of [\d,]+ validation images were those of the training",
        r"[\d,]+ of the images on which this calibration was fitted were used to train the classifier",
        r"The groups were drawn again with seed \d+",
        r"Leaks are unknown without training images\.",
        r"[\d,]+ of [\d,]+ labels are (uncertain|blank)\. They [a-z0-9 ]+ \(\w+='\w+'\)\.",
        r"Only [\d,]+ [a-z ]+: the (intervals are too narrow|fitted values are uncertain)\.",
        rf"No image of the \w+ split is of the class {_NAMES}\.",
        r"(--[a-z]+(, )?)+: fitted on [\d,]+ validation images( of [\d,]+ groups)?\.",
        rf"The temperature stays 1, because ({_RIGHT}|logits {_NOT_FINITE})",
        rf"The temperature is the largest one, [\d.]+(, for {_NAMES}: their scores are no better than chance)?",
        rf"--\w+: no threshold for {_NAMES}, because the validation split has no images (of|with|without) [a-z ]+",
        r"The labels of the validation images were used, so decisions are not zero-shot\.",
        r"[\d,]+ of [\d,]+ images were used to train the classifier\. Its metrics on them are too good\.",
        r"[\d,]+ of [\d,]+ images were validation images of the training",
        r"The probabilities are calibrated, as in biomedclip classify: temperature(s [\d.e-]+ to)? [\d.e-]+",
        r"The calibration of the model was fitted for other \w+ and is not applied\.",
        rf"The calibration( of {_NAME})? makes these values of the measured images worse: "
        r"([a-z -]+ [\d.]+ before, [\d.]+ after(; )?)+",
        rf"{_NAME} is not calibrated: (all [\d,]+ validation labels are [01]|no labels|{_RIGHT}|"
        rf"its scores {_NOT_FINITE}|"
        r"its scores separate the [\d,]+ positive from the [\d,]+ negative validation images [a-z ]+)",
        r"Fitted values are uncertain for findings with fewer than [\d,]+ positive or negative validation images: "
        rf"{_OF_LABELS}(, {_OF_LABELS})*\.",
        rf"Because groups are not split, {_LACKING}( and {_LACKING})?\.",
        r"Without --group-column, the intervals draw single images\. [A-Z][a-z ]+ make them too narrow\.",
        r"Left out, because they are in no list of a split: [\d,]+ of [\d,]+ images",
        r"[\d,]+ of [\d,]+ names in the lists of the splits have no row",
        r"[\d,]+ images, but the published \w+ split has [\d,]+\.",
        r"No calibration and thresholds of '.*' are measured: [\w ,]+\.",
        r"This calibration was fitted on the measured images, so that its errors are too small\.",
        r"--coverage [\d.]+ needs [\d,]+ validation images or more\. The sets contain all classes\.",
    )
]


def public_training(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may be published of `train_results.json`."""
    public = {name: results[name] for name in TRAINING if results.get(name) is not None}
    if "damaged" in results:
        public["damaged_images"] = len(results["damaged"])
    return public


def public_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may be published of the recipe of a training."""
    return {name: value for name, value in recipe.items() if name in RECIPE and value is not None}


def public_measurement(
    result: Mapping[str, Any], classes: Sequence[str], subgroups: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what may be published of a `results.json` of `evaluate image-classification`.

    Args:
        result: The content of `results.json`.
        classes: The labels of the classifier.
        subgroups: Columns whose values are published with their metrics. Values with few images or groups, and findings
            with few labels, are left out, because they can identify a patient.
    """
    data = result["data"]
    damaged, leaks, seen = data.get("damaged"), data.get("leaks"), data.get("seen_in_training")
    measured = result.get("subgroups") or {}
    found, left_out = _subgroups({column: measured[column] for column in subgroups if column in measured})
    notes = data.get("notes") or []
    public = public_notes(notes, classes)
    weights = {name: result["model"][name] for name in ("weights", "base_weights") if name in result["model"]}
    return {
        **{name: result[name] for name in _KEPT if result.get(name) is not None},
        "benchmark": result["benchmark"],
        "command": public_evaluation(result["command"]),
        "model": weights,
        "data": {
            **{name: data[name] for name in _DATA if data.get(name) is not None},
            "damaged_images": None if damaged is None else len(damaged),
            "leaks": leaks and {name: value for name, value in leaks.items() if isinstance(value, int)},
            "seen_in_training": seen and {split: seen[split] for split in _SEEN if split in seen},
            "notes": public,
            "notes_left_out": len(notes) - len(public),
        },
        "metrics": _metrics(result["metrics"]),
        "decisions": {name: value for name, value in (result.get("decisions") or {}).items() if name in _DECISIONS},
        "subgroups": found,
        "subgroups_left_out": left_out,
        "settings": {
            name: value for name, value in (result.get("settings") or {}).items() if name in _SETTINGS and value
        },
    }


def public_notes(notes: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return the notes that state only numbers and classes, without the part that can name files or patients."""
    found = []
    for note in notes:
        matched = next((match for pattern in _NOTES if (match := pattern.match(note))), None)
        # A label of a finding is written as `nodule = 0`.
        quoted = [re.sub(r" = [01]$", "", name[1:-1]) for name in re.findall(_NAME, matched[0] if matched else "")]
        if matched and all(name in classes or name in ("ignore", "zero", "one") for name in quoted):
            found.append(matched[0].rstrip(".") + ".")
    return found


def public_evaluation(command: str) -> str:
    """Return a command of `evaluate` with capital words in place of the names of folders, files and columns."""
    try:
        words = shlex.split(command)
    except ValueError:
        return "biomedclip evaluate image-classification"
    public: list[str] = []
    hidden: str | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, _ = word.removeprefix("--").partition("=")
            name = name.replace("_", "-")
            hidden = None if name in _SHOWN else _HIDDEN.get(name, "VALUE")
            public.append(word if hidden is None else f"--{name}")
            if not equals or hidden is None:
                continue
        if hidden is None:
            public.append(word)
        elif hidden:  # one word instead of all values
            public.append(hidden)
            hidden = ""
    return shlex.join(public)


def _subgroups(subgroups: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the subgroups with enough images, with their findings with enough labels, and the number of the others."""
    kept = {
        column: {value: _metrics(found) for value, found in values.items() if not found.get("few", True)}
        for column, values in subgroups.items()
    }
    left_out = sum(len(values) for values in subgroups.values()) - sum(len(values) for values in kept.values())
    for found in (found for values in kept.values() for found in values.values() if "findings" in found):
        enough = {name: cell for name, cell in found["findings"].items() if not cell.get("few", True)}
        left_out += len(found["findings"]) - len(enough)
        found["findings"] = enough
    return {column: values for column, values in kept.items() if values}, left_out


def _metrics(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name in _METRICS}
