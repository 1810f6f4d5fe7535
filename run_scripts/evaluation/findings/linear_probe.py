"""The linear probe of images with several findings: one logistic regression for each finding."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import PartialState
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from biomedclip.processing.benchmarks.findings import FindingsBenchmark, load_findings
from biomedclip.processing.images.findings import check_some_readable
from biomedclip.processing.stratified import draw_fraction

from ...cli.reporting import show_table
from ..classification import Curve
from ..decision_options import given_decisions
from ..embedded import embed_splits
from ..leaks import report_leaks, validation_leaks
from ..linear_probe import (
    FRACTIONS,
    HELD_OUT,
    ITERATIONS,
    PROBE_DRAWS,
    SAME_VALIDATION,
    STRENGTHS,
    LabeledFeatures,
    LinearClassifier,
    notes_on_fit,
    standardization,
)
from ..run import Run
from ..statistics.fractions import drawn_fractions, summarize_draws, summary_cells
from ..zero_shot import data_of
from .decisions import ScoredFindings
from .metrics import METRICS, measure_findings, show_findings
from .zero_shot import conclude, given_finding_options, notes_of


def read_probed_findings(options: Any) -> dict[str, FindingsBenchmark]:
    """Read the training, validation and test split. Missing ones are held out, with whole groups if there are any."""
    wanted = list(dict.fromkeys(["train", "validation", options.split]))
    columns = given_finding_options(options)
    splits = load_findings(options.data, splits=wanted, held_out=HELD_OUT, seed=options.seed, **columns)
    for split, benchmark in splits.items():
        check_some_readable(benchmark.images, f"--data {options.data}, {split} split")
    return splits


def evaluate_findings_probe(run: Run) -> dict[str, Any] | None:
    """Evaluate a linear probe of findings. The first process writes and returns the results."""
    options, splits = run.options, run.data
    test = splits[options.split]
    encoder, store = run.load()
    others = {name: benchmark for name, benchmark in splits.items() if name != options.split}
    embedded = embed_splits(store, test, others, options, features=options.probe_features)
    if not PartialState().is_main_process:
        return None
    labeled = {
        name: LabeledFeatures(split.embeds.numpy(), split.images.targets, split.images.groups)
        for name, split in {**embedded.others, options.split: embedded.test}.items()
    }
    draws = options.draws or PROBE_DRAWS
    metrics, classifier = probe_findings(
        labeled["train"],
        labeled["validation"],
        labeled[options.split],
        test.images.findings,
        fractions=options.fractions,
        draws=draws,
        seed=options.seed,
    )
    show_findings_probe(metrics)
    scores = classifier(labeled[options.split].features)
    fitted_on = None
    if given_decisions(options):
        of_validation = labeled["validation"]
        fitted_on = ScoredFindings(classifier(of_validation.features), of_validation.labels, of_validation.groups)
    concluded = conclude(options, embedded.test.images, scores, fitted_on)
    metrics |= embedded.robustness(run, test.images.findings, scores, classifier)
    notes = notes_of(test, labeled[options.split].groups) + notes_on_fit(metrics["by_fraction"]) + concluded.notes
    if fitted_on is not None:
        notes.append(SAME_VALIDATION)
    if options.split == "validation":
        notes.append("The regularization was chosen on the measured split.")
    leaks = report_leaks(splits["train"] if options.find_leaks else None, test)
    shared = validation_leaks(splits["validation"], test, options)
    return run.write(
        encoder,
        data=data_of(test, metrics["images"], embedded.damaged, notes + shared.notes) | {"leaks": leaks, **shared.data},
        metrics=metrics,
        paper={},
        paper_source="",
        settings=given_finding_options(options)
        | {
            "protocol": options.protocol,
            "features": options.probe_features,
            "fractions": options.fractions,
            "draws": draws,
            "chosen_by": "auroc",
        },
        **concluded.results,
    )


def probe_findings(
    train: LabeledFeatures,
    validation: LabeledFeatures,
    test: LabeledFeatures,
    findings: Sequence[str],
    *,
    fractions: Sequence[float] = FRACTIONS,
    draws: int = PROBE_DRAWS,
    seed: int = 0,
) -> tuple[dict[str, Any], LinearClassifier]:
    """Fit and evaluate a logistic regression of each finding, for each fraction of the training images and each draw.

    The labels are targets `(images, findings)`, and NaN is ignored. Features are standardized on the drawn images. The
    regularization of a finding is the one with the best AUROC on the validation split. If its validation labels are of
    one class, it is the one that is best on average for the other findings. A finding whose drawn labels are of one
    class has no classifier and no metrics.

    The first result has the metrics of [`measure_findings`] of the largest fraction, and `by_fraction`: mean and
    standard deviation of their means over the draws, and each draw with the chosen regularization. The second one is
    the last classifier of the largest fraction. Its scores are log-odds `(images, findings)`, NaN for a finding without
    a classifier.
    """
    by_fraction: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for fraction, number in drawn_fractions(fractions, draws, seed):
        drawn = train.select(draw_fraction(np.zeros(len(train.labels)), fraction, number))
        classifier, chosen, missing = _fit(drawn, validation, test, findings)
        scores = classifier(test.features)
        measured = measure_findings(scores, test.labels, findings, resamples=0)
        fit = {"seed": number, "images": len(drawn.labels), "C": chosen} | {name: measured[name] for name in METRICS}
        fit["findings"] = sum(values["auroc"] is not None for values in measured["findings"].values())
        by_fraction.setdefault(f"{fraction:g}", {"runs": []})["runs"].append(fit)
    summarize_draws(by_fraction, METRICS)
    metrics = measure_findings(scores, test.labels, findings, groups=test.groups, seed=seed)
    for name, why in missing.items():
        metrics["undefined"][f"AUROC and average precision of {name}"] = why
    metrics |= {
        "training_images": len(train.labels),
        "validation_images": len(validation.labels),
        "by_fraction": by_fraction,
    }
    return metrics, classifier


def _fit(
    train: LabeledFeatures, validation: LabeledFeatures, test: LabeledFeatures, findings: Sequence[str]
) -> tuple[LinearClassifier, dict[str, float | None], dict[str, str]]:
    """Return the classifier, the regularization of each finding, and why a finding has no classifier.

    The coefficients and scores of a finding without a classifier are NaN.
    """
    mean, deviation = standardization(train.features)
    coefficients = np.full((len(STRENGTHS), len(findings), len(mean)), np.nan, train.features.dtype)
    intercepts = np.full(coefficients.shape[:2], np.nan, train.features.dtype)
    fitted = LinearClassifier(mean, deviation, coefficients[0].copy(), intercepts[0].copy())
    chosen: dict[str, float | None] = dict.fromkeys(findings)
    if not all(np.isfinite(split.features).all() for split in (train, validation, test)):
        return fitted, chosen, dict.fromkeys(findings, "the features of some images are NaN or infinite")
    used, choosing = ((split.features - mean) / deviation for split in (train, validation))
    missing: dict[str, str] = {}
    areas = np.full((len(STRENGTHS), len(findings)), np.nan)
    for number, name in enumerate(findings):
        known = np.flatnonzero(~np.isnan(train.labels[:, number]))
        labels = train.labels[known, number]
        if len(np.unique(labels)) < 2:
            missing[name] = (
                f"all {len(known):,} drawn training labels are {labels[0]:.0f}" if len(known) else "no labels"
            )
            continue
        judged = np.flatnonzero(~np.isnan(validation.labels[:, number]))
        is_positive = validation.labels[judged, number] == 1
        classifier = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
        for place, strength in enumerate(STRENGTHS):
            classifier.set_params(C=strength)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier.fit(used[known], labels)
            coefficients[place, number], intercepts[place, number] = classifier.coef_[0], classifier.intercept_[0]
            if 0 < is_positive.sum() < len(is_positive):
                curve = Curve(classifier.decision_function(choosing[judged]), is_positive)
                areas[place, number] = curve.area(np.ones(len(judged)))
    for number, name in enumerate(findings):
        if name in missing:
            continue
        known_areas = areas[:, number] if np.isfinite(areas[:, number]).all() else _means(areas)
        best = int(np.argmax(known_areas))
        chosen[name] = STRENGTHS[best]
        fitted.coefficients[number], fitted.intercepts[number] = coefficients[best, number], intercepts[best, number]
    return fitted, chosen, missing


def _means(areas: np.ndarray) -> np.ndarray:
    """Return the mean over the findings that have an AUROC, for each strength."""
    return areas[:, np.isfinite(areas).all(axis=0)].sum(axis=1)


def show_findings_probe(metrics: Mapping[str, Any]) -> None:
    """Print the metrics of each finding with all labels, and the means by fraction of the training images."""
    show_findings(f"Linear probe of findings, {metrics['images']:,} test images, largest fraction", metrics)
    rows = []
    for fraction, summary in metrics["by_fraction"].items():
        cells = summary_cells(summary, METRICS)
        found = {run["findings"] for run in summary["runs"]}
        count = "-".join(map(str, sorted({min(found), max(found)})))
        rows.append((f"{float(fraction):.0%} ({summary['runs'][0]['images']:,})", count, *cells))
    show_table(
        "Means over findings; mean and standard deviation over draws",
        rows,
        ["training images", "findings", "AUROC", "average precision"],
    )
