"""Write `report.html` of a classification: one page with metrics, plots, errors and subgroups, for people.

The page loads nothing from other files or servers and runs no scripts. All texts of the data are escaped.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biomedclip.model_cards.model_card import TASKS
from biomedclip.processing.files import write_text
from biomedclip.processing.images.reading import read_row_image

from ..cli.html import document, literal
from ..cli.reporting import UNDEFINED, format_value
from ..embedding.thumbnails import data_url, jpeg
from .predictions import Predictions
from .report_plots import plot_curves, plot_reliability
from .run import metric_words, with_interval


SHOWN = 25  # images in each gallery
MOST_ROWS = 100  # of a table
MOST_CLASSES = 15  # of the confusion matrix
LEAKS = {
    "same_group": "same patient or source",
    "same_name": "same name",
    "same_bytes": "same file",
    "same_picture": "look alike, please check",
}
_SIDE = 180  # pixels of a thumbnail
_TOP = 3  # labels of an image
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem; color: #1c1c1c;
  background: #fff; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #d0d0d0; }
p, li { overflow-wrap: anywhere; }
td, th { overflow-wrap: break-word; max-width: 24rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
caption { text-align: left; font-weight: 600; padding: .2rem 0; }
th, td { border: 1px solid #d0d0d0; padding: .25rem .5rem; text-align: left; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.matrix td { text-align: center; min-width: 2.2rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.notes { background: #fff6e0; border: 1px solid #e2c275; padding: .3rem 1rem; border-radius: 6px; }
.notes ul { padding-left: 1rem; }
.warning { color: #9a3412; font-weight: 600; }
img.plot { max-width: 100%; height: auto; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .8rem; }
figure { margin: 0; border: 1px solid #d0d0d0; border-radius: 6px; padding: .5rem; break-inside: avoid; min-width: 0; }
figure .image { height: 9rem; display: flex; align-items: center; justify-content: center; background: #f3f3f3; }
figure img { width: 100%; height: 9rem; object-fit: contain; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
figcaption ol { margin: .2rem 0 0; padding-left: 1.3rem; }
.right { color: #166534; }
.wrong { color: #9a3412; }
.muted { color: #595959; }
footer { margin-top: 2rem; color: #595959; font-size: .85rem; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } h2 { break-after: avoid; }
  table, img.plot { break-inside: avoid; } .images { grid-template-columns: repeat(5, 1fr); }
  .wide { overflow: visible; } }
"""


def write_report(path: Path, results: Mapping[str, Any], predictions: Predictions) -> None:
    """Write the report of a classification.

    Args:
        path: The HTML file.
        results: The content of `results.json`.
        predictions: The predictions of the same images. Only the images of the galleries are read.
    """
    task = TASKS.get(results["task"], (results["task"],))[0]
    data = results["benchmark"] or Path(results["data"]["path"]).name
    title = f"{task} on {data}"
    number_of = {label: number for number, label in enumerate(predictions.classes)}
    truth = np.array([number_of[str(label)] for label in predictions.true])
    sections = [
        f"<h1>{literal(title)}</h1>",
        _paragraph(f"Model {results['model']['name']}, {results['metrics']['images']:,} images, {results['date']}."),
        _notes(results),
        "<h2>Metrics</h2>",
        _metrics(results),
        "<h2>Classes</h2>",
        _classes(results, predictions, truth),
        _confusion(results["metrics"], predictions),
        _plots(results, predictions, truth),
        _decisions(results.get("decisions") or {}),
        _subgroups(results.get("subgroups") or {}),
        _galleries(predictions, truth),
        _prompts(results["settings"]),
        _environment(results),
        "<footer>Not for clinical use. Probabilities and images may be wrong.</footer>",
    ]
    write_text(path, document(title, "\n".join(filter(None, sections)), _STYLE))


def _paragraph(text: str, kind: str = "") -> str:
    return f"<p{f' class={kind!r}' if kind else ''}>{literal(text)}</p>"


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], rest: str = "") -> str:
    """Return a table whose first column has the names of the rows. Long tables are cut."""
    found = [[*row] for row in rows]
    lines = []
    for row in found[:MOST_ROWS]:
        cells = "".join(
            f'<td class="number">{literal(format_value(value))}</td>'
            if isinstance(value, int | float | None)
            else f"<td>{literal(value)}</td>"
            for value in row[1:]
        )
        lines.append(f'<tr><th scope="row">{literal(row[0])}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{literal(column)}</th>' for column in columns)
    cut = _paragraph(f"{len(found) - MOST_ROWS:,} more rows are in results.json.", "muted")
    return (
        f'<div class="wide"><table><caption>{literal(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{cut if len(found) > MOST_ROWS else ''}{rest}"
    )


