"""The linear probe: a linear classifier on frozen image features, trained on fractions of the labels."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import PartialState
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from biomedclip.processing import load_benchmark
from biomedclip.processing.benchmarks import ClassificationBenchmark
from biomedclip.processing.images.labeled import check_readable
from biomedclip.processing.stratified import draw_fraction, hold_out, hold_out_groups_with_labels

from .classification import measure_classification
from .decision_options import given_decisions
from .elevater import fit_elevater
from .embedded import EmbeddedSplit, embed_splits
from .leaks import report_leaks, validation_leaks
from .reliability import Scored, decide, notes_on, show_decisions
from .run import Run, note_if_few_drawn
from .statistics.fractions import MEASURED, drawn_fractions, show_probe, summarize_draws
from .zero_shot import (
    OWN_IMAGES,
    check_classes,
    classification_metrics,
    data_of,
    given_benchmark_options,
    predictions_of,
    subgroups_of,
)


FRACTIONS, PROBE_DRAWS = (0.01, 0.1, 1.0), 5
HELD_OUT = 0.2  # fraction of the training images to hold out for a missing validation or test split
PROBE_DOCS = "docs/evaluation.md"
# Inverse strengths of the regularization that are tried, on standardized features.
STRENGTHS = tuple(10.0**power for power in range(-6, 3))
ITERATIONS = 1000
Protocol = Literal["logistic", "elevater"]
PROTOCOLS = get_args(Protocol)
# A note on what is fitted on validation images that have chosen the regularization.
SAME_VALIDATION = (
    "The regularization was chosen on the same validation images, so that probabilities and decisions look a little "
    "better on them than on other images."
)
_ABSENT = -1e9  # score of a class without training images


@dataclass(frozen=True)
class LabeledFeatures:
    """Features `(images, dimension)`, class indices, and the patient or source of each image if it is known."""

    features: np.ndarray
    labels: np.ndarray
    groups: list[str] | None = None

    def select(self, rows: Sequence[int]) -> "LabeledFeatures":
        """Return the images of the given rows."""
        groups = None if self.groups is None else [self.groups[row] for row in rows]
        return LabeledFeatures(self.features[rows], self.labels[rows], groups)


@dataclass(frozen=True)
class LinearClassifier:
    """A linear classifier of standardized features, with coefficients `(classes or findings, dimension)`."""

    mean: np.ndarray
    deviation: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray

    def __call__(self, features: np.ndarray | torch.Tensor) -> np.ndarray:
        """Return the scores of features, in float64. All are NaN if a feature is NaN or infinite."""
        features = np.asarray(features)
        if not np.isfinite(features).all():
            return np.full((len(features), len(self.intercepts)), np.nan)
        scores = (features - self.mean) / self.deviation @ self.coefficients.T + self.intercepts
        return scores.astype(np.float64)


def read_probed(options: Any) -> tuple[dict[str, ClassificationBenchmark], list[str]]:
    """Read the splits of a linear probe. See [`read_learned`]."""
    splits, notes = read_learned(options, with_validation=options.protocol == "logistic")
    if options.split == "validation" and options.protocol == "logistic":
        notes.insert(0, "The regularization was chosen on the measured split.")
    return splits, notes


def read_learned(
    options: Any, *, with_validation: bool, prompts: str | None = None
) -> tuple[dict[str, ClassificationBenchmark], list[str]]:
    """Read the training, validation and measured split, all with the classes of the training split, and notes on them.

    Raise `ValueError` if there are fewer than two classes, a class has no readable training images, or a split has a
    class that the training split lacks.
    """
    where = f"--data {options.data}"
    splits: dict[str, Any] = {}
    for split in ["train", *(["validation"] if with_validation else []), options.split]:
        try:
            splits[split] = load_benchmark(
                options.benchmark or OWN_IMAGES,
                options.data,
                split=split,  # type: ignore[arg-type]
                prompts=prompts,
                held_out=HELD_OUT,
                seed=options.seed,
                **given_benchmark_options(options),
            )
        except FileNotFoundError:
            if split != "validation":
                raise
    test, learned = splits[options.split], sorted(set(splits["train"].images.labels))
    check_classes(splits["train"].images, learned, where)
    for split, benchmark in splits.items():
        if unknown := sorted(set(benchmark.images.labels) - set(learned)):
            raise ValueError(
                f"{where}: the {split} split has images of {', '.join(map(repr, unknown))}, but the training split has "
                f"only {', '.join(learned)}."
            )
    check_readable(test.images, f"{where}, {options.split} split")
    notes = []
    if absent := sorted(set(learned) - set(test.images.labels)):
        notes.append(f"No image of the {options.split} split is of the class {', '.join(map(repr, absent))}.")
    # A split of user images has only the classes of its images.
    named = test if set(learned) <= set(test.classes) else splits["train"]
    same = {"classes": named.classes, "class_names": named.class_names}
    return {split: replace(benchmark, **same) for split, benchmark in splits.items()}, notes


def evaluate_linear_probe(run: Run) -> dict[str, Any] | None:
    """Evaluate a linear probe. The first process writes and returns the results."""
    options = run.options
    splits, notes = run.data
    test = splits[options.split]
    encoder, store = run.load()
    others = {name: benchmark for name, benchmark in splits.items() if name != options.split}
    embedded = embed_splits(store, test, others, options, features=options.probe_features)
    if not PartialState().is_main_process:
        return None
    labeled = {
        name: _labeled(split, test.classes) for name, split in {**embedded.others, options.split: embedded.test}.items()
    }
    notes = list(notes)
    if options.protocol == "elevater":
        notes.append(f"Protocol of ELEVATER: see {PROBE_DOCS} for the differences from its toolkit.")
    elif options.benchmark is not None:
        notes.append(
            "The paper's linear probe uses ELEVATER's toolkit. This one is a logistic regression, whose regularization "
            f"is chosen on the validation split. --protocol elevater is closer to the paper; see {PROBE_DOCS}."
        )
    if "validation" not in labeled and options.protocol == "logistic":
        where = f"--data {options.data}"
        labeled["train"], labeled["validation"], of_split = hold_out_validation(
            labeled["train"], test.classes, options.seed, where=where
        )
        notes += of_split
    draws = options.draws or PROBE_DRAWS
    metrics, scores, classifier = probe_with_scores(
        labeled["train"],
        labeled.get("validation") if options.protocol == "logistic" else None,
        labeled[options.split],
        test.classes,
        protocol=options.protocol,
        fractions=options.fractions,
        draws=draws,
        positive=test.positive,
        metric=test.metric,
        seed=options.seed,
    )
    show_probe(metrics, test.paper_of_linear_probe)
    usable = embedded.test.images
    measured = labeled[options.split]
    fitted_on = None
    if classifier is not None and given_decisions(options):
        of_validation = labeled["validation"]
        fitted_on = Scored(classifier(of_validation.features), of_validation.labels, of_validation.groups)
    of_test = Scored(scores, measured.labels, measured.groups)
    decided = decide(of_test, fitted_on, test.classes, options, positive=test.positive)
    show_decisions(decided.results)
    calibrated = scores / decided.temperature
    if decided.temperature != 1:
        metrics |= classification_metrics(
            torch.from_numpy(calibrated),
            usable.labels,
            test.classes,
            positive=test.positive,
            groups=usable.groups,
            seed=options.seed,
        )
    if classifier is not None:
        metrics |= embedded.robustness(run, test.classes, scores, classifier)
    leaks = report_leaks(splits["train"] if options.find_leaks else None, test)
    shared = validation_leaks(splits.get("validation"), test, options)
    notes += [*note_if_few_drawn(len(usable), usable.groups), *notes_on_fit(metrics["by_fraction"])]
    notes += [*notes_on(fitted_on, options, decided), *shared.notes]
    if fitted_on is not None:
        notes.append(SAME_VALIDATION)
    return run.write(
        encoder,
        data=data_of(test, metrics["images"], embedded.damaged, notes) | {"leaks": leaks, **shared.data},
        metrics=metrics,
        paper=test.paper_of_linear_probe,
        paper_source="BiomedCLIP, linear probe, read off the figure" if test.paper_of_linear_probe else "",
        settings={
            "protocol": options.protocol,
            "features": options.probe_features,
            "fractions": options.fractions,
            "draws": draws,
            "chosen_by": test.metric,
            "positive": test.positive,
        },
        predictions=predictions_of(usable, calibrated, test.classes, sets=decided.sets),
        subgroups=subgroups_of(usable, torch.from_numpy(calibrated), test.classes, test.positive, options.seed),
        decisions=decided.results,
    )


def hold_out_validation(
    train: LabeledFeatures, classes: Sequence[str], seed: int, *, where: str
) -> tuple[LabeledFeatures, LabeledFeatures, list[str]]:
    """Return training images without a fraction of each class or of whole groups, this fraction, and notes on it.

    Raises:
        ValueError: If all images are of one group. `where` names the data in the message.
    """
    labels = [classes[label] for label in train.labels]
    what, again = "the training images", list[str]()
    if train.groups is None:
        kept, held = hold_out(labels, HELD_OUT, seed)
    else:
        of_rows = [[label] for label in labels]
        kept, held, again = hold_out_groups_with_labels(train.groups, of_rows, HELD_OUT, seed, where=where)
        what += ", in whole groups"
    notes = [f"No validation split: the regularization was chosen on {HELD_OUT:.0%} of {what}.", *again]
    if absent := sorted(set(labels) - {labels[row] for row in kept}):
        names = ", ".join(map(repr, absent))
        notes.append(f"All training images of the class {names} were held out with their group. It is never predicted.")
    return train.select(kept), train.select(held), notes


def notes_on_fit(by_fraction: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a note that states to which of several fits the predictions belong."""
    largest = [*by_fraction][-1]
    draws = len(by_fraction[largest]["runs"])
    if len(by_fraction) == draws == 1:
        return []
    which = f", draw {draws} of {draws}" if draws > 1 else ""
    return [
        f"Predictions, intervals, subgroups and decisions are those of the classifier on {float(largest):.0%} of the "
        f"training labels{which}."
    ]


