"""Metrics of subgroups, such as by the sex of the patient or the device."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..cli.reporting import say, show_table
from .run import FEW, with_interval


MOST = 20  # subgroups of a column that are measured
FEW_OF_CLASS = 5
_MEASURED = ("accuracy", "balanced_accuracy", "auroc")


def measure_subgroups(
    columns: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    measure: Callable[[list[int]], Mapping[str, Any]],
    groups: Sequence[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the metrics of the images with each value of each column.

    Args:
        columns: Value of each image, by the name of the column.
        labels: Label of each image.
        measure: Function of the numbers of images that returns their metrics.
        groups: Patient or source of each image, if known.

    Returns:
        By column and value `images`, `of_class` and the metrics with their intervals. `few` is True if the subgroup
        has fewer than 30 groups (or images without groups), or at most 5 images of one of its classes. Of more than 20
        values, the most frequent ones are measured.
    """
    found: dict[str, dict[str, Any]] = {}
    for column, values in columns.items():
        found[column] = {}
        for value, _ in sorted(Counter(values).most_common(MOST)):
            rows = [row for row, own in enumerate(values) if own == value]
            metrics, counts = measure(rows), Counter(labels[row] for row in rows)
            drawn = rows if groups is None else {groups[row] for row in rows}
            found[column][value] = {
                "images": len(rows),
                "of_class": dict(sorted(counts.items())),
                **{name: metrics[name] for name in _MEASURED},
                **{f"{name}_interval": metrics.get(f"{name}_interval") for name in _MEASURED},
                "few": len(drawn) < FEW or min(counts.values()) <= FEW_OF_CLASS,
            }
    return found


def show_subgroups(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table for each column."""
    for column, values in found.items():
        rows = [
            (
                f"{value}{' *' if of_value['few'] else ''}",
                of_value["images"],
                *(with_interval(of_value, name) for name in ("accuracy", "auroc")),
            )
            for value, of_value in values.items()
        ]
        show_table(f"By {column} [95 % interval]", rows, ["", "images", "accuracy", "AUROC"])
        if any(of_value["few"] for of_value in values.values()):
            say("* few images or groups: do not compare this subgroup with others.")
