"""`--where` selects the rows that SQLite selects, and explains what it cannot read."""

import datetime
import sqlite3

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from biomedclip.run_scripts.cli.errors import UsageError
from biomedclip.run_scripts.embedding.filters import parse_filter


COLUMNS = {
    "id": [f"row {number}" for number in range(12)],
    "license": ["CC BY", "CC BY-NC", None, "it's"] * 3,
    "year": [2018, 2019, 2020, 2021, 2022, None] * 2,
    "score": [0.5, -1.5, None, 2e3] * 3,
    "open": [True, False, None] * 4,
    "pub type": ["a_b", "axb", 'say "x"'] * 4,
    "label": ["ä", "100%", "50", "a"] * 3,
}
TABLE = pa.table(COLUMNS)


def selected(text: str) -> list[str]:
    where = parse_filter(text, TABLE.schema)
    return ds.dataset(TABLE).to_table(filter=where)["id"].to_pylist()


@pytest.mark.parametrize(
    "text",
    [
        "license = 'CC BY'",
        "license = 'CC BY' and year > 2020",
        "license == 'it''s' OR score <= -1.5",
        "year != 2020",
        "not year <> 2020",
        "not (year >= 2021 or license is null)",
        "year > 2018 and year < 2021 or open = true",
        "year>2018 and(year<2021 or open=false)",
        "not not year = 2019 and not license = 'CC BY'",
        "year in (2018, 2022) and license not in ('CC BY', 'none')",
        "license IS NOT NULL AND score Is Null",
        "score > 1e3",
        "score = +.5",
        "year > 2020.5",
        "year = 2020.0",
        "\"pub type\" = 'a_b'",
        "\"pub type\" like 'a\\_b'",
        "label like '%0%'",
        "license like 'CC BY%' and license not like '%NC'",
        "open",
        "not open",
        "label = 'ä'",
        "id = 'row 3'",
        "year > 99999999999999999999",
    ],
)
def test_the_rows_are_those_of_sqlite(text):
    connection = sqlite3.connect(":memory:")
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    connection.execute(f"create table rows ({names})")
    connection.executemany(
        f"insert into rows values ({', '.join('?' * len(COLUMNS))})", zip(*COLUMNS.values(), strict=True)
    )
    connection.execute("pragma case_sensitive_like = true")
    condition = text.replace("like 'a\\_b'", "like 'a\\_b' escape '\\'")
    expected = [row[0] for row in connection.execute(f"select id from rows where {condition} order by rowid")]
    assert selected(text) == expected


def test_dates_are_compared_with_texts():
    days = [datetime.date(2020, 1, 31), datetime.date(2021, 5, 1), None]
    table = pa.table({"day": days, "time": pa.array([*map(str, days[:2]), None]).cast(pa.timestamp("ms"))})
    for name in ("day", "time"):
        found = ds.dataset(table).to_table(filter=parse_filter(f"{name} >= '2020-02-01'", table.schema))
        assert found["day"].to_pylist() == [days[1]]
    with pytest.raises(UsageError, match="needs a date or time such as '2020-12-31'"):
        parse_filter("day > 'soon'", table.schema)


def test_dictionaries_are_compared_like_their_values():
    table = pa.table({"kind": pa.array(["a", "b", "a"]).dictionary_encode(), "n": [1, 2, 3]})
    assert ds.dataset(table).to_table(filter=parse_filter("kind = 'a'", table.schema))["n"].to_pylist() == [1, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a column, found the end"),
        ("licence = 'CC BY'", "no column 'licence'. Did you mean 'license'?"),
        ("other = 1", "The columns are id, license, year, score, open, pub type, label."),
        ("year > '2020'", "year is int64, so it needs a number without quotes, found \"'2020'\" at character 8"),
        ("license = 3", "license is string, so it needs a text in single quotes"),
        ("open = 1", "open is bool, so it needs true or false"),
        ("license = CC", "expected a value for license (string), and text is written in single quotes, found 'CC'"),
        ('license = "CC BY"', "text is written in single quotes"),
        ("license = 'CC BY", "a quote is not closed at character 11"),
        ("year > 2020 license = 'CC BY'", "expected 'and', 'or' or the end, found 'license' at character 13"),
        ("(year > 2020", "expected ')', found the end"),
        ("year > 2020)", "expected 'and', 'or' or the end"),
        ("year", "expected =, !=, <, <=, >, >=, in, like or is null"),
        ("year = null", "write 'is null'"),
        ("year like '2%'", "'like' needs a column of text, and year is int64"),
        ("year in ()", "expected a value for year"),
        ("year not 3", "expected 'in' or 'like'"),
        ("year > 2020; drop table", "';' is unknown at character 12"),
        ("__import__('os').system('x')", "'.' is unknown at character 17"),
        ("year > 20x", "is unknown at character 8"),
        ("and year > 3", "expected a column"),
        ("not " * 80 + "open", "more than 50 levels"),
        ("(" * 5000 + "open", "more than 50 levels"),
        ("open or " * 200 + "open", "more than 200 comparisons"),
        (f"year in ({'1, ' * 200}1)", "more than 200 comparisons and values of 'in'"),
        ("open or " * 2000, "16,000 characters, and 10,000 are allowed"),
    ],
)
def test_an_error_says_what_is_wrong_and_where(text, message):
    with pytest.raises(UsageError) as error:
        parse_filter(text, TABLE.schema)
    assert message in str(error.value) and str(error.value).startswith("--where ")


def test_embeddings_and_nested_columns_are_not_compared():
    schema = pa.schema({"embedding": pa.list_(pa.float32(), 4), "mentions": pa.list_(pa.string())})
    with pytest.raises(UsageError, match="no column 'embedding'"):
        parse_filter("embedding is null", schema)
    with pytest.raises(UsageError, match="no other comparison is possible"):
        parse_filter("mentions = 'a'", schema)
    parse_filter("mentions is not null", schema)
