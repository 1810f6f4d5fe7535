"""Calibrate a classifier on validation images, and measure its probabilities and decisions on others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..classification.calibrations import FILE, Calibration, load_calibration
from ..cli.reporting import say, show_table
from .calibration import LARGEST_TEMPERATURE, fit_temperature, measure_calibration, softmax
from .decision_options import given_decisions
from .decisions import (
    conformal_threshold,
    fewest_images,
    measure_abstention,
    measure_sets,
    operating_point,
)
from .predictions import SET
from .run import with_interval


FEW_VALIDATION = 100  # with fewer validation images, a note states that the fitted values are uncertain


@dataclass(frozen=True)
class Scored:
    """The logits `(images, classes)` of images, their class indices, and the patient or source of each if known."""

    logits: np.ndarray
    truth: np.ndarray
    groups: Sequence[str] | None = None


def scored(logits: Any, labels: Sequence[str], classes: Sequence[str], groups: Sequence[str] | None) -> Scored:
    """Return the logits of images with labels."""
    number_of = {label: number for number, label in enumerate(classes)}
    truth = np.array([number_of[label] for label in labels], dtype=np.int64)
    return Scored(np.asarray(logits, dtype=np.float64), truth, groups)


@dataclass(frozen=True)
class Decided:
    """The measured decisions.

    Args:
        temperature: Number by which the logits are divided, 1 if it was neither fitted nor read.
        results: `decisions` of `results.json`.
        sets: Prediction set of each test image by column name.
    """

    temperature: float
    results: dict[str, Any]
    sets: dict[str, list[list[str]]]


def decide(
    test: Scored,
    validation: Scored | None,
    classes: Sequence[str],
    options: Any,
    *,
    positive: str | None = None,
    applied: Calibration | None = None,
) -> Decided:
    """Fit what the options ask for on the validation images, and measure it on the test images.

    Calibration and abstention are always measured. With two classes, a threshold is that of the positive one (default:
    the last). Otherwise each class has one. `applied` is an earlier calibration, for a run without `--calibrate`.

    Raises:
        ValueError: If something cannot be fitted. The message names the option.
    """
    results: dict[str, Any] = {"temperature": None}
    uncalibrated = softmax(test.logits)
    if not np.isfinite(uncalibrated).all():
        reason = "the scores contain NaN or infinity"
        if given := given_decisions(options):
            raise ValueError(f"--{given[0]}: {reason}.")
        return Decided(1.0, results | {"undefined": reason}, {})
    measured: dict[str, Any] = {"groups": test.groups, "seed": options.seed}
    temperature = 1.0
    if validation is not None and options.calibrate:
        try:
            temperature = fit_temperature(validation.logits, validation.truth)
        except ValueError as error:  # a smaller temperature would be dangerous
            results["not_calibrated"] = str(error)
        results["temperature"] = temperature
    elif applied is not None:
        temperature = _single(applied)
        results |= {"temperature": temperature, "calibration_file": FILE}
    if results["temperature"] is not None:
        results["before_calibration"] = measure_calibration(uncalibrated, test.truth, **measured)
    probabilities = softmax(test.logits / temperature)
    results["calibration"] = measure_calibration(probabilities, test.truth, **measured)
    right = probabilities.argmax(axis=1) == test.truth
    results["abstention"] = measure_abstention(probabilities.max(axis=1), right)
    sets: dict[str, list[list[str]]] = {}
    if validation is not None:
        if not np.isfinite(validation.logits).all():
            raise ValueError(f"--{given_decisions(options)[0]}: scores of the validation images are NaN or infinite.")
        results["validation_images"] = len(validation.truth)
        numbers = [classes.index(positive or classes[-1])] if len(classes) == 2 else [*range(len(classes))]
        results |= _thresholds(test, validation, temperature, classes, numbers, options, measured)
        results["prediction_sets"], sets = _prediction_sets(test, validation, classes, options.coverage, measured)
    return Decided(temperature, results, sets)


def _thresholds(
    test: Scored,
    validation: Scored,
    temperature: float,
    classes: Sequence[str],
    numbers: Sequence[int],
    options: Any,
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the operating points of the classes `numbers`, and the classes that have none."""
    of_validation, of_test = (softmax(part.logits / temperature) for part in (validation, test))
    images = np.bincount(validation.truth, minlength=len(classes))
    # A sensitivity needs validation images of the class, and a specificity others.
    lacking = {"sensitivity": images == 0, "specificity": images == len(validation.truth)}
    points = [
        {"class": classes[number]}
        | operating_point(
            goal,
            wanted,
            (of_validation[:, number], validation.truth == number),
            (of_test[:, number], test.truth == number),
            **measured,
        )
        for goal in lacking
        for wanted in getattr(options, goal)
        for number in numbers
        if not lacking[goal][number]
    ]
    without = {
        goal: left_out
        for goal, is_lacking in lacking.items()
        if getattr(options, goal) and (left_out := [classes[number] for number in numbers if is_lacking[number]])
    }
    return {"operating_points": points, "without_threshold": without}


