"""Compare several models in a table (Markdown, LaTeX and JSON) and in a plot."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from biomedclip.model_cards.escaping import Markdown, code, latex, markdown, table
from biomedclip.model_cards.results import selection_of
from biomedclip.retrieval_metrics import DIRECTIONS, RECALLS

from ..cli.plots import plot_comparison
from ..cli.reporting import UNDEFINED, say, show_table, write_json, write_text
from .model_differences import compare_predictions, difference_lines, show_differences


_SPREADS = {
    "linear-probe": "± standard deviations over draws of the labels",
    "few-shot": "[95 % intervals of the mean over draws of the training images and over test images]",
}
# Metrics of few-shot learning and their labels behind the method.
_OF_FEW_SHOTS = {"accuracy": "", "base_accuracy": ", base", "novel_accuracy": ", novel"}
_OF_FEW_SHOTS |= {"harmonic_mean_accuracy": ", harmonic mean"}


class Value(NamedTuple):
    """A metric with its 95 % interval, or a mean with its standard deviation.

    `value` is None if the metric is undefined. With `measured=False`, there is no value.
    """

    value: float | None
    interval: Sequence[float] | None = None
    deviation: float | None = None
    measured: bool = True

    def __str__(self) -> str:
        if self.value is None:
            return UNDEFINED if self.measured else "-"
        spread = f" ± {self.deviation:.3f}" if self.deviation is not None else ""
        return f"{self.value:.3f}" + (f" [{self.interval[0]:.3f}, {self.interval[1]:.3f}]" if self.interval else spread)

    def as_dict(self) -> dict[str, Any]:
        """Return its entry in `comparison.json`."""
        return {"value": self.value, "interval": self.interval, "deviation": self.deviation}


def headline(task: str, metrics: Mapping[str, Any]) -> dict[str, Value]:
    """Return the metrics for comparing models, keyed by label, from the `metrics` of `results.json`."""
    if task == "retrieval":
        return {
            f"{direction.replace('_', ' ')} R@{k}": Value(found[name], found.get(f"{name}_interval"))
            for direction in DIRECTIONS
            for k, name in ((k, f"recall_at_{k}") for k in RECALLS)
            if name in (found := metrics.get(direction, {}))
        }
    if "by_fraction" in metrics:
        return {
            f"{label} {float(fraction):.0%}": Value(summary[name], None, summary.get(f"{name}_sd"))
            for name, label in (("accuracy", "accuracy"), ("auroc", "AUROC"))
            for fraction, summary in metrics["by_fraction"].items()
            if name in summary
        }
    if "by_method" in metrics:
        return {
            f"{method}{_shots(shots)}{label}": Value(summary[name], summary.get(f"{name}_interval"))
            for method, by_shots in metrics["by_method"].items()
            for shots, summary in by_shots.items()
            for name, label in _OF_FEW_SHOTS.items()
            if name in summary
        }
    names = ["accuracy", "balanced_accuracy", "auroc", "open_accuracy", "closed_accuracy", "f1", "open_f1", "closed_f1"]
    labels = {name: name.replace("_", " ").replace("auroc", "AUROC").replace("f1", "token F1") for name in names}
    return {
        label: Value(metrics[name], metrics.get(f"{name}_interval"))
        for name, label in labels.items()
        if name in metrics
    }


def _shots(count: str) -> str:
    return {"0": "", "1": ", 1 shot"}.get(count, f", {count} shots")


def short_names(names: Sequence[str]) -> list[str]:
    """Return the last part of each model's name, or as many parts as are needed to tell the names apart."""
    parts = [name.strip("/").split("/") for name in names]
    for shown in range(1, 1 + max(map(len, parts))):
        short = ["/".join(name[-shown:]) for name in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def published_name(model: str, from_figure: bool) -> str:
    """Return the name of a published model, marked as published."""
    return f"{model} (published{', read off a figure' if from_figure else ''})"


def show_published(task: str, published: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of the `published` values of `results.json`, if there are any."""
    if not published:
        return
    rows = {
        f"{entry['model']}{' *' if entry['read_from_figure'] else ''}": headline(task, entry["values"])
        for entry in published
    }
    longest = sorted(rows.values(), key=len, reverse=True)  # the longest row has all fractions in order
    columns = list(dict.fromkeys(column for values in longest for column in values))
    cells = [[values[column].value if column in values else None for column in columns] for values in rows.values()]
    mark = " (*: read off a figure)" if any(entry["read_from_figure"] for entry in published) else ""
    title = f"Published values, not measured here{mark}"
    if len(columns) <= len(rows):  # a terminal has 80 columns
        show_table(title, [(name, *line) for name, line in zip(rows, cells, strict=True)], ["model", *columns])
    else:
        show_table(title, list(zip(columns, *cells, strict=True)), ["", *rows])


def compare(results: Sequence[Mapping[str, Any]], output_dir: Path, folders: Sequence[Path] = ()) -> None:
    """Write `comparison.md`, `.tex`, `.json` and `.png` of several `results.json`, and print the table.

    All results are of the same task and data. The published values of other models follow, marked as published.
    `folders` are those of the results. Predictions in them are compared with those of the first model.
    """
    task, data = results[0]["task"], results[0]["data"]
    names = short_names([result["model"]["name"] for result in results])
    entries = results[0].get("published", [])
    published = {published_name(entry["model"], entry["read_from_figure"]): entry for entry in entries}
    names = [f"{name} (model)" if name in published else name for name in names]
    rows = {name: headline(task, result["metrics"]) for name, result in zip(names, results, strict=True)}
    rows |= {name: headline(task, entry["values"]) for name, entry in published.items()}
    columns = list(dict.fromkeys(column for values in rows.values() for column in values))
    cells = {
        name: [values.get(column, Value(None, measured=False)) for column in columns] for name, values in rows.items()
    }
    measured = {name: cells[name] for name in names}
    benchmark = (results[0]["benchmark"] or Path(data["path"]).name) + selection_of(results[0])
    title = f"{task} on {benchmark}, {data['split']} split, {data['rows']:,} rows"
    spread = _SPREADS.get(task, "[95 % bootstrap intervals]")
    paragraphs = [f"Fractions; {spread}. Data {code(data['fingerprint'])}."]
    for model, result in zip(names, results, strict=True):
        for metric, why in (result["metrics"].get("undefined") or {}).items():
            paragraphs.append(
                f"Undefined for {markdown(model)}: {markdown(metric.replace('_', ' '))}: {markdown(why)}."
            )
    if published:
        paragraphs.append("Rows marked as published contain values from publications. They were not measured here.")
    settings = results[0].get("settings", {})
    compared = {"positive": settings.get("positive"), "seed": settings.get("seed") or 0}
    differences = compare_predictions(folders, names, **compared) if folders else []
    paired = "Differences on the same images, with 95 % intervals of a paired bootstrap over patients or images"
    write_comparison(
        output_dir,
        title,
        ["model", *columns],
        [(name, *map(Markdown, values)) for name, values in cells.items()],
        alignment="l" + "r" * len(columns),
        ruled={0, len(measured)},
        paragraphs=paragraphs,
        sections={
            paired: difference_lines(differences),
            "Notes": dict.fromkeys(note for result in results for note in result["data"].get("notes", [])),
            "Sources of published values": [f"{entry['model']}: {entry['source']}" for entry in published.values()],
        },
        content={
            "task": task,
            "benchmark": results[0]["benchmark"],
            "data": {name: data[name] for name in ("path", "split", "fingerprint", "rows")},
            **({"differences": differences} if differences else {}),
            "models": {name: {column: value.as_dict() for column, value in rows[name].items()} for name in names},
            "published": [
                {
                    **{field: entry[field] for field in ("model", "source", "read_from_figure")},
                    "values": {column: value.value for column, value in rows[name].items()},
                }
                for name, entry in published.items()
            ],
        },
    )
    chance = results[0]["metrics"].get("chance")
    plot_comparison(title, columns, cells, chance, output_dir / "comparison.png", published=published)
    show_table(
        title,
        [(column, *(str(values[place]) for values in measured.values())) for place, column in enumerate(columns)],
        ["", *measured],
    )
    show_differences(differences)
    show_published(task, entries)
    say(f"Comparison in {output_dir}: comparison.md, comparison.tex, comparison.json, comparison.png")


def write_comparison(
    output_dir: Path,
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[Any, ...]],
    *,
    alignment: str,
    ruled: Collection[int],
    paragraphs: Sequence[str],
    sections: Mapping[str, Collection[str]],
    content: Mapping[str, Any],
) -> None:
    """Write a table of models as `comparison.md` and `.tex`, and `content` as `comparison.json`.

    `alignment` contains an `l` or `r` for each column. LaTeX uses booktabs, with rules above the rows `ruled`. In
    Markdown, the table is followed by `paragraphs` (which are Markdown already) and lists.
    """
    text_columns = len(alignment) - len(alignment.lstrip("l"))
    lines = [f"# {markdown(title)}", "", table([*columns], [*rows], text_columns=text_columns), "", *paragraphs]
    for heading, items in sections.items():
        if items:
            lines += ["", f"## {heading}", "", *(f"- {markdown(item)}" for item in items)]
    write_text(output_dir / "comparison.md", "\n".join([*lines, ""]))
    lines = [
        rf"\begin{{table}}\centering\caption{{{latex(title)}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        rf"{' & '.join(map(latex, columns))} \\",
    ]
    for number, row in enumerate(rows):
        lines += [r"\midrule"] if number in ruled else []
        lines.append(rf"{' & '.join(map(latex, row))} \\")
    write_text(output_dir / "comparison.tex", "\n".join([*lines, r"\bottomrule", r"\end{tabular}\end{table}", ""]))
    write_json(output_dir / "comparison.json", content)
