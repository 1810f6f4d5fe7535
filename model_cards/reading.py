"""Read small files from untrusted folders.

A link may point outside the folder. A file may be a named pipe, be larger than memory, or contain JSON with unexpected
fields. Each of these cases raises a `ValueError` that names the file.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml


LARGEST = 64 * 2**20  # bytes of a JSON, YAML or Markdown file
DEEPEST = 50  # levels of nesting
MOST_VALUES = 100_000  # values of a YAML file, because aliases can repeat a value any number of times
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def find_file(folder: Path, name: str, *, allowed: Callable[[str], bool] | None = None) -> Path | None:
    """Find a regular file of a folder.

    Args:
        folder: The folder. It may be a link, because the user has named it.
        name: Path of the file in the folder.
        allowed: Function that returns whether a link may point to a path in the folder. By default, a link may point to
            any file in the folder.

    Returns:
        The path with all links resolved, or `None` if the file does not exist.

    Raises:
        ValueError: If a link points outside the folder, is broken, or points to a file that is not allowed, or if the
            path is not a regular file.
    """
    path = folder / name
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except FileNotFoundError:
        if path.is_symlink():
            raise ValueError(f"{path} is a link that leads to nothing. Remove it.") from None
        return None
    except NotADirectoryError:
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}). Remove it.") from error
    root, target = folder.resolve(), path.resolve()
    if not target.is_relative_to(root):
        raise ValueError(f"{path} is a link that leaves its folder: it leads to {target}. Put a copy in its place.")
    inside = target.relative_to(root).as_posix()
    if inside != Path(name).as_posix() and allowed is not None and not allowed(inside):
        raise ValueError(f"{path} is a link to {inside}, which is not published. Put the right file in its place.")
    if kind != stat.S_IFREG:
        raise ValueError(f"{path} is {_KINDS.get(kind, 'something else')}, not a regular file. Remove it.")
    return target


def refuse_links_out(folder: Path, root: Path | None = None) -> None:
    """Raise an error if a folder contains a link, at any depth, that points outside.

    Args:
        folder: The folder.
        root: The folder that links must not leave (default: `folder`).

    Raises:
        ValueError: If a link points outside `root`.
    """
    root = root or folder
    inside = root.resolve()
    for place, folders, names in os.walk(folder):  # does not follow links to folders
        for path in [Path(place), *(Path(place, name) for name in [*folders, *names])]:
            if path.is_symlink() and path != root and not path.resolve().is_relative_to(inside):
                raise ValueError(
                    f"{path} is a link that leaves {root}: it leads to {path.resolve()}. Put a copy in its place, or "
                    "remove it."
                )


def read_text(path: Path, *, largest: int = LARGEST) -> str:
    """Read a text file in UTF-8.

    Args:
        path: The file.
        largest: Largest size in bytes.

    Raises:
        ValueError: If it is not a regular file, is too large, or is not UTF-8.
        OSError: If it cannot be read.
    """
    # Without O_NONBLOCK, opening a named pipe would wait for a writer forever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(descriptor, "rb") as file:
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            raise ValueError(f"{path} is {_KINDS.get(kind, 'something else')}, not a regular file. Remove it.")
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{path} is larger than {largest / 2**20:g} MiB, so it is not what it should be. Remove it.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path: Path, *, largest: int = LARGEST) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        largest: Largest size in bytes.

    Raises:
        ValueError: If [`read_text`] refuses the file, or if it is not strict JSON: NaN, infinities and numbers beyond
            the range of float64 are refused, and so is nesting of more than 50 levels.
        OSError: If it cannot be read.
    """
    text = read_text(path, largest=largest)
    try:
        content = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        _check_extent(content)
        if "\\u" in text:
            json.dumps(content, ensure_ascii=False).encode()  # fails on half a surrogate pair
    except RecursionError:
        raise ValueError(f"{path} is damaged (it is nested too deeply).") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}).") from error
    return content


def read_yaml(path: Path, *, largest: int = 2**20) -> Any:
    """Read a YAML file.

    Args:
        path: The file.
        largest: Largest size in bytes.

    Raises:
        ValueError: If [`read_text`] refuses the file, if it is not YAML of plain values, or if its aliases make it
            larger than 100,000 values.
        OSError: If it cannot be read.
    """
    text = read_text(path, largest=largest)
    try:
        content = yaml.safe_load(text)
        _check_extent(content, MOST_VALUES)
    except RecursionError:
        raise ValueError(f"{path} is damaged (it is nested too deeply).") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}).") from error
    return content


def check_shape(path: Path, content: Any, shape: Any, where: str = "") -> None:
    """Check that the content of a file has the expected fields and types.

    Args:
        path: The file, for the error.
        content: The parsed content.
        shape: A type or a tuple of types; `[shape]` for a list; `{str: shape}` for an object with any names; or an
            object that gives the shape of each field. A field whose name ends with `?` may be missing or null. Other
            fields are ignored. `bool` does not count as a number.
        where: Name of the part that is compared, for the error.

    Raises:
        ValueError: If a field is missing or has another type.
    """
    if isinstance(shape, Mapping):
        if not isinstance(content, Mapping):
            raise ValueError(f"{path}: {where or 'the file'} must be an object, not {_short(content)}.")
        if set(shape) == {str}:
            for name, value in content.items():
                check_shape(path, value, shape[str], f"{where}.{name}".lstrip("."))
            return
        for field, inner in shape.items():
            name = field.removesuffix("?")
            part = f"{where}.{name}".lstrip(".")
            if content.get(name) is None and field.endswith("?"):
                continue
            if name not in content:
                raise ValueError(f"{path}: {part} is missing.")
            check_shape(path, content[name], inner, part)
    elif isinstance(shape, list):
        if not isinstance(content, list):
            raise ValueError(f"{path}: {where} must be a list, not {_short(content)}.")
        for number, value in enumerate(content):
            check_shape(path, value, shape[0], f"{where}[{number}]")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        number_wanted = isinstance(content, bool) and not {bool, object} & set(kinds)
        if not isinstance(content, kinds) or number_wanted:
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{path}: {where} must be {names}, not {_short(content)}.")


def _short(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _check_extent(content: Any, most: float = math.inf) -> None:
    """Count the values level by level, so that YAML aliases cannot exceed the limit."""
    level, count = [content], 0
    for _ in range(DEEPEST):
        below = []
        for inner in (inner for value in level for inner in _parts(value)):
            count += 1
            if count > most:
                raise ValueError(f"it holds more than {most:,} values")
            if isinstance(inner, Mapping | list):
                below.append(inner)
        if not below:
            return
        level = below
    raise ValueError("it is nested too deeply")


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text[:20]}, which is beyond the range of numbers")
    return number
