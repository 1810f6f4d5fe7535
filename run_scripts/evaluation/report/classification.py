"""The page of a classification: metrics, confusions, curves, reliability, subgroups and the worst errors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cli.html import literal
from ...cli.reporting import format_value
from ..predictions import Predictions
from ..run import with_interval
from .gallery import SHOWN, Entry, gallery, image_of, ranked, verdict
from .page import confusion_table, heading, paragraph, plot, table, write_page
from .plots import plot_curves, plot_reliability
from .robustness import robustness
from .sections import (
    by_fraction,
    environment,
    introduction,
    metrics_table,
    notes,
    prompts,
    subgroups,
    thresholds,
    title_of,
)


MOST_CLASSES = 15  # of the confusion matrix
_TOP = 3  # labels of an image
_METRICS = ("accuracy", "balanced_accuracy", "auroc")


def write_report(path: Path, results: Mapping[str, Any], predictions: Predictions) -> None:
    """Write the report of a classification.

    Args:
        path: The HTML file.
        results: The content of `results.json`.
        predictions: The predictions of the same images. Only the images of the galleries are read.
    """
    number_of = {label: number for number, label in enumerate(predictions.classes)}
    truth = np.array([number_of[str(label)] for label in predictions.true])
    sections = [
        introduction(results, f"{results['metrics']['images']:,} images"),
        notes(results),
        heading("Metrics"),
        _metrics(results),
        by_fraction(results["metrics"], _METRICS),
        heading("Classes"),
        class_table(results["metrics"], predictions, truth),
        confusions(results["metrics"], predictions),
        _plots(results, predictions, truth),
        _decisions(results.get("decisions") or {}),
        subgroups(results.get("subgroups") or {}, _METRICS),
        robustness(results["metrics"]),
        _galleries(predictions, truth),
        prompts(results["settings"]),
        environment(results),
    ]
    write_page(path, title_of(results), sections)


def _metrics(results: Mapping[str, Any]) -> str:
    metrics = results["metrics"]
    present = sum(recall is not None for recall in metrics["recall_of_class"].values())
    balanced = 1 / present if present else None  # balanced accuracy averages the classes that have images
    baselines = dict(zip(_METRICS, (metrics["most_frequent_class"], balanced, 0.5), strict=True))
    chance = paragraph(f"The accuracy of chance is {format_value(metrics['chance'])}.", "muted")
    return metrics_table(metrics, baselines, "always the most frequent class", results["paper"]) + chance


def class_table(metrics: Mapping[str, Any], predictions: Predictions, truth: np.ndarray) -> str:
    """Return a table of the images, recall and precision of each class."""
    answers = [predictions.predicted.count(label) for label in predictions.classes]
    matrix = metrics["confusion_matrix"]
    rows = []
    for number, label in enumerate(predictions.classes):
        right = None if matrix is None else matrix[number][number]
        precision = right / answers[number] if right is not None and answers[number] else None
        recall = metrics["recall_of_class"][label]
        rows.append((label, int((truth == number).sum()), answers[number], recall, precision))
    return table("Images of each class", ["class", "images", "predicted", "recall", "precision"], rows)


def confusions(metrics: Mapping[str, Any], predictions: Predictions) -> str:
    """Return the confusion matrix, or the most frequent confusions of many classes."""
    matrix, classes = metrics["confusion_matrix"], list(predictions.classes)
    if matrix is None:
        return ""
    if len(classes) > MOST_CLASSES:
        pairs = [
            (f"{classes[true]} as {classes[given]}", count)
            for true, row in enumerate(matrix)
            for given, count in enumerate(row)
            if true != given and count
        ]
        most = sorted(pairs, key=lambda pair: -pair[1])[:20]
        return table("The most frequent confusions", ["true class as predicted class", "images"], most)
    return confusion_table("Confusion matrix: true classes in rows, predicted classes in columns", classes, matrix)


def _plots(results: Mapping[str, Any], predictions: Predictions, truth: np.ndarray) -> str:
    probabilities = predictions.probabilities
    if not np.isfinite(probabilities).all():
        return ""
    positive = results["settings"].get("positive")
    place = len(predictions.classes) - 1 if positive is None else list(predictions.classes).index(positive)
    curves = plot_curves(probabilities, truth, predictions.classes, place)
    reliability = plot_reliability(results.get("decisions") or {})
    parts = [
        (curves, "ROC curves and precision-recall curves", "ROC and precision-recall curves"),
        (reliability, "Accuracy by confidence, and accuracy by the fraction of answered images", "Reliability"),
    ]
    return "".join(f"{heading(title)}{plot(png, alt)}" for png, alt, title in parts if png)


def _decisions(decisions: Mapping[str, Any]) -> str:
    if not decisions.get("calibration"):
        return ""
    after, before = decisions["calibration"], decisions.get("before_calibration")
    parts = [before, after] if before else [after]
    rows: list[Sequence[Any]] = [
        ("expected calibration error, fixed bins", *(part["ece"] for part in parts)),
        ("of a calibrated model with these confidences", *(part["ece_if_calibrated"]["mean"] for part in parts)),
        ("expected calibration error, adaptive bins", *(part["adaptive_ece"] for part in parts)),
        ("Brier score", *(with_interval(part, "brier") for part in parts)),
        ("negative log-likelihood", *(with_interval(part, "nll") for part in parts)),
        ("mean confidence", *(part["confidence"] for part in parts)),
    ]
    caption = f"Calibration, temperature {decisions['temperature']:.4g}" if before else "Calibration"
    html = table(caption, ["", *(["before", "after"] if before else ["value"])], rows)
    accuracies = decisions["abstention"]["accuracy_at_coverage"].items()
    shown = [(f"{float(part):.0%} most confident", value) for part, value in accuracies]
    html += table("Accuracy if the model abstains from the other images", ["images", "accuracy"], shown)
    html += thresholds(decisions.get("operating_points") or [], "class")
    if sets := decisions.get("prediction_sets"):
        rows = [
            (f"{entry['coverage']:g}", with_interval(entry, "measured_coverage"), entry["mean_size"]) for entry in sets
        ]
        html += table("Prediction sets", ["stated coverage", "measured coverage", "mean number of classes"], rows)
    return html


def _galleries(predictions: Predictions, truth: np.ndarray) -> str:
    probabilities = predictions.probabilities
    known = np.isfinite(probabilities).all(axis=1)
    wrong = np.array([given != true for given, true in zip(predictions.predicted, predictions.true, strict=True)])
    own = probabilities[np.arange(len(truth)), truth]
    errors = [row for row in np.argsort(own, kind="stable").tolist() if wrong[row] and known[row]][:SHOWN]
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nansum(probabilities * np.log(probabilities), axis=1)  # 0 log 0 is NaN and counts as 0
    uncertain = [row for row in np.argsort(-entropy, kind="stable").tolist() if known[row]][:SHOWN]
    html = heading("The worst errors") + paragraph("Wrong predictions with the lowest probability of the true class.")
    html += image_gallery(predictions, errors) if errors else paragraph("There are no errors.")
    html += heading("The least certain images")
    return (
        html + paragraph("Images whose probabilities have the highest entropy.") + image_gallery(predictions, uncertain)
    )


def image_gallery(predictions: Predictions, rows: Sequence[int]) -> str:
    """Return thumbnails of images with their true class and their most probable classes."""
    return gallery(_entry(predictions, row) for row in rows)


def _entry(predictions: Predictions, row: int) -> Entry:
    file, true, given = predictions.files[row], predictions.true[row], predictions.predicted[row]
    probabilities = predictions.probabilities[row]
    best = np.argsort(-probabilities, kind="stable")[:_TOP]
    labels = ranked((predictions.classes[number], probabilities[number]) for number in best.tolist())
    caption = f"{literal(file)}<br>true: <strong>{literal(true)}</strong>, {verdict(given == true)}{labels}"
    return Entry(image_of(predictions.images, row), f"{file}, true class {true}, predicted class {given}", caption)
