"""Read images with several findings from tables: a column for each finding, or a column with lists of findings."""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..tables import read_text
from .findings import (
    BLANK_DEFAULT,
    NO_FINDING,
    UNCERTAIN_DEFAULT,
    FindingImages,
    apply_policies,
    label_value,
    policy_notes,
)
from .folders import SPLIT_NAMES, shown_name
from .labeled import SUBGROUP, subgroup_value
from .sets import images_of, labels_of
from .sources import IMAGE_COLUMN, Source, open_source, refuse_columns
from .split_column import by_split_column, split_rows
from .tables import ImageRow, read_image_rows, value_of


_FILE = Path(__file__).parent / "finding_layouts.yaml"
ACCEPTED = (
    "a CSV, JSON Lines or Parquet file with a column of image paths and the label columns, a folder with a "
    "metadata.csv, a dataset of the `datasets` library, or the name of a dataset on the Hub (OWNER/NAME)"
)


@dataclass(frozen=True)
class Columns:
    """Where a table has its images, labels and patients. The fields are those of `finding_layouts.yaml`.

    Without `findings`, a column with lists of findings has those that occur in it.
    """

    label_columns: Sequence[str]
    image_column: str = IMAGE_COLUMN
    group_column: str | None = None
    split_column: str | None = None
    separator: str | None = None
    findings: Sequence[str] = ()
    tables: Mapping[str, str] | None = None
    prefix: str | None = None
    folders: Sequence[str] = ()
    lists: Mapping[str, str] | None = None
    group_of_image: str | None = None
    subgroup_column: Sequence[str] = ()

    @property
    def by_argument(self) -> dict[str, Any]:
        """Return the columns that a table must have, by the name of the argument that selects them."""
        groups = {"group_column": self.group_column} if self.group_column else {}
        splits = {"split_column": self.split_column} if self.split_column else {}
        subgroups = {f"{SUBGROUP} {name}": name for name in self.subgroup_column}
        known: dict[str, Any] = {"image_column": self.image_column, "label_columns": list(self.label_columns)}
        return known | groups | splits | subgroups


@lru_cache(maxsize=1)
def layouts() -> dict[str, Columns]:
    """Return the layouts of published tables, by name."""
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {name: Columns(**layout) for name, layout in content.items()}


def read_finding_splits(
    path: str | os.PathLike[str],
    *,
    label_columns: Sequence[str],
    label_separator: str | None = None,
    image_column: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    uncertain: str = UNCERTAIN_DEFAULT,
    blank: str = BLANK_DEFAULT,
    subgroup_column: Sequence[str] = (),
) -> dict[str, FindingImages]:
    """Read images with several findings each.

    Args:
        path: A CSV, JSON Lines or Parquet file with image paths, a folder of images with a `metadata.csv`, or a dataset
            of the `datasets` library. For a layout, the table or the folder that contains it.
        label_columns: Column of each finding, with 1, 0, -1 (uncertain) or blank. With `label_separator`, one column
            with lists of findings. Or the name of a layout, `chexpert` or `nih`, which also has the other columns.
        label_separator: Separator of the findings in a list, such as `|`. An entry `No Finding` is an empty list.
        image_column: Column of the images (default: `image`, or that of the layout).
        image_root: Folder to which the image paths of a table are relative (default: the folder of the table).
        group_column: Column of the patient of each image (default: none, or that of the layout).
        split_column: Column with the split of each row: train, validation or test (also training, valid, val, dev or
            testing).
        uncertain: Value of uncertain labels: `zero`, `one` or `ignore`.
        blank: Value of blank labels: `zero` or `ignore`.
        subgroup_column: Further columns to read. An empty value is read as `(missing)`.

    Returns:
        The images of each split. Images without splits are returned as `train`.

    Raises:
        FileNotFoundError: If the data or images that it lists do not exist.
        ValueError: If a column is missing, a label is not 1, 0, -1 or blank, or a finding has only blank labels. The
            message contains the file, the line, the column and the value. Of a layout, such findings are left out.

    Example:
    ```python
    >>> from biomedclip.processing.images.finding_tables import read_finding_splits

    >>> images = read_finding_splits("findings.csv", label_columns=["effusion", "nodule"])["train"]
    >>> images.findings, images.targets.shape
    (['effusion', 'nodule'], (40, 2))
    ```
    """
    columns = _columns(label_columns, label_separator, image_column, group_column)
    columns = replace(columns, split_column=split_column, subgroup_column=tuple(subgroup_column))
    raw = dict(_read(Path(path), os.fspath(path), columns, image_root))
    rows = np.concatenate([images.targets for images in raw.values()])
    blank_findings = [name for name, labels in zip(_findings(raw), rows.T, strict=True) if np.isnan(labels).all()]
    if blank_findings and (columns.tables is None or len(blank_findings) == rows.shape[1]):
        raise ValueError(
            f"{path}: the finding {blank_findings[0]!r} has no label, all {len(rows):,} rows are blank. Omit it from "
            "label_columns."
        )
    left_out = [f"Left out, because all labels are blank: {', '.join(blank_findings)}."] if blank_findings else []
    kept = [number for number, name in enumerate(_findings(raw)) if name not in blank_findings]
    return {
        split: replace(
            images,
            targets=apply_policies(images.targets[:, kept], uncertain, blank),
            findings=[images.findings[number] for number in kept],
            notes=[*images.notes, *left_out, *policy_notes(images.targets[:, kept], uncertain, blank)],
        )
        for split, images in raw.items()
    }