def _labeled(split: EmbeddedSplit, classes: Sequence[str]) -> LabeledFeatures:
    """Return the features of a split with their class indices."""
    number_of = {label: number for number, label in enumerate(classes)}
    labels = np.array([number_of[label] for label in split.images.labels])
    return LabeledFeatures(split.embeds.numpy(), labels, split.images.groups)


def probe_with_scores(
    train: LabeledFeatures,
    validation: LabeledFeatures | None,
    test: LabeledFeatures,
    classes: Sequence[str],
    *,
    protocol: Protocol = "logistic",
    fractions: Sequence[float] = FRACTIONS,
    draws: int = PROBE_DRAWS,
    positive: str | None = None,
    metric: str = "accuracy",
    seed: int = 0,
) -> tuple[dict[str, Any], np.ndarray, LinearClassifier | None]:
    """Fit and evaluate a classifier for each fraction of the training labels and each draw.

    `logistic` is a logistic regression. Features are standardized on the drawn training images. The regularization is
    the one with the best `metric` on the whole validation split. If several are equally good, the strongest one is
    chosen. `elevater` is the protocol of ELEVATER's toolkit, see [`fit_elevater`]. Instead of the validation split, it
    holds out some of the drawn training images.

    Each class keeps at least one label. Fractions below 1 are drawn `draws` times, starting with `seed`. The result has
    the metrics of the largest fraction with intervals, and `by_fraction`: mean and standard deviation over the draws,
    and each draw with its number of images and the chosen settings. The second result is the scores of the test images,
    of shape `(images, classes)`, by the last classifier of the largest fraction. The third one is this classifier, or
    None with `elevater`.
    """
    if protocol == "logistic" and validation is None:
        raise ValueError("--protocol logistic requires a validation split to choose the regularization.")
    if len(np.unique(train.labels)) < 2:
        raise ValueError(f"All {len(train.labels)} training images are of one class. There must be at least two.")
    measure = _Measure(classes, positive, metric)
    by_fraction: dict[str, Any] = {}
    scores, classifier = np.empty(0), None
    for fraction, number in drawn_fractions(fractions, draws, seed):
        drawn = train.select(draw_fraction(train.labels, fraction, number))
        if validation is not None and protocol == "logistic":
            classifier, chosen = _fit_logistic(drawn, validation, test, measure)
            scores = classifier(test.features)
        else:
            scores, chosen = _fit_elevater(drawn, test, measure, number)
        measured = measure.metrics(scores, test, resamples=0)
        fit = {"seed": number, "images": len(drawn.labels), **chosen} | {name: measured[name] for name in MEASURED}
        by_fraction.setdefault(f"{fraction:g}", {"runs": []})["runs"].append(fit)
    summarize_draws(by_fraction, MEASURED)
    metrics = measure.metrics(scores, test, seed=seed) | {
        "training_images": len(train.labels),
        "validation_images": len(validation.labels) if validation is not None else None,
        "by_fraction": by_fraction,
    }
    return metrics, scores, classifier


