"""Labelled images for classification: out of a folder of class folders, or a `datasets` set."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .images import DECODABLE_FORMATS, DICOM_SUFFIXES, IMAGE_SUFFIXES


# What data sets call their splits.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class LabelledImages:
    """
    Images and their labels, read when asked for: row by row for a loader, `image` being what [`read_image`] takes.

    Args:
        images: Paths, or `datasets` image rows that are not decoded.
        labels: One label for each image.
        names: What an image is called in messages; it also seeds the image's random crops.
        groups: Patient, slide or source of each image, where it is known: images of one group belong into one split.
    """

    images: Sequence[Any]
    labels: list[str]
    names: list[str]
    groups: list[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"image": self.images[number], "label": self.labels[number], "name": self.names[number]}

    def select(self, numbers: Sequence[int]) -> "LabelledImages":
        """The images of these numbers, in this order."""
        return LabelledImages(
            _Selected(self.images, list(numbers)),
            [self.labels[number] for number in numbers],
            [self.names[number] for number in numbers],
            [self.groups[number] for number in numbers] if self.groups is not None else None,
        )


@dataclass(frozen=True)
class _Selected(Sequence[Any]):
    """Some of a sequence: the images of a `datasets` set are not read before they are needed."""

    images: Sequence[Any]
    numbers: list[int]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: Any) -> Any:
        return self.images[self.numbers[position]]


def read_labelled_images(
    path: str | os.PathLike[str], *, image_column: str = "image", label_column: str = "label"
) -> dict[str, LabelledImages]:
    """
    Reads a set of labelled images.

    Args:
        path: A folder with one folder of images for each class, or with such folders under `train`, `validation` and
            `test`; a `datasets` set, saved with `save_to_disk` or as Parquet or Arrow files; or a data set on the Hub.
        image_column: Column of images of a `datasets` set.
        label_column: Column of labels of a `datasets` set: class labels, texts or numbers.

    Returns:
        The splits that are there, of `train`, `validation` and `test`; `train` always is.

    Raises:
        FileNotFoundError: Nothing of the kind there.
        ValueError: A class without images, a column that is not there, a row without a label, or no training split.

    Example:

    ```python
    >>> from collections import Counter

    >>> from processing import read_labelled_images

    >>> Counter(read_labelled_images("folder_of_classes")["train"].labels)
    ```"""
    root = Path(path)
    if not root.is_dir():
        return _from_datasets(_open_on_hub(str(path)), str(path), image_column, label_column)
    if any((root / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        import datasets

        return _from_datasets(datasets.load_from_disk(str(root)), str(path), image_column, label_column)
    if any(
        _is_visible(*file.relative_to(root).parts)
        for suffix in ("parquet", "arrow")
        for file in root.rglob(f"*.{suffix}")
    ):
        import datasets

        return _from_datasets(datasets.load_dataset(str(root)), str(path), image_column, label_column)
    return _from_folders(root)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders that are called as splits are, in whatever case, by split."""
    found = {folder.name.lower(): folder for folder in root.iterdir() if folder.is_dir()} if root.is_dir() else {}
    return {split: found[name] for split, names in SPLIT_NAMES.items() for name in names if name in found}