def _prediction_sets(
    test: Scored,
    validation: Scored,
    classes: Sequence[str],
    coverages: Sequence[float],
    measured: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, list[list[str]]]]:
    """Return the measured prediction sets of each coverage, and the set of each test image by column name."""
    entries, sets = [], {}
    for coverage in coverages:
        # The temperature was fitted on the same images, and the guarantee holds only without it.
        threshold = conformal_threshold(softmax(validation.logits), validation.truth, coverage)
        chosen = softmax(test.logits) >= threshold
        entry = {"coverage": coverage, "threshold": threshold if math.isfinite(threshold) else None}
        entries.append(entry | measure_sets(chosen, test.truth, **measured))
        sets[f"{SET}{coverage:g}"] = [[classes[number] for number in np.flatnonzero(row).tolist()] for row in chosen]
    return entries, sets


def _single(calibration: Calibration) -> float:
    assert not isinstance(calibration.temperature, list)  # the weights are those of a classifier of one label
    return calibration.temperature


def notes_on(validation: Scored | None, options: Any, decided: Decided, *, zero_shot: bool = False) -> list[str]:
    """Return notes on what was fitted or read."""
    notes = notes_on_worse(decided.results)
    if validation is None:
        return notes
    images = len(validation.truth)
    notes += [f"{', '.join(f'--{name}' for name in given_decisions(options))}: fitted on {images:,} validation images."]
    if zero_shot:
        notes.append("The labels of the validation images were used, so decisions are not zero-shot.")
    if images < FEW_VALIDATION:
        notes.append(f"Only {images:,} validation images: the fitted values are uncertain.")
    if reason := decided.results.get("not_calibrated"):
        notes.append(f"The temperature stays 1, because {reason}")
    if decided.temperature == LARGEST_TEMPERATURE:
        notes.append(
            f"The temperature is the largest one, {decided.temperature:g}: equal probabilities fit the validation "
            "images better than the scores. Check the labels of these images."
        )
    for goal, left_out in decided.results.get("without_threshold", {}).items():
        which = "this class" if goal == "sensitivity" else "other classes"
        notes.append(
            f"--{goal}: no threshold for {', '.join(map(repr, left_out))}, because the validation split has no images "
            f"of {which}. Add some to it."
        )
    for coverage in options.coverage:
        if images < fewest_images(coverage):
            notes.append(
                f"--coverage {coverage:g} needs {fewest_images(coverage):,} validation images or more. The sets "
                "contain all classes."
            )
    return notes


def notes_on_worse(results: dict[str, Any], of: str = "") -> list[str]:
    """Return a note if the temperature makes the calibration of the test images worse. `of` names a finding."""
    before, after = results.get("before_calibration"), results.get("calibration")
    if not before or not after:
        return []
    names = {"nll": "negative log-likelihood", "ece": "expected calibration error"}
    worse = [
        f"{words} {before[name]:.3f} before, {after[name]:.3f} after"
        for name, words in names.items()
        if round(after[name], 3) > round(before[name], 3)
    ]
    if not worse:
        return []
    return [
        f"The calibration{of} makes these values of the measured images worse: {'; '.join(worse)}. The images may "
        "differ from the validation images, or these are too few."
    ]


