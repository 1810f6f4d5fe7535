"""Read labeled images from class folders, tables, the `datasets` library and built datasets.

Evaluation and training read all labeled images with this module, so the same folder always yields the same rows.
"""

import logging
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any, TypeVar

from ..stratified import hold_out, hold_out_groups_with_labels
from .errors import ImageError
from .findings import FindingImages
from .folders import SPLIT_NAMES, first_names, is_visible, shown_name, split_folders, warn_of_left_out
from .formats import DECODABLE_FORMATS
from .reading import read_row_image
from .sets import LazyImages, images_of, labels_of
from .sources import IMAGE_COLUMN, Source, open_source, refuse_columns
from .split_column import by_split_column
from .tables import TABLE_SUFFIXES, ImageRow, value_of


logger = logging.getLogger(__name__)

Labeled = TypeVar("Labeled", "LabeledImages", FindingImages)
LABEL_COLUMN = "label"  # default
MISSING = "(missing)"  # subgroup of images without a value
SUBGROUP = "subgroup_column"  # start of the arguments that select columns of subgroups
LABELS = "labels.csv"  # labels of the pairs of a built dataset
ALL_ARE_TEST = "The images have no splits, so all of them are the test split."  # note
ACCEPTED = (
    "the folder of the images, with one folder of images for each class or a metadata.csv (columns file_name and "
    "label), optionally in folders train, validation and test; a CSV, JSON Lines or Parquet file with a column of "
    "image paths and one of labels; a dataset of the `datasets` library; or the name of a dataset on the Hub "
    "(OWNER/NAME)"
)


class MissingSplit(ValueError):
    """A split that the data does not have. `split` is its name."""

    def __init__(self, message: str, split: str) -> None:
        super().__init__(message)
        self.split = split


@dataclass(frozen=True)
class LabeledImages:
    """Images and their labels.

    Args:
        images: Images that [`read_row_image`] accepts. They are read on access.
        labels: Label of each image.
        names: Name of each image, used in messages and as a seed for its random crops.
        groups: Patient, slide or source of each image, if known. Images of one group belong in the same split.
        notes: Notes for the user on how the images were selected.
        drawn: Whether they were drawn from the training images, because the data has no such split.
        columns: Further columns, such as the sex of the patient, with a value for each image.
    """

    images: Sequence[Any]
    labels: list[str]
    names: list[str]
    groups: list[str] | None = None
    notes: list[str] = field(default_factory=list)
    drawn: bool = False
    columns: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.images[row], "label": self.labels[row], "name": self.names[row]}

    @property
    def strata(self) -> list[str]:
        """Return the class of each image. A held-out split has a fraction of each."""
        return self.labels

    @property
    def labels_of_rows(self) -> list[list[str]]:
        """Return the labels of each image. Held-out groups have each label, if possible."""
        return [[label] for label in self.labels]

    def select(self, rows: Sequence[int]) -> "LabeledImages":
        """Return the images of the given rows, in this order."""
        return replace(
            self,
            images=LazyImages(rows, self.images.__getitem__),
            labels=[self.labels[row] for row in rows],
            names=[self.names[row] for row in rows],
            groups=[self.groups[row] for row in rows] if self.groups is not None else None,
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
        )

    def with_note(self, note: str) -> "LabeledImages":
        """Return the same images with an additional note."""
        return replace(self, notes=[*self.notes, note])


def labeled_files(root: Path, files: Sequence[Path], labels: list[str]) -> LabeledImages:
    """Return labeled image files. Their names are relative to the root."""
    return LabeledImages(files, labels, [file.relative_to(root).as_posix() for file in files])


