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
    """Call a function until it succeeds, and return its result.

    `check` receives the error and the number of the failed attempt, from 1. It raises an error to prevent further
    attempts. `pause` is the number of seconds before the second attempt. It grows by `factor` after each attempt.
    """
    for attempt in itertools.count(1):
        try:
            return call()
        except Exception as error:
            check(error, attempt)
        time.sleep(pause * factor ** (attempt - 1))
    raise AssertionError("unreachable")


def lasting_error(error: BaseException | None) -> OSError | None:
    """Return the error of this machine that a retry cannot fix, such as a full disk, or None if a retry might succeed.

    The causes of `error` are also searched, because clients wrap errors of the operating system.
    """
    return next((part for part in chain(error) if isinstance(part, OSError) and part.errno in _LASTING), None)


def is_unreachable(error: BaseException) -> bool:
    """Return whether an error or one of its causes states that no connection to the host was established."""
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

    The message contains `place` if the error does not name a file or folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        message = f"{os.strerror(error.errno)}. {_ADVICE[error.errno]}"
        raise OSError(error.errno, message, error.filename or str(place)) from error
