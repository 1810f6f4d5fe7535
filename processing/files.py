"""Check local files before reading, because a FIFO would block, and write them atomically."""

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def special_kind(path: str | os.PathLike[str]) -> str | None:
    """Return `a folder`, `a FIFO`, `a socket` or `a device`, or None for a regular file. Links are followed."""
    return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise `OSError` unless a path is a regular file. Links are followed."""
    if (kind := special_kind(path)) is not None:
        raise OSError(f"{os.fspath(path)} is {kind}, not a file.")


def leads_out(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bool:
    """Return whether a path is outside a folder once all links are resolved."""
    inside, found = os.path.realpath(root), os.path.realpath(path)
    if os.path.splitdrive(inside)[0] != os.path.splitdrive(found)[0]:
        return True  # `commonpath` does not compare two drives
    return os.path.commonpath([inside, found]) != inside


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path. Its file replaces `path` if the block raises no error.

    Other processes see the old file or the complete new one. If `path` is a link, the link is replaced.
    """
    partial = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # it may be a link
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file with [`replacing`]. Line endings are not converted."""
    with replacing(path) as partial, partial.open("x", encoding="utf-8", newline="\n") as file:
        file.write(content)
