"""Labels of the pairs of a built dataset, from its `labels.csv`."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..streaming import PairStream
from ..tables import Row, labels_by_name, read_table
from .folders import SPLIT_NAMES, shown_name
from .labeled import LABEL_COLUMN, LABELS, LabeledImages


PAIR_ID = "pair_id"


def read_labeled_pairs(root: Path, label_column: str) -> dict[str, LabeledImages]:
    """Read the labeled pairs of a built dataset. Splits without labeled pairs are empty.

    Raises:
        FileNotFoundError: If the folder contains no built dataset.
        ValueError: If the labels cannot be read, or a row refers to a pair that the dataset does not contain.
    """
    row_of, label = read_labels(root / LABELS, label_column)
    splits = {}
    unseen = dict.fromkeys(row_of)
    for split in reversed(SPLIT_NAMES):  # the training split last, because it is large
        ids = _pair_ids(root, split) if unseen else []
        rows = [row for row, name in enumerate(ids) if name in row_of]
        names = [ids[row] for row in rows]
        for name in names:
            unseen.pop(name, None)
        splits[split] = LabeledImages(_PairImages(root, split, rows), [row_of[name][label] for name in names], names)
        if len(rows) < len(ids):
            note = f"{len(rows):,} of {len(ids):,} pairs of the {split} split have a label in {LABELS}."
            splits[split] = splits[split].with_note(note)
    if len(unseen) == len(row_of) and not any(_pair_ids(root, split) for split in SPLIT_NAMES):
        raise FileNotFoundError(
            f"{root}: {LABELS} labels the pairs of a built dataset, but there are none. For image files, write "
            "a metadata.csv with the columns file_name and label."
        )
    if unseen:
        first = next(iter(unseen))
        raise ValueError(
            f"{root / LABELS}, line {row_of[first].line}: the dataset has no pair {shown_name(first[:100])!r} "
            f"({len(unseen):,} such rows). Correct or remove them."
        )
    return {split: splits[split] for split in SPLIT_NAMES}


def _pair_ids(root: Path, split: str) -> list[str]:
    """Return the ids of the pairs of a split, or an empty list if the split does not exist."""
    try:
        stream = PairStream(root, split, columns=[PAIR_ID])
    except FileNotFoundError:
        return []
    return [row[PAIR_ID] for row in stream.rows(0, 0, len(stream))]


def read_labels(path: Path, label_column: str = LABEL_COLUMN) -> tuple[dict[str, Row], str]:
    """Return the row of each pair id in a CSV file, and the name of its label column.

    If the file has two columns and `label_column` is the default, the column of labels may have any name.

    Raises:
        ValueError: If the table cannot be read, lacks a column or a value, or contains two labels for one pair. The
            message contains the line number.
    """
    table = read_table(path, [PAIR_ID], known=[label_column])
    others = [column for column in table.columns if column != PAIR_ID]
    label = table.column(label_column)
    if label is None and label_column == LABEL_COLUMN and len(others) == 1:
        (label,) = others
    if label is None:
        raise ValueError(
            f"{path}: no column {label_column!r}. The columns are {', '.join(table.columns)}. Pass label_column."
        )
    return labels_by_name(read_table(path, [PAIR_ID, label]), PAIR_ID, label), label


class _PairImages(Sequence[Any]):
    """Images of some pairs of a split. They are read from the shards on first access."""

    def __init__(self, root: Path, split: str, rows: list[int]):
        self._root, self._split, self._rows = root, split, rows

    @cached_property
    def _images(self) -> list[Any]:
        stream = PairStream(self._root, self._split, columns=["image"])
        return [stream.rows(0, row, row + 1)[0]["image"] for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        return self._images[row]
