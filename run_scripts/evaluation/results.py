"""Write `results.json`, which has the same form for every task of the evaluation."""

import dataclasses
import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedclip.processing.benchmarks.facts import published_models

from ..cli.reporting import UNDEFINED, versions, write_json
from .dual_encoders import DualEncoder


SCHEMA = 1


def write_results(
    output_dir: Path,
    *,
    task: str,
    benchmark: str | None,
    command: Sequence[str],
    encoder: DualEncoder,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
    paper: Mapping[str, Any],
    paper_source: str,
    settings: Mapping[str, Any],
    seconds: float,
    examples: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write `results.json` to a folder, and return its content.

    `data` has `path`, `split`, `fingerprint` and `rows` (the number of rows measured), and optionally `damaged`,
    `leaks` and `notes`. `metrics` are fractions from 0 to 1, and counts. `paper` has BiomedCLIP's published values,
    keyed like `metrics`. It is empty if they belong to other data, such as another split. Then `published` is empty
    too. Otherwise it has the values of all published models. `settings` has everything else that the metrics depend on.
    """
    published = published_models(benchmark, task, data["split"]) if benchmark and paper else []
    base = getattr(encoder.model.config, "base_weights", None)
    results = {
        "schema": SCHEMA,
        "task": task,
        "benchmark": benchmark,
        "command": shlex.join(["biomedclip", "evaluate", *command]),
        "date": datetime.date.today().isoformat(),
        "model": {
            "name": encoder.name,
            "type": encoder.type,
            "weights": encoder.weights,
            **({"base_weights": base} if base else {}),
        },
        "data": {"damaged": [], "leaks": None, "notes": [], **data},
        "metrics": dict(metrics),
        "paper": dict(paper),
        "paper_source": paper_source,
        "published": [dataclasses.asdict(entry) for entry in published],
        "settings": {"precision": encoder.precision, **settings},
        "seconds": round(seconds, 1),
        **({"examples": [dict(example) for example in examples]} if examples else {}),
        "versions": versions(),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "results.json", results)
    return results


def with_interval(metrics: Mapping[str, Any], name: str) -> str:
    """Return a metric with its 95 % interval, formatted for a table."""
    if metrics[name] is None:
        return UNDEFINED
    low, high = metrics[f"{name}_interval"]
    return f"{metrics[name]:.3f} [{low:.3f}, {high:.3f}]"
