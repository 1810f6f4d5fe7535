"""Compare the predictions of several models on the same labeled images with the first model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from ..cli.reporting import say, show_table
from .classification import weighted_metrics
from .predictions import PARQUET, PROBABILITY
from .run import metric_words
from .statistics.paired import delong, mcnemar, paired_interval


class Stored(NamedTuple):
    """The predictions of a model as they were written, with the logarithms of the probabilities as scores."""

    files: list[str]
    true: list[str]
    groups: list[str] | None
    classes: list[str]
    scores: np.ndarray


def read_predictions(folder: Path) -> Stored | None:
    """Read the predictions of a model, or return None if they are not of images with one label each."""
    if not (folder / PARQUET).is_file():
        return None
    table = pq.read_table(folder / PARQUET)
    columns = [name for name in table.column_names if name.startswith(PROBABILITY)]
    if len(columns) < 2 or str(table.schema.field("true").type) != "string":
        return None
    with np.errstate(divide="ignore"):
        scores = np.log(np.stack([table[name].to_numpy() for name in columns], axis=1))
    groups = table["group"].to_pylist() if "group" in table.column_names else None
    classes = [name.removeprefix(PROBABILITY) for name in columns]
    return Stored(table["file"].to_pylist(), table["true"].to_pylist(), groups, classes, np.maximum(scores, -1e4))


def compare_predictions(
    folders: Sequence[Path], names: Sequence[str], *, positive: str | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Return how each model differs from the first one on the same images, second minus first.

    Args:
        folders: Folders of results.
        names: Names of the models.
        positive: The positive class for AUROC if there are two classes (default: the last).
        seed: Seed of the bootstrap.

    Returns:
        For each other model `first`, `second`, `metrics` (`first`, `second`, `difference` and its 95 % `interval` by
        name), `mcnemar` and, with two classes, `delong`. Both tests need independent images. If a group has several
        images, `not_tested` is the reason instead. Models with other classes or images are left out.
    """
    stored = [read_predictions(folder) for folder in folders]
    base = stored[0]
    found = []
    for name, other in zip(names[1:], stored[1:], strict=True):
        if base is None or other is None or base.files != other.files or set(base.classes) != set(other.classes):
            continue
        order = [other.classes.index(label) for label in base.classes]
        aligned = other._replace(classes=base.classes, scores=other.scores[:, order])
        found.append({"first": names[0], "second": name, **_difference(base, aligned, positive, seed)})
    return found


def _difference(first: Stored, second: Stored, positive: str | None, seed: int) -> dict[str, Any]:
    number_of = {label: number for number, label in enumerate(first.classes)}
    truth = np.array([number_of[label] for label in first.true])
    place = len(first.classes) - 1 if positive is None else number_of[positive]
    of_first, of_second = (weighted_metrics(model.scores, truth, place) for model in (first, second))
    drawn = range(len(truth)) if first.groups is None else first.groups
    once = np.ones(len(truth))
    metrics: dict[str, Any] = {}
    for name in of_first:
        if name not in of_second:
            continue

        def gain(weights: np.ndarray, name: str = name) -> float | None:
            values = of_first[name](weights), of_second[name](weights)
            return None if values[0] is None or values[1] is None else values[1] - values[0]

        metrics[name] = {
            "first": of_first[name](once),
            "second": of_second[name](once),
            "difference": gain(once),
            "interval": paired_interval(gain, drawn, seed=seed),
        }
    result: dict[str, Any] = {"metrics": metrics}
    if len(set(drawn)) < len(truth):
        reason = f"the {len(truth):,} images are of {len(set(drawn)):,} groups, and both tests need independent images"
        return result | {"not_tested": f"No test of McNemar or DeLong: {reason}. Use the intervals."}
    if "accuracy" in metrics:
        rights = [model.scores.argmax(axis=1) == truth for model in (first, second)]
        result["mcnemar"] = mcnemar(*rights)._asdict()
    if "auroc" in metrics and len(first.classes) == 2 and min(np.bincount(truth, minlength=2)) >= 2:
        margins = [model.scores[:, place] - model.scores[:, 1 - place] for model in (first, second)]
        result["delong"] = delong(margins[0], margins[1], truth == place)._asdict()
    return result


def show_differences(differences: Sequence[Mapping[str, Any]]) -> None:
    """Print a table for each pair of models."""
    for entry in differences:
        rows = []
        for name, found in entry["metrics"].items():
            interval = found["interval"]
            shown = f"[{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else None
            rows.append((metric_words(name), f"{found['difference']:+.3f}", shown, p_value_of(entry, name)))
        columns = ["", "difference", "95 % interval", "p-value"]
        show_table(f"{entry['second']} minus {entry['first']}, paired", rows, columns)
    for reason in dict.fromkeys(entry["not_tested"] for entry in differences if "not_tested" in entry):
        say(reason)


def p_value_of(entry: Mapping[str, Any], metric: str) -> str | None:
    """Return the p-value of a metric with the name of its test."""
    test = {"accuracy": "mcnemar", "auroc": "delong"}.get(metric)
    found = entry.get(test or "")
    if not found or found["p_value"] is None:
        return None
    value = found["p_value"]
    return f"{'< 0.0001' if value < 0.0001 else f'{value:.4f}'} ({'McNemar' if test == 'mcnemar' else 'DeLong'})"


def difference_lines(differences: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each difference and for each omitted test, for `comparison.md`."""
    lines = []
    for entry in differences:
        for name, found in entry["metrics"].items():
            interval = found["interval"]
            shown = f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
            p_value = p_value_of(entry, name)
            tested = f", p = {p_value}" if p_value else ""
            lines.append(
                f"{metric_words(name)}, {entry['second']} minus {entry['first']}: {found['difference']:+.3f}{shown}"
                f"{tested}"
            )
    return [*lines, *dict.fromkeys(entry["not_tested"] for entry in differences if "not_tested" in entry)]
