"""How few-shot accuracies drop on corrupted test images. The heads are fitted on images without corruption."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from biomedclip.processing.images.corruptions import STRENGTHS, corruptions_version, find_corruption

from ...cli.plots import plot_few_shot_robustness
from ...cli.reporting import UNDEFINED, say, show_table
from ..robustness import PLOT
from .intervals import mean_interval
from .learner import ALL, NO_ANSWER, corrupted_answers


Answers = Callable[[Mapping[str, Any], str], np.ndarray]


def measure_corrupted(
    fits: Sequence[Mapping[str, Any]],
    answers: Answers,
    corruptions: Sequence[tuple[str, int]],
    labels: np.ndarray,
    groups: Sequence[Any] | None,
) -> dict[str, Any]:
    """Measure how the accuracy of each method drops.

    Args:
        fits: Fits with one number of shots, and the zero-shot classifier.
        answers: Returns the predicted class of each test image of a fit, by the name of the array.
        corruptions: The corruptions and strengths.
        labels: Class index of each test image.
        groups: Patient or source of each test image.

    Returns:
        The `metric`, the number of `shots`, the `version` of the corruptions, and `by_method`: the accuracy `clean`,
        the `mean` over all corruptions and strengths, and `corruptions`: for each strength the mean accuracy over the
        draws, the `drop` and its 95 % interval, which covers the choice of the draws and of the test images.
    """
    by_method: dict[str, Any] = {}
    for method in dict.fromkeys(fit["method"] for fit in fits):
        mine = [fit for fit in fits if fit["method"] == method]
        clean = np.stack([answers(fit, f"answers {ALL}") for fit in mine])
        found: dict[str, list[dict[str, Any]]] = {}
        for name, strength in corruptions:
            given = np.stack([answers(fit, corrupted_answers(name, strength)) for fit in mine])
            known = ((given != NO_ANSWER) & (clean != NO_ANSWER)).all(axis=0)
            of_known = None if groups is None else [groups[row] for row in np.flatnonzero(known).tolist()]
            entry: dict[str, Any] = {"strength": strength, "value": find_corruption(name).strengths[strength - 1]}
            if known.any():
                before, after = (answer[:, known] == labels[known] for answer in (clean, given))
                drops = before.astype(float) - after
                entry |= {"accuracy": float(after.mean()), "drop": float(drops.mean())}
                entry["drop_interval"] = mean_interval(drops, of_known)
            else:
                entry |= {"accuracy": None, "drop": None, "drop_interval": None}
            found.setdefault(name, []).append(entry)
        values = [entry["accuracy"] for entries in found.values() for entry in entries if entry["accuracy"] is not None]
        by_method[method] = {
            "clean": float((clean == labels).mean()),
            "mean": float(np.mean(values)) if values else None,
            "corruptions": found,
        }
    shots = max(fit["shots"] for fit in fits)
    return {"metric": "accuracy", "shots": shots, "version": corruptions_version(), "by_method": by_method}


def show_corrupted(found: Mapping[str, Any], output_dir: Path) -> None:
    """Print the drop of each method at the largest strength, and write the plot."""
    by_method = found["by_method"]
    names = list(next(iter(by_method.values()))["corruptions"])
    rows: list[tuple[Any, ...]] = [
        (name, *(_points(of_method["corruptions"][name][-1]["drop"]) for of_method in by_method.values()))
        for name in names
    ]
    means = [None if entry["mean"] is None else entry["clean"] - entry["mean"] for entry in by_method.values()]
    rows.append(("mean drop", *map(_points, means)))
    rows.append(("accuracy", *(_points(entry["clean"]) for entry in by_method.values())))
    shots = f", {found['shots']} shots of a class" if found["shots"] else ""
    columns = [method.replace("-", " ") for method in by_method]  # so that long names wrap
    show_table(f"Drop of the accuracy at strength {STRENGTHS}, in points{shots}", rows, ["corruption", *columns])
    plot_few_shot_robustness(found, output_dir / PLOT)
    say(f"Plot of the corruptions in {output_dir / PLOT}")


def _points(value: float | None) -> str:
    return UNDEFINED if value is None else f"{100 * value:.1f}"
