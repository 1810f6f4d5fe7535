"""Escape text from data, results and reports for documents, plots and terminals.

Names of files, classes and models are untrusted. Each function here takes any text and returns it in a form that the
target format displays literally. Invisible characters (control, bidirectional, zero-width, surrogates) are always
replaced with U+FFFD.
"""

import re
import unicodedata
from typing import Any


_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn"}
_HTML = {"&": "&amp;", "<": "&lt;", "|": "&#124;"}  # a vertical bar would end a table cell
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
    """Text that is already Markdown. [`markdown`] returns it unchanged."""


def visible(text: Any, *, keep: str = "") -> str:
    """Return a text with every invisible character replaced with U+FFFD, except those in `keep`, such as newlines."""
    return "".join(
        character if character in keep or unicodedata.category(character) not in _INVISIBLE else "\ufffd"
        for character in str(text)
    )


def one_line(text: Any) -> str:
    """Return a text as one line of visible characters, with each run of white space replaced with one space."""
    return visible(" ".join(str(text).split()))


def lines(text: Any) -> str:
    """Return a multi-line text with visible characters only. It is safe to print in a terminal."""
    return visible(str(text).replace("\t", "    "), keep="\n")


def markdown(text: Any) -> Markdown:
    """Return a text as one line that Markdown, HTML and math display literally, inside and outside of tables."""
    if isinstance(text, Markdown):
        return text
    escaped = _MARKUP.sub(lambda match: f"\\{match[0]}", one_line(text))
    escaped = re.sub(r"^(\d+)(?=[.)](\s|$))", r"\1\\", escaped)  # a numbered list
    return Markdown("".join(_HTML.get(character, character) for character in escaped))


def code(text: Any) -> Markdown:
    """Return a text as a code span. Do not use it in a table, where a vertical bar would end the cell.

    Backticks become apostrophes.
    """
    return Markdown(f"`{one_line(text).replace('`', chr(39)) or ' '}`")


def code_block(text: Any, language: str) -> Markdown:
    """Return a multi-line text as a fenced code block. Three backticks in it become apostrophes."""
    return Markdown(f"```{language}\n{lines(text).replace('```', chr(39) * 3)}\n```")


def latex(text: Any) -> str:
    """Return a text as one line that LaTeX prints literally."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def table(columns: list[Any], rows: list[tuple[Any, ...]], *, text_columns: int = 1) -> str:
    """Return a Markdown table. The first `text_columns` columns are left-aligned, all others right-aligned.

    Integers get commas. Text is escaped unless it is [`Markdown`].
    """
    head, *body = (
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else markdown(cell) for cell in row) + " |"
        for row in [columns, *rows]
    )
    rule = "|---" * text_columns + "|---:" * (len(columns) - text_columns) + "|"
    return "\n".join([head, rule, *body])
