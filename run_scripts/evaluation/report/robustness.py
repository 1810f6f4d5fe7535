"""The section on corrupted images and paraphrased prompts, which every page of a classification can have."""

import io
from collections.abc import Mapping
from typing import Any

from ...cli.plots import plot_robustness
from ...cli.reporting import UNDEFINED
from ..run import metric_words
from .page import heading, paragraph, plot, table


def robustness(metrics: Mapping[str, Any]) -> str:
    """Return the sections of `--corruptions` and `--prompt-sensitivity`, or nothing if neither was given."""
    html = ""
    if found := metrics.get("robustness"):
        html += heading("Corrupted images") + _corruptions(found)
    if found := metrics.get("prompt_sensitivity"):
        html += heading("Paraphrased prompts") + _paraphrases(found)
    return html


def _corruptions(found: Mapping[str, Any]) -> str:
    metric = metric_words(found["metric"])
    file = io.BytesIO()
    plot_robustness(found, file)
    strengths = max((len(entries) for entries in found["corruptions"].values()), default=0)
    columns = ["corruption", *(f"strength {number}" for number in range(1, strengths + 1))]
    values = [
        (name, *(_value(entry[found["metric"]]) for entry in entries)) for name, entries in found["corruptions"].items()
    ]
    drops = [(name, *map(_drop, entries)) for name, entries in found["corruptions"].items()]
    summary = (
        f"Without corruption, {metric} is {_value(found['clean'])}. Its mean over all corruptions and strengths is "
        f"{_value(found['mean'])}."
    )
    return (
        paragraph(summary)
        + plot(file.getvalue(), f"{metric} by strength of each corruption")
        + table(f"{metric[0].upper()}{metric[1:]} on corrupted images", columns, values)
        + table(f"Drop of {metric}, with 95 % intervals of the paired difference", columns, drops)
    )


def _drop(entry: Mapping[str, Any]) -> str:
    if entry["drop"] is None:
        return UNDEFINED
    interval = entry["drop_interval"]
    return f"{entry['drop']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _value(value: float | None) -> str:
    return UNDEFINED if value is None else f"{value:.3f}"


def _paraphrases(found: Mapping[str, Any]) -> str:
    metric = metric_words(found["metric"])
    ranked = sorted(found["values"].items(), key=lambda item: -(item[1] if item[1] is not None else -1))
    spread = ""
    if "smallest" in found:
        deviation = "" if found["sd"] is None else f", standard deviation {found['sd']:.3f}"
        spread = paragraph(
            f"From {found['smallest']:.3f} to {found['largest']:.3f}, median {found['median']:.3f}{deviation}."
        )
    rows = [(prompt, _value(value)) for prompt, value in ranked]
    return spread + table(f"{metric[0].upper()}{metric[1:]} of each prompt", ["prompt", metric], rows)
