"""Means over draws with their intervals, and the table of few-shot learning."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from ...cli.reporting import UNDEFINED, show_table


# Metrics of a base-to-novel split.
PARTS = ("base_accuracy", "novel_accuracy", "harmonic_mean_accuracy")


def harmonic_mean(base: float, novel: float) -> float:
    """Return the harmonic mean of two accuracies, which is 0 if both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def summarize(fits: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return, by method and number of shots, the mean of each metric over the draws.

    `METRIC_sd` is the standard deviation, and `METRIC_interval` the 95 % interval of the mean by Student's t
    distribution, cut at 0 and 1. Both are None for a single draw. The intervals cover the draw of the training and
    validation images, but not that of the test images.
    """
    by_method: dict[str, dict[str, Any]] = {}
    for entry in fits:
        runs = by_method.setdefault(entry["method"], {}).setdefault(str(entry["shots"]), {"runs": []})["runs"]
        runs.append({name: value for name, value in entry.items() if name not in ("method", "shots")})
    for by_shots in by_method.values():
        for summary in by_shots.values():
            for name in metrics:
                values = [run[name] for run in summary["runs"] if run[name] is not None]
                mean = float(np.mean(values)) if values else None
                deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
                summary |= {name: mean, f"{name}_sd": deviation, f"{name}_interval": None}
                if mean is not None and deviation is not None:
                    half = float(t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5
                    summary[f"{name}_interval"] = [max(0.0, mean - half), min(1.0, mean + half)]
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
