"""Labeled images for classification: class folders, `datasets`' imagefolder with its tables, or a `datasets` set."""

import json
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..tables import read_text
from .folders import FolderContent, find_images, is_visible, shown_name, warn_of_left_out
from .formats import DECODABLE_FORMATS
from .reading import ImageError, read_row_image
from .tables import METADATA_FILES, names_images, read_image_table


logger = logging.getLogger(__name__)

IMAGE_COLUMN, LABEL_COLUMN = "image", "label"  # where no others are named
_SHOWN = 5

# What data sets call their splits.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}


@dataclass(frozen=True)
class LabeledImages:
    """Images and their labels, read on access, row by row; `image` is what [`read_row_image`] takes.

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

    def select(self, numbers: Sequence[int]) -> "LabeledImages":
        """The images of these numbers, in this order."""
        return LabeledImages(
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


def read_labeled_images(
    path: str | os.PathLike[str], *, image_column: str = IMAGE_COLUMN, label_column: str = LABEL_COLUMN
) -> dict[str, LabeledImages]:
    """Read a set of labeled images that has a training split.

    Args:
        path: A folder with one folder of images for each class, or with such folders under `train`, `validation` and
            `test`; a folder of images with `metadata.csv`, `metadata.jsonl` or `metadata.parquet`, in it or in its
            folders of splits; a `datasets` set, saved with `save_to_disk` or as Parquet or Arrow files; or a dataset
            on the Hub.
        image_column: Column of images of a `datasets` set or a metadata file.
        label_column: Column of labels of a `datasets` set or a metadata file: class labels, texts or numbers.

    Returns:
        Those of `train`, `validation` and `test` that exist. Images without splits are `train`.

    Raises:
        FileNotFoundError: If there is no such folder or dataset, if it has no labeled images, or if images that a
            metadata file names are missing.
        ImportError: If images are DICOM and pydicom is not installed.
        ValueError: If there is no training split, a class without images, a missing column or label, a column that
            class folders do not have, or a metadata file that cannot be read.

    Example:
    ```python
    >>> from collections import Counter

    >>> from biomedclip.processing import read_labeled_images

    >>> Counter(read_labeled_images("folder_of_classes")["train"].labels)
    ```
    """
    splits = read_splits(path, image_column=image_column, label_column=label_column)
    if "train" not in splits:
        folders = split_folders(Path(path))
        raise ValueError(
            f"{path} has folders of splits ({', '.join(folder.name for folder in folders.values())}) but none called "
            f"{' or '.join(SPLIT_NAMES['train'])}. They are not classes; name the training folder so."
        )
    return splits


def read_splits(
    path: str | os.PathLike[str], *, image_column: str = IMAGE_COLUMN, label_column: str = LABEL_COLUMN
) -> dict[str, LabeledImages]:
    """Read a set of labeled images, of which there may be a test split alone.

    Args and errors are those of [`read_labeled_images`].
    """
    root = Path(path)
    if not root.is_dir():
        return _from_datasets(_open_on_hub(str(path)), str(path), image_column, label_column, downloaded=True)
    if any((root / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return _from_datasets(_open_saved(root), str(path), image_column, label_column)
    folders = split_folders(root)
    content = find_images(root, link_depth=2 if folders else 1)
    tables = [file for file in content.others if file.name in METADATA_FILES]
    if any(file.suffix in (".parquet", ".arrow") for file in content.others if file not in tables):
        import datasets

        _refuse_data_elsewhere(root)
        return _from_datasets(datasets.load_dataset(str(root)), str(path), image_column, label_column)
    if tables and any(names_images(table, image_column) for table in tables):
        content = replace(content, others=[file for file in content.others if file not in tables])
        splits = _from_tables(root, folders, tables, content, image_column, label_column)
    else:
        splits = _from_folders(root, folders, content)
        for name, default, option in (
            (image_column, IMAGE_COLUMN, "--image-column"),
            (label_column, LABEL_COLUMN, "--label-column"),
        ):
            if name != default:
                raise ValueError(
                    f"{option} {name} has no effect on class folders, whose names are the labels ({path} has no "
                    f"{', '.join(METADATA_FILES)} and is no `datasets` set). Leave it out."
                )
    if content.dicom:
        from .dicom import require_pydicom

        require_pydicom()
    warn_of_left_out(root, [content])
    return splits


def check_readable(images: LabeledImages, where: str) -> None:
    """Check that each class has an image that can be decoded, by reading one image of each in most cases.

    Args:
        images: The images.
        where: What errors call them.

    Raises:
        ValueError: If none of the images of a class can be read.
    """
    numbers_of: dict[str, list[int]] = {}
    for number, label in enumerate(images.labels):
        numbers_of.setdefault(label, []).append(number)
    for label, numbers in numbers_of.items():
        reason = ""
        for number in numbers:
            try:
                read_row_image(images.images[number])
                break
            except ImageError as error:
                reason = reason or str(error)
        else:
            raise ValueError(
                f"{where}: none of the {len(numbers):,} images of the class {label!r} can be read. The first: {reason}"
            )


def similar_classes(classes: Sequence[str]) -> list[str]:
    """Return a note on each group of classes whose names differ only in case, spaces or Unicode form."""
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
    """Return the folders that have names of splits, in any case, by split.

    Raises:
        ValueError: If two folders are called by the same split.
    """
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


def hold_out(labels: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Splits images at random, class by class.

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


def _from_folders(root: Path, folders: Mapping[str, Path], content: FolderContent) -> dict[str, LabeledImages]:
    """Images by the names of their class folders. Images next to class folders are reported as ignored."""
    splits = {}
    below: dict[Path, list[Path]] = {}
    for path in content.images:
        below.setdefault(_ancestor(path, root, 2 if folders else 1), []).append(path)
    for split, folder in (folders or {"train": root}).items():
        classes = sorted(child for child in folder.iterdir() if child.is_dir() and is_visible(child.name))
        found = {child: below.pop(child, []) for child in classes}
        empty = [child for child, paths in found.items() if not paths]
        if len(empty) == len(found):
            raise FileNotFoundError(
                f"{folder}: no folder with images there. Classification needs one folder of images for each class, "
                "optionally under train, validation and test; a metadata.csv with file_name and a column of labels; "
                "or a dataset of the `datasets` library."
            )
        if empty:
            formats = ", ".join((*DECODABLE_FORMATS, "DICOM"))
            raise ValueError(f"{empty[0]}: no images ({formats}) in this class folder. Put some there, or remove it.")
        splits[split] = LabeledImages(
            [path for paths in found.values() for path in paths],
            [child.name for child, paths in found.items() for _ in paths],
            [path.relative_to(root).as_posix() for paths in found.values() for path in paths],
        )
    _warn_of_unused(root, [path for paths in below.values() for path in paths], "lie in no class folder")
    return splits


def _ancestor(path: Path, root: Path, depth: int) -> Path:
    """The folder that holds a path, as many levels below the root as given, or the path itself."""
    return root.joinpath(*path.relative_to(root).parts[:depth])


def _from_tables(
    root: Path,
    folders: Mapping[str, Path],
    tables: Sequence[Path],
    content: FolderContent,
    image_column: str,
    label_column: str,
) -> dict[str, LabeledImages]:
    """Images that metadata files name, in the splits of the folders that the files or the images lie in."""
    folder_of = {table.parent: table for table in tables}
    if len(folder_of) < len(tables):
        raise ValueError(f"{root}: several of {', '.join(METADATA_FILES)} lie in one folder. Keep one of them.")
    split_of = {folder: split for split, folder in folders.items()}
    found: dict[str | None, list[Any]] = {}
    for table in tables:
        for row in read_image_table(table, image_column, label_column):
            split = split_of.get(_ancestor(row.image, root, 1))
            found.setdefault(split, []).append(row)
    if len(found) > 1 and None in found:
        row = found[None][0]
        raise ValueError(f"{row.where}: {row.image.relative_to(root)} lies in no folder of a split, and others do.")
    if without := [folder.name for split, folder in folders.items() if split not in found and None not in found]:
        raise ValueError(f"{root}: no metadata file names images of {', '.join(without)}, as of the other splits.")
    if not found:
        raise ValueError(f"{tables[0]}: the table has no rows.")
    splits, named = {}, set()
    for name in SPLIT_NAMES if None not in found else (None,):
        rows = found.get(name, [])
        images = [row.image for row in rows]
        named.update(images)
        if rows:
            names = [image.relative_to(root).as_posix() for image in images]
            splits[name or "train"] = LabeledImages(images, [row.label for row in rows], names)
    _warn_of_unused(root, [path for path in content.images if path not in named], "are named in no metadata file")
    return splits


def _warn_of_unused(root: Path, unused: Sequence[Path], why: str) -> None:
    if unused:
        names = ", ".join(shown_name(path.relative_to(root).as_posix()) for path in unused[:_SHOWN])
        rest = ", ..." if len(unused) > _SHOWN else ""
        logger.warning("%s: %s images %s and are left out: %s%s", root, f"{len(unused):,}", why, names, rest)


def _refuse_data_elsewhere(root: Path) -> None:
    """Check that the settings of a `datasets` folder name no data outside of it, which `datasets` would fetch.

    Raises:
        ValueError: If `data_files` or `data_dir` of `README.md` or `.huggingface.yaml` names an address, an absolute
            path or a parent folder.
    """
    for file in (root / "README.md", root / ".huggingface.yaml"):
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        parts = re.split(r"^---\s*$", text, maxsplit=2, flags=re.MULTILINE) if file.suffix == ".md" else ["", text]
        try:
            settings = yaml.safe_load(parts[1]) if len(parts) > 1 else None
        except yaml.YAMLError as error:
            raise ValueError(f"{file}: the settings at its head are not YAML: {error}") from error
        configs = settings.get("configs") if isinstance(settings, dict) else None
        for config in configs if isinstance(configs, list) else [configs]:
            for key in ("data_files", "data_dir"):
                for place in _texts_in(config.get(key) if isinstance(config, dict) else None):
                    if "://" in place or "::" in place or Path(place).is_absolute() or ".." in Path(place).parts:
                        raise ValueError(
                            f"{file}: {key} names {place!r}, which is outside of the folder. Remove it, or copy the "
                            "data into the folder."
                        )


def _texts_in(value: Any) -> Iterator[str]:
    """The texts in a nested value of a YAML file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts_in(item)


