"""The error for an invalid command line or recipe."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """Raised if a command line or recipe is invalid, independently of files on disk. The command exits with 2.

    Examples are an unknown option, a value of the wrong type, a missing option, and options that contradict each
    other. Other errors mean that the work failed. The command then exits with 1.
    """


@contextmanager
def usage_errors() -> Iterator[None]:
    """Convert errors of option checks to usage errors.

    Raises:
        UsageError: If the block raises a `ValueError`.
    """
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextmanager
def options_in_errors(*arguments: str) -> Iterator[None]:
    """Name the options of the command instead of Python arguments in errors of the library.

    Args:
        arguments: Names of arguments that have options of the same name, such as `label_column`. A name without an
            underscore is only replaced in backticks.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        text = str(error)
        for name in arguments:
            option = f"--{name.replace('_', '-')}"
            text = re.sub(rf"`{name}(=True)?`", option, text)
            if "_" in name:
                text = re.sub(rf"\b{name}='?([^\s']+)'?", rf"{option} \1", text)
                text = re.sub(rf"\b{name}\b", option, text)
        if text == str(error):
            raise
        raise type(error)(text) from error
