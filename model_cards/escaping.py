"""Write text of data, results and reports into documents, plots and terminals as text and as nothing else.

Names of files, classes and models come from strangers. Each function here takes any text and returns it in a form in
which it has no meaning but its characters. Invisible characters (control, bidirectional, zero-width, surrogates)
become U+FFFD everywhere.
"""

import re
import unicodedata
from typing import Any


_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn"}
_HTML = {"&": "&amp;", "<": "&lt;", "|": "&#124;"}  # the last would end the cell of a table
_MARKUP = re.compile(
    r"[\\`*_\[\]~$#!{}@^]"  # emphasis, code, links, images, math, headings, mentions
    r"|:(?=\S)"  # schemes of URLs, emoji
    r"|(?<=/)/"  # URLs without a scheme
    r"|(?<=\w)\.(?=[^\W\d])"  # www.example.com
    r"|^[-+=>]"  # lists, rules and quotes at the beginning
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


class Markdown(str):
    """Text that is Markdown already: [`markdown`] returns it as it is."""


def visible(text: Any, *, keep: str = "") -> str:
    """
    Return a text with U+FFFD in place of every character that cannot be seen.

    Args:
        text: Anything that `str` takes.
        keep: Control characters to keep, such as the newline.
    """
    return "".join(
        character if character in keep or unicodedata.category(character) not in _INVISIBLE else "\ufffd"
        for character in str(text)
    )


def one_line(text: Any) -> str:
    """Return a text as one line of visible characters, every run of white space as one space."""
    return visible(" ".join(str(text).split()))


def lines(text: Any) -> str:
    """Return a text of several lines with visible characters only, as a terminal can print it."""
    return visible(str(text).replace("\t", "    "), keep="\n")


def markdown(text: Any) -> Markdown:
    """
    Return a text as one line that Markdown, HTML and mathematics leave as it is, in a table or anywhere else.

    Args:
        text: Anything that `str` takes. [`Markdown`] is returned unchanged.
    """
    if isinstance(text, Markdown):
        return text
    escaped = _MARKUP.sub(lambda match: f"\\{match[0]}", one_line(text))
    escaped = re.sub(r"^(\d+)(?=[.)](\s|$))", r"\1\\", escaped)  # a numbered list
    return Markdown("".join(_HTML.get(character, character) for character in escaped))


def code(text: Any) -> Markdown:
    """
    Return a text as a code span. It may stand anywhere but in a table, where a vertical bar ends the cell.

    Backticks become apostrophes.
    """
    return Markdown(f"`{one_line(text).replace('`', chr(39)) or ' '}`")


def code_block(text: Any, language: str) -> Markdown:
    """Return a text of several lines as a fenced block of code; three backticks in it become apostrophes."""
    return Markdown(f"```{language}\n{lines(text).replace('```', chr(39) * 3)}\n```")


def latex(text: Any) -> str:
    """Return a text as one line that LaTeX prints as it is."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def yaml_text(text: Any) -> str:
    """Return a text as one line that YAML reads as that text, in double quotes unless it is a plain word."""
    line = one_line(text)
    if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", line) and line.lower() not in _NOT_TEXT:
        return line
    return '"' + line.replace("\\", "\\\\").replace('"', '\\"') + '"'


def table(columns: list[Any], rows: list[tuple[Any, ...]], *, text_columns: int = 1) -> str:
    """
    Return a table in Markdown.

    Args:
        columns: Headings.
        rows: As [`table_rows`] takes them.
        text_columns: Columns that are aligned left; the others are aligned right.
    """
    rule = "|---" * text_columns + "|---:" * (len(columns) - text_columns) + "|"
    return "\n".join([table_rows([tuple(columns)]), rule, *([table_rows(rows)] if rows else [])])


def table_rows(rows: list[tuple[Any, ...]]) -> str:
    """Return rows of a Markdown table. Whole numbers get commas; text is escaped unless it is [`Markdown`]."""
    return "\n".join(
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else markdown(cell) for cell in row) + " |"
        for row in rows
    )


_NOT_TEXT = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}
