"""Compare models across benchmarks, as Markdown, LaTeX, JSON and a plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedclip.model_cards.escaping import Markdown, markdown
from biomedclip.model_cards.model_card import OF_THE_PAPER
from biomedclip.processing.benchmarks.facts import PAPER_MODEL, facts_of

from ...cli.plots import plot_comparison
from ...cli.reporting import say, show_table
from ..comparison import Value, headline, published_name, write_comparison
from ..visual_question_answering import WORDS


PAPER_FIVE = tuple(benchmark for task, benchmark in OF_THE_PAPER if task == "zero-shot")
MEAN = "mean of the paper's five"
_LABELS = {"accuracy": "accuracy", "auroc": "AUROC"}
ROOM = 30  # characters for the names of models in a table of 80 characters
INDEPENDENT_RUN = "BiomedCLIP (independent run)"  # no mean, because some of its images and prompts differ
_NOT_SHOWN = ("open token F1", "closed token F1")  # not published by anyone
_NONE = Value(None, measured=False)


@dataclass(frozen=True)
class Line:
    """A metric of [`headline`] on a benchmark, with measured and published values by model.

    `from_figure` contains the published models whose value was read off a figure.
    """

    task: str
    name: str
    metric: str
    values: Mapping[str, Value]
    published: Mapping[str, Value]
    from_figure: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """Name of the benchmark and the metric."""
        return f"{self.name}, {self.metric}" if self.metric else self.name

    def paper(self) -> str:
        """Return BiomedCLIP's published value as text."""
        return self._shown(PAPER_MODEL) if PAPER_MODEL in self.published else "-"

    def others(self) -> str:
        """Return the published values of other models as text."""
        return ", ".join(f"{name} {self._shown(name)}" for name in self.published if name != PAPER_MODEL)

    def marked(self) -> dict[str, Value]:
        """Return the published values by model. The names mark them as published, and as read off a figure."""
        return {published_name(name, name in self.from_figure): value for name, value in self.published.items()}

    def _shown(self, name: str) -> str:
        return f"{'about ' if name in self.from_figure else ''}{self.published[name].value:.4g}"


Measured = Sequence[tuple[str, str, str, Mapping[str, Mapping[str, Any]]]]


def compare_suite(
    measured: Measured, models: Sequence[str], output_dir: Path, *, remarks: Mapping[str, Mapping[str, str]]
) -> None:
    """Write `comparison.md`, `.tex`, `.json` and `.png`, and print the table.

    `measured` contains the task, the benchmark, its name in tables, and contents of `results.json` by model. `remarks`
    contains reasons by heading (such as `Missing`) and by subject.
    """
    lines = [line for task, benchmark, name, results in measured for line in _lines(task, benchmark, name, results)]
    mean, lacks = paper_mean(lines, models)
    if mean is not None:
        place = max(number for number, line in enumerate(lines) if line.task == "zero-shot")
        lines.insert(place + 1, mean)
    why = [
        f"No {MEAN} zero-shot benchmarks for {model}: {', '.join(names)} not measured as in the paper."
        for model, names in lacks.items()
    ]
    title = f"Benchmarks of {models[0] if len(models) == 1 else f'{len(models)} models'}"
    rows = [
        (line.task, line.name, line.metric)
        + tuple(Markdown(line.values.get(model, _NONE)) for model in models)
        + (Markdown(line.paper()), line.others())
        for line in lines
    ]
    columns = ["task", "benchmark", "metric", *models, "BiomedCLIP, published", "others, published"]
    paragraphs = ["Fractions, with 95 % bootstrap intervals, or ± the standard deviation over draws of the labels."]
    paragraphs += ["Published values were not measured here; those marked 'about' were read off a figure."]
    if mean is not None:
        paragraphs += [
            f"The {MEAN} is over the zero-shot benchmarks of the {PAPER_MODEL} paper, with the metrics that it reports."
        ]
    write_comparison(
        output_dir,
        title,
        columns,
        rows,
        alignment=f"lll{'r' * (len(columns) - 4)}l",
        ruled=[number for number, row in enumerate(rows) if number == 0 or row[0] != rows[number - 1][0]],
        paragraphs=[*paragraphs, "", *map(markdown, why)] if why else paragraphs,
        sections=_sections(measured, remarks),
        content=_json(lines, models, lacks, measured, remarks),
    )
    ours, theirs = [line.values for line in lines], [line.marked() for line in lines]
    points = {name: [row.get(name) for row in part] for part in (ours, theirs) for row in part for name in row}
    labels, published = [f"{line.task}: {line.label}" for line in lines], {name for row in theirs for name in row}
    plot_comparison(title, labels, points, None, output_dir / "comparison.png", published=published)
    shown: list[tuple[str, ...]] = []
    for task in dict.fromkeys(line.task for line in lines):
        shown.append((task, *[""] * (len(models) + 1)))
        for line in (line for line in lines if line.task == task):
            # A terminal is 80 characters wide, which is too narrow for intervals and long names.
            cells = [line.values.get(model, _NONE)._replace(interval=None, deviation=None) for model in models]
            shown.append((f"  {line.label}", *map(str, cells), line.paper()))
    fits = sum(len(model) + 3 for model in models) <= ROOM
    show_table(title, shown, ["", *(models if fits else map(str, range(1, len(models) + 1))), "published"])
    for number, model in enumerate([] if fits else models, 1):
        say(f"{number}: {model}")
    for text in why:
        say(text)
    say(f"Comparison in {output_dir}: comparison.md, comparison.tex, comparison.json, comparison.png")


