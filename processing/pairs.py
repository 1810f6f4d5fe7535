"""Load image-text pairs from the user's tables and datasets, for training and retrieval."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .images.folders import first_names, warn_of_left_out
from .images.sets import LazyImages, images_of, labels_of
from .images.sources import IMAGE_COLUMN, Source, open_source, refuse_columns
from .images.tables import TABLE_SUFFIXES, ImageRow, value_of
from .shard_reader import TRAINING_COLUMNS
from .stratified import hold_out_groups
from .streaming import BatchStream, epoch_order


logger = logging.getLogger(__name__)

TEXT_COLUMN = "caption"  # default
VALIDATION_FRACTION = 0.1  # default
# The same pairs are held out in all runs, whatever their seed, so that their metrics can be compared.
SPLIT_SEED = 0
ACCEPTED = (
    "a CSV, JSON Lines or Parquet file with a column of image paths (or a Parquet file with the images), a folder of "
    "images with a metadata.csv, metadata.jsonl or metadata.parquet, a folder written by save_to_disk of `datasets`, a "
    "folder of Parquet files, the name of a dataset on the Hub (OWNER/NAME), or a folder that biomedclip build wrote"
)


@dataclass(eq=False)
class Pairs(BatchStream):
    """Image-text pairs with random access, which are also a stream of reproducible batches.

    In epoch e, the rows are in the order `numpy.random.default_rng([seed, e]).permutation(len(pairs))`. Otherwise
    [`rows`] and [`batches`] are those of [`PairStream`]: the pairs of a step depend only on the rows, the seed and the
    position.

    Args:
        path: The table or dataset, for messages.
        split: `train`, `validation` or `test`.
        columns: The columns `pair_id`, `image` (read with [`read_row_image`]), `caption`, and others.
        numbers: Rows of the columns that belong to the split.
        seed: Seed for the order of the rows.
        notes: How the pairs were selected.
        empty_texts: The rows that were skipped because their text is empty.
        groups: Group of each row of the columns. Pairs of one group are in the same split.
        held_out: Whether the validation split was held out from the training pairs.
    """

    path: str
    split: str
    columns: Mapping[str, Sequence[Any]]
    numbers: np.ndarray
    seed: int = 0
    notes: Sequence[str] = ()
    empty_texts: Sequence[str] = ()
    groups: Sequence[str] = field(default=(), repr=False)
    held_out: bool = False

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, key: int | str) -> Any:
        """Return a row, or a column by its name. Images are not decoded."""
        if isinstance(key, str):
            if key not in self.columns:
                raise ValueError(f"{self.path}: no column {key!r}. The columns are {', '.join(self.columns)}.")
            return LazyImages(self.numbers.tolist(), self.columns[key].__getitem__)
        return self._row(int(self.numbers[key]))

    def select(self, rows: Sequence[int]) -> "Pairs":
        """Return some of the pairs, in this order."""
        return replace(self, numbers=self.numbers[np.asarray(rows, dtype=np.int64)])

    def rows(self, epoch: int, low: int, high: int) -> list[dict[str, Any]]:
        """Return rows [low, high) of an epoch, with `pair_id`, `image`, `caption` and `epoch`."""
        order = self._order(epoch)[low:high]
        return [self._row(int(number)) | {"epoch": epoch} for number in self.numbers[order]]

    def row_groups(self) -> list[str]:
        """Return the group of each pair."""
        return [self.groups[number] for number in self.numbers]

    def _row(self, number: int) -> dict[str, Any]:
        return {name: self.columns[name][number] for name in TRAINING_COLUMNS}

    @cached_property
    def _order(self) -> Any:
        return lru_cache(maxsize=1)(partial(epoch_order, len(self), self.seed))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}


def load_pairs(
    path: str | os.PathLike[str],
    *,
    image_column: str = IMAGE_COLUMN,
    text_column: str = TEXT_COLUMN,
    image_root: str | os.PathLike[str] | None = None,
    group_column: str | None = None,
    validation_fraction: float | None = None,
    seed: int = 0,
    columns: Sequence[str] = (),
) -> dict[str, Pairs]:
    """Load image-text pairs from a table or dataset.

    Image paths of tables are relative to the folder of the table or to `image_root`. Absolute paths must be below one
    of these folders. URLs, and links that lead out of the folders, are errors. All images must exist. They are read on
    access. Rows with an empty text are skipped and listed in a warning.

    Args:
        path: One of:

            - a CSV, JSON Lines or Parquet file with a column of image paths, or a Parquet file with the images
            - a folder of images with a `metadata.csv`, `metadata.jsonl` or `metadata.parquet`, in the folder itself or
              in its split folders
            - a dataset of the `datasets` library: saved with `save_to_disk`, as Parquet files, or on the Hub
        image_column: Column of the images or their paths. For `image`, a column `file_name` is used if there is one.
        text_column: Column of the texts, such as captions or reports.
        image_root: Folder to which the image paths of a table are relative (default: the folder of the table).
        group_column: Column with the patient or source of each pair (default: the path of the image). Pairs of a group
            are in the same split.
        validation_fraction: Fraction of the pairs to hold out for a validation split (default: 0.1). The same pairs are
            held out for every seed. 0 holds out none. An error if the dataset has a validation split.
        seed: Seed for the order of the pairs in an epoch.
        columns: Further columns to load, for `pairs[column]`.

    Returns:
        The pairs by split: `train`, usually `validation`, and `test` if the dataset has this split. Pass them to
        [`ContrastiveTrainer`] as `train_dataset` and `eval_dataset`.

    Raises:
        FileNotFoundError: If the file or folder does not exist, or if images are missing.
        ValueError: If a column is missing, an image path is not allowed, all texts are empty, or an argument is invalid
            or has no effect.

    Example:
    ```python
    >>> from biomedclip import load_pairs

    >>> pairs = load_pairs("reports.csv", image_column="image_path", text_column="report", group_column="patient")
    >>> len(pairs["train"]), len(pairs["validation"]), pairs["train"][0]["caption"]
    ```
    """
    name = os.fspath(path)
    if validation_fraction is not None and not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and less than 1, not {validation_fraction}.")
    wanted = {"image_column": image_column, "text_column": text_column}
    wanted |= {"group_column": group_column} if group_column else {}
    wanted |= {f"columns[{number}]": column for number, column in enumerate(columns)}
    splits = {split: replace(pairs, seed=seed) for split, pairs in _read_splits(name, wanted, image_root).items()}
    if not all(map(len, splits.values())):
        raise ValueError(f"{name}: the {min(splits, key=lambda split: len(splits[split]))} split has no pairs.")
    if "validation" not in splits:
        return _with_validation(splits, validation_fraction, group_column)
    values = {"validation_fraction": (validation_fraction, None)}
    refuse_columns(f"{name}, which has its own validation split", **values)
    return splits


def _read_splits(name: str, wanted: Mapping[str, str], image_root: Any) -> dict[str, Pairs]:
    source = open_source(name, wanted, image_root, ACCEPTED)
    if source.sets:
        return {split: _of_set(rows, name, split, wanted, source) for split, rows in source.sets.items()}
    if source.content is not None:
        if not source.rows:
            others = [file.name for file in source.content.others if file.suffix.lower() in TABLE_SUFFIXES]
            found = f" It contains {first_names(others)}: pass the file itself." if others else ""
            raise FileNotFoundError(f"{name}: no image-text pairs in this folder.{found} Pass {ACCEPTED}.")
        warn_of_left_out(source.root, [source.content])
    return {split: _of_rows(rows, name, split, wanted, source.root) for split, rows in source.rows.items()}


def _of_rows(rows: list[ImageRow], name: str, split: str, wanted: Mapping[str, str], root: Path) -> Pairs:
    """Return the pairs of the rows of tables. `root` is the folder to which image paths are relative."""
    texts = [_text(row.values.get(wanted["text_column"]), row.where) for row in rows]
    # Relative to the folder, so that the split stays the same if the folder is moved.
    groups = [Path(os.path.relpath(row.image, root)).as_posix() for row in rows]
    if "group_column" in wanted:
        groups = _joined([value_of(row, wanted["group_column"]) for row in rows], groups)
    above = f"{Path(name).parent}{os.sep}"
    columns: dict[str, Sequence[Any]] = {column: [row.values.get(column) for row in rows] for column in _others(wanted)}
    # Arrow stores strings without Python objects, whose reference counts would copy memory in each worker.
    columns |= {
        "pair_id": _Values(pa.array([row.where.removeprefix(above) for row in rows], pa.large_string())),
        "image": _Values(pa.array([str(row.image) for row in rows], pa.large_string()), Path),
        "caption": _Values(pa.array(texts, pa.large_string())),
    }
    return _without_empty(name, split, columns, texts, groups)


def _of_set(rows: Any, name: str, split: str, wanted: Mapping[str, str], source: Source) -> Pairs:
    """Return the pairs of a `datasets.Dataset`."""
    where = f"{name}, {split} split"
    images = images_of(rows, wanted["image_column"], downloaded=source.downloaded)
    if not source.downloaded:
        _check_bytes(rows, wanted["image_column"], where)
    texts = [_text(value, f"{where}, row {row}") for row, value in enumerate(rows[wanted["text_column"]])]
    ids = [f"{split}/{row}" for row in range(len(rows))]
    groups = labels_of(rows, wanted["group_column"], where, "group") if "group_column" in wanted else ids
    columns: dict[str, Sequence[Any]] = {column: rows[column] for column in _others(wanted)}
    columns |= {"pair_id": ids, "image": images, "caption": _Values(pa.array(texts, pa.large_string()))}
    return _without_empty(name, split, columns, texts, groups)


def _check_bytes(rows: Any, image_column: str, where: str) -> None:
    """Raise `ValueError` unless each row has the bytes of its image. Paths inside datasets are not opened."""
    values = rows.data.column(image_column)
    if pa.types.is_struct(values.type):
        values = pc.struct_field(values, "bytes")
    remedy = "Store the bytes of the image files, or write a CSV file with their paths."
    if not (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)):
        raise ValueError(f"{where}: {image_column!r} contains {values.type}, not images. {remedy}")
    if rows._indices is None and values.null_count:
        first = pc.index(pc.is_null(values), True).as_py()
        raise ValueError(
            f"{where}: {values.null_count:,} of {len(rows):,} rows have no bytes in {image_column!r}, the first is row "
            f"{first}. {remedy}"
        )


def _without_empty(
    name: str, split: str, columns: Mapping[str, Sequence[Any]], texts: Sequence[str], groups: Sequence[str]
) -> Pairs:
    """Return the pairs whose text is not empty, and warn of the others."""
    numbers = np.array([row for row, text in enumerate(texts) if text], dtype=np.int64)
    empty = [str(columns["pair_id"][row]) for row, text in enumerate(texts) if not text]
    if not len(numbers):
        raise ValueError(f"{name}: {'all texts are empty' if texts else 'the table has no rows'}.")
    notes = []
    if empty:
        notes.append(f"{len(empty):,} of {len(texts):,} pairs have no text and are skipped: {first_names(empty)}")
        logger.warning("%s: %s", name, notes[0])
    return Pairs(name, split, columns, numbers, notes=notes, empty_texts=empty, groups=groups)


def _with_validation(splits: Mapping[str, Pairs], fraction: float | None, group_column: str | None) -> dict[str, Pairs]:
    """Return the splits with a validation split that is held out from the training pairs."""
    pairs = splits["train"]
    fraction = VALIDATION_FRACTION if fraction is None else fraction
    if fraction == 0:
        return dict(splits)
    groups = pairs.row_groups()
    if len(set(groups)) < 2:
        raise ValueError(
            f"{pairs.path}: all pairs belong to one group, so no validation split can be held out. Pass "
            "validation_fraction=0 to train on all pairs."
        )
    kept, held_out = hold_out_groups(groups, fraction, SPLIT_SEED)
    train, validation = pairs.select(kept), replace(pairs.select(held_out), split="validation")
    of_groups = ""
    if group_column:
        held = len(set(validation.row_groups()))
        of_groups = f", with {held:,} of {len(set(groups)):,} groups of {group_column!r}"
    note = f"{len(validation):,} of {len(pairs):,} pairs are held out for validation{of_groups}."
    return {
        **splits,
        "train": replace(train, notes=[*pairs.notes, note], held_out=True),
        "validation": replace(validation, notes=[*pairs.notes, note], held_out=True),
    }


def _others(wanted: Mapping[str, str]) -> list[str]:
    """Return the columns that are neither images nor texts."""
    return [column for argument, column in wanted.items() if argument not in ("image_column", "text_column")]


def _joined(groups: Sequence[str], images: Sequence[str]) -> list[str]:
    """Return one name for all groups that have an image in common, so that no image is in two splits."""
    first: dict[str, str] = {}
    joined: dict[str, str] = {}

    def name_of(group: str) -> str:
        while joined.get(group, group) != group:
            group = joined[group]
        return group

    for group, image in zip(groups, images, strict=True):
        low, high = sorted((name_of(group), name_of(first.setdefault(image, group))))
        joined[high] = low
    return [name_of(group) for group in groups]


def _text(value: Any, where: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: the text is {str(value)[:100]!r}, a {type(value).__name__}. Pass text_column.")
    return value.strip()


@dataclass(frozen=True)
class _Values(Sequence[Any]):
    """The values of an Arrow array, converted on access."""

    array: pa.Array
    convert: Any = None

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, row: Any) -> Any:
        value = self.array[int(row)].as_py()
        return value if self.convert is None else self.convert(value)
