"""Sections that the pages of several tasks have, by the content of `results.json`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedclip.model_cards.model_card import TASKS

from ...cli.reporting import UNDEFINED, undefined_lines
from ..reliability import threshold_rows
from ..run import metric_words, with_interval
from ..statistics.fractions import summary_cells
from .page import MOST_ROWS, bullets, heading, paragraph, table


LEAKS = {
    "same_group": "same patient or source",
    "same_name": "same name",
    "same_bytes": "same file",
    "same_pixels": "same pixels",
    "same_picture": "same picture",
    "similar": "look alike, please check",
}


def title_of(results: Mapping[str, Any]) -> str:
    """Return the title of a page: the task and the data."""
    task = TASKS.get(results["task"], (results["task"].capitalize(),))[0]
    return f"{task} on {results['benchmark'] or Path(results['data']['path']).name}"


def introduction(results: Mapping[str, Any], counted: str) -> str:
    """Return the model, what was measured (such as `40 images`), and the date."""
    return paragraph(f"Model {results['model']['name']}, {counted}, {results['date']}.")


def notes(results: Mapping[str, Any], damaged: str = "images", leaks: Sequence[str] | None = None) -> str:
    """Return the notes, undefined metrics, what could not be read, and leaks.

    Args:
        results: The content of `results.json`.
        damaged: Plural noun for what could not be read.
        leaks: Notes on leaks (default: one on `data.leaks` of the results).
    """
    data = results["data"]
    found = list(data["notes"])
    found += undefined_lines(results["metrics"])
    if data["damaged"]:
        first = ", ".join(f"{entry['name']} ({entry['reason']})" for entry in data["damaged"][:5])
        found.append(f"{len(data['damaged']):,} {damaged} cannot be read and are excluded, such as {first}.")
    found += [_leaks(data["leaks"])] if leaks is None else leaks
    return f'<div class="notes">{bullets(found)}</div>'


def _leaks(leaks: Mapping[str, Any] | None) -> str:
    if leaks is None:
        return "Leaks between training and test images were not looked for."
    if not leaks["leaked"]:
        return f"No leaks: none of {leaks['test_images']:,} test images looks like a training image."
    examples = [
        f"{pair['test']} and {pair['train']} ({LEAKS[reason]})"
        for reason, pairs in leaks["examples"].items()
        for pair in pairs
    ]
    return (
        f"Leaks: {leaks['leaked']:,} of {leaks['test_images']:,} test images are, or look like, training images: "
        f"{', '.join(examples[:5])}."
    )


def metrics_table(
    metrics: Mapping[str, Any],
    baselines: Mapping[str, float | None],
    baseline: str = "",
    paper: Mapping[str, Any] | None = None,
    caption: str = "Metrics, with 95 % intervals over patients or images",
) -> str:
    """Return a table of metrics with 95 % intervals, a baseline, and published values if there are any.

    Args:
        metrics: Metrics, with the interval of `name` as `name_interval`.
        baselines: The metrics to show, each with the value of the baseline.
        baseline: What the baseline is, such as `always the most frequent class`. Without it, none is shown.
        paper: Published values, keyed like `metrics`.
        caption: Caption of the table.
    """
    rows = []
    for name, of_baseline in baselines.items():
        interval = metrics.get(f"{name}_interval")
        shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "-"
        value = UNDEFINED if metrics[name] is None else metrics[name]
        also = [of_baseline] if baseline else []
        rows.append((metric_words(name), value, shown, *also, *([paper.get(name)] if paper else [])))
    columns = ["metric", "value", "95 % interval", *([baseline] if baseline else []), *(["paper"] if paper else [])]
    return table(caption, columns, rows)


def by_fraction(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the metrics `names` of a linear probe by fraction of the training labels, if there are several fits."""
    found = metrics.get("by_fraction") or {}
    if sum(len(summary["runs"]) for summary in found.values()) < 2:
        return ""
    rows = [
        (f"{float(part):.0%}", summary["runs"][0]["images"], len(summary["runs"]), *summary_cells(summary, names))
        for part, summary in found.items()
    ]
    columns = ["training labels", "images", "draws", *map(metric_words, names)]
    return table("By fraction of the training labels: mean and standard deviation over draws", columns, rows)


def thresholds(points: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Return a table of operating points, if there are any. `kind` is what has a threshold, such as `class`."""
    if not points:
        return ""
    names = ["sensitivity", "specificity", "positive_predictive_value", "negative_predictive_value"]
    columns = [f"{kind}: wanted", "threshold", *(name.replace("_", " ") for name in names)]
    return table("Thresholds chosen on the validation split, measured here", columns, threshold_rows(points, names))


def subgroups(found: Mapping[str, Mapping[str, Any]], names: Sequence[str], counted: str = "images") -> str:
    """Return a table for each column of subgroups, as [`measure_subgroups`] returns them, with the metrics `names`.

    `counted` is the key of the number of images or questions.
    """
    if not found:
        return ""
    html = heading("Subgroups")
    for column, values in found.items():
        few = any(entry["few"] for entry in values.values())
        rows = [
            (
                value,
                entry[counted],
                *(with_interval(entry, name) for name in names),
                *(["few images" if entry["few"] else ""] if few else []),
            )
            for value, entry in values.items()
        ]
        columns = [column, counted, *map(metric_words, names), *(["warning"] if few else [])]
        html += table(f"By {column}, with 95 % intervals", columns, rows)
        if few:
            html += paragraph("Intervals of few images are unreliable. Do not compare these subgroups.", "warning")
    return html


def prompts(settings: Mapping[str, Any]) -> str:
    """Return the templates of the prompts and the names of the classes, if there are any."""
    if not settings.get("templates"):
        return ""
    names = table("Names in prompts", ["class", "name"], list(settings["class_names"].items()))
    return f"{heading('Prompts')}<p>Templates:</p>{bullets(settings['templates'][:MOST_ROWS])}{names}"


def environment(results: Mapping[str, Any]) -> str:
    """Return the command, the weights, the data and the versions."""
    model, data = results["model"], results["data"]
    rows = [
        ("command", results["command"]),
        ("model", f"{model['name']} ({model['type']}, weights {model['weights']})"),
        ("data", f"{data['path']}, {data['split']} split, fingerprint {data['fingerprint']}"),
        ("seed", str(results["settings"].get("seed"))),
        ("precision", str(results["settings"].get("precision"))),
        *((name, str(value)) for name, value in results["versions"].items()),
    ]
    return heading("Environment") + table("How this page was made", ["item", "value"], rows)
