"""The error for an invalid command line or recipe."""

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
