"""Read labeled images from class folders, metadata files, the `datasets` library and built datasets.

Evaluation and training read all labeled images with this module, so the same folder always yields the same rows.
"""

import logging
import os
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from ..stratified import hold_out
from .errors import ImageError
from .folders import FolderContent, find_images, first_names, is_visible, warn_of_left_out
from .formats import DECODABLE_FORMATS
from .reading import read_row_image
from .tables import (
    METADATA_FILES,
    TABLE_SUFFIXES,
    ImageRow,
    LabeledRow,
    check_table,
    embeds_images,
    names_images,
    read_image_table,
)


logger = logging.getLogger(__name__)

IMAGE_COLUMN, LABEL_COLUMN = "image", "label"  # defaults
LABELS = "labels.csv"  # labels of the pairs of a built dataset
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_Row = TypeVar("_Row", ImageRow, LabeledRow)
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}


@dataclass(frozen=True)
class LabeledImages:
    """Images and their labels.

    Args:
        images: Images that [`read_row_image`] accepts. They are read on access.
        labels: Label of each image.
        names: Name of each image, used in messages and as a seed for its random crops.
        groups: Patient, slide or source of each image, if known. Images of one group belong in the same split.
        notes: Notes for the user on how the images were selected.
    """

    images: Sequence[Any]
    labels: list[str]
    names: list[str]
    groups: list[str] | None = None
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": self.images[row], "label": self.labels[row], "name": self.names[row]}

    def select(self, rows: Sequence[int]) -> "LabeledImages":
        """Return the images of the given rows, in this order."""
        return replace(
            self,
            images=LazyImages(rows, self.images.__getitem__),
            labels=[self.labels[row] for row in rows],
            names=[self.names[row] for row in rows],
            groups=[self.groups[row] for row in rows] if self.groups is not None else None,
        )

    def with_note(self, note: str) -> "LabeledImages":
        """Return the same images with an additional note."""
        return replace(self, notes=[*self.notes, note])