@dataclass(frozen=True)
class _Measure:
    """The classes of a probe, and the metric for choosing its settings."""

    classes: Sequence[str]
    positive: str | None
    metric: str

    def value(self, scores: np.ndarray, labels: np.ndarray) -> float:
        """Return the metric, or the accuracy if the labels leave the metric undefined."""
        positive = len(self.classes) - 1 if self.positive is None else self.classes.index(self.positive)
        measured = measure_classification(scores, labels, positive=positive, resamples=0)
        return measured["accuracy"] if measured[self.metric] is None else measured[self.metric]

    def metrics(self, scores: np.ndarray, split: LabeledFeatures, **bootstrap: int) -> dict[str, Any]:
        labels = [self.classes[label] for label in split.labels]
        return classification_metrics(
            torch.from_numpy(scores), labels, self.classes, positive=self.positive, groups=split.groups, **bootstrap
        )

    def undefined(self, split: LabeledFeatures) -> np.ndarray:
        """Return scores for features that are NaN or infinite."""
        return np.full((len(split.labels), len(self.classes)), np.nan)


def standardization(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of features, which is 1 for constant features."""
    with np.errstate(invalid="ignore"):  # infinite features
        mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation == 0] = 1
    return mean, deviation


def _fit_logistic(
    train: LabeledFeatures, validation: LabeledFeatures, test: LabeledFeatures, measure: _Measure
) -> tuple[LinearClassifier, dict[str, Any]]:
    """Return the classifier with the regularization that is best on the validation split, and the settings.

    If features of any of the splits are NaN or infinite, all scores of the classifier are NaN.
    """
    mean, deviation = standardization(train.features)
    if not all(np.isfinite(split.features).all() for split in (train, validation, test)):
        undefined = np.full((len(measure.classes), len(mean)), np.nan)
        return LinearClassifier(mean, deviation, undefined, undefined[:, 0]), {"C": None, "converged": False}
    used = (train.features - mean) / deviation
    classifier = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    best: tuple[float, LinearClassifier, dict[str, Any]] | None = None
    for strength in STRENGTHS:
        classifier.set_params(C=strength)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            classifier.fit(used, train.labels)
        converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        fitted = LinearClassifier(mean, deviation, *_coefficients(classifier, len(measure.classes)))
        value = measure.value(fitted(validation.features), validation.labels)
        if best is None or value > best[0]:
            best = value, fitted, {"C": strength, "converged": converged}
    assert best is not None
    return best[1:]


def _fit_elevater(
    train: LabeledFeatures, test: LabeledFeatures, measure: _Measure, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the scores of the test images, and the settings that ELEVATER's search chose."""
    if not all(np.isfinite(split.features).all() for split in (train, test)):
        return measure.undefined(test), {"learning_rate": None, "weight_decay": None}
    classes = len(measure.classes)
    fit = fit_elevater(train.features, train.labels, test.features, test.labels, classes, measure.value, seed)
    return fit.scores, {
        "learning_rate": fit.learning_rate,
        "weight_decay": fit.weight_decay,
        f"{measure.metric}_of_best_test_epoch": fit.best_epoch,
    }


def _coefficients(classifier: LogisticRegression, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients and intercepts of all classes. Those of the first one of two are 0."""
    fitted, intercepts = classifier.coef_, classifier.intercept_
    if len(fitted) == 1:
        fitted, intercepts = (np.concatenate([np.zeros_like(part), part]) for part in (fitted, intercepts))
    coefficients = np.zeros((classes, fitted.shape[1]), fitted.dtype)
    of_all = np.full(classes, _ABSENT, intercepts.dtype)
    coefficients[classifier.classes_], of_all[classifier.classes_] = fitted, intercepts
    return coefficients, of_all
