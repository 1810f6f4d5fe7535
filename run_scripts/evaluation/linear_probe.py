"""A linear probe: a linear classifier on frozen image features, with few and with all labels."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from tqdm.auto import tqdm

from biomedclip.processing.stratified import draw_fraction

from ..cli.errors import UsageError
from ..cli.reporting import UNDEFINED, say_undefined, show_table
from .classification import measure_classification
from .elevater import fit_elevater
from .zero_shot import classification_metrics


# Inverse strengths of the regularisation that are tried, on standardised features.
STRENGTHS = tuple(10.0**power for power in range(-6, 3))
ITERATIONS = 1000
Protocol = Literal["logistic", "elevater"]
PROTOCOLS = get_args(Protocol)
MEASURED = ("accuracy", "balanced_accuracy", "auroc")
_ABSENT = -1e9  # score of a class that the training images do not show


@dataclass(frozen=True)
class LabeledFeatures:
    """A split, embedded.

    Args:
        features: Of shape `(images, dimension)`.
        labels: The class of each image, from 0.
        groups: Patient or source of each image, where it is known.
    """

    features: np.ndarray
    labels: np.ndarray
    groups: list[str] | None = None

    def select(self, numbers: Sequence[int]) -> "LabeledFeatures":
        """The images of these numbers."""
        groups = None if self.groups is None else [self.groups[number] for number in numbers]
        return LabeledFeatures(self.features[numbers], self.labels[numbers], groups)


def probe(
    train: LabeledFeatures,
    validation: LabeledFeatures | None,
    test: LabeledFeatures,
    classes: Sequence[str],
    *,
    protocol: Protocol = "logistic",
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    seeds: int = 5,
    positive: str | None = None,
    metric: str = "accuracy",
    seed: int = 0,
) -> dict[str, Any]:
    """Fit and evaluate a classifier for each fraction of the labels and each seed.

    `logistic` is a logistic regression. Features are standardized with the training images that are used. The
    regularization is the one that is best on the whole validation split, the stronger of equals. `elevater` is the
    protocol of ELEVATER's toolkit, see [`fit_elevater`]: it holds images out of the drawn training images instead.

    Args:
        train: Split that the fractions are drawn from.
        validation: Split that chooses the regularization. `elevater` does not use it.
        test: Split that the classifier is evaluated on.
        classes: Labels in their order.
        protocol: `logistic` or `elevater`.
        fractions: Fractions of the training labels. Each class keeps at least one.
        seeds: Number of draws of each fraction below 1. There is one draw of all labels.
        positive: Positive class of the AUROC of two classes (default: the last one).
        metric: Metric that chooses the regularization: `accuracy`, `balanced_accuracy` or `auroc`.
        seed: Seed of the first draw and of the bootstrap.

    Returns:
        The metrics of the classifier with the largest fraction, with intervals, and `by_fraction`: mean and standard
        deviation over the draws, and each draw with its number of images and the chosen settings.

    Raises:
        ValueError: If all training images are of one class, or if `logistic` has no validation split.
    """
    if protocol == "logistic" and validation is None:
        raise ValueError("The protocol logistic needs a validation split, which chooses the regularization.")
    if len(np.unique(train.labels)) < 2:
        raise ValueError(f"All {len(train.labels)} training images are of one class: there is nothing to learn.")
    runs = [
        (fraction, draw)
        for fraction in sorted(fractions)
        for draw in range(seed, seed + (seeds if fraction < 1 else 1))
    ]
    by_fraction: dict[str, Any] = {}
    scores = np.empty(0)
    for fraction, draw in tqdm(runs, desc="Classifiers", unit="fit"):
        drawn = train.select(draw_fraction(train.labels, fraction, draw))
        if validation is not None and protocol == "logistic":
            strength, scores, converged = _fit(drawn, validation, test, classes, positive, metric)
            chosen: dict[str, Any] = {"C": strength, "converged": converged}
        else:
            scores, chosen = _fit_with_sgd(drawn, test, classes, positive, metric, draw)
        measured = _measure(scores, test, classes, positive, resamples=0)
        run = {"seed": draw, "images": len(drawn.labels), **chosen}
        by_fraction.setdefault(f"{fraction:g}", {"runs": []})["runs"].append(
            run | {name: measured[name] for name in MEASURED}
        )
    for summary in by_fraction.values():
        for name in MEASURED:
            values = [run[name] for run in summary["runs"] if run[name] is not None]
            summary[name] = float(np.mean(values)) if values else None
            summary[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return _measure(scores, test, classes, positive, seed=seed) | {
        "training_images": len(train.labels),
        "validation_images": len(validation.labels) if validation is not None else None,
        "by_fraction": by_fraction,
    }


def check_fraction(fraction: float) -> None:
    """Raises:
    UsageError: If the fraction is not above 0 and at most 1.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"--fractions: a fraction of the labels must be above 0 and at most 1, not {fraction}.")


