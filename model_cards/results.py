"""Results of `biomedclip evaluate`, read for a card: nothing damaged gets into one."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .reading import check_shape, find_file, read_json


RESULTS_FILE = "results.json"
SCHEMA = 1
_NUMBER = (int, float)
# Shape of `results.json`, as `check_shape` reads it.
RESULT: dict[str, Any] = {
    "task": str,
    "benchmark": (str, type(None)),  # none for a set of one's own
    "command": str,
    "date": str,
    "model": {"weights": str, "name?": str, "base_weights?": str},
    "data": {
        "split": str,
        "fingerprint": str,
        "rows": int,
        "path?": str,
        "damaged?": [{"name": str, "reason": str}],
        "leaks?": {"leaked": int, "test_images": int},
        "notes?": [str],
        "selection?": {str: object},
    },
    "metrics": {"undefined?": {str: str}},  # and numbers, at any depth
    "paper?": {str: object},
    "paper_source?": str,
    "published?": [{"model": str, "values": {str: object}, "source": str, "read_from_figure": bool}],
    "settings?": {str: object},
    "seconds?": _NUMBER,
    "versions": {str: object},
}
# Names of earlier versions that are still read.
_OLD_TASKS = {"vqa": "visual-question-answering"}
_OLD_KEYS = {"by_share": "by_fraction", "positive_share": "positive_fraction"}
_PARTS = ("model", "data")
# What a number must be called, it or something above it, to be a measure, and what tells that it is none.
_MEASURE = re.compile(r"accuracy|auroc|auc\b|recall|precision|f1|rank|open|closed|overall")
_NO_MEASURE = re.compile(r"chance|attainable|oracle|threshold|regulari[sz]ation|seconds|^c$", re.IGNORECASE)
_GUESS = re.compile(r"chance|most_frequent")  # what whoever does not look would score


class Measure(NamedTuple):
    """One number of a result: `path` are its keys in `metrics`; `value` is `None` where the metric is undefined."""

    path: tuple[str, ...]
    value: float | None
    interval: tuple[float, float] | None
    paper: float | None


def find_results(folders: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The `results.json` files at or below some places.

    Args:
        folders: Folders, or such files themselves.

    Raises:
        FileNotFoundError: A place that is not there, or has none.
    """
    found: dict[Path, None] = {}
    for name in folders:
        place = Path(name)
        if place.is_dir():
            files = [find_file(place, str(path.relative_to(place))) for path in sorted(place.rglob(RESULTS_FILE))]
        else:
            files = [place.resolve()] if place.exists() else []
        if not files:
            raise FileNotFoundError(f"--results {name}: no {RESULTS_FILE} there. biomedclip evaluate writes one.")
        found |= dict.fromkeys(file for file in files if file is not None)
    return list(found)


def read_result(path: Path) -> dict[str, Any]:
    """Read one `results.json` and check every field that a card uses.

    Raises:
        ValueError: If it is not JSON, has another schema, lacks a field, or holds a number that cannot be.
    """
    try:
        result = read_json(path)
        if not isinstance(result, Mapping) or result.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema {SCHEMA} of biomedclip evaluate is needed.")
        result = _with_present_names(result)
        check_shape(path, result, RESULT)
        _check_text(path, result)
        _check_numbers(path, result)
    except ValueError as error:
        raise ValueError(f"{error} Evaluate again, or leave the file out of --results.") from error
    return dict(result)