def image_files_by_class(path: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """
    Image files of a folder of class folders, by class; folders inside a class folder belong to the class.

    Returns:
        Classes and files in sorted order; nothing where the folder holds no folder with images.

    Raises:
        ValueError: A class folder without images beside others that have some.
    """
    folders = sorted(folder for folder in Path(path).glob("*") if folder.is_dir() and _is_visible(folder.name))
    files = {folder.name: [*image_files(folder)] for folder in folders}
    empty = [name for name, found in files.items() if not found]
    if len(empty) == len(files):
        return {}
    if empty:
        formats = ", ".join((*DECODABLE_FORMATS, "DICOM"))
        raise ValueError(
            f"{Path(path) / empty[0]}: no images ({formats}) in this class folder. Put some there, or remove it."
        )
    return files


def hold_out(labels: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """
    Splits images at random, class by class.

    Args:
        labels: Labels of the images.
        share: Share of each class to hold out: rounded, but at least one image of a class of two or more.
        seed: Seed of the draw.

    Returns:
        Numbers of the images that stay, and of those that are held out, both ascending.

    Raises:
        ValueError: A share that is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"The share of images held out must lie between 0 and 1, not {share}.")
    members_of: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    for number, label in enumerate(labels):
        members_of[label].append(number)
    held_out: list[int] = []
    for order, members in enumerate(members_of.values()):
        wanted = min(len(members) - 1, max(1, round(share * len(members))))
        held_out += np.random.default_rng([seed, order]).permutation(members)[:wanted].tolist()
    return sorted(set(range(len(labels))) - set(held_out)), sorted(held_out)


def _from_folders(root: Path) -> dict[str, LabelledImages]:
    folders = split_folders(root)
    if folders and "train" not in folders:
        raise ValueError(
            f"{root} has folders of splits ({', '.join(folder.name for folder in folders.values())}) but none called "
            f"{' or '.join(SPLIT_NAMES['train'])}. They are not classes; name the training folder so."
        )
    folders = folders or {"train": root}
    splits = {}
    for split, folder in folders.items():
        files = image_files_by_class(folder)
        if not files:
            raise FileNotFoundError(
                f"{folder}: no folder with images there. Classification needs one folder of images for each class, "
                "optionally under train, validation and test, or a data set of the `datasets` library."
            )
        paths = [path for found in files.values() for path in found]
        splits[split] = LabelledImages(
            paths,
            [label for label, found in files.items() for _ in found],
            [path.relative_to(root).as_posix() for path in paths],
        )
    return splits


def image_files(folder: Path) -> Iterator[Path]:
    """Image files of a folder and of those inside it, sorted."""
    for path in sorted(folder.rglob("*")):
        if (
            path.suffix.lower() in IMAGE_SUFFIXES | DICOM_SUFFIXES
            and _is_visible(*path.relative_to(folder).parts)
            and path.is_file()
        ):
            yield path


def _is_visible(*names: str) -> bool:
    """Not of a file manager or an editor, which leave images too (`._scan.png`, `.ipynb_checkpoints`, `__MACOSX`)."""
    return not any(name.startswith((".", "__MACOSX")) for name in names)


def _open_on_hub(name: str) -> Any:
    import datasets

    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"{name}: there is no such folder.")
    try:
        return datasets.load_dataset(name)
    except OSError as error:
        raise FileNotFoundError(f"{name}: no such folder, and no such data set on the Hub ({error}).") from error


def _from_datasets(opened: Any, path: str, image_column: str, label_column: str) -> dict[str, LabelledImages]:
    import datasets

    by_name: Mapping[str, Any] = opened if isinstance(opened, Mapping) else {"train": opened}
    found = {split: by_name[name] for split, names in SPLIT_NAMES.items() for name in names if name in by_name}
    if "train" not in found:
        if len(by_name) != 1:
            raise ValueError(f"{path}: no split is called train; there are {', '.join(by_name)}.")
        found = {"train": next(iter(by_name.values()))}
    splits = {}
    for split, rows in found.items():
        for column, option in ((image_column, "--image-column"), (label_column, "--label-column")):
            if column not in rows.column_names:
                raise ValueError(
                    f"{path}: the {split} split has no column {column!r}; it has {', '.join(rows.column_names)}. "
                    f"Name it with {option}."
                )
        if isinstance(rows.features[image_column], datasets.Image):
            rows = rows.cast_column(image_column, datasets.Image(decode=False))
        labels = _label_texts(rows, label_column, f"{path}: the {split} split")
        splits[split] = LabelledImages(rows[image_column], labels, [f"{split}/{row}" for row in range(len(rows))])
    return splits


def _label_texts(rows: Any, column: str, where: str) -> list[str]:
    feature, values = rows.features[column], list(rows[column])
    # Test splits of competitions mark what they do not tell with -1.
    names: Sequence[str] | None = getattr(feature, "names", None)
    missing = sum(value is None or (names is not None and value < 0) for value in values)
    if missing:
        raise ValueError(f"{where}: {missing} of {len(values)} rows have no label in {column!r}. Filter them out.")
    unusual = Counter(type(value).__name__ for value in values if not isinstance(value, str | int | float))
    if unusual:
        raise ValueError(f"{where}: {column!r} holds {', '.join(unusual)}, not one label for each image.")
    return [names[value] if names is not None else str(value) for value in values]


__all__ = ["LabelledImages", "hold_out", "image_files", "image_files_by_class", "read_labelled_images"]
