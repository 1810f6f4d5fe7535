"""Rows as tables, CSV, JSON, JSON lines and Parquet, read back with other readers than ours."""

import csv
import datetime
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedclip.run_scripts.cli.errors import UsageError
from biomedclip.run_scripts.cli.output import (
    check_output_file,
    choose_format,
    run_record,
    write_record,
    write_rows,
)


COLUMNS = ["file", "rank", "probability", "error"]
ROWS = [
    {"file": 'a "quoted", name\n.png', "rank": 1, "probability": 0.1 + 0.2, "error": None},
    {"file": "b.png", "rank": 2, "probability": math.nan, "error": "damaged"},
    {"file": "Mädchen.png", "rank": 3, "probability": np.float32(0.25)},
]


def read_json(text: str):
    def refuse(name: str):
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_csv_reads_back_exactly(tmp_path):
    write_rows(ROWS, COLUMNS, "csv", tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["file"] for row in found] == [row["file"] for row in ROWS]
    assert float(found[0]["probability"]) == 0.1 + 0.2
    assert [row["probability"] for row in found[1:]] == ["", "0.25"]
    assert [row["error"] for row in found] == ["", "damaged", ""]


@pytest.mark.parametrize("format", ["json", "jsonl"])
def test_json_is_strict(tmp_path, format):
    write_rows(ROWS, COLUMNS, format, tmp_path / "rows")
    text = (tmp_path / "rows").read_text(encoding="utf-8")
    found = read_json(text) if format == "json" else [read_json(line) for line in text.splitlines()]
    assert [row["file"] for row in found] == [row["file"] for row in ROWS]
    assert [row["probability"] for row in found] == [0.1 + 0.2, None, 0.25]
    assert all(list(row) == COLUMNS for row in found)
    assert "Mädchen" in text


def test_parquet_has_the_types_of_the_schema(tmp_path):
    schema = pa.schema(
        [("file", pa.string()), ("rank", pa.int32()), ("probability", pa.float64()), ("error", pa.string())]
    )
    write_rows(ROWS, schema, "parquet", tmp_path / "rows.parquet")
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.schema == schema
    assert pandas.read_parquet(tmp_path / "rows.parquet")["rank"].tolist() == [1, 2, 3]


def test_parquet_types_are_inferred_without_a_schema(tmp_path):
    rows = [{"id": str(number), "score": number / 7, "note": None} for number in range(25_000)]
    write_rows(iter(rows), ["id", "score", "note"], "parquet", tmp_path / "rows.parquet")
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == rows


@pytest.mark.parametrize(("format", "expected"), [("csv", "a,b\n"), ("json", "[]\n"), ("jsonl", "")])
def test_no_rows_are_a_valid_file(tmp_path, format, expected):
    write_rows([], ["a", "b"], format, tmp_path / "rows")
    assert (tmp_path / "rows").read_text(encoding="utf-8") == expected


def test_columns_of_a_dataset_are_written(tmp_path):
    row = {"year": 2024, "tags": ["x", None], "day": datetime.date(2024, 1, 2), "array": np.array([1.0, np.nan])}
    row |= {"raw": b"\xff", "flag": True, "nested": {"a": math.inf}}
    write_rows([row], list(row), "json", tmp_path / "rows.json")
    assert read_json((tmp_path / "rows.json").read_text(encoding="utf-8")) == [
        {
            "year": 2024,
            "tags": ["x", None],
            "day": "2024-01-02",
            "array": [1.0, None],
            "raw": None,
            "flag": True,
            "nested": {"a": None},
        }
    ]
    write_rows([row], list(row), "csv", tmp_path / "rows.csv")
    line = (tmp_path / "rows.csv").read_text(encoding="utf-8").splitlines()[1]
    assert next(csv.reader([line]))[:3] == ["2024", '["x", null]', "2024-01-02"]