def _with_present_names(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result in which old names of tasks and keys are replaced."""

    def renamed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {_OLD_KEYS.get(key, key): renamed(item) for key, item in value.items()}
        return [renamed(item) for item in value] if isinstance(value, list) else value

    task = result.get("task")
    return renamed(result) | ({"task": _OLD_TASKS.get(task, task)} if isinstance(task, str) else {})


def _check_text(path: Path, result: Mapping[str, Any]) -> None:
    for where, content, shape in (("", result, RESULT), *((f"{name}.", result[name], RESULT[name]) for name in _PARTS)):
        for name, kind in shape.items():
            value = content.get(name)
            if kind in (str, (str, type(None))) and isinstance(value, str) and not value.strip():
                raise ValueError(f"{path}: {where}{name} is {value!r}.")


def _check_numbers(path: Path, result: Mapping[str, Any]) -> None:
    _check_values(path, "metrics", result["metrics"])
    if not measures(result):
        raise ValueError(f"{path}: metrics holds no number.")
    for number, entry in enumerate(result.get("published") or []):
        _check_values(path, f"published[{number}].values", entry["values"])


def _check_values(path: Path, where: str, values: Mapping[str, Any]) -> None:
    """Raise `ValueError` if intervals, fractions or numbers in `values`, which stands at `where`, are impossible."""
    for keys, value in _named(values):
        name = f"{where}.{'.'.join(keys)}"
        if keys[-1].endswith("_interval") and value is not None:
            check_shape(path, value, [_NUMBER], name)
            if len(value) != 2:
                raise ValueError(f"{path}: {name} must hold two ends, not {len(value)}.")
    fractions = values.get("by_fraction", {})
    check_shape(path, fractions, {str: {str: object}}, f"{where}.by_fraction")
    for fraction in fractions:
        _check_fraction(path, f"{where}.by_fraction", fraction)
    for measure in measures({"metrics": values}):
        if measure.value is None:
            continue
        numbers = [measure.value, *(measure.interval or ())]
        most = math.inf if "rank" in measure.path[-1] else 1
        if not all(math.isfinite(number) and 0 <= number <= most for number in numbers):
            name = f"{where}.{'.'.join(measure.path)}"
            raise ValueError(f"{path}: {name} is {numbers}, and should lie between 0 and 1.")


def _check_fraction(path: Path, where: str, fraction: str) -> None:
    """Raise `ValueError` if a key of `by_fraction` is not a fraction of the labels."""
    try:
        valid = 0 < float(fraction) <= 1
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"{path}: {where} has {fraction!r}, which is not a fraction of the labels.")


def measures(result: Mapping[str, Any]) -> list[Measure]:
    """The numbers of a result in their order; counts, lists, and what chance alone would give are none."""
    paper = result.get("paper") or {}
    return [
        Measure(keys, value, interval, _at(paper, keys))
        for keys, value, interval in _leaves(result["metrics"])
        if isinstance(value, float | None)
        and any(map(_MEASURE.search, keys))
        and not any(map(_NO_MEASURE.search, keys))
        and not (value is None and keys[-1].endswith(("_interval", "_sd")))
    ]


def selection_of(result: Mapping[str, Any]) -> str:
    """Return the study or the split that was chosen, as ` (brca)`, or nothing if the benchmark has no choice."""
    selection = result["data"].get("selection") or {}
    chosen = selection.get("cancer") or selection.get("rsna_split")
    return f" ({chosen})" if isinstance(chosen, str) else ""


def chances(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What chance alone, or always naming the most frequent class, would give, by name."""
    return [
        (" ".join(keys), value)
        for keys, value, _ in _leaves(result["metrics"])
        if value is not None and _GUESS.search(keys[-1])
    ]


def reasons(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the names of the metrics that are undefined, each with the reason."""
    undefined = result["metrics"].get("undefined") or {}
    return [(" ".join(keys), str(reason)) for keys, reason in _named(undefined)]


def _leaves(metrics: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, tuple[float, float] | None]]:
    """Yield keys, value and interval of each number, and of each metric that is undefined."""
    for keys, value in _named(metrics):
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            beside = metrics
            for key in keys[:-1]:
                beside = beside[key]
            interval = beside.get(f"{keys[-1]}_interval")
            yield keys, value, (interval[0], interval[1]) if interval else None


def _named(metrics: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _named(value, (*above, name))
        else:
            yield (*above, name), value


def _at(tree: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, int | float) else None