def own_calibration(
    model: str, labels: Sequence[str], weights: str, fingerprint: str
) -> tuple[Calibration | None, list[str]]:
    """Return the calibration in the folder of a fine-tuned classifier, as `biomedclip classify` uses it, and notes.

    Args:
        model: Folder or Hub id.
        labels: The labels in the order of the logits.
        weights: Fingerprint of the weights.
        fingerprint: Fingerprint of the measured images.
    """
    calibration = load_calibration(None, model)
    if calibration.path is None:
        return None, []
    if what := calibration.differs(labels, {}, weights):
        return None, [
            f"The calibration of the model was fitted for other {what} and is not applied. biomedclip classify refuses "
            f"{calibration.path}. Fit it again with --calibrate, or remove it."
        ]
    notes = [
        f"The probabilities are calibrated, as in biomedclip classify: {calibration.shown} of {calibration.path}. "
        "decisions has the calibration error before and after."
    ]
    if seen := calibration.seen_in_training:
        notes.append(
            f"{seen:,} of the images on which this calibration was fitted were used to train the classifier, so that "
            "it is wrong for other images. Fit it again on images that the classifier has not seen."
        )
    if calibration.fitted_on.get("fingerprint") == fingerprint:
        notes.append("This calibration was fitted on the measured images, so that its errors are too small.")
    return calibration, notes


def write_calibration(
    decided: Decided,
    folders: Sequence[Path],
    labels: Sequence[str],
    weights: str,
    fitted_on: dict[str, Any],
    prompts: dict[str, list[str]] | None = None,
) -> None:
    """Write `calibration.json` to folders, if a temperature was fitted."""
    store_calibration(
        decided.results, Calibration(decided.temperature, list(labels), weights, prompts, fitted_on), folders
    )


def store_calibration(results: Mapping[str, Any], calibration: Calibration, folders: Sequence[Path]) -> None:
    """Write a calibration to folders, and print where it is, if the `decisions` in `results` were fitted, not read."""
    if results["temperature"] is None or "calibration_file" in results:
        return
    for folder in folders:
        earlier = " (replaces an earlier one)" if (folder / FILE).is_file() else ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            calibration.write(folder / FILE)
            say(f"Calibration in {folder / FILE}{earlier}")
        except OSError as error:
            say(f"Note: {folder / FILE} cannot be written ({error.strerror}). Pass --calibration to classify instead.")


def show_decisions(results: dict[str, Any]) -> None:
    """Print calibration, abstention, operating points and prediction sets."""
    after, before = results.get("calibration"), results.get("before_calibration")
    if after is None:
        return
    parts = [before, after] if before else [after]
    rows: list[tuple[Any, ...]] = [
        ("expected calibration error", *(part["ece"] for part in parts)),
        ("  if it were calibrated", *(part["ece_if_calibrated"]["mean"] for part in parts)),
        ("  adaptive bins", *(part["adaptive_ece"] for part in parts)),
        ("Brier score", *(with_interval(part, "brier") for part in parts)),
        ("negative log-likelihood", *(with_interval(part, "nll") for part in parts)),
    ]
    title = f"Calibration, temperature {results['temperature']:.3f}" if before else "Calibration of the probabilities"
    show_table(f"{title} [95 % interval]", rows, ["", *(["before", "after"] if before else ["value"])])
    abstention = results["abstention"]
    rows = [(f"{float(part):.0%} most confident", value) for part, value in abstention["accuracy_at_coverage"].items()]
    show_table("Accuracy if the model abstains from the others", rows, ["images", "accuracy"])
    show_thresholds(results, "class")
    if sets := results.get("prediction_sets"):
        rows = [
            (f"{entry['coverage']:g}", with_interval(entry, "measured_coverage"), entry["mean_size"]) for entry in sets
        ]
        show_table("Prediction sets [95 % interval]", rows, ["stated coverage", "measured coverage", "mean size"])


def show_thresholds(results: Mapping[str, Any], kind: str) -> None:
    """Print the operating points, if there are any. `kind` is `class` or `finding`."""
    names = ["sensitivity", "specificity"]
    if rows := threshold_rows(results.get("operating_points") or [], names):
        columns = [f"{kind}: wanted", "threshold", *names]
        show_table("Thresholds chosen on the validation split [95 % interval]", rows, columns)


def threshold_rows(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return a row for each operating point: the wanted value, the threshold, and the metrics `names`."""
    return [
        (
            f"{point['class']}: {point['goal']} {point['wanted']:g}",
            point["threshold"],
            *(with_interval(point, name) for name in names),
        )
        for point in points
    ]