def _open_saved(root: Path) -> Any:
    """A set that `save_to_disk` wrote, whose files lie where it writes them."""
    import datasets

    for state in root.rglob("state.json"):
        files = json.loads(read_text(state)).get("_data_files") or []
        for name in [str(file.get("filename")) for file in files]:
            if name != os.path.basename(name.replace("\\", "/")):
                raise ValueError(f"{state}: the file {shown_name(name[:200])!r} does not lie beside it.")
    for file in root.glob("dataset_dict.json"):
        for name in map(str, json.loads(read_text(file)).get("splits") or []):
            if name in (".", "..") or name != os.path.basename(name.replace("\\", "/")):
                raise ValueError(f"{file}: the split {shown_name(name[:200])!r} is not the name of a folder beside it.")
    return datasets.load_from_disk(str(root))


def _open_on_hub(name: str) -> Any:
    import datasets

    if os.path.exists(name):
        raise ValueError(f"{name} is a file. Name the folder of the images; its metadata.csv is found there.")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"{name}: there is no such folder.")
    try:
        return datasets.load_dataset(name)
    except OSError as error:
        raise FileNotFoundError(f"{name}: no such folder, and no such data set on the Hub ({error}).") from error


@dataclass(frozen=True)
class _Downloaded(Sequence[Any]):
    """Images of a set on the Hub that consists of image files: its rows hold the paths of the files in the cache."""

    images: Sequence[Any]
    caches: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: Any) -> Any:
        image = self.images[number]
        if not isinstance(image, dict) or image.get("bytes") is not None or not image.get("path"):
            return image
        file = Path(image["path"]).resolve()
        # A path that leads elsewhere stays a path in a row, which is not opened.
        return file if any(file.is_relative_to(cache) for cache in self.caches) else image


