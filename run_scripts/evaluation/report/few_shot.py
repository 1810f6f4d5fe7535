"""The page of few-shot learning: methods by shots, and the classes, confusions and errors of the best method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cli.reporting import UNDEFINED
from ..predictions import Predictions
from ..run import metric_words
from .classification import class_table, confusions, image_gallery
from .gallery import SHOWN
from .page import heading, paragraph, plot, table, write_page
from .sections import environment, introduction, notes, prompts, title_of


_BASE_TO_NOVEL = ("base_accuracy", "novel_accuracy", "harmonic_mean_accuracy")


def write_few_shot_report(
    path: Path,
    results: Mapping[str, Any],
    *,
    shown: Mapping[str, Any],
    parts: Mapping[str, tuple[Predictions, Mapping[str, Any]]],
    plots: Mapping[str, Path],
) -> None:
    """Write the report of few-shot learning.

    Args:
        path: The HTML file.
        results: The content of `results.json`.
        shown: The fit whose classes and errors are shown, with its `method`, `shots` and `seed`.
        parts: Its predictions and metrics by the name of the part of the test images: `all`, or `base` and `novel`.
        plots: Files of plots by their headings.
    """
    fit = _words(shown)
    sections = [
        introduction(results, f"{results['metrics']['images']:,} test images"),
        notes(results, leaks=_leaks(results["settings"]["find_leaks"])),
        heading("Methods"),
        _methods(results),
        *(heading(title) + plot(file.read_bytes(), title) for title, file in plots.items()),
        heading(f"Classes, {fit}"),
        paragraph("The method with the highest mean at the most shots. One draw is shown, the first.", "muted"),
        *(_part(name, predictions, metrics) for name, (predictions, metrics) in parts.items()),
        heading("The most confident errors"),
        paragraph(f"Wrong predictions of {fit} with the highest probability."),
        *(_errors(name, predictions) for name, (predictions, _) in parts.items()),
        prompts(results["settings"]),
        environment(results),
    ]
    write_page(path, title_of(results), sections)


def _words(fit: Mapping[str, Any]) -> str:
    drawn = f", {fit['shots']} shots of a class, draw with seed {fit['seed']}" if fit["shots"] else ""
    return f"{fit['method']}{drawn}"


def _leaks(find_leaks: bool | None) -> list[str]:
    if find_leaks is None:  # nothing was drawn
        return []
    if find_leaks:
        return ["No image that was drawn is a copy of a test image, by file, pixels and picture."]
    return ["Copies of test images among the drawn images were not looked for."]


def _methods(results: Mapping[str, Any]) -> str:
    metrics = results["metrics"]
    published = [(entry["model"], entry["values"]["by_method"]) for entry in results["published"]]
    if "base_classes" in metrics:
        html = "".join(
            _table(metric_words(name).capitalize(), name, metrics["by_method"], published) for name in _BASE_TO_NOVEL
        )
        lists = (f"{name.capitalize()} classes: {', '.join(metrics[f'{name}_classes'])}." for name in ("base", "novel"))
        return html + "".join(map(paragraph, lists))
    chance = f"Chance is {metrics['chance']:.3f}, the most frequent class {metrics['most_frequent_class']:.3f}."
    caption = "Accuracy by training images of a class, mean over draws, with 95 % intervals"
    return _table(caption, "accuracy", metrics["by_method"], published) + paragraph(chance, "muted")


def _table(caption: str, name: str, measured: Mapping[str, Any], published: Sequence[tuple[str, Any]]) -> str:
    """Return a table of methods by shots. Published values are below those of the same method."""
    shots = sorted({int(count) for by_shots in measured.values() for count in by_shots} - {0}) or [0]
    methods = dict.fromkeys([*measured, *(method for _, by_method in published for method in by_method)])
    rows: list[tuple[Any, ...]] = []
    for method in methods:
        if method in measured:
            rows.append((method, *(_cell(_of(measured[method], count), name) for count in shots)))
        for model, by_method in published:
            if method in by_method:
                cells = (_cell(_of(by_method[method], count), name) for count in shots)
                rows.append((f"{method}, published ({model})", *cells))
    return table(caption, ["method", *map(str, shots)], rows)


def _of(by_shots: Mapping[str, Any], count: int) -> Mapping[str, Any] | None:
    return by_shots.get(str(count), by_shots.get("0"))


def _cell(summary: Mapping[str, Any] | None, name: str) -> str:
    if summary is None:
        return "-"
    if summary.get(name) is None:
        return UNDEFINED
    interval = summary.get(f"{name}_interval")
    return f"{summary[name]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _part(name: str, predictions: Predictions, metrics: Mapping[str, Any]) -> str:
    number_of = {label: number for number, label in enumerate(predictions.classes)}
    truth = np.array([number_of[str(label)] for label in predictions.true])
    title = "" if name == "all" else paragraph(f"Images of the {name} classes:")
    return title + class_table(metrics, predictions, truth) + confusions(metrics, predictions)


def _errors(name: str, predictions: Predictions) -> str:
    wrong = [
        row
        for row, (given, true) in enumerate(zip(predictions.predicted, predictions.true, strict=True))
        if given is not None and given != true
    ]
    confidence = predictions.probabilities.max(axis=1)
    worst = sorted(wrong, key=lambda row: -confidence[row])[:SHOWN]
    title = "" if name == "all" else paragraph(f"Images of the {name} classes:")
    return title + (image_gallery(predictions, worst) if worst else paragraph("There are no errors."))
