"""Reuse freed memory on a CPU, instead of returning it to the system and asking for it again."""

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any


# Parameters of `mallopt` in malloc.h of glibc.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
KEEP = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}  # no block has a mapping of its own, and none is returned
# What glibc itself sets after a block of 32 MB, the largest that it keeps, has been freed.
RETURN = {MMAP_MAX: 2**16, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}

_users = 0  # of `keep_freed_memory` at this moment


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let this process reuse the memory that it frees, and return it to the system only at the end.

    glibc returns blocks above 32 MB as soon as they are freed. Activations of a training step are such blocks, and the
    system must clear each page again for the next one. On a CPU, this takes up to a sixth of a step. Nothing changes
    with another C library, if the environment sets options of malloc, or in processes that are forked meanwhile, such
    as data workers.

    Example:
    ```python
    >>> from biomedclip.freed_memory import keep_freed_memory

    >>> with keep_freed_memory():
    ...     blocks = [bytes(2**26) for _ in range(3)]
    ```
    """
    global _users
    library = _glibc()
    if library is None:
        yield
        return
    _users += 1
    _apply(library, KEEP)
    try:
        yield
    finally:
        _users -= 1
        if _users == 0:
            _apply(library, RETURN)
            library.malloc_trim(0)


@cache
def _glibc() -> Any:
    """Return the C library, or None if it is not glibc or if the environment sets options of malloc."""
    if os.name != "posix" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        return None
    os.register_at_fork(after_in_child=lambda: _apply(library, RETURN) if _users else None)
    return library


def _apply(library: Any, parameters: Mapping[int, int]) -> None:
    for parameter, value in parameters.items():
        library.mallopt(parameter, value)