def read_labeled_images(
    path: str | os.PathLike[str],
    *,
    image_column: str = IMAGE_COLUMN,
    label_column: str = LABEL_COLUMN,
    image_root: str | os.PathLike[str] | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
) -> dict[str, LabeledImages]:
    """Read labeled images that have a training split.

    Args:
        path: One of:

            - a folder that contains one folder of images for each class, optionally in the folders `train`,
              `validation` and `test`
            - a folder of images with a `metadata.csv`, `metadata.jsonl` or `metadata.parquet`, in the folder itself or
              in its split folders
            - a dataset of the `datasets` library: saved with `save_to_disk`, as Parquet or Arrow files, or on the Hub
            - a CSV, JSON Lines or Parquet file with a column of image paths and one of labels
            - a dataset that `biomedclip build` wrote, with a `labels.csv` (columns `pair_id` and `label`)
        image_column: Column of the images in a dataset, table or metadata file.
        label_column: Column of the labels in a dataset, table, metadata file or `labels.csv`.
        image_root: Folder to which the image paths of a table are relative (default: the folder of the table).
        group_column: Column with the patient or source of each image. It is returned as `groups`.
        split_column: Column with the split of each row: train, validation or test (also training, valid, val, dev or
            testing).

    Returns:
        The images of each split. Images without splits are returned as `train`.

    Raises:
        FileNotFoundError: If the folder does not exist, contains no labeled images, or lacks images that a metadata
            file lists.
        ImportError: If images are DICOM and pydicom is not installed.
        ValueError: If there is no training split, a class has no images, a column or label is missing, or a metadata
            file cannot be read.

    Example:
    ```python
    >>> from collections import Counter

    >>> from biomedclip.processing import read_labeled_images

    >>> Counter(read_labeled_images("folder_of_classes")["train"].labels)
    ```
    """
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    splits = read_splits(path, **columns, image_root=image_root, group_column=group_column, split_column=split_column)
    splits = {split: images for split, images in splits.items() if len(images)}
    if "train" not in splits:
        names = [folder.name for folder in split_folders(Path(path)).values()] or list(splits)
        raise ValueError(
            f"{path} has splits ({', '.join(names)}) but no training split. Rename the folder of the training images "
            f"to {' or '.join(SPLIT_NAMES['train'])}."
        )
    return splits


def read_splits(
    path: str | os.PathLike[str],
    *,
    image_column: str = IMAGE_COLUMN,
    label_column: str = LABEL_COLUMN,
    image_root: str | os.PathLike[str] | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    subgroup_column: Sequence[str] = (),
) -> dict[str, LabeledImages]:
    """Read labeled images like [`read_labeled_images`], without requiring a training split.

    `subgroup_column` lists further columns to read. An empty value is read as `(missing)`.

    A split of a built dataset is empty if none of its pairs has a label.
    """
    root = Path(path)
    if (root / LABELS).is_file():
        from .labeled_pairs import read_labeled_pairs  # imports torch

        without_columns: dict[str, tuple[Any, Any]] = {
            "image_column": (image_column, IMAGE_COLUMN),
            "image_root": (image_root, None),
        }
        without_columns |= {"group_column": (group_column, None), "subgroup_column": (tuple(subgroup_column), ())}
        without_columns |= {"split_column": (split_column, None)}
        refuse_columns("a built dataset", **without_columns)
        return read_labeled_pairs(root, label_column)
    if (root / "report.json").is_file() and (root / "data").is_dir():
        raise FileNotFoundError(
            f"{path}: a built dataset without a {LABELS}. Add one with the columns pair_id and label, or pass a folder "
            "of labeled images."
        )
    columns = {"image_column": image_column, "label_column": label_column}
    columns |= {"group_column": group_column} if group_column else {}
    columns |= {f"{SUBGROUP} {name}": name for name in subgroup_column}
    wanted = columns | ({"split_column": split_column} if split_column else {})
    source = by_split_column(open_source(path, wanted, image_root, ACCEPTED), split_column)
    if source.sets:
        return {split: _of_set(rows, split, columns, source) for split, rows in source.sets.items()}
    if source.rows:
        splits = {split: _of_rows(rows, columns, source) for split, rows in source.rows.items()}
    else:
        splits = _from_folders(root, source)
        defaults = {"image_column": (image_column, IMAGE_COLUMN), "label_column": (label_column, LABEL_COLUMN)}
        refuse_columns(f"class folders, whose names are the labels ({path})", **defaults)
        of_group: dict[str, Any] = {"group_column": (group_column, None), "split_column": (split_column, None)}
        of_group |= {"subgroup_column": (tuple(subgroup_column), ())}
        refuse_columns("data that is not a CSV, JSON Lines or Parquet file, or a dataset", **of_group)
    if source.content is not None:
        if named := {row.image for rows in source.rows.values() for row in rows}:
            unlisted = [image for image in source.content.images if image not in named]
            _warn_of_unused(root, unlisted, "are not listed in a metadata file")
        warn_of_left_out(root, [source.content])
    return splits


