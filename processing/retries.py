"""Retry calls and detect errors that a retry cannot fix."""

import contextlib
import errno
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeVar


_T = TypeVar("_T")

_ROOM = "Free some space, then run the same command again: it continues from here"
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: (
        "The limit on the size of a file (ulimit -f) or the file system is too small. Raise it, then run the same "
        "command again: it continues from here"
    ),
    errno.EROFS: "Choose a folder that can be written to",
    errno.EMFILE: "Raise the limit on open files (ulimit -n), or use fewer workers and connections",
    errno.ENFILE: "Close other programs, or use fewer workers and connections",
}
# The last three are raised by disks that do not support locks.
_LASTING = frozenset({*_ADVICE, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})

_NO_CONNECTION = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
_NO_CONNECTION_CLASSES = frozenset(
    {"ClientConnectorError", "ConnectionTimeoutError", "EndpointConnectionError", "ConnectTimeoutError"}
    | {"ProxyConnectionError", "ConnectError", "ConnectTimeout"}  # the last two are from httpx
)


def with_retries(
    call: Callable[[], _T], *, check: Callable[[Exception, int], None], pause: float, factor: int = 2
) -> _T:
    """Call a function until it succeeds.

    Args:
        call: The function.
        check: Function that receives the error and the number of the failed attempt, from 1. It raises an error to
            prevent further attempts.
        pause: Seconds before the second attempt.
        factor: Factor by which the pause grows after each attempt.

    Returns:
        The result of `call`.
    """
    for attempt in itertools.count(1):
        try:
            return call()
        except Exception as error:
            check(error, attempt)
        time.sleep(pause * factor ** (attempt - 1))
    raise AssertionError("unreachable")


def lasting_error(error: BaseException | None) -> OSError | None:
    """Return the error of this machine that a retry cannot fix, such as a full disk, or None.

    Args:
        error: Any exception. Its causes are also searched, because clients wrap errors of the operating system.

    Returns:
        The `OSError`, or None if a retry might succeed.
    """
    for part in chain(error):
        if isinstance(part, OSError) and part.errno in _LASTING:
            return part
    return None


def is_unreachable(error: BaseException) -> bool:
    """Return whether no connection was established, because of no network, an unknown host, or a refused connection.

    Args:
        error: The exception that a client raised. Its causes are also searched.
    """
    return any(
        isinstance(part, socket.gaierror)
        or (isinstance(part, OSError) and part.errno in _NO_CONNECTION)
        or not _NO_CONNECTION_CLASSES.isdisjoint(kind.__name__ for kind in type(part).__mro__)
        for part in chain(error)
    )


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def explained(place: str | os.PathLike[str]) -> Iterator[None]:
    """Add instructions for the user to errors of this machine that a retry cannot fix.

    Args:
        place: File or folder for the message if an error does not name one.

    Raises:
        OSError: If the block raises an `OSError` that a retry cannot fix.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        message = f"{os.strerror(error.errno)}. {_ADVICE[error.errno]}"
        raise OSError(error.errno, message, error.filename or str(place)) from error


__all__ = ["chain", "explained", "is_unreachable", "lasting_error", "with_retries"]
