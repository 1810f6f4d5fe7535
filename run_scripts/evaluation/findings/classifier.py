"""Evaluate fine-tuned classifiers of images with several findings, which `biomedclip train --label-columns` wrote."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from biomedclip.processing.benchmarks.findings import FindingsBenchmark
from biomedclip.processing.images.findings import check_some_readable
from biomedclip.processing.images.labeled import ALL_ARE_TEST

from ...classification.classifiers import check_fine_tuned
from ..decision_options import given_decisions
from ..embedded import embed_splits
from ..image_classification import check_calibrations, load_classifier
from ..leaks import LEAKS_UNKNOWN, look_for_seen, report_leaks, validation_leaks
from ..reliability import own_calibration
from ..run import Run
from ..zero_shot import data_of
from .decisions import ScoredFindings, write_findings_calibration
from .metrics import measure_findings, show_findings
from .zero_shot import conclude, given_finding_options, load_with_validation, notes_of


@dataclass(frozen=True)
class FindingsTest:
    """A split of images with several findings, and the labels of each classifier by its name.

    `train` is the training split if there is one and leaks are looked for. `notes` state why there is none.
    `validation` is the validation split if an option needs it.
    """

    test: FindingsBenchmark
    validation: FindingsBenchmark | None
    train: FindingsBenchmark | None
    labels: Mapping[str, list[str]]
    notes: Sequence[str] = ()


def read_classified_findings(options: Any) -> FindingsTest:
    """Check the classifiers, and read the images of a split with their findings.

    Raises:
        FileNotFoundError: If the images, a model or a file of it do not exist.
        ValueError: If a model is not a classifier of several findings, or the data has other findings.
    """
    labels = {name: check_fine_tuned(name, several=True) for name in options.model}
    check_calibrations(options, several=True)
    splits, notes = _read(options)
    test = splits[options.split]
    for name, known in labels.items():
        _check_same_findings(test.images.findings, known, f"--data {options.data}", f"--model {name}")
    validation = splits["validation"] if given_decisions(options) else None
    for benchmark in [test, *([validation] if validation else [])]:
        check_some_readable(benchmark.images, f"--data {options.data}, {benchmark.split} split")
    return FindingsTest(test, validation, splits.get("train") if options.split != "train" else None, labels, notes)


def _read(options: Any) -> tuple[dict[str, FindingsBenchmark], list[str]]:
    """Read the split, the validation split if it is needed, and the training split if there is one for leaks.

    The second result states why there is no training split.
    """
    notes = []
    if options.find_leaks and options.split != "train":
        try:
            return load_with_validation(options, "train"), []
        except ValueError as error:
            notes.append(f"{LEAKS_UNKNOWN} {error}")
    found = load_with_validation(options)
    return found, [] if ALL_ARE_TEST in found[options.split].notes else notes


def _check_same_findings(findings: Sequence[str], labels: Sequence[str], data: str, model: str) -> None:
    """Raise `ValueError` if the data and the classifier do not have the same findings. The order does not matter."""
    missing = [name for name in labels if name not in findings]
    unknown = [name for name in findings if name not in labels]
    parts = {"has no labels of": missing, "has findings that the model does not predict:": unknown}
    problems = [f"{what} {', '.join(map(repr, names))}" for what, names in parts.items() if names]
    if problems:
        raise ValueError(
            f"{data} {', and '.join(problems)}. {model} predicts all of its findings and no others. Pass data with "
            f"these findings, such as --label-columns {shlex.join(labels)}."
        )


def evaluate_classified_findings(run: Run) -> dict[str, Any] | None:
    """Evaluate a fine-tuned classifier of findings. The first process writes and returns the results."""
    options, test = run.options, run.data.test
    labels = run.data.labels[run.model]
    classifier, store = load_classifier(run)
    validation = run.data.validation
    embedded = embed_splits(store, test, {"validation": validation}, options, features="logits")
    if not PartialState().is_main_process:
        return None
    usable, own = embedded.test.images, embedded.validation
    order = [labels.index(name) for name in usable.findings]

    def scores_of(embeds: torch.Tensor) -> np.ndarray:
        """Return the log-odds in the order of the findings of the data."""
        return embeds[:, order].double().numpy()

    scores = scores_of(embedded.test.embeds)
    metrics = measure_findings(scores, usable.targets, usable.findings, groups=usable.groups, seed=options.seed)
    show_findings(f"Classification of findings, {len(usable):,} images", metrics)
    fitted_on = None
    if own is not None:
        fitted_on = ScoredFindings(scores_of(own.embeds), own.images.targets, own.images.groups)
    applied, applied_notes = None, list[str]()
    if not options.calibrate:
        applied, applied_notes = own_calibration(run.model, labels, classifier.weights, test.fingerprint)
    concluded = conclude(options, usable, scores, fitted_on, applied=applied)
    seen = look_for_seen(run.model, usable.images, None if own is None else own.images.images, options)
    if fitted_on is not None:
        source = {"data": validation.path, "fingerprint": validation.fingerprint, "images": len(fitted_on.targets)}
        source |= seen.fitted_on
        folders = [run.output_dir, *([Path(run.model)] if Path(run.model).is_dir() else [])]
        write_findings_calibration(concluded.decided, folders, labels, classifier.weights, source)
    metrics |= embedded.robustness(run, usable.findings, scores, scores_of)
    leaks = report_leaks(run.data.train, test)
    shared = validation_leaks(validation, test, options)
    notes = [*notes_of(test, usable.groups), *run.data.notes, *seen.notes]
    notes += [*applied_notes, *concluded.notes, *shared.notes]
    return run.write(
        classifier,
        data=data_of(test, len(usable), embedded.damaged, notes) | {"leaks": leaks, **seen.data, **shared.data},
        metrics=metrics,
        paper={},
        paper_source="",
        settings=given_finding_options(options) | {"labels": labels},
        **concluded.results,
    )
