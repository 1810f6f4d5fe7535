"""Draws of fractions of the training labels, and the tables of their metrics."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ...cli.reporting import UNDEFINED, say_undefined, show_table


MEASURED = ("accuracy", "balanced_accuracy", "auroc")


def drawn_fractions(fractions: Sequence[float], draws: int, seed: int) -> Iterable[tuple[float, int]]:
    """Return each fraction of the labels with the seed of each of its draws, and show the progress."""
    seeds = [
        (fraction, number)
        for fraction in sorted(fractions)
        for number in range(seed, seed + (draws if fraction < 1 else 1))
    ]
    return tqdm(seeds, desc="Classifiers", unit="fit")


def summarize_draws(by_fraction: Mapping[str, dict[str, Any]], names: Sequence[str]) -> None:
    """Add the mean `NAME` and the standard deviation `NAME_sd` over the draws of each fraction."""
    for summary in by_fraction.values():
        for name in names:
            values = [fit[name] for fit in summary["runs"] if fit[name] is not None]
            summary[name] = float(np.mean(values)) if values else None
            summary[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None


def summary_cells(summary: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return the means of [`summarize_draws`] with their standard deviations, formatted for a table."""
    cells = []
    for name in names:
        value, deviation = summary[name], summary[f"{name}_sd"]
        spread = f" ± {deviation:.3f}" if deviation is not None else ""
        cells.append(UNDEFINED if value is None else f"{value:.3f}{spread}")
    return cells


def show_probe(metrics: dict[str, Any], paper: Mapping[str, Any] | None = None) -> None:
    """Print the metrics by fraction of the labels, the baselines, and the paper's values."""
    published = (paper or {}).get("by_fraction", {})
    largest = [*metrics["by_fraction"]][-1]
    rows: list[tuple[Any, ...]] = []
    for fraction, summary in metrics["by_fraction"].items():
        rows.append((f"{float(fraction):.0%} ({summary['runs'][0]['images']:,})", *summary_cells(summary, MEASURED)))
        if fraction == largest and len(summary["runs"]) == 1:  # several draws have a standard deviation instead
            intervals = [metrics[f"{name}_interval"] for name in MEASURED]
            shown = [f"[{ends[0]:.3f}, {ends[1]:.3f}]" if ends else None for ends in intervals]
            rows.append(("  95 % interval", *shown))
        if fraction in published:
            rows.append(("  paper", *(published[fraction].get(name) for name in MEASURED)))
    rows.append(("chance", metrics["chance"], metrics["chance"], 0.5))
    rows.append(("majority class", metrics["most_frequent_class"], metrics["chance"], 0.5))
    title = f"Linear probe, {metrics['images']:,} test images; mean and standard deviation over draws"
    show_table(title, rows, ["labels", "accuracy", "balanced", "AUROC"])
    say_undefined(metrics)
