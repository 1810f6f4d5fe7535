"""Assign the rows of a table or dataset to splits by the values of a column."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .folders import SPLIT_NAMES, SPLIT_OF, shown_name, warn_once
from .sources import Source
from .tables import ImageRow


USUAL_NAME = "split"  # a column of this name that is not used is worth a warning
_ALSO = ", ".join(name for names in SPLIT_NAMES.values() for name in names[1:])
REMEDY = f"It must be {', '.join(list(SPLIT_NAMES)[:-1])} or {list(SPLIT_NAMES)[-1]} (also {_ALSO}, in any case)."


def by_split_column(source: Source, column: str | None) -> Source:
    """Return a source whose rows are in the splits that a column states. None returns the source unchanged.

    A folder of images without a table is returned unchanged too.

    Raises:
        ValueError: If the data has splits already, a value is not the name of a split, all rows are of one split, or an
            image is in several splits. The message contains the file, the row and the value.
    """
    if column is None:
        _warn_of_unused(source)
        return source
    if source.folders or len(source.sets) > 1 or len(source.rows) > 1:
        raise ValueError(f"split_column={column!r} has no effect on {source.root}, which has splits already. Omit it.")
    if source.sets:
        (rows,) = source.sets.values()
        return replace(source, sets=_split_set(rows, column, str(source.root)))
    return replace(source, rows=split_rows(source.rows["train"], column)) if source.rows else source


def _warn_of_unused(source: Source) -> None:
    """Log a warning if the data has no splits, but a column with the usual name of a column of splits."""
    rows, sets = list(source.rows.values()), list(source.sets.values())
    has_column = (len(rows) == 1 and USUAL_NAME in rows[0][0].values) or (
        len(sets) == 1 and USUAL_NAME in sets[0].column_names
    )
    if has_column and not source.folders:
        warn_once(f"{source.root}: the column {USUAL_NAME!r} is not used. To use it, pass split_column={USUAL_NAME!r}.")


def split_rows(rows: Sequence[ImageRow], column: str) -> dict[str, list[ImageRow]]:
    """Return the rows of a table by the split that a column states. See [`by_split_column`] for the errors."""
    found: dict[str, list[ImageRow]] = {}
    first: dict[Path, tuple[str, ImageRow]] = {}
    for row in rows:
        split = _split_of(row.values.get(column), f"{row.where}: {column}")
        before, earlier = first.setdefault(row.image, (split, row))
        if before != split:
            raise ValueError(
                f"{row.where}: {shown_name(row.name)} is in the {split} split, but in the {before} split in "
                f"{earlier.where.rpartition(', ')[2]}. Keep one of the two rows."
            )
        found.setdefault(split, []).append(row)
    return _ordered(found, column, rows[0].where.rpartition(", ")[0])


def _split_set(rows: Any, column: str, where: str) -> dict[str, Any]:
    """Return the `datasets.Dataset` of each split."""
    values, names = list(rows[column]), getattr(rows.features[column], "names", None)
    found: dict[str, list[int]] = {}
    for number, value in enumerate(values):
        text = names[value] if names is not None and isinstance(value, int) and 0 <= value < len(names) else value
        found.setdefault(_split_of(text, f"{where}, row {number}: {column}"), []).append(number)
    return {split: rows.select(numbers) for split, numbers in _ordered(found, column, where).items()}


def _split_of(value: Any, where: str) -> str:
    text = str("" if value is None else value).strip()
    if (split := SPLIT_OF.get(text.lower())) is None:
        what = f"is {shown_name(text[:100])!r}" if text else "is empty"
        raise ValueError(f"{where} {what}. {REMEDY}")
    return split


def _ordered(found: dict[str, Any], column: str, where: str) -> dict[str, Any]:
    if len(found) < 2:
        raise ValueError(
            f"{where}: by the column {column!r}, all rows are in the {next(iter(found))} split. State two or more "
            "splits, or omit split_column."
        )
    return {split: found[split] for split in SPLIT_NAMES if split in found}
