"""Read the texts to embed: a text file, CSV, JSON lines, Parquet, or a dataset that `biomedclip build` wrote."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from biomedclip.processing.images.inputs import IMAGE_COLUMN
from biomedclip.processing.parquet_rows import ParquetRows, row_id
from biomedclip.processing.tables import arrow_column, read_json_lines, read_table, read_text

from .inputs import Inputs


TEXT = "text"  # column of the lines of a text file
_TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
_SHOWN = 20


@dataclass(frozen=True)
class InputText:
    """A text that the user named. `columns` are all columns of its row, including the text."""

    id: str
    text: Any
    columns: dict[str, Any] = field(default_factory=dict)
    path: str | None = None


def find_texts(path: str, column: str | None) -> Inputs:
    """Find the texts that a user named.

    The id of a text is `pair_id` or `id` of its row. Otherwise it is the name of the file and the number of the line
    or, in Parquet, of the row.

    Args:
        path: A text file with one text per line, a table (`.csv`, `.tsv`, `.jsonl`, `.parquet`), or a folder with
            Parquet files.
        column: Column of the texts in a table. A text file has none.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it cannot be read, has no text, or lacks the column.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"--texts {path}: the file does not exist.")
    is_table = file.is_dir() or file.suffix.lower() in _TABLES
    if is_table and column is None:
        raise ValueError(f"--texts {path} is a table: pass --text-column, the name of the column of the texts.")
    if not is_table and column is not None:
        raise ValueError(f"--texts {path} is read as text, one per line. --text-column needs {', '.join(_TABLES)}.")
    if file.is_dir() or file.suffix.lower() == ".parquet":
        texts: Inputs = _ParquetTexts(path, str(column))
    else:
        read = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_json_lines}.get(file.suffix.lower(), _read_lines)
        texts = _TableTexts(path, column or TEXT, *read(file, column or TEXT))
    if not len(texts):
        raise ValueError(f"--texts {path}: no texts found.")
    return texts


@dataclass(frozen=True)
class _TableTexts:
    """Texts of a table in memory. `lines` are their line numbers in the file."""

    name: str
    column: str
    table: pa.Table
    lines: list[int]

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    def __len__(self) -> int:
        return self.table.num_rows

    def rows(self, first: int, last: int) -> Iterator[InputText]:
        rows = self.table.slice(first, last - first).to_pylist()
        for row, line in zip(rows, self.lines[first:last], strict=True):
            yield InputText(row_id(row, line, self.name), row[self.column], row)

    def ids(self) -> Iterator[str]:
        return (text.id for text in self.rows(0, len(self)))


class _ParquetTexts:
    """Texts of Parquet files. The column `image` is not read."""

    def __init__(self, path: str, column: str):
        folder = Path(path)
        urls = [path]
        if folder.is_dir():
            urls = [str(file) for file in sorted(folder.glob("data/*.parquet")) or sorted(folder.glob("*.parquet"))]
            if not urls:
                raise ValueError(f"--texts {path}: the folder has no Parquet files.")
        self._column, self._rows = column, ParquetRows(urls, path, without=[IMAGE_COLUMN])
        self.schema = self._rows.schema
        _check_column(path, column, self.schema.names)
        self.ids = self._rows.ids

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, first: int, last: int) -> Iterator[InputText]:
        return (InputText(name, row[self._column], row) for name, row in self._rows.rows(first, last))


def _check_column(path: str, column: str, names: list[str]) -> None:
    if column not in names:
        shown = ", ".join(names[:_SHOWN]) or "none"
        raise ValueError(f"--texts {path}: no column {column!r}. Its columns are {shown}. Pass --text-column.")


def _read_lines(path: Path, column: str) -> tuple[pa.Table, list[int]]:
    found = [(line.strip(), number) for number, line in enumerate(read_text(path).split("\n"), 1) if line.strip()]
    return pa.table({column: pa.array([text for text, _ in found], pa.string())}), [number for _, number in found]


def _read_csv(path: Path, column: str) -> tuple[pa.Table, list[int]]:
    table = read_table(path, [], known=[column])
    _check_column(str(path), column, table.columns)
    values = {name: pa.array([row[name] for row in table.rows], pa.string()) for name in table.columns}
    return pa.table(values), [row.line for row in table.rows]


def _read_json_lines(path: Path, column: str) -> tuple[pa.Table, list[int]]:
    found = list(read_json_lines(path))
    names = list(dict.fromkeys(name for _, row in found for name in row))
    _check_column(str(path), column, names)
    places = [f"{path}, line {number}" for number, _ in found]
    columns = {name: arrow_column(path, name, [row.get(name) for _, row in found], places) for name in names}
    return pa.table(columns), [number for number, _ in found]


__all__ = ["InputText", "find_texts"]
