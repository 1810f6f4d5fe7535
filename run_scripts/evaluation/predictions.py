"""Write what a model predicted for each image, query or question: `predictions.parquet` and `predictions.csv`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..cli.output import write_rows
from .calibration import softmax


PARQUET, CSV = "predictions.parquet", "predictions.csv"
RESERVED = ("file", "true", "predicted", "group")  # columns of every classification
PROBABILITY = "probability_"  # prefix of the columns of the classes, which may be named like other columns
SET = "set_"  # prefix of the columns of prediction sets
_DIGITS = 6  # of numbers in the CSV file, which people read
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets compute cells that begin with one of these

Labels = list[str] | list[list[str]]


@dataclass(frozen=True)
class Rows:
    """Rows that a function makes each time they are read, because those of many classes need gigabytes."""

    make: Callable[[], Iterator[Mapping[str, Any]]]

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return self.make()


class PredictionTable(NamedTuple):
    """Rows of predictions, which are read several times, and their columns."""

    rows: Iterable[Mapping[str, Any]]
    schema: pa.Schema


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions of a classifier for each image.

    Args:
        files: Name of each image.
        true: Label of each image, or the list of its labels if an image can have several.
        predicted: The predicted labels in the same form, None for an image whose scores are NaN or infinite.
        probabilities: Probability of each class, of shape `(images, classes)`. The rows of a softmax sum to 1, those of
            a sigmoid do not.
        classes: The classes in the order of the probabilities.
        groups: Patient or source of each image, if known.
        sets: Prediction sets of each image, by the name of their column.
        columns: Further columns of the data, such as the sex of the patient, with a value for each image.
        images: The images, in any form that [`read_row_image`] accepts. They are read on access.
        targets: If an image can have several labels, 1, 0 or NaN (ignored) for each image and label.
    """

    files: Sequence[str]
    true: Labels
    predicted: list[Any]
    probabilities: np.ndarray
    classes: Sequence[str]
    groups: Sequence[str] | None = None
    sets: Mapping[str, Sequence[list[str]]] = field(default_factory=dict)
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    images: Sequence[Any] = ()
    targets: np.ndarray | None = None

    @property
    def is_multi_label(self) -> bool:
        """Return whether an image can have several labels."""
        return any(isinstance(labels, list) for labels in self.true)

    def table(self) -> PredictionTable:
        """Return the rows and columns of `predictions.parquet`."""
        label = pa.list_(pa.string()) if self.is_multi_label else pa.string()
        # Names of folders may have bytes that are not UTF-8.
        names = [f"{PROBABILITY}{name}".encode("utf-8", "backslashreplace").decode() for name in self.classes]
        fields = [("file", pa.string()), ("true", label), ("predicted", label)]
        fields += [(name, pa.float64()) for name in names]
        fields += [(name, pa.list_(pa.string())) for name in self.sets]
        fields += [("group", pa.string())] if self.groups is not None else []
        fields += [(name, pa.string()) for name in self.columns]
        return PredictionTable(Rows(lambda: self._rows(names)), pa.schema(fields))

    def _rows(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield a row for each image. `names` are the columns of the classes."""
        for number, (file, true, predicted) in enumerate(zip(self.files, self.true, self.predicted, strict=True)):
            row: dict[str, Any] = {"file": file, "true": true, "predicted": predicted}
            row |= zip(names, self.probabilities[number].tolist(), strict=True)
            row |= {name: values[number] for name, values in self.sets.items()}
            row |= {"group": self.groups[number]} if self.groups is not None else {}
            yield row | {name: values[number] for name, values in self.columns.items()}


def softmax_predictions(scores: Any, true: Sequence[str], classes: Sequence[str], **also: Any) -> Predictions:
    """Return the predictions of a classifier whose images have one label each.

    The probabilities are the softmax of the scores in float64, so that log-odds and AUROC follow from them. The
    predicted class is the first one with the highest score.

    Args:
        scores: Logits, of shape `(images, classes)`.
        true: Label of each image.
        classes: The classes in the order of the logits.
        also: Other arguments of [`Predictions`], of which `files` is required.
    """
    probabilities = softmax(scores)
    known = np.isfinite(probabilities).all(axis=1)
    best = np.asarray(scores).argmax(axis=1)
    predicted = [classes[number] if is_known else None for number, is_known in zip(best, known, strict=True)]
    return Predictions(true=list(true), predicted=predicted, probabilities=probabilities, classes=classes, **also)


def write_predictions(folder: Path, table: PredictionTable) -> None:
    """Write `predictions.parquet`, with exact numbers, and `predictions.csv`.

    In the CSV file, numbers have six digits, and an apostrophe precedes texts that spreadsheets would compute.
    """
    write_rows(table.rows, table.schema, "parquet", folder / PARQUET)
    columns = {name: _cell(name) for name in table.schema.names}
    cells = ({shown: _cell(row.get(name)) for name, shown in columns.items()} for row in table.rows)
    write_rows(cells, list(columns.values()), "csv", folder / CSV)


def _cell(value: Any) -> Any:
    """Return a value as a cell of a CSV file that a spreadsheet shows literally. Lists become JSON, which is safe."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if not isinstance(value, str):
        return value
    text = value.replace("\r", " ")  # which the csv module does not quote
    return f"'{text}" if value.startswith(_FORMULA) else text