def _notes(results: Mapping[str, Any]) -> str:
    data = results["data"]
    notes = list(data["notes"])
    undefined = results["metrics"].get("undefined") or {}
    notes += [f"Undefined: {name.replace('_', ' ')}: {reason}." for name, reason in undefined.items()]
    if data["damaged"]:
        first = ", ".join(f"{entry['name']} ({entry['reason']})" for entry in data["damaged"][:5])
        notes.append(f"{len(data['damaged']):,} images cannot be read and are excluded, such as {first}.")
    if (leaks := data["leaks"]) is None:
        notes.append("Leaks between training and test images were not looked for.")
    elif leaks["leaked"]:
        examples = [
            f"{pair['test']} and {pair['train']} ({LEAKS[reason]})"
            for reason, pairs in leaks["examples"].items()
            for pair in pairs
        ]
        notes.append(
            f"Leaks: {leaks['leaked']:,} of {leaks['test_images']:,} test images are, or look like, training images: "
            f"{', '.join(examples[:5])}."
        )
    else:
        notes.append(f"No leaks: none of {leaks['test_images']:,} test images looks like a training image.")
    return f'<div class="notes"><ul>{"".join(f"<li>{literal(note)}</li>" for note in notes)}</ul></div>'


def _metrics(results: Mapping[str, Any]) -> str:
    metrics, paper = results["metrics"], results["paper"]
    present = sum(recall is not None for recall in metrics["recall_of_class"].values())
    balanced = 1 / present if present else None  # balanced accuracy averages the classes that have images
    baselines = {"accuracy": metrics["most_frequent_class"], "balanced_accuracy": balanced, "auroc": 0.5}
    columns = ["metric", "value", "95 % interval", "always the most frequent class", *(["paper"] if paper else [])]
    rows = []
    for name, baseline in baselines.items():
        interval = metrics.get(f"{name}_interval")
        shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "-"
        value = UNDEFINED if metrics[name] is None else metrics[name]
        rows.append((metric_words(name), value, shown, baseline, *([paper.get(name)] if paper else [])))
    chance = _paragraph(f"The accuracy of chance is {format_value(metrics['chance'])}.", "muted")
    return _table("Metrics, with bootstrap intervals over patients or images", columns, rows, chance)


def _classes(results: Mapping[str, Any], predictions: Predictions, truth: np.ndarray) -> str:
    answers = [predictions.predicted.count(label) for label in predictions.classes]
    matrix = results["metrics"]["confusion_matrix"]
    rows = []
    for number, label in enumerate(predictions.classes):
        right = None if matrix is None else matrix[number][number]
        precision = right / answers[number] if right is not None and answers[number] else None
        recall = results["metrics"]["recall_of_class"][label]
        rows.append((label, int((truth == number).sum()), answers[number], recall, precision))
    return _table("Images of each class", ["class", "images", "predicted", "recall", "precision"], rows)


def _confusion(metrics: Mapping[str, Any], predictions: Predictions) -> str:
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
        return _table("The most frequent confusions", ["true class as predicted class", "images"], most)
    head = "".join(f'<th scope="col">{literal(label)}</th>' for label in classes)
    lines = []
    for true, row in enumerate(matrix):
        total = sum(row)
        cells = ""
        for given, count in enumerate(row):
            share = count / total if total else 0
            color = "22, 101, 52" if true == given else "154, 52, 18"
            cells += f'<td style="background: rgba({color}, {0.45 * share:.2f})">{count:,}</td>'
        lines.append(f'<tr><th scope="row">{literal(classes[true])}</th>{cells}</tr>')
    return (
        '<div class="wide"><table class="matrix"><caption>Confusion matrix: true classes in rows, predicted classes in '
        f'columns</caption><thead><tr><th scope="col">true</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody>'
        "</table></div>"
    )


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
    return "".join(
        f'<h2>{title}</h2><img class="plot" src="{_png_url(png)}" alt="{alt}">' for png, alt, title in parts if png
    )


