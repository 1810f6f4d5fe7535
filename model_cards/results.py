"""Read the results of `biomedclip evaluate`, and select the numbers that a card states."""

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
# Fields of `results.json`, in the form that `check_shape` expects.
RESULT: dict[str, Any] = {
    "task": str,
    "benchmark": (str, type(None)),  # null for the user's own data
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
        "seen_in_training?": {str: int},
        "notes?": [str],
        "selection?": {str: object},
    },
    "metrics": {"undefined?": {str: str}, "by_fraction?": {str: {str: object}}},  # also contains numbers at any depth
    "paper?": {str: object},
    "paper_source?": str,
    "published?": [
        {"model": str, "values": {"by_fraction?": {str: {str: object}}}, "source": str, "read_from_figure": bool},
    ],
    "settings?": {str: object},
    "seconds?": _NUMBER,
    "versions": {str: object},
}
# Task names of earlier versions, which can still be read.
_OLD_TASKS = {"vqa": "visual-question-answering"}
_OLD_KEYS = {"by_share": "by_fraction", "positive_share": "positive_fraction"}
# A number is a metric if one of its keys matches the first pattern and none matches the second.
_MEASURE = re.compile(r"accuracy|auroc|auc\b|recall|precision|f1|rank|open|closed|overall")
_NO_MEASURE = re.compile(r"chance|attainable|oracle|threshold|regulari[sz]ation|seconds|^c$", re.IGNORECASE)
_BASELINE = re.compile(r"chance|most_frequent")


class Measure(NamedTuple):
    """A number of a result, with its confidence interval and the value in the paper."""

    path: tuple[str, ...]  # keys in `metrics`
    value: float | None  # None if the metric is undefined
    interval: tuple[float, float] | None
    paper: float | None


def find_results(places: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Find `results.json` files. `places` are such files, or folders that contain them at any depth."""
    found: dict[Path, None] = {}
    for name in places:
        place = Path(name)
        if place.is_dir():
            files = [find_file(place, str(path.relative_to(place))) for path in sorted(place.rglob(RESULTS_FILE))]
        else:
            files = [place.resolve()] if place.exists() else []
        if not files:
            raise FileNotFoundError(f"--results {name} contains no {RESULTS_FILE} from biomedclip evaluate.")
        found |= dict.fromkeys(file for file in files if file is not None)
    return list(found)


def read_result(path: Path) -> dict[str, Any]:
    """Read a `results.json` file and check the fields that a card uses. Names from earlier versions are replaced."""
    try:
        result = read_json(path)
        if not isinstance(result, Mapping) or result.get("schema") != SCHEMA:
            raise ValueError(f"{path} does not have schema {SCHEMA} of biomedclip evaluate.")
        result = _rename(result) | {"task": _OLD_TASKS.get(str(result.get("task")), result.get("task"))}
        check_shape(path, result, RESULT)
        _check_values(path, "metrics", result["metrics"])
        if not measures(result):
            raise ValueError(f"{path}: metrics contains no number.")
        for number, entry in enumerate(result.get("published") or []):
            _check_values(path, f"published[{number}].values", entry["values"])
    except ValueError as error:
        raise ValueError(f"{error} Evaluate again, or remove the file from --results.") from error
    return result


def measures(result: Mapping[str, Any]) -> list[Measure]:
    """Return the measured numbers of a result in their original order, without counts, lists and baselines."""
    paper = result.get("paper") or {}
    return [
        Measure(keys, value, interval, _at(paper, keys))
        for keys, value, interval in _numbers(result["metrics"])
        if isinstance(value, float | None)
        and any(map(_MEASURE.search, keys))
        and not any(map(_NO_MEASURE.search, keys))
        and not (value is None and keys[-1].endswith(("_interval", "_sd")))
    ]


def selection_of(result: Mapping[str, Any]) -> str:
    """Return the selected study or split of a benchmark, such as ` (brca)`, or an empty string."""
    selection = result["data"].get("selection") or {}
    chosen = selection.get("cancer") or selection.get("rsna_split")
    return f" ({chosen})" if isinstance(chosen, str) else ""


def chances(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the names and values of the baselines: chance, and always predicting the most frequent class."""
    return [
        (" ".join(keys), value)
        for keys, value, _ in _numbers(result["metrics"])
        if value is not None and _BASELINE.search(keys[-1])
    ]


def reasons(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the name of each undefined metric with the reason."""
    undefined = result["metrics"].get("undefined") or {}
    return [(" ".join(keys), str(reason)) for keys, reason in _named(undefined)]


def _rename(value: Any) -> Any:
    """Replace keys from earlier versions at any depth."""
    if isinstance(value, Mapping):
        return {_OLD_KEYS.get(key, key): _rename(item) for key, item in value.items()}
    return [_rename(item) for item in value] if isinstance(value, list) else value


def _check_values(path: Path, where: str, values: Mapping[str, Any]) -> None:
    """Raise `ValueError` if an interval, a fraction of the labels or a metric is impossible."""
    for keys, value in _named(values):
        name = f"{where}.{'.'.join(keys)}"
        if keys[-1].endswith("_interval") and value is not None:
            check_shape(path, value, [_NUMBER], name)
            if len(value) != 2:
                raise ValueError(f"{path}: {name} must contain two numbers, not {len(value)}.")
    for fraction in values.get("by_fraction") or {}:
        if not _is_fraction(fraction):
            raise ValueError(f"{path}: {where}.by_fraction has {fraction!r}, which is not a fraction of the labels.")
    for measure in measures({"metrics": values}):
        numbers = [measure.value, *(measure.interval or ())] if measure.value is not None else []
        most = math.inf if "rank" in measure.path[-1] else 1
        if not all(math.isfinite(number) and 0 <= number <= most for number in numbers):
            raise ValueError(f"{path}: {where}.{'.'.join(measure.path)} is {numbers}, but must be between 0 and 1.")


def _is_fraction(text: str) -> bool:
    try:
        return 0 < float(text) <= 1
    except ValueError:
        return False


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any, tuple[float, float] | None]]:
    """Yield the keys, the value and the interval of each number and of each undefined metric."""
    for keys, value in _named(metrics):
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            siblings = metrics
            for key in keys[:-1]:
                siblings = siblings[key]
            interval = siblings.get(f"{keys[-1]}_interval")
            yield keys, value, (interval[0], interval[1]) if interval else None


def _named(metrics: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the keys and the value of each leaf."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _named(value, (*above, name))
        else:
            yield (*above, name), value


def _at(tree: Any, keys: Sequence[str]) -> float | None:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, int | float) else None
