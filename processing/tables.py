"""Read CSV files in the encodings and with the delimiters that spreadsheet programs use."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import require_regular


_DELIMITERS = (",", ";", "\t", "|")
# Longer marks first, because the mark of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Args:
        line: Number of the line in which the row begins, from 1.
        values: Values by column, without leading and trailing spaces.
    """

    line: int
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]


@dataclass(frozen=True)
class Table:
    """The content of a table.

    Args:
        path: Its file.
        columns: Names of all columns.
        rows: Its rows, without blank rows.
    """

    path: Path
    columns: list[str]
    rows: list[Row]

    def column(self, wanted: str) -> str | None:
        """Return the name of a column as it is spelled in the file. Upper and lower case may differ."""
        if wanted in self.columns:
            return wanted
        return next((column for column in self.columns if column.casefold() == wanted.casefold()), None)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in the encoding that its byte order mark names.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is not text in such an encoding. The message names the line.
        OSError: If it cannot be read, or is not a regular file.
    """
    require_regular(path)
    content = path.read_bytes()
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    if content.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path}: not a text file but a zip archive or an Excel workbook. Save it as CSV in UTF-8.")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line}: not {encoding.upper().removesuffix('-SIG')} ({error.reason} at byte "
            f"{error.start}). Save the file as UTF-8."
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path}, line {line}: holds a NUL character, so it is not text in UTF-8. Save it as UTF-8.")
    return text


def read_table(
    path: Path, columns: Sequence[str], *, filled: Sequence[str] | None = None, known: Sequence[str] = ()
) -> Table:
    """Read a CSV file with a header.

    The delimiter is a comma, semicolon, tab or vertical bar. It is detected from the requested columns. Leading and
    trailing spaces of values and blank rows are dropped.

    Args:
        path: The file.
        columns: Required columns. Upper and lower case may differ.
        filled: Required columns that must have a value in each row (default: all).
        known: Optional columns, which also help to detect the delimiter.

    Returns:
        The table. The required columns have the requested names.

    Raises:
        ValueError: If the file is not text or not CSV, if a required column is missing, or if a row has a different
            number of values than the header or a missing value. The message names the line.
    """
    text = read_text(path)
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise ValueError(f"{path}: the file is empty. Its first line must name the columns: {','.join(columns)}.")
    delimiters: Sequence[str] = _DELIMITERS
    if declared := re.fullmatch(r"\ufeff?\"?sep=(.)\"?", lines[first].strip(" \r\n")):  # a line for Excel
        delimiters = [declared.group(1)]
        text = text.split("\n", first + 1)[-1]
        first += 1
    else:
        first = 0
    table = _parse(path, text, _delimiter_of(text, [*columns, *known], delimiters), first)
    return _checked(table, columns, columns if filled is None else filled)


def _delimiter_of(text: str, columns: Sequence[str], delimiters: Sequence[str]) -> str:
    """Return the delimiter that gives the most requested columns and, among equals, the most columns."""
    wanted = {column.casefold() for column in columns}

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            header = next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), [])
        except csv.Error:
            return 0, 0
        names = [_stripped(name).casefold() for name in header]
        return len(wanted.intersection(names)), len(names)

    return max(delimiters, key=fit)


def _parse(path: Path, text: str, delimiter: str, line: int) -> Table:
    header: list[str] | None = None
    rows = []
    for number, cells in _cells(path, text, delimiter, line):
        if not any(cells):
            continue
        if header is None:
            header = cells
            continue
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if len(cells) != len(header):
            problem = "the row ends too early" if len(cells) < len(header) else "the row has too many values"
            raise ValueError(
                f"{path}, line {number}: {problem}: {len(cells)} values, and the header has {len(header)} columns "
                f"({', '.join(header)}). Put values that contain {delimiter!r} in double quotes; if the file was cut "
                "off, download it again."
            )
        rows.append(Row(number, dict(zip(header, cells, strict=True))))
    return Table(path, header or [], rows)


def _cells(path: Path, text: str, delimiter: str, line: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the stripped values of each row."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        start = line + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problem = "a double quote is opened and never closed" if "end of data" in str(error) else str(error)
            raise ValueError(f"{path}, line {start}: not CSV that can be read: {problem}.") from error
        if cells is None:
            return
        yield start, [_stripped(cell) for cell in cells]


def _checked(table: Table, columns: Sequence[str], filled: Sequence[str]) -> Table:
    """Return the table with the required columns under the requested names."""
    names = {column: table.column(column) for column in columns}
    if missing := [column for column, name in names.items() if name is None]:
        raise ValueError(
            f"{table.path}: no column {', '.join(missing)}; it has {', '.join(table.columns) or 'none'}. Its first "
            f"line must name the columns, such as {','.join(columns)}."
        )
    if twice := [name for name in names.values() if table.columns.count(str(name)) > 1]:
        raise ValueError(f"{table.path}: two columns are called {twice[0]}. Remove or rename one.")
    wanted_of = {name: column for column, name in names.items()}
    rows = []
    for row in table.rows:
        values = {wanted_of.get(name, name): value for name, value in row.values.items()}
        if empty := [column for column in filled if not values[column]]:
            raise ValueError(
                f"{table.path}, line {row.line}: {', '.join(empty)} is empty. Fill it in, or remove the row."
            )
        rows.append(Row(row.line, values))
    return Table(table.path, [wanted_of.get(name, name) for name in table.columns], rows)


def labels_by_name(table: Table, name: str, label: str) -> dict[str, Row]:
    """Return one row for each name of a table. Duplicate rows are returned once.

    Args:
        table: The table.
        name: Column that contains the names.
        label: Column that contains the labels.

    Raises:
        ValueError: If two rows have the same name and different labels. The message names both lines.
    """
    rows: dict[str, Row] = {}
    for row in table.rows:
        first = rows.setdefault(row[name], row)
        if first[label] != row[label]:
            raise ValueError(
                f"{table.path}, line {row.line}: {name} {row[name][:100]!r} is labeled {row[label]!r}, and "
                f"{first[label]!r} in line {first.line}. Keep one of the two rows."
            )
    return rows


def _stripped(cell: str) -> str:
    return cell.strip().strip("\ufeff").strip()


__all__ = ["Row", "Table", "labels_by_name", "read_table", "read_text"]
