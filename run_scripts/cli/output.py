"""Write the rows of a result as a table, CSV, JSON, JSON lines or Parquet, to stdout or to a file."""

import csv
import datetime
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from biomedclip.model_cards.escaping import one_line
from biomedclip.processing.files import replacing, special_kind

from .errors import UsageError
from .reporting import versions, write_json


FORMATS = ("table", "csv", "json", "jsonl", "parquet")
FORMAT_HELP = "Format (default: that of the suffix of --output, otherwise a table on a terminal and CSV in a pipe)."
_FORMAT_OF_SUFFIX = {".txt": "table", ".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".parquet": "parquet"}
_SHOWN = 300  # characters of a cell of a table
_ROWS_IN_GROUP = 10_000  # of Parquet
_PIPE_CLOSED = 141  # exit status of a program that SIGPIPE ends

Row = Mapping[str, Any]


def choose_format(given: str | None, output: Path | None) -> str:
    """Return the format of the rows: the given one, or else the one of the suffix of the file or of stdout.

    Raise `UsageError` if the suffix is unknown, or if Parquet would be written to stdout.
    """
    if given == "parquet" and output is None:
        raise UsageError("--format parquet needs a file: pass --output FILE.parquet.")
    if given is not None:
        return given
    if output is None:
        return "table" if sys.stdout.isatty() else "csv"
    if (found := _FORMAT_OF_SUFFIX.get(output.suffix.lower())) is None:
        raise UsageError(f"--output {output}: pass --format, or a file name with {', '.join(_FORMAT_OF_SUFFIX)}.")
    return found


def check_output_file(output: Path | None, option: str = "--output") -> None:
    """Check that a file can be written, and create its folder. An existing file is not changed.

    Raise `ValueError` if the path is a folder, a device or another special file, or if its folder is not writable. The
    message names `option`.
    """
    if output is None:
        return
    if output.exists() and (kind := special_kind(output)) is not None:
        raise ValueError(f"{option} {output} is {kind}. Pass the name of a file.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ValueError(f"{option} {output}: cannot be written ({error.strerror}). Choose another file.") from error


def write_rows(
    rows: Iterable[Row], columns: Sequence[str] | pa.Schema, format: str, output: Path | None, title: str = ""
) -> None:
    """Write rows to a file, or to stdout if `output` is None.

    The rows of CSV, JSON, JSON lines and Parquet are written as they arrive. A table is written at the end, without
    columns that are empty in all rows. A file replaces an existing one only when all rows have been written.

    CSV has an empty field for None, NaN and infinity, and JSON text for lists and mappings. JSON has null for NaN and
    infinity.

    Args:
        rows: One mapping for each row. A missing value is None.
        columns: Names of the columns in order, or a schema with the types of Parquet. Without a schema, the types are
            those of the first rows.
        format: One of `FORMATS`.
        output: The file.
        title: Title of the table.
    """
    names = list(columns.names if isinstance(columns, pa.Schema) else columns)
    if format == "parquet":
        if output is None:
            raise UsageError("--format parquet needs a file: pass --output FILE.parquet.")
        with replacing(output) as partial:
            _write_parquet(rows, names, columns if isinstance(columns, pa.Schema) else None, partial)
        return
    write = {"table": _write_table, "csv": _write_csv, "json": _write_json, "jsonl": _write_json_lines}[format]
    if output is None:
        with _open_stdout() as file:
            write(rows, names, file, title)
        return
    with (
        replacing(output) as partial,
        # Lone surrogates, which stand for bytes of file names that are not UTF-8, become the escapes of JSON.
        partial.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        write(rows, names, file, title)


@contextmanager
def _open_stdout() -> Iterator[TextIO]:
    """End the program quietly if the reader of stdout closes it, as `head` does."""
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout when it exits
        raise SystemExit(_PIPE_CLOSED) from None


def _write_csv(rows: Iterable[Row], columns: Sequence[str], file: TextIO, title: str) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_field(row.get(column)) for column in columns])


def _field(value: Any) -> Any:
    """Return a value as the field of a CSV file."""
    value = plain_value(value)
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _write_json(rows: Iterable[Row], columns: Sequence[str], file: TextIO, title: str) -> None:
    separator = "[\n"
    for row in rows:
        file.write(f"{separator}  {_object(row, columns, file)}")
        separator = ",\n"
    file.write("[]\n" if separator == "[\n" else "\n]\n")


def _write_json_lines(rows: Iterable[Row], columns: Sequence[str], file: TextIO, title: str) -> None:
    for row in rows:
        file.write(f"{_object(row, columns, file)}\n")


def _object(row: Row, columns: Sequence[str], file: TextIO) -> str:
    values = {column: plain_value(row.get(column)) for column in columns}
    # A terminal in another encoding would replace characters with escapes that are not those of JSON.
    escape = (file.encoding or "").lower().replace("-", "") != "utf8"
    return json.dumps(values, ensure_ascii=escape, allow_nan=False)


def plain_value(value: Any) -> Any:
    """Return a value in the types of strict JSON: NaN and infinity as None, dates as ISO text, bytes as None."""
    if hasattr(value, "tolist"):  # scalars and arrays of NumPy
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return None
    return value if isinstance(value, str | int | None) else str(value)


def _write_parquet(rows: Iterable[Row], columns: Sequence[str], schema: pa.Schema | None, path: Path) -> None:
    waiting = iter(rows)
    group = list(islice(waiting, _ROWS_IN_GROUP))
    if schema is None:
        found = {column: pa.array([_stored(row.get(column)) for row in group]).type for column in columns}
        schema = pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, kind in found.items()])
    with pq.ParquetWriter(path, schema) as writer:
        while group:
            content = [{column: _stored(row.get(column)) for column in columns} for row in group]
            writer.write_table(pa.Table.from_pylist(content, schema=schema))
            group = list(islice(waiting, _ROWS_IN_GROUP))


