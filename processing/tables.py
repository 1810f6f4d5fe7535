"""Reading tables that people write: CSV in the encodings and with the delimiters that spreadsheets use."""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


_DELIMITERS = (",", ";", "\t", "|")
# The longer ones first: UTF-32's begins with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Row:
    """
    A row of a table.

    Args:
        line: The line of the file in which it begins, from 1.
        values: Values by column, without spaces at their ends.
    """

    line: int
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]


@dataclass(frozen=True)
class Table:
    """
    A table that was read.

    Args:
        path: Its file.
        columns: Names of all columns.
        rows: Its rows, without blank ones.
    """

    path: Path
    columns: list[str]
    rows: list[Row]

    def column(self, wanted: str) -> str | None:
        """Return the name of a column as the file spells it: the same name, or the same in another case."""
        if wanted in self.columns:
            return wanted
        return next((column for column in self.columns if column.casefold() == wanted.casefold()), None)


def read_text(path: Path) -> str:
    """
    Read a text file in UTF-8, or in the encoding that its byte order mark names.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is not text in such an encoding. The message names the line.
    """
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
    """
    Read a CSV file with a header.

    The delimiter is the one of comma, semicolon, tab and vertical bar that gives the wanted columns. Spaces at both
    ends of values and blank rows are dropped.

    Args:
        path: The file.
        columns: Columns that it must have. A column in another case counts as the wanted one.
        filled: Those of them that must have a value in each row; all when left out.
        known: Columns that it may have, by which the delimiter is recognized too.

    Returns:
        The table. The wanted columns have the names that were asked for.

    Raises:
        ValueError: If the file is not text or not CSV, if it has no such column, or if a row has another number of
            values than the header or lacks a value. The message names the line.
    """
    text = read_text(path)
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise ValueError(f"{path}: the file is empty. Its first line must name the columns: {','.join(columns)}.")
    delimiters: Sequence[str] = _DELIMITERS
    if declared := re.fullmatch(r"\ufeff?\"?sep=(.)\"?", lines[first].strip(" \r\n")):  # written by and for Excel
        delimiters = [declared.group(1)]
        text = text.split("\n", first + 1)[-1]
        first += 1
    else:
        first = 0
    table = _parse(path, text, _delimiter_of(text, [*columns, *known], delimiters), first)
    return _checked(table, columns, columns if filled is None else filled)


def _delimiter_of(text: str, columns: Sequence[str], delimiters: Sequence[str]) -> str:
    """The delimiter that gives most of the wanted columns, and of several such the one that gives most columns."""
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
    """The first line and the stripped values of each row."""
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
    """The table with the wanted columns under the names that were asked for."""
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
    """
    Return one row for each name of a table. Rows that say the same twice count once.

    Args:
        table: The table.
        name: Column of the names.
        label: Column of the labels.

    Raises:
        ValueError: If two rows give one name different labels. The message names both lines.
    """
    rows: dict[str, Row] = {}
    for row in table.rows:
        first = rows.setdefault(row[name], row)
        if first[label] != row[label]:
            raise ValueError(
                f"{table.path}, line {row.line}: {name} {row[name][:100]!r} is labelled {row[label]!r}, and "
                f"{first[label]!r} in line {first.line}. Keep one of the two rows."
            )
    return rows


def _stripped(cell: str) -> str:
    return cell.strip().strip("\ufeff").strip()


__all__ = ["Row", "Table", "labels_by_name", "read_table", "read_text"]
