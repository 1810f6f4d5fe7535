"""Read the true labels of images from a table, and measure predictions."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from biomedclip.model_cards.escaping import one_line
from biomedclip.processing.images.folders import first_names
from biomedclip.processing.tables import labels_by_name, read_table

from ..cli.reporting import UNDEFINED, format_value, show_stage
from ..evaluation.run import note_if_few
from ..evaluation.zero_shot import classification_metrics
from .labels import check_known


logger = logging.getLogger(__name__)


def read_true_labels(path: Path, ids: Sequence[str], labels: Iterable[str]) -> dict[str, str]:
    """Return the true labels of images by their ids. Images without a label are left out, with a warning.

    Args:
        path: CSV file with the columns `file` and `label`. `file` is the id of an image, its path relative to the
            folder of the CSV file, or its file name if only one image has this name.
        ids: The ids of the images.
        labels: The labels of the classifier.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not such a table, has an unknown label or two labels of one image, or names none of
            the images.
    """
    if not path.exists():
        raise FileNotFoundError(f"--true-labels {path}: the file does not exist.")
    table = read_table(path, ["file", "label"])
    rows = labels_by_name(table, "file", "label")
    known = list(labels)
    places = {os.path.abspath(image): image for image in ids}
    repeated = Counter(map(os.path.basename, ids))
    names = {os.path.basename(image): image for image in ids if repeated[os.path.basename(image)] == 1}
    own = set(ids)
    found: dict[str, str] = {}
    others = []
    for name, row in rows.items():
        check_known(row["label"], known, f"{path}, line {row.line}")
        at = (os.path.abspath(name), os.path.abspath(path.parent / name))
        image = name if name in own else next((places[place] for place in at if place in places), names.get(name))
        if image is None:
            others.append(name)
        elif found.setdefault(image, row["label"]) != row["label"]:
            raise ValueError(f"{path}, line {row.line}: {name!r} has another label in an earlier row.")
    if not found:
        images = f"the {len(ids):,} images, such as {first_names(ids[:2])}"
        raise ValueError(f"{path}: none of its {len(rows):,} files is one of {images}.")
    if others:
        logger.warning("%s: rows that name no image: %s (%s).", path, f"{len(others):,}", first_names(others))
    if missing := [image for image in ids if image not in found]:
        logger.warning("%s: images without a true label: %s (%s).", path, f"{len(missing):,}", first_names(missing))
    return found


class Measurement:
    """Collect the predictions of images with true labels, and measure them.

    Args:
        truth: True label of each image by its id.
        labels: The labels of the classifier.
    """

    def __init__(self, truth: Mapping[str, str], labels: Sequence[str]):
        self._truth, self._labels = truth, list(labels)
        self._scores: list[torch.Tensor] = []
        self._found: list[str] = []

    def add(self, image: str, probabilities: torch.Tensor) -> None:
        """Add the prediction of an image, if it has a true label."""
        if image in self._truth:
            # The order of the logarithms is that of the probabilities, and AUROC takes logits.
            self._scores.append(probabilities.double().log().clamp(min=-1e4))
            self._found.append(self._truth[image])

    def metrics(self) -> dict[str, Any] | None:
        """Return accuracy, balanced accuracy, AUROC and the recall of each class, or None without an image."""
        if not self._found:
            return None
        return classification_metrics(torch.stack(self._scores), self._found, self._labels)


def show_metrics(metrics: Mapping[str, Any]) -> None:
    """Print metrics to stderr, because stdout may contain the predictions."""
    table = Table(title=Text(f"{metrics['images']:,} images with true labels"), title_justify="left")
    for name, justify in (("", "left"), ("value", "right"), ("95 % interval", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        interval = metrics.get(f"{name}_interval")
        shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "-"
        table.add_row(name.replace("_", " ").replace("auroc", "AUROC"), _shown(metrics[name]), shown)
    table.add_row("chance", _shown(metrics["chance"]), "-")
    for label, recall in metrics["recall_of_class"].items():
        table.add_row(Text(f"recall of {one_line(label)}"), _shown(recall), "-")
    Console(stderr=True).print(table)
    for note in note_if_few(metrics["images"], "images"):
        show_stage(f"Note: {note}")


def _shown(value: float | None) -> str:
    return UNDEFINED if value is None else format_value(value)


__all__ = ["Measurement", "read_true_labels", "show_metrics"]