def paper_mean(lines: Sequence[Line], models: Sequence[str]) -> tuple[Line | None, dict[str, list[str]]]:
    """Return the mean over the zero-shot benchmarks of the paper, each with the metric of the paper.

    The line has each measured and published model that has all benchmarks, and is None if no measured model has all of
    them. Also return the missing benchmarks of each model with zero-shot results.
    """
    # A result without a value of the paper was measured on other images, such as another study of TCGA-TIL.
    of_five = {line.name: line for line in lines if line.task == "zero-shot" and PAPER_MODEL in line.published}
    values: dict[str, Value] = {}
    lacks: dict[str, list[str]] = {}
    classifying = {model for line in lines if line.task == "zero-shot" for model in line.values}
    for model in filter(classifying.__contains__, models):
        found = {name: line.values[model] for name, line in of_five.items() if model in line.values}
        if lacking := [name for name in PAPER_FIVE if found.get(name, _NONE).value is None]:
            lacks[model] = lacking
        else:
            values[model] = Value(_mean(list(found.values())))
    if not values:
        return None, lacks
    published = {
        name: Value(_mean([line.published[name] for line in of_five.values()]))
        for name in next(iter(of_five.values())).published
        if name != INDEPENDENT_RUN and all(name in line.published for line in of_five.values())
    }
    from_figure = frozenset(name for line in of_five.values() for name in line.from_figure)
    return Line("zero-shot", MEAN, "", values, published, from_figure), lacks


def _mean(values: Sequence[Value]) -> float:
    return sum(value.value or 0.0 for value in values) / len(values)


def _lines(task: str, benchmark: str, name: str, results: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """Return a line for each metric: only the published one for zero-shot and probes, otherwise all of `headline`."""
    values = {model: headline(task, result["metrics"]) for model, result in results.items()}
    entries = next(iter(results.values())).get("published") or []
    published = {entry["model"]: headline(task, entry["values"]) for entry in entries}
    metrics = list(dict.fromkeys(metric for found in values.values() for metric in found if metric not in _NOT_SHOWN))
    if task in ("zero-shot", "linear-probe"):
        chosen = _LABELS[facts_of(benchmark)["metric"]]
        metrics = [metric for metric in metrics if metric.split(" ")[0] == chosen]
    from_figure = frozenset(entry["model"] for entry in entries if entry["read_from_figure"])
    # The paper counts GPT-2 tokens. The metric on words is marked.
    of_words = any(result["settings"].get("f1_tokenizer") == WORDS for result in results.values())
    return [
        Line(
            task,
            name,
            f"{metric} (words)" if of_words and metric == "token F1" else metric,
            {model: found[metric] for model, found in values.items() if metric in found},
            {model: found[metric] for model, found in published.items() if metric in found},
            from_figure,
        )
        for metric in metrics
    ]


def _sections(measured: Measured, remarks: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """Return the remarks, the notes, the reasons for undefined metrics and the sources of published values."""
    sections = {heading: [f"{what}: {why}" for what, why in found.items()] for heading, found in remarks.items()}
    notes: list[str] = []
    sources: list[str] = []
    corrupted: list[str] = []
    for task, _, name, results in measured:
        for model, result in results.items():
            undefined = result["metrics"].get("undefined") or {}
            notes += [f"{task} on {name}: {note}" for note in result["data"].get("notes", [])]
            notes += [f"{task} on {name}, {model}: {what} is undefined: {why}" for what, why in undefined.items()]
            sources += [f"{entry['model']}: {entry['source']}" for entry in result.get("published") or []]
            if found := result["metrics"].get("robustness"):
                corrupted.append(f"{task} on {name}, {model}: {_corrupted(found)}")
    sections |= {"Corrupted images": corrupted} if corrupted else {}
    return sections | {"Notes": [*dict.fromkeys(notes)], "Sources of published values": [*dict.fromkeys(sources)]}


def _corrupted(found: Mapping[str, Any]) -> str:
    """Return the metric without corruption, its mean over all corruptions, and the largest drop as text."""
    drops = {name: entries[-1]["drop"] for name, entries in found["corruptions"].items()}
    known = {name: drop for name, drop in drops.items() if drop is not None}
    if found["clean"] is None or found["mean"] is None or not known:
        return "undefined"
    worst = max(known, key=lambda name: known[name])
    means = f"{found['metric']} {found['clean']:.3f}, {found['mean']:.3f} on average when corrupted"
    return f"{means}; the largest drop is {known[worst]:.3f}, by {worst} at the largest strength"


def _json(
    lines: Sequence[Line],
    models: Sequence[str],
    lacks: Mapping[str, list[str]],
    measured: Measured,
    remarks: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    mean = next((line for line in lines if line.name == MEAN), None)
    return {
        "task": "suite",
        "benchmark": None,
        "models": list(models),
        "results": [
            {
                "task": task,
                "benchmark": benchmark,
                "name": name,
                "data": {
                    key: next(iter(results.values()))["data"][key] for key in ("path", "split", "fingerprint", "rows")
                },
                "models": {
                    model: {metric: value.as_dict() for metric, value in headline(task, result["metrics"]).items()}
                    for model, result in results.items()
                },
                "published": next(iter(results.values())).get("published") or [],
            }
            for task, benchmark, name, results in measured
        ],
        "mean_of_the_paper": {
            "benchmarks": list(PAPER_FIVE),
            "models": {model: mean.values[model].value for model in models if mean and model in mean.values},
            "published": {model: value.value for model, value in mean.published.items()} if mean else {},
            "lacks": dict(lacks),
        },
        **{heading.lower().replace(" ", "_"): dict(found) for heading, found in remarks.items()},
    }
