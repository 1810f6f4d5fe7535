"""Run one model on one task, and write `results.json`, which has the same form for every task."""

import dataclasses
import datetime
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState

from biomedclip.model_cards.results import SCHEMA
from biomedclip.processing.benchmarks.facts import PublishedModel, published_models

from ..classification.calibrations import FILE as CALIBRATION
from ..cli.reporting import UNDEFINED, say, versions, write_json
from .dual_encoders import DualEncoder, load_dual_encoder
from .features import FEATURES, FeatureStore
from .predictions import CSV, PARQUET, Predictions, PredictionTable, write_predictions


REPORT = "report.html"
SHOWN_DAMAGED = 5
FEW = 30  # with fewer articles or images, the bootstrap intervals are too narrow


class Measured(Protocol):
    """Description of a model in `results.json`, such as a [`DualEncoder`]."""

    @property
    def name(self) -> str:
        """Folder or Hub id."""

    @property
    def type(self) -> str:
        """Its kind."""

    @property
    def weights(self) -> str:
        """Fingerprint of its weights."""

    @property
    def precision(self) -> str:
        """Name of the precision."""

    @property
    def model(self) -> Any:
        """The model, or None."""


@dataclass(frozen=True)
class Run:
    """One model on one task.

    `data` is read once for all models, `output_dir` is the folder of this model's results, `command` contains the
    arguments of `biomedclip evaluate`, and `encoder` is the model if it is already loaded.
    """

    model: str
    data: Any
    options: Any
    output_dir: Path
    command: Sequence[str]
    encoder: DualEncoder | None = None
    started: float = field(default_factory=time.monotonic)

    def load(self) -> tuple[DualEncoder, FeatureStore]:
        """Return the model and the store of its features."""
        options = self.options
        encoder = self.encoder or load_dual_encoder(
            self.model, precision=options.precision, trust_remote_code=options.trust_remote_code
        )
        store = FeatureStore(
            encoder,
            Path(options.features_dir or Path(options.output_dir) / FEATURES),
            batch_size=options.batch_size,
            max_length=getattr(options, "max_length", None),
            workers=options.workers,
        )
        return encoder, store

    def write(
        self,
        encoder: Measured,
        *,
        data: Mapping[str, Any],
        metrics: Mapping[str, Any],
        paper: Mapping[str, Any],
        paper_source: str,
        settings: Mapping[str, Any],
        predictions: PredictionTable | Predictions | None = None,
        subgroups: Mapping[str, Any] | None = None,
        decisions: Mapping[str, Any] | None = None,
        damaged: str = "damaged images",
        also: str = "",
        examples: Sequence[Mapping[str, Any]] = (),
        published: Sequence[PublishedModel] | None = None,
        report: Callable[[Path, Mapping[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Write `results.json` and the predictions, print the notes, and return the content of `results.json`.

        `data` has `fingerprint`, `rows` (the number of rows measured), `damaged` and `notes`. `metrics` are fractions
        from 0 to 1, and counts. `paper` contains BiomedCLIP's published values, keyed like `metrics`. It is empty if
        they belong to other data, such as another split. Then `published` of the file is empty too. Otherwise, it
        contains the values of all published models. The argument `published` replaces them. `settings` contains what
        the metrics depend on in this task. `predictions` has a row for each image, query or question. `decisions` are
        the results of [`decide`], and `subgroups` those of [`measure_subgroups`]. `damaged` is the plural noun for the
        entries of `data["damaged"]`, and `also` lists other files of the results. `report` writes the page of
        `--report` by its path and the content of `results.json`. By default, it is the one of a classification.
        """
        if data["damaged"]:
            names = ", ".join(f"{entry['name']} ({entry['reason']})" for entry in data["damaged"][:SHOWN_DAMAGED])
            rest = len(data["damaged"]) - SHOWN_DAMAGED
            more = f", and {rest:,} more" if rest > 0 else ""
            say(f"{len(data['damaged']):,} {damaged} are excluded: {names}{more}.")
        for note in data["notes"]:
            say(f"Note: {note}")
        task, benchmark, split = self.options.task, self.options.benchmark, getattr(self.options, "split", None)
        if published is None:
            published = published_models(benchmark, task, split) if benchmark and split and paper else []
        base = getattr(getattr(encoder.model, "config", None), "base_weights", None)
        results = {
            "schema": SCHEMA,
            "task": task,
            "benchmark": benchmark,
            "command": shlex.join(["biomedclip", "evaluate", *self.command]),
            "date": datetime.date.today().isoformat(),
            "model": {
                "name": encoder.name,
                "type": encoder.type,
                "weights": encoder.weights,
                **({"base_weights": base} if base else {}),
            },
            "data": {"leaks": None, "path": self.options.data, "split": split, **data},
            "metrics": dict(metrics),
            **({"decisions": dict(decisions)} if decisions else {}),
            **({"subgroups": dict(subgroups)} if subgroups else {}),
            "paper": dict(paper),
            "paper_source": paper_source,
            "published": [dataclasses.asdict(entry) for entry in published],
            "settings": {
                "precision": encoder.precision,
                **{name: getattr(self.options, name, None) for name in ("batch_size", "max_length", "seed")},
                "processes": PartialState().num_processes,
                **settings,
            },
            "seconds": round(time.monotonic() - self.started, 1),
            **({"examples": [dict(example) for example in examples]} if examples else {}),
            "versions": versions(),
        }
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._remove_outdated(results)
        if predictions is not None:
            table = predictions.table() if isinstance(predictions, Predictions) else predictions
            write_predictions(self.output_dir, table)
        write_json(self.output_dir / "results.json", results)
        if getattr(self.options, "report", False):
            if report is None and isinstance(predictions, Predictions):
                report = partial(_report_of(predictions), predictions=predictions)
            if report is None:
                raise TypeError(f"{task} has no report.")
            report(self.output_dir / REPORT, results)
            also = f", {REPORT}{also}"
        say(f"Results in {self.output_dir / 'results.json'}{f', {PARQUET} and {CSV}' if predictions else ''}{also}")
        return results

    def _remove_outdated(self, results: Mapping[str, Any]) -> None:
        """Remove the report and the calibration that an earlier run wrote into this folder and this run does not."""
        try:
            earlier = json.loads((self.output_dir / "results.json").read_text(encoding="utf-8"))
            had_report = "--report" in shlex.split(earlier["command"])
            had_calibration = _is_fitted(earlier)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return  # there was no earlier run
        if had_calibration and not _is_fitted(results) and Path(self.model).resolve() != self.output_dir.resolve():
            (self.output_dir / CALIBRATION).unlink(missing_ok=True)
        if had_report:
            (self.output_dir / REPORT).unlink(missing_ok=True)


def _report_of(predictions: Predictions) -> Callable[..., None]:
    """Return the function that writes the page of a classification."""
    if predictions.is_multi_label:
        from .report.findings import write_findings_report

        return write_findings_report
    from .report.classification import write_report  # imports this module and scikit-learn

    return write_report


def _is_fitted(results: Mapping[str, Any]) -> bool:
    """Return whether a run fitted a temperature, and did not read it from a file."""
    decisions = results.get("decisions") or {}
    return decisions.get("temperature") is not None and "calibration_file" not in decisions


def note_if_few(count: int, what: str) -> list[str]:
    """Return a note if there are too few articles or images for the bootstrap."""
    return [f"Only {count} {what}: the intervals are too narrow."] if count < FEW else []


def note_if_few_drawn(images: int, groups: Sequence[str] | None) -> list[str]:
    """Return a note if there are too few groups for the bootstrap, or too few images without groups."""
    return note_if_few(images, "images") if groups is None else note_if_few(len(set(groups)), "groups")


def metric_words(name: str) -> str:
    """Return the name of a metric as words."""
    words = {"auroc": "AUROC", "f1": "F1", "imageclef": "ImageCLEF"}
    return " ".join(words.get(word, word) for word in name.split("_"))


def with_interval(metrics: Mapping[str, Any], name: str) -> str:
    """Return a metric with its 95 % interval, if it has one, formatted for a table."""
    if metrics[name] is None:
        return UNDEFINED
    interval = metrics[f"{name}_interval"]
    return f"{metrics[name]:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")
