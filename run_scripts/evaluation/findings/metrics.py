"""AUROC and average precision of each finding, with bootstrap intervals over groups such as patients."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...cli.reporting import UNDEFINED, say, show_table
from ..classification import Curve
from ..statistics.bootstrap import MIN_USABLE, bootstrap_weights, percentile_interval


METRICS = ("auroc", "average_precision")


def measure_findings(
    scores: np.ndarray,
    targets: np.ndarray,
    findings: Sequence[str],
    *,
    groups: Sequence[Any] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the scores of findings. Only labels that are not ignored count.

    The average precision is the mean precision over the positive images, as in scikit-learn. The bootstrap draws whole
    groups. Samples in which a finding has labels of one class are left out of its interval, and of that of the means.

    Args:
        scores: Any increasing function of the probability, `(images, findings)`.
        targets: 1 or 0, or NaN for ignored labels, `(images, findings)`.
        findings: Names of the findings.
        groups: Patient or source of each image. Single images are drawn if None.
        resamples: Number of bootstrap samples. 0 for no intervals.
        seed: Seed of the bootstrap.

    Returns:
        `auroc` and `average_precision`: means over the findings that have both classes, each with its 95 % interval
        `..._interval`. `findings` has the same for each finding, and its numbers of `positives`, `negatives` and
        `ignored` labels. `undefined` has the reason for each metric that is None.
    """
    kept = ~np.isnan(targets)
    undefined: dict[str, str] = {}
    details: dict[str, dict[str, Any]] = {}
    curves: dict[str, tuple[Curve, np.ndarray]] = {}
    for number, name in enumerate(findings):
        rows = np.flatnonzero(kept[:, number])
        positive = targets[rows, number] == 1
        positives, negatives = int(positive.sum()), int((~positive).sum())
        counts = {"positives": positives, "negatives": negatives, "ignored": len(targets) - len(rows)}
        details[name] = dict.fromkeys(METRICS) | (
            {f"{metric}_interval": None for metric in METRICS} if resamples else {}
        )
        details[name] |= counts
        if reason := unmeasured(scores[rows, number]):
            undefined[name] = reason
        elif not positives or not negatives:
            undefined[name] = f"all {len(rows):,} labels are {int(positives > 0)}"
        else:
            curves[name] = Curve(scores[rows, number], positive), rows
    result = _values(curves, np.ones(len(targets)))
    for name, values in result.items():
        details[name] |= values
    means: dict[str, Any] = {metric: _mean(result, metric) for metric in METRICS}
    if resamples:
        means |= _intervals(curves, details, len(targets), groups, resamples, seed)
    if undefined:
        means["undefined"] = {f"AUROC and average precision of {name}": why for name, why in undefined.items()}
        if not curves:
            means["undefined"] |= dict.fromkeys(METRICS, "no finding has labels of both classes and finite scores")
    return {**means, "images": len(targets), "findings": details}


def unmeasured(scores: np.ndarray) -> str | None:
    """Return why a finding cannot be measured, or None. `scores` are those of the images whose label counts."""
    if not len(scores):
        return "all labels are ignored"
    bad = int((~np.isfinite(scores)).sum())
    return f"the scores of {bad:,} of {len(scores):,} images are NaN or infinite" if bad else None


def _values(curves: Mapping[str, tuple[Curve, np.ndarray]], weights: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the metrics of the findings whose weighted labels are of both classes."""
    values = {}
    for name, (curve, rows) in curves.items():
        of_rows = weights[rows]
        drawn = of_rows > 0
        if np.any(curve.is_positive & drawn) and np.any(~curve.is_positive & drawn):
            values[name] = {"auroc": curve.area(of_rows), "average_precision": curve.average_precision(of_rows)}
    return values


def finding_curves(scores: np.ndarray, targets: np.ndarray) -> dict[str, tuple[Curve, np.ndarray]]:
    """Return the curve and the rows of each finding (by its number) whose labels are of both classes."""
    curves = {}
    for number, column in enumerate(targets.T):
        rows = np.flatnonzero(~np.isnan(column))
        positive = column[rows] == 1
        if 0 < positive.sum() < len(rows):
            curves[str(number)] = Curve(scores[rows, number], positive), rows
    return curves


def mean_auroc(curves: Mapping[str, tuple[Curve, np.ndarray]], weights: np.ndarray) -> float | None:
    """Return the weighted mean AUROC of findings, or None if it is undefined for one of them."""
    values = _values(curves, weights)
    return _mean(values, "auroc") if len(values) == len(curves) else None


def _mean(values: Mapping[str, Mapping[str, float]], metric: str) -> float | None:
    return float(np.mean([of_finding[metric] for of_finding in values.values()])) if values else None


def _intervals(
    curves: Mapping[str, tuple[Curve, np.ndarray]],
    details: Mapping[str, dict[str, Any]],
    images: int,
    groups: Sequence[Any] | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Add the intervals of the findings to `details`, and return those of the means."""
    drawn = [
        _values(curves, weights)
        for weights in bootstrap_weights(
            np.arange(images) if groups is None else groups, seed=seed, resamples=resamples
        )
    ]
    complete = [values for values in drawn if len(values) == len(curves)]
    means: dict[str, Any] = {}
    for metric in METRICS:
        for name in curves:
            found = [values[name][metric] for values in drawn if name in values]
            usable = len(found) >= MIN_USABLE * resamples
            details[name][f"{metric}_interval"] = percentile_interval(found) if usable else None
        found = [mean for values in complete if (mean := _mean(values, metric)) is not None]
        means[f"{metric}_interval"] = (
            percentile_interval(found) if len(found) >= max(1, MIN_USABLE * resamples) else None
        )
    return means


def show_findings(title: str, metrics: Mapping[str, Any]) -> None:
    """Print the metrics of each finding and their means. The table fits on 80 columns."""
    rows: list[tuple[Any, ...]] = []
    for name, values in metrics["findings"].items():
        rows.append((name, f"{values['positives']:,}", *(_cell(values, metric) for metric in METRICS)))
    rows.append(("mean", None, *(_cell(metrics, metric) for metric in METRICS)))
    show_table(title, rows, ["finding", "positive", "AUROC", "average precision"])
    reasons: dict[str, list[str]] = {}
    for name, why in metrics.get("undefined", {}).items():
        reasons.setdefault(why, []).append(name.removeprefix("AUROC and average precision of "))
    for why, names in reasons.items():
        say(f"Undefined: {', '.join(names)}: {why}.")


def _cell(values: Mapping[str, Any], metric: str) -> str:
    """Return a metric with its interval. Two decimals of the interval keep the table narrow."""
    if values[metric] is None:
        return UNDEFINED
    interval = values.get(f"{metric}_interval")
    return f"{values[metric]:.3f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")
