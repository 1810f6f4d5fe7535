"""`results.json`: what every task of the evaluation leaves, in one form."""

import dataclasses
import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedclip.processing.benchmarks.facts import published_models

from ..cli.reporting import versions, write_json
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
    """Writes `results.json`.

    Args:
        output_dir: Its folder.
        task: `retrieval`, `zero-shot`, `linear-probe` or `visual-question-answering`.
        benchmark: As `load_benchmark` calls it; none for a folder of one's own.
        command: The command line behind `biomedclip evaluate`.
        encoder: The model.
        data: `path`, `split`, `fingerprint`, `rows` (those that were measured on), `damaged` (a list of `name` and
            `reason`), `leaks` and `notes`; what is left out is empty.
        metrics: Fractions from 0 to 1, and counts.
        paper: BiomedCLIP's published values, with the names of `metrics`. Empty if they are of other data: another
            split, or another selection of images. Then `published` is empty too; otherwise it holds the published
            values of all models, as [`published_models`] returns them.
        paper_source: Publication of `paper`.
        settings: All else that the numbers depend on.
        seconds: Of the whole task.
        examples: Pictures that were written for `--examples`: `file`, relative to the folder, and what it shows.

    Returns:
        What was written.
    """
    published = published_models(benchmark, task, data["split"]) if benchmark and paper else []
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
        "published": [dataclasses.asdict(entry) for entry in published],
        "settings": {"precision": encoder.precision, **settings},
        "seconds": round(seconds, 1),
        **({"examples": [dict(example) for example in examples]} if examples else {}),
        "versions": versions(),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / "results.json", results)
    return results


def _base(encoder: DualEncoder) -> dict[str, str]:
    """The weights that a head was fine-tuned on top of, where the model names them."""
    base = getattr(encoder.model.config, "base_weights", None)
    return {} if base is None else {"base_weights": base}