def _png_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


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
    html = _table(caption, ["", *(["before", "after"] if before else ["value"])], rows)
    accuracies = decisions["abstention"]["accuracy_at_coverage"].items()
    shown = [(f"{float(part):.0%} most confident", value) for part, value in accuracies]
    html += _table("Accuracy if the model abstains from the other images", ["images", "accuracy"], shown)
    if points := decisions.get("operating_points"):
        names = ["sensitivity", "specificity", "positive_predictive_value", "negative_predictive_value"]
        rows = [
            (
                f"{point['class']}: {point['goal']} {point['wanted']:g}",
                point["threshold"],
                *(with_interval(point, name) for name in names),
            )
            for point in points
        ]
        columns = ["class: wanted", "threshold", *(name.replace("_", " ") for name in names)]
        html += _table("Thresholds chosen on the validation split, measured here", columns, rows)
    if sets := decisions.get("prediction_sets"):
        rows = [
            (f"{entry['coverage']:g}", with_interval(entry, "measured_coverage"), entry["mean_size"]) for entry in sets
        ]
        html += _table("Prediction sets", ["stated coverage", "measured coverage", "mean number of classes"], rows)
    return html


def _subgroups(found: Mapping[str, Mapping[str, Any]]) -> str:
    if not found:
        return ""
    html = "<h2>Subgroups</h2>"
    names = ("accuracy", "balanced_accuracy", "auroc")
    for column, values in found.items():
        few = any(entry["few"] for entry in values.values())
        rows = [
            (
                value,
                entry["images"],
                *(with_interval(entry, name) for name in names),
                *(["few images" if entry["few"] else ""] if few else []),
            )
            for value, entry in values.items()
        ]
        warning = _paragraph("Intervals of few images are unreliable. Do not compare these subgroups.", "warning")
        columns = [column, "images", *map(metric_words, names), *(["warning"] if few else [])]
        html += _table(f"By {column}, with 95 % intervals", columns, rows, warning if few else "")
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
    html = f"<h2>The worst errors</h2>{_paragraph('Wrong predictions with the lowest probability of the true class.')}"
    html += _gallery(predictions, errors) if errors else _paragraph("There are no errors.")
    html += f"<h2>The least certain images</h2>{_paragraph('Images whose probabilities have the highest entropy.')}"
    return html + _gallery(predictions, uncertain)


def _gallery(predictions: Predictions, rows: Sequence[int]) -> str:
    return f'<div class="images">{"".join(_figure(predictions, row) for row in rows)}</div>'


def _figure(predictions: Predictions, row: int) -> str:
    file, true, given = predictions.files[row], predictions.true[row], predictions.predicted[row]
    probabilities = predictions.probabilities[row]
    best = np.argsort(-probabilities, kind="stable")[:_TOP]
    labels = "".join(
        f"<li>{literal(predictions.classes[number])}: {probabilities[number]:.3f}</li>" for number in best.tolist()
    )
    verdict = '<span class="right">right</span>' if given == true else '<span class="wrong">wrong</span>'
    return (
        f'<figure><div class="image">{_thumbnail(predictions, row)}</div><figcaption>{literal(file)}<br>'
        f"true: <strong>{literal(true)}</strong>, {verdict}<ol>{labels}</ol></figcaption></figure>"
    )


def _thumbnail(predictions: Predictions, row: int) -> str:
    try:
        small = jpeg(read_row_image(predictions.images[row]), _SIDE)
    except (ValueError, OSError, ImportError, IndexError):  # the file was changed after it was classified
        return '<span class="muted">no image</span>'
    alt = f"{predictions.files[row]}, true class {predictions.true[row]}, predicted class {predictions.predicted[row]}"
    return f'<img src="{data_url(small)}" alt="{literal(alt)}">'


def _prompts(settings: Mapping[str, Any]) -> str:
    if not settings.get("templates"):
        return ""
    templates = "".join(f"<li>{literal(template)}</li>" for template in settings["templates"][:MOST_ROWS])
    names = _table("Names in prompts", ["class", "name"], list(settings["class_names"].items()))
    return f"<h2>Prompts</h2><p>Templates:</p><ul>{templates}</ul>{names}"


def _environment(results: Mapping[str, Any]) -> str:
    model, data = results["model"], results["data"]
    rows = [
        ("command", results["command"]),
        ("model", f"{model['name']} ({model['type']}, weights {model['weights']})"),
        ("data", f"{data['path']}, {data['split']} split, fingerprint {data['fingerprint']}"),
        ("seed", str(results["settings"].get("seed"))),
        ("precision", str(results["settings"].get("precision"))),
        *((name, str(value)) for name, value in results["versions"].items()),
    ]
    return f"<h2>Environment</h2>{_table('How this page was made', ['item', 'value'], rows)}"
