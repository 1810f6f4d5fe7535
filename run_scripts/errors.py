"""The error of a command line or recipe that cannot be carried out."""

from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(ValueError):
    """
    A command line or recipe that is wrong whatever lies on the disk: the command exits with 2.

    Examples are an unknown option, a value of the wrong type, a missing option, and options that contradict each
    other. Work that failed raises other errors, for which the command exits with 1.
    """


@contextmanager
def usage_errors() -> Iterator[None]:
    """
    Turn errors of a check of options into errors of usage.

    Raises:
        UsageError: If the checks inside raise a `ValueError`.
    """
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
