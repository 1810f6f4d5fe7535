"""The page of images with several findings: metrics, curves, calibration, subgroups, and the worst errors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...cli.html import literal
from ...cli.reporting import UNDEFINED
from ..findings.metrics import METRICS
from ..predictions import Predictions
from ..run import metric_words, with_interval
from .finding_plots import plot_finding_curves, plot_finding_reliability
from .gallery import Entry, gallery, image_of
from .page import heading, paragraph, plot, table, write_page
from .plots import MOST_CURVES
from .robustness import robustness
from .sections import by_fraction, environment, introduction, notes, thresholds, title_of


SHOWN = 5  # false positives, and false negatives, of each finding
MOST_FINDINGS = 20  # with galleries


def write_findings_report(path: Path, results: Mapping[str, Any], predictions: Predictions) -> None:
    """Write the report of images with several findings.

    Args:
        path: The HTML file.
        results: The content of `results.json`.
        predictions: The predictions of the same images, with their targets. Only the images of the galleries are read.
    """
    metrics, findings = results["metrics"], results["metrics"]["findings"]
    sections = [
        introduction(results, f"{metrics['images']:,} images, {len(findings)} findings"),
        notes(results),
        heading("Findings"),
        _metrics(metrics),
        by_fraction(metrics, METRICS),
        _curves(predictions),
        _calibration(results.get("decisions") or {}),
        _subgroups(results.get("subgroups") or {}),
        robustness(metrics),
        _galleries(metrics, predictions),
        _prompts(results["settings"]),
        environment(results),
    ]
    write_page(path, title_of(results), sections)


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows: list[tuple[Any, ...]] = []
    frequencies: list[float] = []
    for name, found in metrics["findings"].items():
        counts = found["positives"], found["negatives"]
        frequency = counts[0] / sum(counts) if sum(counts) else None
        if frequency is not None and found["average_precision"] is not None:
            frequencies.append(frequency)
        rows.append((name, *counts, found["ignored"], *(_value(found, metric) for metric in METRICS), frequency))
    mean = float(np.mean(frequencies)) if frequencies else None
    rows.append(("mean", "", "", "", *(_value(metrics, metric) for metric in METRICS), mean))
    columns = ["finding", "with", "without", "ignored", *map(metric_words, METRICS), "average precision of chance"]
    chance = paragraph(
        "The AUROC of chance is 0.5. The average precision of chance is the fraction of images with the finding.",
        "muted",
    )
    return table("Metrics, with 95 % bootstrap intervals over patients or images", columns, rows) + chance


def _value(found: Mapping[str, Any], name: str) -> str:
    return UNDEFINED if found[name] is None else with_interval(found, name)


def _curves(predictions: Predictions) -> str:
    png = plot_finding_curves(predictions.probabilities, _targets(predictions), predictions.classes)
    if png is None:
        return ""
    most = f"The {MOST_CURVES} findings with the lowest AUROC." if len(predictions.classes) > MOST_CURVES else ""
    title = "ROC and precision-recall curves"
    return heading(title) + (paragraph(most, "muted") if most else "") + plot(png, title)


def _calibration(decisions: Mapping[str, Any]) -> str:
    findings = decisions.get("findings") or {}
    if not findings:
        return ""
    before = "before_calibration" in decisions
    rows = []
    for name, found in findings.items():
        parts = [found["before_calibration"], found["calibration"]] if before else [found["calibration"]]
        fitted = [f"{decisions[key][name]:.3g}" for key in ("temperature", "bias")] if before else []
        values = [" → ".join(f"{part[key]:.3f}" for part in parts) for key in ("ece", "adaptive_ece")]
        expected = " → ".join(f"{part['ece_if_calibrated']['mean']:.3f}" for part in parts)
        scores = [" → ".join(with_interval(part, key) for part in parts) for key in ("brier", "nll")]
        rows.append((name, *fitted, values[0], expected, values[1], *scores))
    fitted_columns = ["temperature", "bias"] if before else []
    columns = ["finding", *fitted_columns, "calibration error", "if it were calibrated", "adaptive bins"]
    columns += ["Brier score", "negative log-likelihood"]
    html = heading("Calibration")
    html += table(f"Calibration{', before → after' if before else ''}, with 95 % intervals", columns, rows)
    html += plot(
        plot_finding_reliability(findings), "Frequency of each finding by its probability, in bins of equal size"
    )
    return html + thresholds(decisions.get("operating_points") or [], "finding")


def _subgroups(subgroups: Mapping[str, Mapping[str, Any]]) -> str:
    if not subgroups:
        return ""
    html = heading("Subgroups")
    for column, values in subgroups.items():
        entries = [
            (f"{name}: {value}", of_value["findings"][name])
            for name in next(iter(values.values()))["findings"]
            for value, of_value in values.items()
        ]
        few = any(found["few"] for _, found in entries)
        rows = [
            (
                name,
                found["positives"],
                found["negatives"],
                *(_value(found, metric) for metric in METRICS),
                *(["few images" if found["few"] else ""] if few else []),
            )
            for name, found in entries
        ]
        columns = ["subgroup", "with", "without", *map(metric_words, METRICS), *(["warning"] if few else [])]
        html += table(f"By {column}, with 95 % intervals", columns, rows)
        if few:
            html += paragraph("Intervals of few images are unreliable. Do not compare these subgroups.", "warning")
    return html + paragraph(
        "The average precision depends on the fraction of images with the finding, which differs between subgroups.",
        "muted",
    )


def _galleries(metrics: Mapping[str, Any], predictions: Predictions) -> str:
    """Return the images without a finding and its highest probabilities, and those with it and its lowest ones."""
    targets, probabilities = _targets(predictions), predictions.probabilities
    html = heading("The worst errors")
    numbers = [*range(len(predictions.classes))]
    if len(numbers) > MOST_FINDINGS:
        areas = [found["auroc"] for found in metrics["findings"].values()]
        numbers.sort(key=lambda number: 2.0 if areas[number] is None else areas[number])
        numbers = sorted(numbers[:MOST_FINDINGS])
        html += paragraph(f"The {MOST_FINDINGS} findings with the lowest AUROC.", "muted")
    for number in numbers:
        name = predictions.classes[number]
        for present, title in ((0, "without it, highest probabilities"), (1, "with it, lowest probabilities")):
            rows = np.flatnonzero((targets[:, number] == present) & np.isfinite(probabilities[:, number]))
            order = np.argsort(probabilities[rows, number] * (1 if present else -1), kind="stable")
            entries = [_entry(predictions, row, number) for row in rows[order][:SHOWN].tolist()]
            html += f"<h3>{literal(name)}: images {title}</h3>"
            html += gallery(entries) if entries else paragraph("There are none.", "muted")
    return html


def _entry(predictions: Predictions, row: int, number: int) -> Entry:
    file, name = predictions.files[row], predictions.classes[number]
    true = ", ".join(map(str, predictions.true[row])) or "no finding"
    probability = predictions.probabilities[row, number]
    caption = f"{literal(file)}<br>{literal(name)}: {probability:.3f}<br>true: <strong>{literal(true)}</strong>"
    return Entry(
        image_of(predictions.images, row), f"{file}, true: {true}, probability of {name} {probability:.3f}", caption
    )


def _targets(predictions: Predictions) -> np.ndarray:
    if predictions.targets is None:
        raise ValueError("The report of findings needs the targets of the predictions.")
    return predictions.targets


def _prompts(settings: Mapping[str, Any]) -> str:
    prompts = settings.get("prompts")
    if not prompts:
        return ""
    rows = [(name, "; ".join(pair["positive"]), "; ".join(pair["negative"])) for name, pair in prompts.items()]
    return heading("Prompts") + table("Pairs of prompts", ["finding", "positive", "negative"], rows)