def choose_split(
    splits: Mapping[str, Labeled],
    path: str | os.PathLike[str],
    split: str,
    held_out: float | None = None,
    seed: int = 0,
) -> Labeled:
    """Return one split of the result of [`read_splits`] or `read_finding_splits`, with notes on how it was selected.

    If a test or validation split does not exist, `held_out` is the fraction of the training images that is drawn for
    it: from each class, or whole groups if the images have groups. If `held_out` is None, images without splits are all
    test images. `path` is used in messages.

    Raises:
        MissingSplit: If the split does not exist.
        ValueError: If `held_out` is not between 0 and 0.5.
    """
    if held_out is not None and not 0 < held_out < 0.5:
        raise ValueError(f"held_out must be between 0 and 0.5, because two splits are held out, not {held_out}.")
    if held_out is None and list(splits) == ["train"]:
        if split != "test":
            # Returning all images again would train and test on the same images.
            raise MissingSplit(
                f"{path}: the images have no splits, so all of them are the test split, and there is no {split} "
                "split. Put them into folders train, validation and test.",
                split,
            )
        return splits["train"].with_note(ALL_ARE_TEST)
    splits = {name: images for name, images in splits.items() if len(images)}
    if held_out is not None and "train" in splits:
        total = len(splits["train"])
        for wanted in ("test", "validation"):
            if wanted not in splits:
                rest = splits["train"]
                # The second split is drawn from fewer images, so its fraction is larger. Both splits then have the same
                # size.
                fraction = held_out * total / len(rest)
                again: list[str] = []
                if rest.groups is None:
                    kept, held = hold_out(rest.strata, fraction, seed)
                    of = "each class" if isinstance(rest, LabeledImages) else "the images"
                    how = f"{held_out:.0%} of {of}, seed {seed}. Images of one patient may be in both"
                else:
                    kept, held, again = hold_out_groups_with_labels(
                        rest.groups, rest.labels_of_rows, fraction, seed, where=os.fspath(path)
                    )
                    how = f"whole groups, seed {seed}"
                splits["train"] = rest.select(kept)
                note = f"The {wanted} split was drawn from the training images: {len(held)} of {total}, {how}."
                for text in (note, *again):
                    splits = {name: images.with_note(text) for name, images in splits.items()}
                splits[wanted] = replace(rest.select(held), notes=splits["train"].notes, drawn=True)
    if split not in splits:
        raise MissingSplit(
            f"{path}: there is no {split} split with labeled images, only {', '.join(splits)}. Add it, or choose "
            "another split.",
            split,
        )
    return splits[split]


def check_readable(images: LabeledImages, where: str) -> None:
    """Raise a ValueError if none of the images of a class can be decoded. `where` describes the data."""
    rows_of: dict[str, list[int]] = {}
    for row, label in enumerate(images.labels):
        rows_of.setdefault(label, []).append(row)
    for label, rows in rows_of.items():
        reason = ""
        for row in rows:
            try:
                read_row_image(images.images[row])
                break
            except ImageError as error:
                reason = reason or str(error)
        else:
            raise ValueError(
                f"{where}: none of the {len(rows):,} images of the class {label!r} can be read. The first: {reason}"
            )


def shared_groups(splits: Mapping[str, LabeledImages | FindingImages]) -> list[str]:
    """Return a note for each pair of splits that have images of the same groups, such as the same patients."""
    notes = []
    for first, second in combinations(sorted(splits, key=lambda split: split != "train"), 2):
        if shared := sorted(set(splits[first].groups or []) & set(splits[second].groups or [])):
            notes.append(
                f"Leak: {len(shared):,} groups, such as {first_names(shared)}, have images in both the "
                f"{'training' if first == 'train' else first} and the {second} split."
            )
    return notes


