"""Calibrate the findings of images on validation images, choose a threshold for each, and measure both on others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from ...classification.calibrations import FILE, Calibration
from ...cli.reporting import show_table
from ..calibration import LARGEST_TEMPERATURE
from ..decision_options import given_decisions
from ..decisions import operating_point
from ..reliability import FEW_VALIDATION, notes_on_worse, show_thresholds, store_calibration
from .calibration import LogOddsCalibration, fit_log_odds, measure_log_odds
from .metrics import unmeasured


FEW_LABELS = 10  # with fewer positive or negative validation labels, a note states that fitted values are uncertain
_MEANS = ("ece", "adaptive_ece", "brier", "nll")


@dataclass(frozen=True)
class ScoredFindings:
    """Log-odds and targets `(images, findings)`, and the patient or source of each image if known.

    A target is 1, 0, or NaN if it is ignored.
    """

    log_odds: np.ndarray
    targets: np.ndarray
    groups: Sequence[str] | None = None

    def of(self, number: int) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
        """Return the log-odds, labels and groups of the images whose label of a finding counts."""
        rows = np.flatnonzero(~np.isnan(self.targets[:, number]))
        groups = None if self.groups is None else [self.groups[row] for row in rows.tolist()]
        return self.log_odds[rows, number], self.targets[rows, number] == 1, groups


@dataclass(frozen=True)
class DecidedFindings:
    """The measured decisions.

    Args:
        calibrations: Calibration of each finding.
        results: `decisions` of `results.json`.
    """

    calibrations: Mapping[str, LogOddsCalibration]
    results: dict[str, Any]

    def calibrated(self, log_odds: np.ndarray) -> np.ndarray:
        """Return calibrated log-odds `(images, findings)`."""
        columns = [found(log_odds[:, number]) for number, found in enumerate(self.calibrations.values())]
        return np.stack(columns, axis=1)


def decide_findings(
    test: ScoredFindings,
    validation: ScoredFindings | None,
    findings: Sequence[str],
    options: Any,
    *,
    applied: Calibration | None = None,
) -> DecidedFindings:
    """Fit what the options ask for on the validation images, and measure it on the test images.

    The calibration of the probabilities is always measured. `undefined` has the reason for each finding that is left
    out, because its scores are NaN or infinite or its labels are all ignored. `applied` is an earlier calibration, with
    the same findings in any order.
    """
    results: dict[str, Any] = {"temperature": None, "findings": {}}
    calibrations = dict.fromkeys(findings, LogOddsCalibration())
    if validation is not None:
        results |= {"validation_images": len(validation.targets), "operating_points": [], "without_threshold": {}}
    if validation is not None and options.calibrate:
        calibrations, results["not_calibrated"] = _fit(validation, findings)
    elif applied is not None:
        calibrations = _read(applied, findings)
        results["calibration_file"] = FILE
    is_calibrated = applied is not None or (validation is not None and bool(options.calibrate))
    if is_calibrated:
        results["temperature"] = {name: found.temperature for name, found in calibrations.items()}
        results["bias"] = {name: found.bias for name, found in calibrations.items()}
    for number, name in enumerate(findings):
        log_odds, positive, groups = test.of(number)
        if reason := unmeasured(log_odds):
            results.setdefault("undefined", {})[name] = reason
            continue
        measured: dict[str, Any] = {"groups": groups, "seed": options.seed}
        found = results["findings"].setdefault(name, {})
        if is_calibrated:
            found["before_calibration"] = measure_log_odds(log_odds, positive, **measured)
        calibrated = calibrations[name](log_odds)
        found["calibration"] = measure_log_odds(calibrated, positive, **measured)
        if validation is not None:
            of_validation, labels, _ = validation.of(number)
            chances = expit(calibrations[name](of_validation)), expit(calibrated)
            _add_thresholds(results, name, chances, (labels, positive), options, measured)
    for part in ("before_calibration", "calibration"):
        parts = [found[part] for found in results["findings"].values() if part in found]
        if parts:
            results[part] = {name: float(np.mean([of_finding[name] for of_finding in parts])) for name in _MEANS}
            expected = [of_finding["ece_if_calibrated"]["mean"] for of_finding in parts]
            results[part]["ece_if_calibrated"] = {"mean": float(np.mean(expected))}
    return DecidedFindings(calibrations, results)


def _fit(validation: ScoredFindings, findings: Sequence[str]) -> tuple[dict[str, LogOddsCalibration], dict[str, str]]:
    """Return the calibration of each finding, and why a finding has none."""
    calibrations, reasons = dict.fromkeys(findings, LogOddsCalibration()), {}
    for number, name in enumerate(findings):
        log_odds, positive, groups = validation.of(number)
        try:
            units = None if groups is None else len(set(groups))
            calibrations[name] = fit_log_odds(log_odds, positive, units=units)
        except ValueError as error:
            reasons[name] = str(error)
    return calibrations, reasons


def _read(applied: Calibration, findings: Sequence[str]) -> dict[str, LogOddsCalibration]:
    assert isinstance(applied.temperature, list) and applied.bias is not None
    found = {
        name: LogOddsCalibration(temperature, bias)
        for name, temperature, bias in zip(applied.labels, applied.temperature, applied.bias, strict=True)
    }
    return {name: found[name] for name in findings}


def _add_thresholds(
    results: dict[str, Any],
    name: str,
    chances: tuple[np.ndarray, np.ndarray],
    labels: tuple[np.ndarray, np.ndarray],
    options: Any,
    measured: dict[str, Any],
) -> None:
    """Add the operating points of a finding. `chances` and `labels` are those of the validation and test images."""
    lacking = {"sensitivity": not labels[0].any(), "specificity": labels[0].all()}  # all() of no labels is true
    for goal, is_lacking in lacking.items():
        wanted_values = getattr(options, goal)
        if wanted_values and (is_lacking or not np.isfinite(chances[0]).all()):
            results["without_threshold"].setdefault(goal, []).append(name)
            continue
        for wanted in wanted_values:
            parts = zip(chances, labels, strict=True)
            results["operating_points"].append({"class": name} | operating_point(goal, wanted, *parts, **measured))


def notes_on_findings(
    validation: ScoredFindings | None,
    findings: Sequence[str],
    options: Any,
    decided: DecidedFindings,
    *,
    zero_shot: bool = False,
) -> list[str]:
    """Return notes on what was fitted or read."""
    results = decided.results
    notes = [note for name, found in results["findings"].items() for note in notes_on_worse(found, f" of {name!r}")]
    undefined = results.get("undefined", {})
    for reason in dict.fromkeys(undefined.values()):
        names = ", ".join(repr(name) for name, why in undefined.items() if why == reason)
        notes.append(f"No calibration and thresholds of {names} are measured: {reason}.")
    if validation is None:
        return notes
    images = len(validation.targets)
    counted = f"{images:,} validation images"
    if validation.groups is not None:
        counted += f" of {len(set(validation.groups)):,} groups"
    notes.append(f"{', '.join(f'--{name}' for name in given_decisions(options))}: fitted on {counted}.")
    if zero_shot:
        notes.append("The labels of the validation images were used, so decisions are not zero-shot.")
    labels = [validation.of(number)[1] for number in range(len(findings))]
    few = [
        f"{name!r} ({positive.sum():,} positive, {(~positive).sum():,} negative)"
        for name, positive in zip(findings, labels, strict=True)
        if min(positive.sum(), (~positive).sum()) < FEW_LABELS
    ]
    if few:
        notes.append(
            f"Fitted values are uncertain for findings with fewer than {FEW_LABELS} positive or negative validation "
            f"images: {', '.join(few)}."
        )
    elif images < FEW_VALIDATION:
        notes.append(f"Only {images:,} validation images: the fitted values are uncertain.")
    for name, reason in results.get("not_calibrated", {}).items():
        notes.append(f"{name!r} is not calibrated: {reason}")
    if weak := [
        name for name, found in decided.calibrations.items() if found.temperature >= LARGEST_TEMPERATURE * 0.999
    ]:
        notes.append(
            f"The temperature is the largest one, {LARGEST_TEMPERATURE:g}, for {', '.join(map(repr, weak))}: their "
            "scores are no better than chance on the validation images."
        )
    for goal, left_out in results["without_threshold"].items():
        which = "with the finding" if goal == "sensitivity" else "without the finding"
        notes.append(
            f"--{goal}: no threshold for {', '.join(map(repr, left_out))}, because the validation split has no images "
            f"{which}, or no finite scores."
        )
    return notes


def write_findings_calibration(
    decided: DecidedFindings, folders: Sequence[Path], labels: Sequence[str], weights: str, fitted_on: dict[str, Any]
) -> None:
    """Write `calibration.json` to folders, if temperatures were fitted. `labels` are in the order of the logits."""
    found = [decided.calibrations[name] for name in labels]
    temperatures, biases = [each.temperature for each in found], [each.bias for each in found]
    store_calibration(
        decided.results, Calibration(temperatures, list(labels), weights, None, fitted_on, bias=biases), folders
    )


def show_finding_decisions(results: Mapping[str, Any]) -> None:
    """Print the calibration and the operating points of each finding. The tables fit on 80 columns."""
    if not results["findings"]:
        return
    before = "before_calibration" in results
    rows: list[tuple[Any, ...]] = []
    for name, found in [*results["findings"].items(), ("mean", results)]:
        parts = [found["before_calibration"], found["calibration"]] if before else [found["calibration"]]
        fitted = []
        if before:
            fitted = ["", ""] if name == "mean" else [f"{results[key][name]:.3g}" for key in ("temperature", "bias")]
        values = ("→".join(f"{part[metric]:.3f}" for part in parts) for metric in ("ece", "brier", "nll"))
        rows.append((name, *fitted, *values))
    columns = ["finding", *(["temperature", "bias"] if before else []), "error", "Brier", "log loss"]
    what = "before → after" if before else "of the probabilities"
    show_table(f"Calibration {what}: expected calibration error, Brier score, log loss", rows, columns)
    show_thresholds(results, "finding")