def _download_caches() -> tuple[Path, ...]:
    """Folders into which `datasets` downloads."""
    import datasets
    from huggingface_hub import constants

    folders = (constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH)
    return tuple(Path(folder).resolve() for folder in folders)


def _from_datasets(
    opened: Any, path: str, image_column: str, label_column: str, *, downloaded: bool = False
) -> dict[str, LabeledImages]:
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
        images = _Downloaded(rows[image_column], _download_caches()) if downloaded else rows[image_column]
        splits[split] = LabeledImages(images, labels, [f"{split}/{row}" for row in range(len(rows))])
    return splits


def _label_texts(rows: Any, column: str, where: str) -> list[str]:
    feature, values = rows.features[column], list(rows[column])
    names: Any = getattr(feature, "names", None)
    unusual = Counter(type(value).__name__ for value in values if not isinstance(value, str | int | float | None))
    if unusual:
        raise ValueError(f"{where}: {column!r} holds {', '.join(unusual)}, not one label for each image.")
    texts = [value.strip() if isinstance(value, str) else value for value in values]
    missing = [row for row, value in enumerate(texts) if _is_missing(value, names)]
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {len(values)} rows have no label in {column!r}, the first is row "
            f"{missing[0]}. Filter them out."
        )
    return [names[value] if names is not None else str(value) for value in texts]


def _is_missing(value: Any, names: Sequence[str] | None) -> bool:
    if names is not None and isinstance(value, int):
        return value < 0  # test splits of competitions mark labels that are not told with -1
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


__all__ = [
    "IMAGE_COLUMN",
    "LABEL_COLUMN",
    "LabeledImages",
    "check_readable",
    "hold_out",
    "read_labeled_images",
    "read_splits",
    "similar_classes",
    "split_folders",
]