def _findings(splits: Mapping[str, FindingImages]) -> list[str]:
    return next(iter(splits.values())).findings


def _columns(
    label_columns: Sequence[str], separator: str | None, image_column: str | None, group_column: str | None
) -> Columns:
    columns = {"image_column": image_column, "group_column": group_column}
    given: dict[str, Any] = {name: value for name, value in columns.items() if value is not None}
    if twice := [name for name in label_columns if list(label_columns).count(name) > 1]:
        raise ValueError(f"label_columns has {twice[0]!r} twice. Remove one.")
    layout = layouts().get(label_columns[0]) if len(label_columns) == 1 else None
    if layout is not None:
        if separator is not None:
            raise ValueError(f"label_separator={separator!r} has no effect on the layout {label_columns[0]}. Omit it.")
        return replace(layout, **given)
    if separator is not None and len(label_columns) > 1:
        raise ValueError(
            f"label_separator={separator!r} is for one column with lists of findings, but label_columns has "
            f"{len(label_columns)} columns. Pass one."
        )
    if separator is None and len(label_columns) < 2:
        raise ValueError(
            f"label_columns has only {label_columns[0]!r}. Pass two or more columns of findings, a layout "
            f"({', '.join(layouts())}), or label_separator for a column with lists of findings."
        )
    return Columns(label_columns, separator=separator, **given)


def _read(
    path: Path, name: str, columns: Columns, image_root: str | os.PathLike[str] | None
) -> Iterator[tuple[str, FindingImages]]:
    """Yield the images of each split. Their targets are the labels of [`label_value`]."""
    notes: list[str] = []
    if columns.tables:
        rows, notes = _rows_of_layout(path, columns, None if image_root is None else Path(image_root))
        root = None
    else:
        opened = open_source(name, columns.by_argument, image_root, ACCEPTED)
        source = by_split_column(opened, columns.split_column)
        if source.sets:
            yield from _of_sets(source, columns)
            return
        if not source.rows:
            raise ValueError(f"{name}: no table with the columns {', '.join(columns.label_columns)}. Pass {ACCEPTED}.")
        rows, root = dict(source.rows), source.root if source.content is not None else None
    findings = _findings_of([row.values for found in rows.values() for row in found], columns)
    for split, found in rows.items():
        yield split, replace(_of_rows(found, columns, findings, root), notes=notes)


