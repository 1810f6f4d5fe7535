"""Read the conditions of `--where` into expressions of PyArrow. Nothing is evaluated as code.

    license = 'CC BY' and year > 2020
    not (journal in ('Chest', 'Thorax') or caption like '%MRI%') and doi is not null

Values are numbers, texts in single quotes (a quote in a text is doubled), `true` and `false`. A column whose name is
not a plain word is written in double quotes. As in SQL, a comparison with a missing value is not true.
"""

import difflib
import re
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from ..cli.errors import UsageError


EXAMPLE = "license = 'CC BY' and year > 2020"
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")*")
    | (?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w.]))
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|<>|!=|==|[=<>(),])
    )""",
    re.VERBOSE,
)
_COMPARISONS = {
    "=": pc.equal,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_WORDS = {"and", "or", "not", "in", "like", "is", "null", "true", "false"}
_HIDDEN = "embedding"
_MOST_NESTED = 50
_MOST_TERMS = 200  # because the depth of the expression grows with their number
_MOST_CHARACTERS = 10_000
_SHOWN = 20  # columns in an error
_LONGEST = 200  # characters of the condition in an error


class _Token(NamedTuple):
    kind: str
    text: str
    start: int


def parse_filter(text: str, schema: pa.Schema) -> ds.Expression:
    """Return the expression of a condition.

    Args:
        text: The condition, such as `license = 'CC BY' and year > 2020`.
        schema: Names and types of the columns.

    Raises:
        UsageError: If the condition is too long or cannot be read, names an unknown column, or compares a column with
            a value of another type. The message has the position.
    """
    return _Parser(text, schema).parse()


class _Parser:
    """A recursive descent parser: `or`, then `and`, then `not`, then one comparison or a condition in parentheses."""

    def __init__(self, text: str, schema: pa.Schema):
        self._text, self._schema = text, schema
        self._where = f"--where {text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'}"
        if len(text) > _MOST_CHARACTERS:
            raise UsageError(
                f"{self._where}: {len(text):,} characters, and {_MOST_CHARACTERS:,} are allowed. Shorten the condition."
            )
        self._tokens = self._split()
        self._next = 0
        self._depth = 0
        self._terms = 0

    def parse(self) -> ds.Expression:
        result = self._any()
        if self._peek().kind != "end":
            raise self._error("expected 'and', 'or' or the end")
        return result

    def _split(self) -> list[_Token]:
        tokens, place = [], 0
        end = len(self._text.rstrip())
        while place < end:
            match = _TOKEN.match(self._text, place)
            if match is None or match.lastgroup is None:
                start = end - len(self._text[place:end].lstrip())
                what = "a quote is not closed" if self._text[start] in "'\"" else f"{self._text[start]!r} is unknown"
                raise UsageError(f"{self._where}: {what} at character {start + 1}. Example: {EXAMPLE}")
            kind = match.lastgroup
            tokens.append(_Token(kind, match[kind], match.start(kind)))
            place = match.end()
        return [*tokens, _Token("end", "the end", len(self._text))]

    def _any(self) -> ds.Expression:
        result = self._all()
        while self._take("or"):
            result = result | self._all()
        return result

    def _all(self) -> ds.Expression:
        result = self._one()
        while self._take("and"):
            result = result & self._one()
        return result

    def _one(self) -> ds.Expression:
        self._depth += 1
        if self._depth > _MOST_NESTED:
            raise self._error(f"more than {_MOST_NESTED} levels of 'not' and parentheses")
        if self._take("not"):
            result = ~self._one()
        elif self._take("("):
            result = self._any()
            self._expect(")")
        else:
            result = self._comparison()
        self._depth -= 1
        return result

    def _count_term(self) -> None:
        self._terms += 1
        if self._terms > _MOST_TERMS:
            raise self._error(f"more than {_MOST_TERMS} comparisons and values of 'in'")

    def _comparison(self) -> ds.Expression:
        self._count_term()
        name, kind = self._column()
        column = ds.field(name)
        if self._take("is"):
            negated = self._take("not")
            self._expect("null")
            return column.is_valid() if negated else column.is_null()
        if self._take("not"):
            if not self._at("in", "like"):
                raise self._error("expected 'in' or 'like'")
            return ~self._contained(name, kind)
        if self._at("in", "like"):
            return self._contained(name, kind)
        token = self._peek()
        if token.text not in _COMPARISONS:
            if pa.types.is_boolean(kind):
                return column
            raise self._error("expected =, !=, <, <=, >, >=, in, like or is null")
        self._next += 1
        return _COMPARISONS[token.text](column, self._value(name, kind))

    def _contained(self, name: str, kind: pa.DataType) -> ds.Expression:
        column = ds.field(name)
        if self._take("like"):
            if not _is_text(kind):
                raise self._error(f"'like' needs a column of text, and {name} is {kind}")
            pattern = self._value(name, kind)
            return pc.match_like(column, pattern.as_py())
        self._expect("in")
        self._expect("(")
        values = [self._value(name, kind)]
        while self._take(","):
            self._count_term()
            values.append(self._value(name, kind))
        self._expect(")")
        result = pc.equal(column, values[0])
        for value in values[1:]:
            result = result | pc.equal(column, value)
        return result

    def _column(self) -> tuple[str, pa.DataType]:
        token = self._peek()
        if token.kind not in ("word", "quoted") or token.text.lower() in _WORDS:
            raise self._error("expected a column")
        name = token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text
        names = [column for column in self._schema.names if column != _HIDDEN]
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
            raise UsageError(f"{self._where}: no column {name!r}.{hint} The columns are {shown}.")
        self._next += 1
        kind = self._schema.field(name).type
        return name, kind.value_type if pa.types.is_dictionary(kind) else kind

    def _value(self, name: str, kind: pa.DataType) -> pa.Scalar:
        """Return the next token as a value that fits a column."""
        token = self._peek()
        value: Any
        if token.kind == "text":
            value = token.text[1:-1].replace("''", "'")
        elif token.kind == "number":
            value = int(token.text) if re.fullmatch(r"[-+]?\d{1,18}", token.text) else float(token.text)
        elif token.text.lower() in ("true", "false"):
            value = token.text.lower() == "true"
        elif token.text.lower() == "null":
            raise self._error("write 'is null' or 'is not null'")
        else:
            quotes = ", and text is written in single quotes" if token.kind in ("word", "quoted") else ""
            raise self._error(f"expected a value for {name} ({kind}){quotes}")
        result = _convert(value, kind)
        if result is None:
            raise self._error(f"{name} is {kind}, so it needs {_wanted(kind)}")
        self._next += 1
        return result

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _at(self, *words: str) -> bool:
        token = self._peek()
        return token.kind in ("word", "sign") and token.text.lower() in words

    def _take(self, word: str) -> bool:
        found = self._at(word)
        self._next += found
        return found

    def _expect(self, word: str) -> None:
        if not self._take(word):
            raise self._error(f"expected {word!r}")

    def _error(self, problem: str) -> UsageError:
        token = self._peek()
        found = "the end" if token.kind == "end" else f"{token.text!r} at character {token.start + 1}"
        return UsageError(f"{self._where}: {problem}, found {found}. Example: {EXAMPLE}")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _convert(value: Any, kind: pa.DataType) -> pa.Scalar | None:
    """Return a value that can be compared with a column of a type, or None if it has another type."""
    if pa.types.is_boolean(kind) or isinstance(value, bool):
        return pa.scalar(value) if pa.types.is_boolean(kind) and isinstance(value, bool) else None
    if pa.types.is_null(kind):
        return pa.scalar(None, kind)
    if _is_number(kind):
        return (
            None if isinstance(value, str) else pa.scalar(value)
        )  # an integer column is compared with 2020.5 as it is
    if not isinstance(value, str):
        return None
    if _is_text(kind):
        return pa.scalar(value, kind)
    if pa.types.is_temporal(kind):
        try:
            return pa.scalar(value).cast(kind)
        except pa.ArrowException:
            return None
    return None


def _wanted(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "true or false"
    if _is_number(kind):
        return "a number without quotes"
    if _is_text(kind):
        return "a text in single quotes"
    if pa.types.is_temporal(kind):
        return "a date or time such as '2020-12-31'"
    return "'is null' or 'is not null': no other comparison is possible"


__all__ = ["EXAMPLE", "parse_filter"]