def _stored(value: Any) -> Any:
    """Return a value that Parquet can store: text without lone surrogates."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _write_table(rows: Iterable[Row], columns: Sequence[str], file: TextIO, title: str) -> None:
    found = [[plain_value(row.get(column)) for column in columns] for row in rows]
    kept = [number for number in range(len(columns)) if not found or any(row[number] is not None for row in found)]
    table = Table(title=Text(one_line(title)) if title else None, title_justify="left")
    for number in kept:
        numeric = all(isinstance(row[number], int | float | None) for row in found)
        table.add_column(
            Text(one_line(columns[number])), justify="right" if numeric and found else "left", overflow="fold"
        )
    for row in found:
        table.add_row(*(Text(_cell(row[number])) for number in kept))
    Console(file=file).print(table)


def _cell(value: Any) -> str:
    """Return a value as one line. Numbers have no thousands separators, because they may be years or ids."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
    text = one_line(_field(value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def record_path(output: Path) -> Path:
    """Return the path of the JSON file that describes how an output file was made."""
    return output.with_name(f"{output.name}.run.json")


def run_record(
    verb: str,
    arguments: Sequence[str],
    *,
    model: Mapping[str, Any],
    device: Any,
    start: datetime.datetime,
    **also: Any,
) -> dict[str, Any]:
    """Return how a result was made. [`write_record`] writes it beside the result.

    Args:
        verb: The verb, such as `classify`.
        arguments: Its arguments.
        model: Name, type and fingerprints of the model.
        device: The device on which the model ran.
        start: Time in UTC at which the command started. The end is now.
        also: Other entries, such as counts.
    """
    end = datetime.datetime.now(datetime.UTC)
    return {
        "command": shlex.join(["biomedclip", verb, *arguments]),
        "model": dict(model),
        "device": str(device),
        "start": start.isoformat(timespec="seconds"),
        "end": end.isoformat(timespec="seconds"),
        "seconds": round((end - start).total_seconds(), 1),
        **also,
        "versions": versions(),
    }


def write_record(output: Path, record: Mapping[str, Any]) -> Path:
    """Write the record of a run beside its output file, and return its path."""
    path = record_path(output)
    write_json(path, record)
    return path


__all__ = [
    "FORMATS",
    "FORMAT_HELP",
    "check_output_file",
    "choose_format",
    "record_path",
    "run_record",
    "write_record",
    "write_rows",
]
