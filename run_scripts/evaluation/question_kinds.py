"""Accuracy by what questions are about, such as the modality or an organ."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..cli.reporting import say, show_table
from .run import FEW, with_interval
from .statistics.bootstrap import fraction_interval
from .subgroups import MOST


KIND = "question type"


def measure_kinds(answers: Sequence[Mapping[str, Any]], kinds: Mapping[str, str], seed: int) -> dict[str, Any]:
    """Return `subgroups` of `results.json`: the accuracy by kind of question, with intervals over images.

    Args:
        answers: Rows of `answers.jsonl`.
        kinds: Kind of each question by its name, empty if the dataset states none.
        seed: Seed of the bootstrap.

    Returns:
        By kind the number of `questions` and `images` and the `accuracy` with its interval, None if a question has no
        answer. `few` is True for fewer than 30 images. Of more than 20 kinds, the most frequent ones are measured.
        Without kinds, nothing.
    """
    of_kind: dict[str, list[Mapping[str, Any]]] = {}
    for row in answers:
        of_kind.setdefault(kinds.get(row["name"]) or "(missing)", []).append(row)
    if set(of_kind) <= {"(missing)"}:
        return {}
    most = Counter({kind: len(rows) for kind, rows in of_kind.items()}).most_common(MOST)
    return {KIND: {kind: _measure(of_kind[kind], seed) for kind in sorted(kind for kind, _ in most)}}


def _measure(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    images = [row["image"] for row in rows]
    known = all(row["right"] is not None for row in rows)
    right = np.array([bool(row["right"]) for row in rows], dtype=float)
    return {
        "questions": len(rows),
        "images": len(set(images)),
        "accuracy": float(right.mean()) if known else None,
        "accuracy_interval": fraction_interval(right, images, seed=seed) if known else None,
        "few": len(set(images)) < FEW,
    }


def show_kinds(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table of the kinds of questions, if there are any."""
    for column, values in found.items():
        rows = [
            (f"{kind}{' *' if entry['few'] else ''}", entry["questions"], with_interval(entry, "accuracy"))
            for kind, entry in values.items()
        ]
        show_table(f"By {column} [95 % interval]", rows, ["", "questions", "accuracy"])
        if any(entry["few"] for entry in values.values()):
            say(f"* fewer than {FEW} images: do not compare this type with others.")
