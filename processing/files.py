"""Check local files before they are opened, because reading a FIFO would wait forever."""

import os
import stat


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def special_kind(path: str | os.PathLike[str]) -> str | None:
    """Return the kind of a path that is not a regular file. Links are followed.

    Args:
        path: A local path.

    Returns:
        `a folder`, `a FIFO`, `a socket` or `a device`. None for a regular file.

    Raises:
        OSError: If the path does not exist or cannot be accessed.
    """
    return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))


def leads_out(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> bool:
    """Return whether a path is outside a folder after all links are resolved."""
    inside = os.path.realpath(root)
    return os.path.commonpath([inside, os.path.realpath(path)]) != inside


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise an error if a path is not a regular file.

    Args:
        path: A local path. Links are followed.

    Raises:
        OSError: If the path is a FIFO, a socket, a device or a folder, or does not exist.
    """
    kind = special_kind(path)
    if kind is not None:
        raise OSError(f"{os.fspath(path)} is {kind}, not a file.")
