"""Read JSON lines, and CSV files in the encodings and with the delimiters that spreadsheet programs use."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from .files import require_regular


# Longer byte order marks first, because that of UTF-32 begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class Row:
    """A row of a table. Its values have no leading and trailing spaces."""

    line: int  # of the file, starting at 1
    values: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.values[column]


@dataclass(frozen=True)
class Table:
    """The content of a table, without blank rows."""

    path: Path
    columns: list[str]
    rows: list[Row]

    def column(self, wanted: str) -> str | None:
        """Return the name of a column as spelled in the file, ignoring case."""
        if wanted in self.columns:
            return wanted
        return next((column for column in self.columns if column.casefold() == wanted.casefold()), None)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in the encoding that its byte order mark declares.

    Raises:
        OSError: If the file cannot be read or is not a regular file.
        ValueError: If the file is not text in this encoding. The message contains the line number.
    """
    require_regular(path)
    content = path.read_bytes()
    if content.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path}: not a text file but a zip archive or an Excel workbook. Save it as CSV in UTF-8.")
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
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
        raise ValueError(f"{path}, line {line}: a NUL character, so the file is not UTF-8 text. Save it as UTF-8.")
    return text


def read_table(
    path: Path, columns: Sequence[str], *, filled: Sequence[str] | None = None, known: Sequence[str] = ()
) -> Table:
    """Read a CSV file with a header.

    The delimiter (comma, semicolon, tab or vertical bar) is detected from the required and the optional (`known`)
    columns. Leading and trailing spaces of values and blank rows are dropped. Upper and lower case of `columns` are not
    distinguished, and the table has the requested names. Each row must have a value in the columns `filled` (default:
    all required columns).

    Raises:
        ValueError: If the file is not text or not CSV, if a required column is missing, or if a row has a missing value
            or a different number of values than the header. The message contains the line number.
    """
    text = read_text(path)
    lines = text.splitlines()
    first = next((number for number, line in enumerate(lines) if line.strip()), None)
    if first is None:
        raise ValueError(
            f"{path}: the file is empty. Its first line must contain the column names: {','.join(columns)}."
        )
    skipped = 0
    if declared := re.fullmatch(r"\ufeff?\"?sep=(.)\"?", lines[first].strip(" \r\n")):  # for Excel
        delimiter, skipped = declared.group(1), first + 1
        text = text.split("\n", skipped)[-1]
    else:
        delimiter = _detect_delimiter(text, [*columns, *known])
    rows = _rows(path, text, delimiter, skipped)
    _, header = next(rows, (0, []))
    found = Table(path, header, [])
    names = {found.column(column): column for column in columns}
    if None in names:
        missing = [column for column in columns if found.column(column) is None]
        raise ValueError(
            f"{path}: no column {', '.join(missing)}. The columns are {', '.join(header) or 'missing'}. Its first line "
            f"must contain the column names, such as {','.join(columns)}."
        )
    if twice := [name for name in names if header.count(str(name)) > 1]:
        raise ValueError(f"{path}: two columns have the name {twice[0]}. Remove or rename one.")
    table = Table(path, [names.get(name, name) for name in header], [])
    for line, cells in rows:
        if len(cells) != len(header):
            problem = "the row ends too early" if len(cells) < len(header) else "the row has too many values"
            raise ValueError(
                f"{path}, line {line}: {problem}: {len(cells)} values, but the header has {len(header)} columns "
                f"({', '.join(header)}). Put values that contain {delimiter!r} in double quotes; if the file was cut "
                "off, download it again."
            )
        row = Row(line, dict(zip(table.columns, cells, strict=True)))
        if empty := [column for column in (columns if filled is None else filled) if not row[column]]:
            raise ValueError(f"{path}, line {line}: {', '.join(empty)} is empty. Fill it in, or remove the row.")
        table.rows.append(row)
    return table


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number and the object of each line of a JSON lines file, without blank lines.

    Raises:
        OSError: If the file cannot be read or is not a regular file.
        ValueError: If the file is not text, or a line is not a JSON object. The message contains the line number.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object.")
        yield number, row


def arrow_column(path: Path, column: str, values: Sequence[Any], places: Sequence[str]) -> pa.Array:
    """Return the values of a column as an Arrow array. `places` are their file and line, for messages.

    Raises:
        ValueError: If the values have several types, or text that UTF-8 cannot represent.
    """
    try:
        column.encode()
        return pa.array(values)
    except UnicodeEncodeError as error:
        # Only JSON can have it, because text files are decoded from UTF-8.
        bad = (place for place, value in zip(places, values, strict=True) if not _is_unicode(value))
        raise ValueError(
            f"{next(bad, path)}: {column!r} has half of a surrogate pair such as \\ud83d, which is not a character. "
            "Correct it, or remove the row."
        ) from error
    except pa.ArrowException as error:
        raise ValueError(f"{path}: the values of {column!r} have several types ({error}).") from error


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _detect_delimiter(text: str, columns: Sequence[str]) -> str:
    """Return the delimiter that yields the most requested columns or, in case of a tie, the most columns."""
    wanted = {column.casefold() for column in columns}

    def fit(delimiter: str) -> tuple[int, int]:
        try:
            header = next(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)), [])
        except csv.Error:
            return 0, 0
        names = [_stripped(name).casefold() for name in header]
        return len(wanted.intersection(names)), len(names)

    return max((",", ";", "\t", "|"), key=fit)


def _rows(path: Path, text: str, delimiter: str, line: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and values of the header and each row, without blank rows and trailing delimiters."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns = 0
    while True:
        start = line + reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problem = "a double quote is not closed" if "end of data" in str(error) else str(error)
            raise ValueError(f"{path}, line {start}: invalid CSV: {problem}.") from error
        if cells is None:
            return
        cells = [_stripped(cell) for cell in cells]
        if not any(cells):
            continue
        columns = columns or len(cells)
        while len(cells) > columns and not cells[-1]:
            cells.pop()
        yield start, cells


def labels_by_name(table: Table, name: str, label: str) -> dict[str, Row]:
    """Return one row for each value of the column `name`. Duplicate rows are returned once.

    Raises:
        ValueError: If two rows have the same name and different labels. The message contains both line numbers.
    """
    rows: dict[str, Row] = {}
    for row in table.rows:
        first = rows.setdefault(row[name], row)
        if first[label] != row[label]:
            raise ValueError(
                f"{table.path}, line {row.line}: {name} {row[name][:100]!r} is labeled {row[label]!r}, but "
                f"{first[label]!r} in line {first.line}. Keep one of the two rows."
            )
    return rows


def _stripped(cell: str) -> str:
    return cell.strip().strip("\ufeff").strip()