def show_probe(metrics: dict[str, Any], paper: Mapping[str, Any] | None = None) -> None:
    """Prints accuracies and AUROC by fraction of the labels, what guessing gives, and the paper's values."""
    published = (paper or {}).get("by_fraction", {})
    largest = [*metrics["by_fraction"]][-1]
    rows: list[tuple[Any, ...]] = []
    for fraction, summary in metrics["by_fraction"].items():
        cells = []
        for name in MEASURED:
            sd = summary[f"{name}_sd"]
            value = summary[name]
            cells.append(UNDEFINED if value is None else f"{value:.3f}" + (f" ± {sd:.3f}" if sd is not None else ""))
        rows.append((f"{float(fraction):.0%} ({summary['runs'][0]['images']:,})", *cells))
        if fraction == largest and len(summary["runs"]) == 1:  # of several draws the deviation says more
            intervals = [metrics[f"{name}_interval"] for name in MEASURED]
            rows.append(
                ("  95 % interval", *(f"[{ends[0]:.3f}, {ends[1]:.3f}]" if ends else None for ends in intervals))
            )
        if fraction in published:
            rows.append(("  paper", *(published[fraction].get(name) for name in MEASURED)))
    rows.append(("chance", metrics["chance"], metrics["chance"], 0.5))
    rows.append(("most frequent class", metrics["most_frequent_class"], metrics["chance"], 0.5))
    title = f"Linear probe, {metrics['images']:,} test images; mean and standard deviation over draws"
    show_table(title, rows, ["labels", "accuracy", "balanced", "AUROC"])
    say_undefined(metrics)


def _fit(
    train: LabeledFeatures,
    validation: LabeledFeatures,
    test: LabeledFeatures,
    classes: Sequence[str],
    positive: str | None,
    metric: str,
) -> tuple[float | None, np.ndarray, bool]:
    """The best strength on validation, the scores of the test images with it, and whether its fit converged.

    Accuracy chooses where the metric is undefined. Features that are NaN or infinite cannot be fitted: then the scores
    are NaN, and there is no strength.
    """
    if not all(np.isfinite(split.features).all() for split in (train, validation, test)):
        return None, np.full((len(test.labels), len(classes)), np.nan), False
    mean, deviation = train.features.mean(axis=0), train.features.std(axis=0)
    deviation[deviation == 0] = 1  # a feature that never changes says nothing
    used, chosen_by, judged = ((split.features - mean) / deviation for split in (train, validation, test))
    classifier = LogisticRegression(max_iter=ITERATIONS, warm_start=True)
    best: tuple[float, float, np.ndarray, bool] | None = None
    for strength in STRENGTHS:
        classifier.set_params(C=strength)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            classifier.fit(used, train.labels)
        converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        scores = _scores(classifier, chosen_by, len(classes))
        value = _value(scores, validation.labels, classes, positive, metric)
        if best is None or value > best[0]:
            best = (value, strength, _scores(classifier, judged, len(classes)), converged)
    assert best is not None
    return best[1:]


def _fit_with_sgd(
    train: LabeledFeatures,
    test: LabeledFeatures,
    classes: Sequence[str],
    positive: str | None,
    metric: str,
    seed: int,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the scores of the test images and the settings that ELEVATER's search chose."""
    if not all(np.isfinite(split.features).all() for split in (train, test)):
        return np.full((len(test.labels), len(classes)), np.nan), {"learning_rate": None, "weight_decay": None}
    score = partial(_value, classes=classes, positive=positive, metric=metric)
    fit = fit_elevater(train.features, train.labels, test.features, test.labels, len(classes), score, seed)
    return fit.scores, {
        "learning_rate": fit.learning_rate,
        "weight_decay": fit.weight_decay,
        f"{metric}_of_best_test_epoch": fit.best_epoch,
    }


def _value(scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], positive: str | None, metric: str) -> float:
    """Return the metric, or the accuracy if it is undefined, which depends on the labels alone."""
    measured = measure_classification(
        scores, labels, positive=len(classes) - 1 if positive is None else classes.index(positive), resamples=0
    )
    return measured["accuracy"] if measured[metric] is None else measured[metric]


def _scores(classifier: LogisticRegression, features: np.ndarray, classes: int) -> np.ndarray:
    decided = classifier.decision_function(features)
    if decided.ndim == 1:
        decided = np.stack([np.zeros_like(decided), decided], axis=1)
    scores = np.full((len(features), classes), _ABSENT)
    scores[:, classifier.classes_] = decided
    return scores


def _measure(
    scores: np.ndarray,
    split: LabeledFeatures,
    classes: Sequence[str],
    positive: str | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    return classification_metrics(
        torch.from_numpy(scores),
        [classes[label] for label in split.labels],
        classes,
        positive=positive,
        groups=split.groups,
        resamples=resamples,
        seed=seed,
    )