def _of_sets(source: Source, columns: Columns) -> Iterator[tuple[str, FindingImages]]:
    """Yield the images of each `datasets.Dataset`."""
    cells = {}
    for split, rows in source.sets.items():
        values = [list(rows[column]) for column in columns.label_columns]
        cells[split] = [dict(zip(columns.label_columns, row, strict=True)) for row in zip(*values, strict=True)]
    findings = _findings_of(list(chain(*cells.values())), columns)
    for split, rows in source.sets.items():
        where = f"{source.root}: the {split} split"
        labels = [_labels(row, f"{where}, row {number}", columns, findings) for number, row in enumerate(cells[split])]
        groups = labels_of(rows, columns.group_column, where, "group") if columns.group_column else None
        images = images_of(rows, columns.image_column, downloaded=source.downloaded)
        names = [f"{split}/{row}" for row in range(len(rows))]
        subgroups = {name: [subgroup_value(value) for value in rows[name]] for name in columns.subgroup_column}
        yield split, FindingImages(images, np.array(labels), findings, names, groups, columns=subgroups)


def _findings_of(rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[str]:
    if columns.separator is None:
        return list(columns.label_columns)
    if columns.findings:
        return list(columns.findings)
    found = {name for row in rows for name in _listed(row.get(columns.label_columns[0]), columns.separator)}
    found = {name for name in found if name.casefold() != NO_FINDING}
    if len(found) < 2:
        raise ValueError(
            f"The column {columns.label_columns[0]!r} has {len(found)} findings separated by {columns.separator!r}. It "
            "needs two or more. Check label_separator."
        )
    return sorted(found)


def _listed(value: Any, separator: str) -> list[str]:
    return [part.strip() for part in str("" if value is None else value).split(separator) if part.strip()]


def _labels(values: Mapping[str, Any], where: str, columns: Columns, findings: Sequence[str]) -> list[float]:
    """Return the labels of a row."""
    if columns.separator is None:
        return [label_value(values.get(column), f"{where}: {column}") for column in columns.label_columns]
    listed = _listed(values.get(columns.label_columns[0]), columns.separator)
    if not listed:
        return [float("nan")] * len(findings)
    none = [name for name in listed if name.casefold() == NO_FINDING]
    place = f"{where}: {columns.label_columns[0]} is {str(values[columns.label_columns[0]])[:100]!r}"
    if none and len(listed) > 1:
        raise ValueError(f"{place}, which is both {none[0]!r} and a finding. Remove one of them.")
    if unknown := sorted(set(listed) - set(findings) - set(none)):
        raise ValueError(f"{place}. {unknown[0]!r} is unknown. The findings are {', '.join(findings)}.")
    return [float(name in listed) for name in findings]


def _of_rows(rows: Sequence[ImageRow], columns: Columns, findings: list[str], root: Path | None) -> FindingImages:
    """Return the images that tables list. Duplicate rows count once, and different labels of an image are an error."""
    kept: dict[Path, tuple[ImageRow, list[float]]] = {}
    for row in rows:
        labels = _labels(row.values, row.where, columns, findings)
        first, first_labels = kept.setdefault(row.image, (row, labels))
        if first is not row and not np.array_equal(first_labels, labels, equal_nan=True):
            raise ValueError(
                f"{row.where}: {shown_name(row.name)} has other labels than in {first.where.rpartition(', ')[2]}. Keep "
                "one of the two rows."
            )
    images = [row for row, _ in kept.values()]
    names = [row.image.relative_to(root).as_posix() if root is not None else row.name for row in images]
    groups = [_group_of(row, columns) for row in images] if columns.group_column or columns.group_of_image else None
    subgroups = {name: [subgroup_value(row.values.get(name)) for row in images] for name in columns.subgroup_column}
    targets = np.array([labels for _, labels in kept.values()])
    return FindingImages([row.image for row in images], targets, findings, names, groups, columns=subgroups)


def _group_of(row: ImageRow, columns: Columns) -> str:
    if columns.group_column:
        return value_of(row, columns.group_column)
    match = re.search(str(columns.group_of_image), row.name)
    if match is None:
        raise ValueError(
            f"{row.where}: {shown_name(row.name)} has no patient (the pattern {columns.group_of_image}). Pass "
            "group_column."
        )
    return match[0]


def _rows_of_layout(
    path: Path, columns: Columns, image_root: Path | None
) -> tuple[dict[str, list[ImageRow]], list[str]]:
    """Return the rows of the tables of a published layout, by split, and notes on rows that are left out."""
    assert columns.tables is not None
    if path.is_dir():
        tables = {split: sorted(path.glob(pattern)) for split, pattern in columns.tables.items()}
        tables = {split: found for split, found in tables.items() if found}
        if not tables:
            raise FileNotFoundError(f"{path}: no {', '.join(columns.tables.values())}. Pass the folder or the table.")
        if several := [found for found in tables.values() if len(found) > 1]:
            names = ", ".join(table.name for table in several[0])
            raise ValueError(f"{path}: several tables ({names}). Pass one of them.")
    elif path.is_file():
        tables = {"train": [path]}
    else:
        raise FileNotFoundError(f"{path}: the file or folder does not exist.")
    rows = {}
    for split, (table,) in tables.items():
        others = {argument: value for argument, value in columns.by_argument.items() if argument != "image_column"}
        root = image_root or table.parent
        rename = _renamer(root, columns)
        rows[split] = list(read_image_rows(table, columns.image_column, others, image_root=image_root, rename=rename))
        if not rows[split]:
            raise ValueError(f"{table}: the table has no rows.")
    if columns.split_column and path.is_dir():
        refuse_columns(f"the folder {path}, whose files state the splits", split_column=(columns.split_column, None))
    if columns.split_column:
        return split_rows(rows["train"], columns.split_column), []
    if not columns.lists or not path.is_dir():
        return rows, []
    return _by_lists(rows["train"], path, tables["train"][0].name, columns.lists)


def _renamer(root: Path, columns: Columns) -> Callable[[Any], Any]:
    """Return the function that turns a path in the table into the path of the image below `root`."""
    places = {
        file.name: file.relative_to(root).as_posix()
        for pattern in columns.folders
        for folder in sorted(root.glob(pattern))
        if folder.is_dir()
        for file in folder.iterdir()
    }

    def rename(name: Any) -> Any:
        if not isinstance(name, str):
            return name
        if columns.prefix and not (root / name).is_file():
            return re.sub(f"^{columns.prefix}", "", name)
        return places.get(name, name)

    return rename


def _by_lists(
    rows: Sequence[ImageRow], folder: Path, table: str, lists: Mapping[str, str]
) -> tuple[dict[str, list[ImageRow]], list[str]]:
    """Return rows by the lists of image names of each split, or all as `train` if there are no lists.

    The notes count the rows that are in no list, and the names that have no row.
    """
    files = {split: folder / name for split, name in lists.items() if (folder / name).is_file()}
    if not files:
        return {"train": list(rows)}, []
    if missing := sorted(set(lists) - set(files)):
        raise FileNotFoundError(f"{folder}: {lists[missing[0]]} is missing, but there are lists of other splits.")
    split_of: dict[str, str] = {}
    for split, file in files.items():
        for name in filter(None, map(str.strip, read_text(file).splitlines())):
            if split_of.setdefault(name, split) != split:
                raise ValueError(f"{file}: {shown_name(name)} is also in {files[split_of[name]].name}. Keep one.")
    found = {split: [row for row in rows if split_of.get(row.name) == split] for split in SPLIT_NAMES}
    if not any(found.values()):
        first = {split: name for name, split in reversed(split_of.items())}
        listed = ", ".join(f"that in {files[split].name} is {shown_name(name)!r}" for split, name in first.items())
        raise ValueError(
            f"{folder}: no image of {table} is in {', '.join(file.name for file in files.values())}. The first name in "
            f"{table} is {shown_name(rows[0].name)!r}, {listed or 'and the lists are empty'}. Write the names in the "
            "same way in all files."
        )
    names = {row.name for row in rows}
    unlisted, absent = names - set(split_of), set(split_of) - names
    notes = []
    if unlisted:
        notes.append(
            f"Left out, because they are in no list of a split: {len(unlisted):,} of {len(names):,} images of {table}, "
            f"such as {shown_name(min(unlisted))}."
        )
    if absent:
        notes.append(
            f"{len(absent):,} of {len(split_of):,} names in the lists of the splits have no row in {table}, such as "
            f"{shown_name(min(absent))}."
        )
    return {split: part for split, part in found.items() if part}, notes
