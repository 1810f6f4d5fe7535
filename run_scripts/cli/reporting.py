"""Print tables and messages, and write JSON files and versions."""

import json
import logging
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from biomedclip.model_cards.escaping import lines, one_line
from biomedclip.processing.files import write_text


logger = logging.getLogger(__name__)

UNDEFINED = "undefined"
PACKAGES = ("biomedclip", "torch", "transformers", "datasets", "accelerate", "peft", "pillow", "numpy")


def show_table(title: str, rows: Sequence[Sequence[Any]], columns: Sequence[str]) -> None:
    """Print a table to stdout. The first column is left-aligned, and the others are right-aligned."""
    say(title)
    table = Table()
    for position, column in enumerate(columns):
        table.add_column(Text(one_line(column)), justify="left" if position == 0 else "right")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    Console().print(table)


def _cell(value: Any) -> str:
    """Return a value as one line. Leading spaces, which indent a row, are kept."""
    text = format_value(value)
    return " " * (len(text) - len(text.lstrip(" "))) + one_line(text)


def say(message: str) -> None:
    """Print a line about the results to stdout."""
    # rich would interpret brackets in a string as markup, and names between colons as emoji.
    Console().print(Text(lines(message)), style="bold")


def show_stage(message: str) -> None:
    """Print a line to stderr when a stage of the run begins."""
    Console(stderr=True).print(Text(lines(message)), style="bold", soft_wrap=True)


def say_undefined(metrics: Mapping[str, Any]) -> None:
    """Print why metrics are undefined, see [`undefined_lines`]."""
    for line in undefined_lines(metrics):
        say(line)


def undefined_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return why metrics are undefined, one line for each reason in `metrics["undefined"]`."""
    named: dict[str, list[str]] = {}
    for name, reason in (metrics.get("undefined") or {}).items():
        named.setdefault(reason, []).append(name.replace("_", " "))
    return [f"Undefined: {', '.join(names)}: {reason}." for reason, names in named.items()]


@contextmanager
def no_warnings_of_transformers() -> Iterator[None]:
    """Hide warnings of transformers that the caller reports in its own words."""
    from transformers.utils import logging  # not all verbs need this import

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def format_value(value: Any) -> str:
    """Format a value for a table: fractions with four digits, large numbers with commas, and None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return UNDEFINED
        return f"{value:.4g}" if abs(value) < 10 else f"{value:,.1f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def refuse_filled(folder: Path, *, overwrite: bool) -> None:
    """Check that a folder is empty or may be overwritten."""
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: pass --overwrite, or choose another folder.")


def claim_folder(folder: Path, results: Sequence[str], *, overwrite: bool) -> None:
    """Create an output folder. If it exists, remove only the `results` of an earlier run."""
    mark = folder / ".quickstart"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not mark.exists():
            raise FileExistsError(f"{folder} is not an empty folder. Choose another `output_dir`.")
        if not overwrite:
            raise FileExistsError(f"{folder} is not empty. Pass --overwrite to replace its results.")
        for path in (folder / name for name in results):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file. An interrupted write leaves the old file unchanged.

    JSON has neither NaN nor infinity. They are written as null, and a warning lists them.
    """
    undefined: list[str] = []
    strict = _strict(content, "", undefined)
    if undefined:
        logger.warning("%s: NaN or infinite, written as null: %s", path, ", ".join(undefined[:10]))
    write_text(path, json.dumps(strict, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _strict(content: Any, name: str, undefined: list[str]) -> Any:
    """Replace NaN and infinities with None, and add their names to a list."""
    if isinstance(content, Mapping):
        return {key: _strict(value, f"{name}.{key}".lstrip("."), undefined) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value, f"{name}[{number}]", undefined) for number, value in enumerate(content)]
    if isinstance(content, float) and not math.isfinite(content):
        undefined.append(name)
        return None
    return content


def peak_memory_mib() -> int | None:
    """Return the peak resident memory of the largest process of the run, or None on Windows."""
    try:
        import resource  # Unix only
    except ImportError:
        return None
    unit = 1024 if sys.platform == "darwin" else 1  # macOS counts bytes, Linux KiB
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(who).ru_maxrss for who in processes) // 1024 // unit


def versions() -> dict[str, Any]:
    """Return the package versions and the machine that results were measured with."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
