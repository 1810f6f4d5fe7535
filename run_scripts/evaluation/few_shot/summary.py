"""Means over draws with their intervals, and the table of few-shot learning."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from ...cli.reporting import UNDEFINED, show_table
from .intervals import mean_interval


# Metrics of a base-to-novel split.
PARTS = ("base_accuracy", "novel_accuracy", "harmonic_mean_accuracy")


def harmonic_mean(base: float, novel: float) -> float:
    """Return the harmonic mean of two accuracies, which is 0 if both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


# A value for each test image of a fit, whose mean is the metric.
Values = Callable[[Mapping[str, Any], str], "np.ndarray | None"]


def harmonic_values(base: np.ndarray, novel: np.ndarray) -> np.ndarray:
    """Return a value for each base and novel image, whose mean is the harmonic mean of the two accuracies.

    The values are the influence of the images on the harmonic mean. `base` and `novel` state whether the answers are
    right.
    """
    accuracies = base.mean(), novel.mean()
    if not sum(accuracies):
        return np.zeros(len(base) + len(novel))
    slopes = [2 * (other / sum(accuracies)) ** 2 for other in accuracies[::-1]]
    images = len(base) + len(novel)
    return np.concatenate(
        [right * slope * images / len(right) for right, slope in zip((base, novel), slopes, strict=True)]
    )


def summarize(
    fits: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    values: Values | None = None,
    groups: Callable[[str], Sequence[Any] | None] = lambda metric: None,
) -> dict[str, dict[str, Any]]:
    """Return, by method and number of shots, the mean of each metric over the draws.

    `METRIC_sd` is the standard deviation over the draws, and None for a single one. `METRIC_interval` is the 95 %
    interval of the mean, cut at 0 and 1. If `values` returns a value for each test image, it covers the choice of the
    draws and of the test images (see [`mean_interval`]), and for a single draw only that of the test images. Otherwise,
    it is that of Student's t distribution and covers only the choice of the draws. It is None if it cannot be
    estimated.

    Args:
        fits: The metrics of each fit, with its `method`, `shots` and `seed`.
        metrics: Names of the metrics.
        values: Returns the values of a fit and a metric.
        groups: Returns the patient or source of each test image of a metric.
    """
    by_method: dict[str, dict[str, Any]] = {}
    of_runs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in fits:
        key = entry["method"], str(entry["shots"])
        runs = by_method.setdefault(key[0], {}).setdefault(key[1], {"runs": []})["runs"]
        runs.append({name: value for name, value in entry.items() if name not in ("method", "shots")})
        of_runs.setdefault(key, []).append(entry)
    for (method, shots), entries in of_runs.items():
        for name in metrics:
            known = [entry for entry in entries if entry[name] is not None]
            numbers = [entry[name] for entry in known]
            mean = float(np.mean(numbers)) if numbers else None
            deviation = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
            of_images = [found for entry in known if values and (found := values(entry, name)) is not None]
            interval = None
            if of_images:
                interval = mean_interval(np.stack(of_images), groups(name))
            elif mean is not None and deviation:
                half = float(t.ppf(0.975, len(numbers) - 1)) * deviation / len(numbers) ** 0.5
                interval = [mean - half, mean + half]
            cut = [max(0.0, interval[0]), min(1.0, interval[1])] if interval else None
            by_method[method][shots] |= {name: mean, f"{name}_sd": deviation, f"{name}_interval": cut}
    return by_method


def show_few_shot(metrics: Mapping[str, Any]) -> None:
    """Print the accuracies by method and number of shots, with their intervals, and the baselines."""
    by_method = metrics["by_method"]
    shots = sorted({int(count) for by_shots in by_method.values() for count in by_shots} - {0})
    if "base_classes" in metrics:
        return _show_base_to_novel(metrics)
    rows: list[tuple[Any, ...]] = []
    for method, by_shots in by_method.items():
        columns = [by_shots.get(str(count), by_shots.get("0")) for count in shots or [0]]
        rows.append((method, *(_mean(column, "accuracy") for column in columns)))
        if any(column and column["accuracy_interval"] for column in columns):
            rows.append(("  95 % interval", *(_interval(column, "accuracy") for column in columns)))
    for name, label in (("chance", "chance"), ("most_frequent_class", "majority class")):
        rows.append((label, *[f"{metrics[name]:.3f}"] * max(1, len(shots))))
    draws = max(len(summary["runs"]) for by_shots in by_method.values() for summary in by_shots.values())
    title = f"Few-shot accuracy, {metrics['images']:,} test images, mean of {draws} draws"
    show_table(title, rows, ["shots of a class", *(map(str, shots) if shots else ["0"])])
    return None


def _show_base_to_novel(metrics: Mapping[str, Any]) -> None:
    rows: list[tuple[Any, ...]] = []
    for method, by_shots in metrics["by_method"].items():
        for count, summary in by_shots.items():
            rows.append((method if count == "0" else f"{method}, {count}", *(_mean(summary, name) for name in PARTS)))
            if intervals := [_interval(summary, name) for name in PARTS if summary[f"{name}_interval"]]:
                rows.append(("  95 % interval", *intervals))
    base, novel = len(metrics["base_classes"]), len(metrics["novel_classes"])
    title = f"Accuracy on {base} base and {novel} novel classes"
    show_table(title, rows, ["shots of a class", "base", "novel", "harmonic mean"])


def _mean(summary: Mapping[str, Any] | None, name: str) -> str | None:
    if summary is None:
        return None
    return UNDEFINED if summary[name] is None else f"{summary[name]:.3f}"


def _interval(summary: Mapping[str, Any] | None, name: str) -> str | None:
    interval = summary[f"{name}_interval"] if summary else None
    return f"{interval[0]:.2f}-{interval[1]:.2f}" if interval else None
