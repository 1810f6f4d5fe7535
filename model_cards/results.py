"""Results of `biomedclip evaluate`, read for a card: nothing damaged gets into one."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


RESULTS_FILE = "results.json"
SCHEMA = 1
# Fields that a card cannot do without, and their types.
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "benchmark": (str, type(None)),  # none for a set of one's own
    "command": str,
    "date": str,
    "model": Mapping,
    "data": Mapping,
    "metrics": Mapping,
    "versions": Mapping,
}
_OF_THE_DATA: dict[str, type | tuple[type, ...]] = {"split": str, "fingerprint": str, "rows": int}
# What a number must be called, it or something above it, to be a measure, and what tells that it is none.
_MEASURE = re.compile(r"accuracy|auroc|auc\b|recall|precision|f1|rank|open|closed|overall")
_NO_MEASURE = re.compile(r"chance|oracle|threshold|regulari[sz]ation|seconds|^c$", re.IGNORECASE)
_GUESS = re.compile(r"chance|most_frequent")  # what whoever does not look would score


class Measure(NamedTuple):
    """One number of a result: `path` are its keys in `metrics`, the interval and the paper's value beside it."""

    path: tuple[str, ...]
    value: float
    interval: tuple[float, float] | None
    paper: float | None


def find_results(folders: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """
    The `results.json` files at or below some places.

    Args:
        folders: Folders, or such files themselves.

    Raises:
        FileNotFoundError: A place that is not there, or has none.
    """
    found: dict[Path, None] = {}
    for name in folders:
        place = Path(name)
        files = [place] if place.is_file() else sorted(place.rglob(RESULTS_FILE))
        if not files:
            raise FileNotFoundError(f"--results {name}: no {RESULTS_FILE} there. biomedclip evaluate writes one.")
        found |= dict.fromkeys(file.resolve() for file in files)
    return list(found)


def read_result(path: Path) -> dict[str, Any]:
    """
    One `results.json`, checked field by field.

    Raises:
        ValueError: It is not JSON, of another schema, lacks a field, or holds a number that cannot be.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Evaluate again, or leave it out of --results.") from error
    if not isinstance(result, Mapping) or result.get("schema") != SCHEMA:
        raise ValueError(f"{path}: schema {SCHEMA} of biomedclip evaluate is needed. Evaluate again with this version.")
    _check_fields(path, result, _FIELDS)
    _check_fields(path, result["data"], _OF_THE_DATA, "data.")
    _check_fields(path, result["model"], {"weights": str}, "model.")
    if not measures(result):
        raise ValueError(f"{path}: metrics holds no number. Evaluate again, or leave it out of --results.")
    for measure in measures(result):
        values = [measure.value, *(measure.interval or ())]
        most = math.inf if "rank" in measure.path[-1] else 1
        if not all(math.isfinite(value) and 0 <= value <= most for value in values):
            raise ValueError(f"{path}: metrics.{'.'.join(measure.path)} is {values}, and should lie between 0 and 1.")
    return dict(result)


def measures(result: Mapping[str, Any]) -> list[Measure]:
    """The numbers of a result in their order; counts, lists, and what chance alone would give are none."""
    paper = result.get("paper") or {}
    return [
        Measure(keys, float(value), interval, _at(paper, keys))
        for keys, value, interval in _leaves(result["metrics"])
        if isinstance(value, float) and any(map(_MEASURE.search, keys)) and not any(map(_NO_MEASURE.search, keys))
    ]


def chances(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What chance alone, or always naming the most frequent class, would give, by name."""
    return [(" ".join(keys), value) for keys, value, _ in _leaves(result["metrics"]) if _GUESS.search(keys[-1])]


def _leaves(
    metrics: Mapping[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any, tuple[float, float] | None]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*above, name))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            interval = metrics.get(f"{name}_interval")
            yield (*above, name), value, (interval[0], interval[1]) if interval else None


def _at(tree: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, int | float) else None


def _check_fields(path: Path, content: Mapping[str, Any], fields: Mapping[str, Any], above: str = "") -> None:
    for name, kind in fields.items():
        value = content.get(name, ...)
        if not isinstance(value, kind) or (isinstance(value, str) and not value.strip()):
            raise ValueError(
                f"{path}: {above}{name} is {'missing' if value is ... else f'{value!r}'}. Evaluate again, or leave it "
                "out of --results."
            )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no number")
