"""Read small files from untrusted folders.

A link may point outside the folder. A file may be a named pipe, be larger than memory, or contain JSON with unexpected
fields. Each of these cases raises a `ValueError` with the path of the file.
"""

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml


LARGEST = 64 * 2**20  # maximum size of a JSON, YAML or Markdown file in bytes
DEEPEST = 50  # maximum number of nesting levels
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFDIR: "a folder",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def find_file(folder: Path, name: str, *, allowed: Callable[[str], bool] | None = None) -> Path | None:
    """Return the path of a regular file in a folder with all links resolved, or None if it does not exist.

    The folder may be a link, because the user chose it. In it, links that are broken, point outside, or point to a path
    for which `allowed` returns False raise a `ValueError`.
    """
    path = folder / name
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise ValueError(f"{path} is a broken link. Remove it.") from None
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}). Remove it.") from error
    root, target = folder.resolve(), path.resolve()
    if not target.is_relative_to(root):
        raise ValueError(f"{path} is a link that points outside its folder, to {target}. Replace it with a copy.")
    inside = target.relative_to(root).as_posix()
    if inside != Path(name).as_posix() and allowed is not None and not allowed(inside):
        raise ValueError(f"{path} is a link to {inside}, which is not published. Replace it with a copy.")
    _check_kind(path, status)
    return target


def _check_kind(path: Path, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise ValueError(f"{path} is {_KINDS.get(kind, 'a special file')}, not a regular file. Remove it.")


def refuse_links_out(folder: Path, root: Path | None = None) -> None:
    """Raise `ValueError` if a link in a folder, at any depth, points outside `root` (default: the folder)."""
    root = root or folder
    inside = root.resolve()
    for place, folders, names in os.walk(folder):  # does not follow links to folders
        for path in [Path(place), *(Path(place, name) for name in [*folders, *names])]:
            if path.is_symlink() and path != root and not path.resolve().is_relative_to(inside):
                raise ValueError(
                    f"{path} is a link that points outside {root}, to {path.resolve()}. Replace it with a copy, or "
                    "remove it."
                )


def read_text(path: Path) -> str:
    """Read a text file. Raise `ValueError` if it is a special file, larger than 64 MiB, or not UTF-8."""
    # Without O_NONBLOCK, opening a named pipe would wait for a writer forever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(descriptor, "rb") as file:
        _check_kind(path, os.fstat(descriptor))
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST / 2**20:g} MiB. Remove it.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path: Path) -> Any:
    """Read a JSON file. Raise `ValueError` for NaN, infinity, or more than 50 levels of nesting."""
    return _parse(path, json.loads)


def read_yaml(path: Path) -> Any:
    """Read a YAML file. Raise `ValueError` for aliases, values that JSON lacks, or more than 50 levels of nesting."""
    return _parse(path, _load_yaml)


def _load_yaml(text: str) -> Any:
    # A few nested aliases can expand to more values than fit into memory.
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise ValueError("it contains an alias")
    return yaml.safe_load(text)


def _parse(path: Path, parse: Callable[[str], Any]) -> Any:
    """Read and parse a file, and check that the content can be written as strict JSON."""
    text = read_text(path)
    try:
        content = parse(text)
        _check_depth(content)
        json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"{path} is damaged (it is nested too deeply).") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({' '.join(str(error).split())}).") from error
    return content


def _check_depth(content: Any, levels: int = DEEPEST) -> None:
    if levels == 0:
        raise ValueError("it is nested too deeply")
    if isinstance(content, Mapping | list):
        for value in content.values() if isinstance(content, Mapping) else content:
            _check_depth(value, levels - 1)


def check_shape(path: Path, content: Any, shape: Any, where: str = "") -> None:
    """Raise `ValueError` unless the content of a file has the expected fields and types.

    `where` is the position of `content` in the file, for the message.

    A shape is a type or a tuple of types; `[shape]` for a list; `{str: shape}` for an object with any names; or an
    object with the shape of each field. A field whose name ends with `?` may be missing or null. Other fields are
    ignored. `bool` does not count as a number.
    """
    kinds: Any = dict if isinstance(shape, Mapping) else list if isinstance(shape, list) else shape
    names = {dict: "an object", list: "a list", type(None): "null"}
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    unexpected_bool = isinstance(content, bool) and not {bool, object} & set(kinds)
    if not isinstance(content, kinds) or unexpected_bool:
        expected = " or ".join(names.get(kind, kind.__name__) for kind in kinds)
        found = repr(content)
        found = found if len(found) <= 60 else f"{found[:60]}..."
        raise ValueError(f"{path}: {where or 'the file'} must be {expected}, not {found}.")
    if isinstance(shape, list):
        for number, value in enumerate(content):
            check_shape(path, value, shape[0], f"{where}[{number}]")
    elif isinstance(shape, Mapping) and set(shape) == {str}:
        for name, value in content.items():
            check_shape(path, value, shape[str], f"{where}.{name}".lstrip("."))
    elif isinstance(shape, Mapping):
        for field, inner in shape.items():
            name = field.removesuffix("?")
            part = f"{where}.{name}".lstrip(".")
            if content.get(name) is None and name != field:
                continue
            if name not in content:
                raise ValueError(f"{path}: {part} is missing.")
            check_shape(path, content[name], inner, part)