def similar_classes(classes: Sequence[str]) -> list[str]:
    """Return a note for each group of classes whose names differ only in case, spaces or Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in classes:
        key = "".join(unicodedata.normalize("NFKC", name).casefold().split())
        groups.setdefault(key, []).append(name)
    return [
        f"The classes {', '.join(map(repr, names))} differ only in case or spaces and count as {len(names)} classes."
        for names in groups.values()
        if len(names) > 1
    ]


def _from_folders(root: Path, source: Source) -> dict[str, LabeledImages]:
    """Return images labeled with the names of their class folders."""
    splits = {}
    below: dict[Path, list[Path]] = {}
    for path in source.content.images if source.content else []:
        class_folder = root.joinpath(*path.relative_to(root).parts[: 2 if source.folders else 1])
        below.setdefault(class_folder, []).append(path)
    for split, folder in (source.folders or {"train": root}).items():
        classes = sorted(child for child in folder.iterdir() if child.is_dir() and is_visible(child.name))
        found = {child: below.pop(child, []) for child in classes}
        empty = [child for child, paths in found.items() if not paths]
        if len(empty) == len(found):
            others = source.content.others if source.content else []
            tables = [path for path in others if path.parent == folder and path.suffix.lower() in TABLE_SUFFIXES]
            table = f"Pass the table {shown_name(str(tables[0]))}, or " if tables else "Pass "
            raise FileNotFoundError(f"{folder}: no class folders with images. {table}{ACCEPTED}.")
        if empty:
            formats = ", ".join((*DECODABLE_FORMATS, "DICOM"))
            raise ValueError(f"{empty[0]}: no images ({formats}) in this class folder. Add some, or remove the folder.")
        labels = [child.name for child, paths in found.items() for _ in paths]
        splits[split] = labeled_files(root, list(chain(*found.values())), labels)
    _warn_of_unused(root, list(chain(*below.values())), "are not in a class folder")
    return splits


def _of_rows(rows: Sequence[ImageRow], columns: Mapping[str, str], source: Source) -> LabeledImages:
    """Return the images that tables list. Duplicate rows are returned once, and two labels of an image are an error."""
    found: dict[Path, tuple[ImageRow, str]] = {}
    for row in rows:
        label = value_of(row, columns["label_column"])
        first, first_label = found.setdefault(row.image, (row, label))
        if first_label != label:
            table = row.where.rpartition(", ")[0]
            raise ValueError(
                f"{row.where}: {shown_name(row.name)} is labeled {label!r}, but {first_label!r} in "
                f"{first.where.removeprefix(f'{table}, ')}. Keep one of the two rows."
            )
    kept = [row for row, _ in found.values()]
    in_folder = source.content is not None
    names = [row.image.relative_to(source.root).as_posix() if in_folder else row.name for row in kept]
    groups = [value_of(row, columns["group_column"]) for row in kept] if "group_column" in columns else None
    subgroups = {name: [subgroup_value(row.values.get(name)) for row in kept] for name in _subgroup_columns(columns)}
    labels = [label for _, label in found.values()]
    return LabeledImages([row.image for row in kept], labels, names, groups, columns=subgroups)


def _subgroup_columns(columns: Mapping[str, str]) -> list[str]:
    return [column for argument, column in columns.items() if argument.startswith(SUBGROUP)]


def subgroup_value(value: Any) -> str:
    """Return a cell of a table as the name of a subgroup."""
    is_missing = value is None or (isinstance(value, float) and math.isnan(value)) or not str(value).strip()
    return MISSING if is_missing else str(value).strip()


def _of_set(rows: Any, split: str, columns: Mapping[str, str], source: Source) -> LabeledImages:
    """Return the images of a `datasets.Dataset`."""
    images = images_of(rows, columns["image_column"], downloaded=source.downloaded)
    where = f"{source.root}: the {split} split"
    labels = labels_of(rows, columns["label_column"], where)
    groups = labels_of(rows, columns["group_column"], where, "group") if "group_column" in columns else None
    subgroups = {name: [subgroup_value(value) for value in rows[name]] for name in _subgroup_columns(columns)}
    names = [f"{split}/{row}" for row in range(len(rows))]
    return LabeledImages(images, labels, names, groups, columns=subgroups)


def _warn_of_unused(root: Path, unused: Sequence[Path], why: str) -> None:
    if unused:
        names = first_names([path.relative_to(root).as_posix() for path in unused])
        logger.warning("%s: %s images %s and are ignored: %s", root, f"{len(unused):,}", why, names)
