"""CSV files of people and spreadsheet programs."""

import csv
import io

import pytest

from biomedclip.processing.tables import labels_by_name, read_table, read_text


ROWS = [("a", "lung"), ("b", "brain, left"), ("c", "of two\nlines")]


def written(delimiter: str, line_end: str = "\r\n") -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([("pair_id", "label"), *ROWS])
    return buffer.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_csv_files_are_read_in_any_encoding_with_a_byte_order_mark(tmp_path, delimiter, encoding, line_end):
    (tmp_path / "t.csv").write_bytes(written(delimiter, line_end).encode(encoding))
    table = read_table(tmp_path / "t.csv", ["pair_id", "label"])
    assert [(row["pair_id"], row["label"]) for row in table.rows] == ROWS
    assert [row.line for row in table.rows] == [2, 3, 4]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("id,label\n\n a , x \n\n\n,\nb,y,\n", [(3, "a", "x"), (7, "b", "y")]),
        ("\n\nid,label\na,x\n", [(4, "a", "x")]),
        ("sep=;\nid;label\na;1,5\n", [(3, "a", "1,5")]),
        ("Label;ID\nx;a\n", [(2, "a", "x")]),
        ('id,label\n"a","of\ntwo"\nb,y\n', [(2, "a", "of\ntwo"), (4, "b", "y")]),
        ("id,label,note\na,x,\n", [(2, "a", "x")]),
        ("\u00a0id\u00a0,label\na\u00a0,x\n", [(2, "a", "x")]),
    ],
)
def test_blank_lines_spaces_and_delimiters_do_not_change_the_rows(tmp_path, text, rows):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    table = read_table(tmp_path / "t.csv", ["id", "label"])
    assert [(row.line, row["id"], row["label"]) for row in table.rows] == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (
            b"a,x\nb,y\n",
            "no column id, label. The columns are a, x. Its first line must contain",
        ),
        (b"a note; with semicolons;id,label\n", "no column id"),
        (b"id,label\na\n", "line 2: the row ends too early: 1 values, but the header has 2 columns"),
        (b"id,label\na,x\n\nb,y,z\n", "line 4: the row has too many values: 3"),
        (b"id,label\na,\n", "line 2: label is empty"),
        (b"id,label\n ,x\n", "line 2: id is empty"),
        (b'id,label\na,x\nb,"y\nc,z\n', "line 3: invalid CSV: a double quote is not closed"),
        (b'id,label\na,"x"y\n', "line 2: invalid CSV"),
        (b"id,label\na,x\nb,caf\xe9\n", "line 3: not UTF-8 .*Save the file as UTF-8"),
        ("id,label\na,x\n".encode("utf-16-le"), "line 1: a NUL character"),
        (b"PK\x03\x04...", "an Excel workbook. Save it as CSV"),
        (b"id,label,label\na,x,y\n", "two columns have the name label"),
        (b"id,label\na," + b"x" * 200_000, "line 2: invalid CSV: field larger than field limit"),
    ],
)
def test_errors_state_the_line(tmp_path, content, message):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"t.csv.*{message}"):
        read_table(tmp_path / "t.csv", ["id", "label"])


def test_duplicate_rows_are_returned_once_and_contradictions_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("id,label\na,x\nb,y\na,x\n")
    table = read_table(tmp_path / "t.csv", ["id", "label"])
    assert {name: row["label"] for name, row in labels_by_name(table, "id", "label").items()} == {"a": "x", "b": "y"}
    (tmp_path / "t.csv").write_text("id,label\na,x\nb,y\na,z\n")
    with pytest.raises(ValueError, match="line 4: id 'a' is labeled 'z', but 'x' in line 2"):
        labels_by_name(read_table(tmp_path / "t.csv", ["id", "label"]), "id", "label")


def test_text_without_a_byte_order_mark_is_utf_8(tmp_path):
    (tmp_path / "t.json").write_bytes('["ä"]'.encode())
    assert read_text(tmp_path / "t.json") == '["ä"]'
