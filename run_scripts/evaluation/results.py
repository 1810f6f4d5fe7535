"""`results.json`: what every task of the evaluation leaves, in one form."""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..reporting import versions, write_json
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
) -> dict[str, Any]:
    """
    Writes `results.json`.

    Args:
        output_dir: Its folder.
        task: `retrieval`, `zero-shot`, `linear-probe` or `vqa`.
        benchmark: As `load_benchmark` calls it; none for a folder of one's own.
        command: The command line behind `biomedclip evaluate`.
        encoder: The model.
        data: `path`, `split`, `fingerprint`, `rows` (those that were measured on), `damaged` (a list of `name` and
            `reason`), `leaks` and `notes`; what is left out is empty.
        metrics: Fractions from 0 to 1, and counts.
        paper: The published values, with the same names; empty where there are none.
        paper_source: Where they come from.
        settings: All else that the numbers depend on.
        seconds: Of the whole task.

    Returns:
        What was written.
    """
    results = {
        "schema": SCHEMA,
        "task": task,
        "benchmark": benchmark,
        "command": shlex.join(["biomedclip", "evaluate", *command]),
        "date": datetime.date.today().isoformat(),
        "model": {"name": encoder.name, "type": encoder.type, "weights": encoder.weights, **_base(encoder)},
        "data": {"damaged": [], "leaks": None, "notes": [], **data},
        "metrics": dict(metrics),
        "paper": dict(paper),
        "paper_source": paper_source,
        "settings": {"precision": encoder.precision, **settings},
        "seconds": round(seconds, 1),
        "versions": versions(),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "results.json", results)
    return results


def _base(encoder: DualEncoder) -> dict[str, str]:
    """The weights that a head was fine-tuned on top of, where the model names them."""
    base = getattr(encoder.model.config, "base_weights", None)
    return {} if base is None else {"base_weights": base}
