"""Errors of the command line, option names in the errors of the library, and their lines in a terminal."""

import difflib
import re
import shutil
import textwrap
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO


_option_names: set[str] = set()  # of the verb that is running, with underscores


class UsageError(ValueError):
    """Raised if a command line or recipe is invalid, regardless of files on disk. The exit status is 2.

    Examples are an unknown option, a value of the wrong type, a missing option, and options that contradict each
    other. Other errors mean that the work failed. Their exit status is 1.
    """


class IncompleteError(ValueError):
    """Raised at the end of work that skipped some items, such as unreadable images. The exit status is 1."""


def suggestion(name: str, names: Collection[str]) -> str:
    """Return a question that names the most similar one of the valid names, or an empty text."""
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Convert errors of option checks (`ValueError`) to usage errors."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


def set_option_names(names: Iterable[str]) -> None:
    """Set the option names (with underscores) of the running verb, for `name_options`."""
    _option_names.clear()
    _option_names.update(names)


def name_options(message: str) -> str:
    """Replace the names of Python arguments with the options of the running verb.

    Library code raises errors such as "`mini_batch_size=0` must be at least 1". On the command line, this option is
    `--mini-batch-size 0`. Names without an underscore can be ordinary English words, so they are replaced only in
    backticks.
    """

    def option(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        if name not in _option_names or ("_" not in name and match["tick"] is None):
            return match[0]
        value = "" if value is None else f" {value.lower() if value in ('True', 'False') else value}"
        return f"{match['tick'] or ''}--{name.replace('_', '-')}{value}"

    return re.sub(
        r"(?<![\w./\\'\"-])(?P<tick>`)?(?P<name>[a-z_0-9]+)\b(?![/.]\w)(?:=(?P<value>'[^']*'|[\w.]+))?", option, message
    )


def wrap_for(stream: TextIO, message: str) -> str:
    """Break long lines of a message between words if the stream is a terminal. Otherwise, return it unchanged.

    Words and texts in quotes, such as file names, are never broken, even if they are longer than a line. The width is
    that of the terminal. A line keeps its indentation.
    """
    if not stream.isatty():
        return message
    width = shutil.get_terminal_size().columns
    return "\n".join(_wrapped(line, width) for line in message.split("\n"))


def _wrapped(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = line[: len(line) - len(line.lstrip(" "))]
    # textwrap breaks at spaces, so those in quoted texts are replaced with a character that no message has.
    joined = re.sub(r"(?<!\w)'[^']*'(?!\w)", lambda match: match[0].replace(" ", "\0"), line)
    wrapped = textwrap.wrap(
        joined, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent, tabsize=4
    )
    return "\n".join(wrapped).replace("\0", " ")
