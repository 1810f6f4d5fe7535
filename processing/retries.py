"""Detect errors that a retry cannot fix. Reads, tasks and jobs use the same rule."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator


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
# Raised by disks that do not support locks.
_LASTING = frozenset({*_ADVICE, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})

_NO_CONNECTION = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
_NO_CONNECTION_CLASSES = frozenset(
    {"ClientConnectorError", "ConnectionTimeoutError", "EndpointConnectionError", "ConnectTimeoutError"}
    | {"ProxyConnectionError", "ConnectError", "ConnectTimeout"}  # the last two of httpx
)


def lasting_error(error: BaseException | None) -> OSError | None:
    """Return the error of this machine that a retry cannot fix, such as a full disk.

    Args:
        error: Any exception. Its causes are searched too, because clients wrap errors of the operating system.

    Returns:
        The `OSError`, or None if a retry may help.
    """
    for part in chain(error):
        if isinstance(part, OSError) and part.errno in _LASTING:
            return part
    return None


def is_unreachable(error: BaseException) -> bool:
    """Return whether no connection was established: no network, unknown host, or connection refused.

    Args:
        error: The exception that a client raised. Its causes are searched too.
    """
    for part in chain(error):
        classes = {kind.__name__ for kind in type(part).__mro__}
        if isinstance(part, socket.gaierror) or classes & _NO_CONNECTION_CLASSES:
            return True
        if isinstance(part, OSError) and part.errno in _NO_CONNECTION:
            return True
    return False


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


@contextlib.contextmanager
def explained(place: str | os.PathLike[str]) -> Iterator[None]:
    """Add instructions for the user to errors of this machine.

    Args:
        place: File or folder to name if an error does not name one.

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
