"""Metrics of findings in subgroups, such as by the sex of the patient or the device."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from biomedclip.processing.images.findings import FindingImages

from ...cli.reporting import say, show_table
from ..run import FEW, with_interval
from ..subgroups import FEW_OF_CLASS, MOST
from .metrics import METRICS, measure_findings


def measure_finding_subgroups(images: FindingImages, scores: np.ndarray, *, seed: int = 0) -> dict[str, Any]:
    """Return the metrics of each finding for the images with each value of each column.

    Args:
        images: The images, with their columns.
        scores: Log-odds `(images, findings)`.
        seed: Seed of the bootstrap, which draws whole groups.

    Returns:
        By column and value `images`, the means of AUROC and average precision with their intervals, and `findings` of
        [`measure_findings`]. `few` of a subgroup is True if it has fewer than 30 groups (or images without groups).
        `few` of a finding is True for these, and for at most 5 positive or negative labels. Of more than 20 values, the
        most frequent ones are measured.
    """
    found: dict[str, dict[str, Any]] = {}
    for column, values in images.columns.items():
        found[column] = {}
        for value, _ in sorted(Counter(values).most_common(MOST)):
            rows = [row for row, own in enumerate(values) if own == value]
            chosen = images.select(rows)
            measured = measure_findings(scores[rows], chosen.targets, chosen.findings, groups=chosen.groups, seed=seed)
            few = len(rows if chosen.groups is None else set(chosen.groups)) < FEW
            for of_finding in measured["findings"].values():
                counts = of_finding["positives"], of_finding["negatives"]
                of_finding["few"] = few or min(counts) <= FEW_OF_CLASS
            means = {name: measured[name] for metric in METRICS for name in (metric, f"{metric}_interval")}
            found[column][value] = {"images": len(rows), **means, "few": few, "findings": measured["findings"]}
    return found


def show_finding_subgroups(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table for each column, with the AUROC of each finding. The tables fit on 80 columns."""
    for column, values in found.items():
        rows = [
            (
                f"{value}: {name}{' *' if of_finding['few'] else ''}",
                f"{of_finding['positives']:,} / {of_finding['negatives']:,}",
                *(with_interval(of_finding, metric) for metric in METRICS),
            )
            for value, of_value in values.items()
            for name, of_finding in of_value["findings"].items()
        ]
        show_table(f"By {column} [95 % interval]", rows, ["", "with / without", "AUROC", "average precision"])
        if any(of_finding["few"] for of_value in values.values() for of_finding in of_value["findings"].values()):
            say("* few images, groups or labels: do not compare this subgroup with others.")
