"""Options of `biomedclip evaluate` for calibration, decisions and reports."""

from dataclasses import dataclass
from typing import Any

from ..cli.errors import UsageError
from ..cli.fields import option
from .predictions import PROBABILITY, RESERVED, SET


# Options that need a validation split.
OF_VALIDATION = ("calibrate", "sensitivity", "specificity", "coverage")


@dataclass(kw_only=True)
class DecisionOptions:
    """Options of the report, and of what is fitted on the validation split and measured on another one."""

    report: bool = option(False, "Write report.html: metrics, plots and the worst errors on one page (default: no).")
    subgroup_column: list[str] = option(
        [], "Columns of own data, such as sex or device. The metrics of each of their values are reported."
    )
    calibrate: bool = option(
        False,
        "Fit a temperature (of each finding) on the validation split, and write it to calibration.json for classify "
        "(default: no). That of a linear probe or of prompt pairs is only in results.json.",
    )
    sensitivity: list[float] = option([], "Choose thresholds with these sensitivities on the validation split.")
    specificity: list[float] = option([], "Choose thresholds with these specificities on the validation split.")
    coverage: list[float] = option(
        [], "Prediction sets that contain the true class with these probabilities, such as 0.9."
    )


def given_decisions(options: Any) -> list[str]:
    """Return the given options that need a validation split."""
    return [name for name in OF_VALIDATION if getattr(options, name, None)]


def check_decisions(options: Any) -> None:
    """Raise `UsageError` if a value is impossible or repeated, or if the validation split itself would be measured.

    A subgroup column must not have the name of another column of the predictions.
    """
    for column in getattr(options, "subgroup_column", []):
        if column in RESERVED or column.startswith((PROBABILITY, SET)):
            raise UsageError(
                f"--subgroup-column {column}: the predictions have another column of this name. Rename it in the table."
            )
    for name in ("subgroup_column", "sensitivity", "specificity", "coverage"):
        given = [value if isinstance(value, str) else f"{value:g}" for value in getattr(options, name, [])]
        if repeated := [value for value in given if given.count(value) > 1]:
            raise UsageError(f"--{name.replace('_', '-')} has {repeated[0]} more than once. Pass it once.")
    for name in ("sensitivity", "specificity", "coverage"):
        for value in getattr(options, name, []):
            if not 0 < value < 1 + (name != "coverage") * 1e-12:
                least = "below 1" if name == "coverage" else "at most 1"
                raise UsageError(f"--{name} must be above 0 and {least}, not {value}.")
    if (fitted := given_decisions(options)) and options.task == "image-classification" and options.split == "train":
        raise UsageError(f"--{fitted[0]} cannot be measured on the training images. Omit --split.")
    if (fitted := given_decisions(options)) and options.split == "validation":
        raise UsageError(
            f"--{fitted[0]} is fitted on the validation split and must be measured on another one. Omit --split."
        )