@dataclass(frozen=True)
class LazyImages(Sequence[Any]):
    """Images that are read on each access. `read` receives the number of the row."""

    rows: Sequence[int]
    read: Callable[[int], Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: Any) -> Any:
        return self.read(self.rows[position])


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
        group_column: Column of a table with the patient or source of each image. It is returned as `groups`.

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
    splits = read_splits(path, **columns, image_root=image_root, group_column=group_column)
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
) -> dict[str, LabeledImages]:
    """Read labeled images like [`read_labeled_images`], without requiring a training split.

    A split of a built dataset is empty if none of its pairs has a label.
    """
    root = Path(path)
    if root.suffix.lower() in TABLE_SUFFIXES and (root.is_file() or not root.exists()):
        return {"train": _read_table(root, image_column, label_column, image_root, group_column)}
    of_tables = {"image_root": (image_root, None), "group_column": (group_column, None)}
    refuse_columns("data that is not a CSV, JSON Lines or Parquet file", **of_tables)
    if (root / LABELS).is_file():
        from .labeled_pairs import read_labeled_pairs  # imports torch

        refuse_columns("a built dataset", image_column=(image_column, IMAGE_COLUMN))
        return read_labeled_pairs(root, label_column)
    from .labeled_sets import read_hub_set, read_parquet_set, read_saved_set

    if not root.is_dir():
        return read_hub_set(str(path), image_column, label_column)
    if any((root / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return read_saved_set(root, image_column, label_column)
    if (root / "report.json").is_file() and (root / "data").is_dir():
        raise FileNotFoundError(
            f"{path}: a built dataset without a {LABELS}. Add one with the columns pair_id and label, or pass a folder "
            "of labeled images."
        )
    folders = split_folders(root)
    content = find_images(root, link_depth=2 if folders else 1)
    tables = [file for file in content.others if file.name in METADATA_FILES]
    if any(file.suffix in (".parquet", ".arrow") for file in content.others if file not in tables):
        return read_parquet_set(root, image_column, label_column)
    if tables and any(names_images(table, image_column) for table in tables):
        content = replace(content, others=[file for file in content.others if file not in tables])
        splits = _from_tables(root, folders, tables, content, image_column, label_column)
    else:
        splits = _from_folders(root, folders, content)
        columns = {"image_column": (image_column, IMAGE_COLUMN), "label_column": (label_column, LABEL_COLUMN)}
        refuse_columns(f"class folders, whose names are the labels ({path})", **columns)
    if content.dicom:
        from .dicom import require_pydicom

        require_pydicom()
    warn_of_left_out(root, [content])
    return splits


def choose_split(
    splits: Mapping[str, LabeledImages],
    path: str | os.PathLike[str],
    split: str,
    held_out: float | None = None,
    seed: int = 0,
) -> LabeledImages:
    """Return one split of the result of [`read_splits`], with notes on how it was selected.

    If a test or validation split does not exist, `held_out` is the fraction of the training images of each class that
    is drawn for it. If `held_out` is None, images without splits are all test images. `path` is used in messages.

    Raises:
        ValueError: If the split does not exist, or if `held_out` is not between 0 and 0.5.
    """
    if held_out is not None and not 0 < held_out < 0.5:
        raise ValueError(f"held_out must be between 0 and 0.5, because two splits are held out, not {held_out}.")
    if held_out is None and list(splits) == ["train"]:
        if split != "test":
            # Returning all images again would train and test on the same images.
            raise ValueError(
                f"{path}: the images have no splits, so all of them are the test split, and there is no {split} "
                "split. Put them into folders train, validation and test."
            )
        return splits["train"].with_note("The images have no splits, so all of them are the test split.")
    splits = {name: images for name, images in splits.items() if len(images)}
    if held_out is not None and "train" in splits:
        total = len(splits["train"])
        for wanted in ("test", "validation"):
            if wanted not in splits:
                rest = splits["train"]
                # The second split is drawn from fewer images, so its fraction is larger. Both splits then have the same
                # size.
                kept, held = hold_out(rest.labels, held_out * total / len(rest), seed)
                splits["train"] = rest.select(kept)
                note = (
                    f"The {wanted} split was drawn from the training images: {len(held)} of {total}, {held_out:.0%} of "
                    f"each class, seed {seed}. Images of one patient may be in both."
                )
                splits = {name: images.with_note(note) for name, images in splits.items()}
                splits[wanted] = replace(rest.select(held), notes=splits["train"].notes)
    if split not in splits:
        raise ValueError(f"{path}: there is no {split} split with labeled images, only {', '.join(splits)}. Add it.")
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


def split_folders(root: Path) -> dict[str, Path]:
    """Return the folders that are named after splits, in upper or lower case. Each split may have one folder."""
    found: dict[str, Path] = {}
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.is_dir() and folder.name.lower() in _SPLIT_OF:
            split = _SPLIT_OF[folder.name.lower()]
            if split in found:
                raise ValueError(
                    f"{root}: both {found[split].name} and {folder.name} are folders of the {split} split. Keep one."
                )
            found[split] = folder
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def refuse_columns(what: str, **columns: tuple[Any, Any]) -> None:
    """Raise `ValueError` for the first of the arguments, each with its default, that is set but has no effect."""
    for name, (value, default) in columns.items():
        if value != default:
            raise ValueError(f"{name}={value!r} has no effect on {what}. Omit it.")


def _from_folders(root: Path, folders: Mapping[str, Path], content: FolderContent) -> dict[str, LabeledImages]:
    """Return images labeled with the names of their class folders."""
    splits = {}
    below: dict[Path, list[Path]] = {}
    for path in content.images:
        class_folder = root.joinpath(*path.relative_to(root).parts[: 2 if folders else 1])
        below.setdefault(class_folder, []).append(path)
    for split, folder in (folders or {"train": root}).items():
        classes = sorted(child for child in folder.iterdir() if child.is_dir() and is_visible(child.name))
        found = {child: below.pop(child, []) for child in classes}
        empty = [child for child, paths in found.items() if not paths]
        if len(empty) == len(found):
            raise FileNotFoundError(
                f"{folder}: no class folders with images. Labeled images are one folder of images for each class, "
                "optionally in folders train, validation and test; a metadata.csv with the columns file_name and "
                "label; or a dataset of the `datasets` library."
            )
        if empty:
            formats = ", ".join((*DECODABLE_FORMATS, "DICOM"))
            raise ValueError(f"{empty[0]}: no images ({formats}) in this class folder. Add some, or remove the folder.")
        labels = [child.name for child, paths in found.items() for _ in paths]
        splits[split] = labeled_files(root, list(chain(*found.values())), labels)
    _warn_of_unused(root, list(chain(*below.values())), "are not in a class folder")
    return splits


def _from_tables(
    root: Path,
    folders: Mapping[str, Path],
    tables: Sequence[Path],
    content: FolderContent,
    image_column: str,
    label_column: str,
) -> dict[str, LabeledImages]:
    """Return the images that metadata files list, grouped by split folder."""
    if len({table.parent for table in tables}) < len(tables):
        raise ValueError(f"{root}: several of {', '.join(METADATA_FILES)} are in one folder. Keep one of them.")
    rows = [row for table in tables for row in read_image_table(table, image_column, label_column)]
    if not rows:
        raise ValueError(f"{tables[0]}: the table has no rows.")
    found = rows_by_split(root, folders, rows)
    named = {row.image for row in rows}
    _warn_of_unused(root, [path for path in content.images if path not in named], "are not listed in a metadata file")
    return {
        split: labeled_files(root, [row.image for row in found[split]], [row.label for row in found[split]])
        for split in SPLIT_NAMES
        if split in found
    }


def rows_by_split(root: Path, folders: Mapping[str, Path], rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    """Return the rows of metadata files by the split folder of their images, or as `train` if there are none.

    Raises:
        ValueError: If only some of the images are in split folders, or a split folder has no listed images.
    """
    split_of = {folder: split for split, folder in folders.items()}
    found: dict[str | None, list[_Row]] = {}
    for row in rows:
        found.setdefault(split_of.get(root / row.image.relative_to(root).parts[0]), []).append(row)
    if None in found and len(found) > 1:
        row = found[None][0]
        raise ValueError(
            f"{row.where}: {row.image.relative_to(root)} is not in a folder of a split, but other images are."
        )
    if None in found:
        return {"train": list(rows)}
    if without := [folder.name for split, folder in folders.items() if split not in found]:
        raise ValueError(f"{root}: no metadata file lists images of {', '.join(without)}, as of the other splits.")
    return {split: found[split] for split in SPLIT_NAMES if split in found}


def _read_table(
    path: Path,
    image_column: str,
    label_column: str,
    image_root: str | os.PathLike[str] | None,
    group_column: str | None,
) -> LabeledImages:
    """Return the images that a table lists."""
    check_table(path, image_root)
    if embeds_images(path, image_column):
        from .labeled_sets import read_parquet_file

        refuse_columns(f"{path}, which contains the images", image_root=(image_root, None))
        return read_parquet_file(path, image_column, label_column, group_column)
    root = None if image_root is None else Path(image_root)
    rows = read_image_table(path, image_column, label_column, image_root=root, group_column=group_column)
    if not rows:
        raise ValueError(f"{path}: the table has no rows.")
    groups = [str(row.group) for row in rows] if group_column else None
    return LabeledImages([row.image for row in rows], [row.label for row in rows], [row.name for row in rows], groups)


def _warn_of_unused(root: Path, unused: Sequence[Path], why: str) -> None:
    if unused:
        names = first_names([path.relative_to(root).as_posix() for path in unused])
        logger.warning("%s: %s images %s and are ignored: %s", root, f"{len(unused):,}", why, names)
