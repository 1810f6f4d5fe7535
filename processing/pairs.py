"""Load image-text pairs of one's own tables and datasets, for training and retrieval."""

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

from .images.folders import find_images, first_names, warn_of_left_out
from .images.labeled import IMAGE_COLUMN, LazyImages, refuse_columns, rows_by_split, split_folders
from .images.tables import (
    METADATA_FILES,
    TABLE_SUFFIXES,
    ImageRow,
    check_table,
    embeds_images,
    read_image_rows,
    value_of,
)
from .shard_reader import TRAINING_COLUMNS
from .stratified import hold_out_groups
from .streaming import BatchStream, epoch_order


logger = logging.getLogger(__name__)

TEXT_COLUMN = "caption"  # default
VALIDATION_FRACTION = 0.1  # default
# The same pairs are held out in all runs, whatever their seed, so that their metrics can be compared.
SPLIT_SEED = 0
HUB = "hf://datasets/"
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
        empty_texts: The rows that were left out because their text is empty.
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
                raise ValueError(f"{self.path}: no column {key!r}. It has {', '.join(self.columns)}.")
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
    """Load image-text pairs of a table or dataset.

    Image paths of tables are relative to the folder of the table or to `image_root`. Absolute paths must be below one
    of these folders. URLs, and links that lead out of the folders, are errors. All images must exist. They are read on
    access. Rows with an empty text are left out, and listed in a warning.

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
    read = _read_table if _is_table(name) else _read_folder if os.path.isdir(name) else _read_set
    splits = {split: replace(pairs, seed=seed) for split, pairs in read(name, wanted, image_root).items()}
    if not all(map(len, splits.values())):
        raise ValueError(f"{name}: the {min(splits, key=lambda split: len(splits[split]))} split has no pairs.")
    if "validation" not in splits:
        return _with_validation(splits, validation_fraction, group_column)
    values = {"validation_fraction": (validation_fraction, None)}
    refuse_columns(f"{name}, which has its own validation split", **values)
    return splits


def _is_table(name: str) -> bool:
    return "://" not in name and Path(name).suffix.lower() in TABLE_SUFFIXES and not os.path.isdir(name)


def _read_table(name: str, wanted: Mapping[str, str], image_root: Any) -> dict[str, Pairs]:
    path = Path(name)
    check_table(path, image_root)
    if embeds_images(path, wanted["image_column"]):
        from .images.labeled_sets import open_parquet_file

        refuse_columns(f"{name}, which contains the images", image_root=(image_root, None))
        return _of_sets(open_parquet_file(path), name, wanted)
    root = None if image_root is None else Path(image_root)
    rows = _read_rows(path, wanted, root)
    return {"train": _of_rows(rows, name, "train", wanted, root or path.parent)}


def _read_folder(name: str, wanted: Mapping[str, str], image_root: Any) -> dict[str, Pairs]:
    from .images.labeled_sets import open_parquet_set, open_saved_set

    root = Path(name)
    refuse_columns(f"{name}, a folder with its own images", image_root=(image_root, None))
    if any((root / file).is_file() for file in ("dataset_dict.json", "dataset_info.json", "state.json")):
        return _of_sets(open_saved_set(root), name, wanted)
    folders = split_folders(root)
    content = find_images(root, link_depth=2 if folders else 1)
    tables = [file for file in content.others if file.name in METADATA_FILES]
    if any(file.suffix in (".parquet", ".arrow") for file in content.others if file not in tables):
        return _of_sets(open_parquet_set(root), name, wanted)
    if not tables:
        others = [file.name for file in content.others if file.suffix.lower() in TABLE_SUFFIXES]
        found = f" It contains {first_names(others)}: pass the file itself." if others else ""
        raise FileNotFoundError(f"{name}: no image-text pairs in this folder.{found} Pass {ACCEPTED}.")
    if len({table.parent for table in tables}) < len(tables):
        raise ValueError(f"{name}: several of {', '.join(METADATA_FILES)} are in one folder. Keep one of them.")
    rows = [row for table in tables for row in _read_rows(table, wanted, None)]
    content.others = [file for file in content.others if file not in tables]
    warn_of_left_out(root, [content])
    by_split = rows_by_split(root, folders, rows) if rows else {"train": rows}
    return {split: _of_rows(found, name, split, wanted, root) for split, found in by_split.items()}


def _read_set(name: str, wanted: Mapping[str, str], image_root: Any) -> dict[str, Pairs]:
    from .images.labeled_sets import open_hub_set

    hub_id = name.removeprefix(HUB)
    if os.path.exists(name) or "://" in hub_id or hub_id.startswith((".", "/", "~")) or hub_id.count("/") != 1:
        problem = "not a table or dataset" if os.path.exists(name) or "://" in hub_id else "the folder does not exist"
        raise FileNotFoundError(f"{name}: {problem}. Pass {ACCEPTED}.")
    refuse_columns(f"{name}, a dataset on the Hub", image_root=(image_root, None))
    return _of_sets(open_hub_set(hub_id), name, wanted, downloaded=True)


def _read_rows(path: Path, wanted: Mapping[str, str], image_root: Path | None) -> list[ImageRow]:
    others = {argument: column for argument, column in wanted.items() if argument != "image_column"}
    return list(read_image_rows(path, wanted["image_column"], others, image_root=image_root))


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


def _of_sets(opened: Any, name: str, wanted: Mapping[str, str], *, downloaded: bool = False) -> dict[str, Pairs]:
    """Return the pairs of the splits of a dataset of the `datasets` library."""
    from .images.labeled_sets import images_of, sets_by_split

    splits = {}
    for split, rows in sets_by_split(opened, name, wanted).items():
        where = f"{name}, {split} split"
        images = images_of(rows, wanted["image_column"], downloaded=downloaded)
        if not downloaded:
            _check_bytes(rows, wanted["image_column"], where)
        texts = [_text(value, f"{where}, row {row}") for row, value in enumerate(rows[wanted["text_column"]])]
        ids = [f"{split}/{row}" for row in range(len(rows))]
        groups = ids
        if "group_column" in wanted:
            groups = [str(value) for value in rows[wanted["group_column"]]]
            for row, value in enumerate(rows[wanted["group_column"]]):
                if value is None or value == "":
                    raise ValueError(f"{where}, row {row}: {wanted['group_column']} is empty. Fill it in.")
        columns: dict[str, Sequence[Any]] = {column: rows[column] for column in _others(wanted)}
        columns |= {"pair_id": ids, "image": images, "caption": _Values(pa.array(texts, pa.large_string()))}
        splits[split] = _without_empty(name, split, columns, texts, groups)
    return splits


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
        notes.append(f"{len(empty):,} of {len(texts):,} pairs have no text and are left out: {first_names(empty)}")
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