@pytest.mark.parametrize("format", ["csv", "json", "parquet", "table"])
def test_a_file_name_that_is_not_utf8_is_written(tmp_path, format):
    write_rows([{"file": os.fsdecode(b"scan\xff.png")}], ["file"], format, tmp_path / "rows")
    content = (tmp_path / "rows").read_bytes()
    if format == "json":
        assert os.fsencode(read_json(content.decode())[0]["file"]) == b"scan\xff.png"
    assert b"scan" in content


def test_a_table_is_for_people(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [{"file": "\x1b[31mred\nline", "year": 2024, "score": 0.123456, "error": None}]
    write_rows(rows, ["file", "year", "score", "error"], "table", tmp_path / "table.txt", title="Hits")
    text = (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert text.lstrip().startswith("Hits")
    assert "2024" in text and "0.1235" in text
    assert "error" not in text and "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_long_path_is_complete_in_a_table(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    path = "/data/" + "x" * 90 + ".png"
    write_rows([{"file": path, "rank": 1}], ["file", "rank"], "table", tmp_path / "table.txt")
    cells = [line.split("│")[1].strip() for line in (tmp_path / "table.txt").read_text("utf-8").splitlines()[3:-1]]
    assert "".join(cells) == path


def test_an_error_while_rows_are_made_leaves_the_old_file(tmp_path):
    def rows():
        yield {"a": 1}
        raise ValueError("stopped")

    output = tmp_path / "rows.csv"
    output.write_text("old", encoding="utf-8")
    with pytest.raises(ValueError, match="stopped"):
        write_rows(rows(), ["a"], "csv", output)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
    assert output.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize(
    ("given", "output", "terminal", "expected"),
    [
        (None, None, True, "table"),
        (None, None, False, "csv"),
        ("json", None, True, "json"),
        (None, "hits.JSON", True, "json"),
        (None, "hits.jsonl", False, "jsonl"),
        (None, "hits.parquet", False, "parquet"),
        ("csv", "hits.parquet", False, "csv"),
        (None, "hits.txt", False, "table"),
    ],
)
def test_the_format_follows_the_option_the_suffix_and_the_terminal(monkeypatch, given, output, terminal, expected):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert choose_format(given, Path(output) if output else None) == expected


def test_a_format_that_cannot_be_chosen_is_an_error():
    with pytest.raises(UsageError, match="--output FILE.parquet"):
        choose_format("parquet", None)
    with pytest.raises(UsageError, match="pass --format, or a file name with .txt, .csv"):
        choose_format(None, Path("hits.xlsx"))


def test_the_output_file_is_checked_and_not_touched(tmp_path):
    (tmp_path / "old.csv").write_text("old", encoding="utf-8")
    check_output_file(tmp_path / "old.csv")
    check_output_file(tmp_path / "new" / "rows.csv")
    assert (tmp_path / "old.csv").read_text(encoding="utf-8") == "old"
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(ValueError, match="is a folder. Pass the name of a file"):
        check_output_file(tmp_path)
    with pytest.raises(ValueError, match="cannot be written"):
        check_output_file(tmp_path / "old.csv" / "rows.csv")


def test_a_reader_that_closes_the_pipe_ends_the_program_quietly():
    code = (
        "from biomedclip.run_scripts.cli.output import write_rows\n"
        "write_rows(({'a': number} for number in range(10**6)), ['a'], 'csv', None)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().split() == [b"a"]
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_the_record_of_a_run_lies_beside_the_output(tmp_path):
    start = datetime.datetime.now(datetime.UTC)
    model = {"name": "out/model", "weights": "0123"}
    record = run_record("classify", ["my scans", "--model", "m"], model=model, device="cpu", start=start, images=3)
    path = write_record(tmp_path / "rows.csv", record)
    found = read_json(path.read_text(encoding="utf-8"))
    assert path.name == "rows.csv.run.json"
    assert found["command"] == "biomedclip classify 'my scans' --model m"
    assert found["model"] == model and found["device"] == "cpu" and found["images"] == 3
    assert datetime.datetime.fromisoformat(found["start"]) <= datetime.datetime.fromisoformat(found["end"])
    assert found["versions"]["biomedclip"]
