"""Accuracy, balanced accuracy, AUROC, recall of each class and the confusion matrix, with bootstrap intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .statistics.bootstrap import (
    MIN_USABLE,
    Metric,
    bootstrap_weights,
    fraction_interval,
    is_constant,
    percentile_interval,
    ratio,
)
from .statistics.exact_intervals import exact_mean_interval


_METRICS = ("accuracy", "balanced_accuracy", "auroc")


def measure_classification(
    scores: Any,
    references: Sequence[int] | np.ndarray,
    *,
    positive: int = 1,
    groups: Sequence[Any] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a classification by scores. The predicted class is the first one with the highest score.

    With two classes, AUROC is that of the positive class. Otherwise it is the mean of the one-vs-rest AUROC of all
    classes, computed from the softmax of the scores. A tie between two images counts as one half, so constant scores
    give 0.5. Balanced accuracy is the mean over the classes that have images.

    Args:
        scores: Logits, of shape `(images, classes)`.
        references: Class index of each image.
        positive: The positive class for AUROC if there are two classes.
        groups: Patient or source of each image. The bootstrap draws whole groups, or single images if None.
        resamples: Number of bootstrap samples. 0 for no intervals.
        seed: Seed of the bootstrap.

    Returns:
        `accuracy`, `balanced_accuracy` and `auroc`, each with its 95 % interval `..._interval`. `recall_of_class`, with
        None for a class without images. `confusion_matrix`, with a row for each true class. `undefined`, with the
        reason for each metric that is None: all of them if a score is NaN or infinite, and AUROC if a class has no
        images or has all of them.

    Raises:
        ValueError: If a reference is not a valid class index.
    """
    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(references)
    classes = scores.shape[1]
    if truth.min() < 0 or truth.max() >= classes:
        raise ValueError(f"References must be classes from 0 to {classes - 1}.")
    images = np.bincount(truth, minlength=classes)
    undefined = _undefined(scores, images)
    result: dict[str, Any] = dict.fromkeys(_METRICS) | {
        "recall_of_class": [None] * classes,
        "confusion_matrix": None,
        "undefined": undefined,
    }
    if resamples:
        result |= dict.fromkeys(f"{name}_interval" for name in _METRICS)
    if "accuracy" in undefined:
        return result
    answers = scores.argmax(axis=1)
    hits = (answers == truth).astype(float)
    matrix = np.bincount(truth * classes + answers, minlength=classes**2).reshape(classes, classes)
    curves = [] if "auroc" in undefined else _curves(scores, truth, positive)
    ones = np.ones(len(truth))
    result |= {
        "accuracy": float(hits.mean()),
        "balanced_accuracy": _balanced_accuracy(truth, hits, ones),
        "auroc": _mean_area(curves, ones) if curves else None,
        "recall_of_class": [float(row[number] / row.sum()) if row.sum() else None for number, row in enumerate(matrix)],
        "confusion_matrix": matrix.tolist(),
    }
    if not resamples:
        return result
    _, group_of = np.unique(np.arange(len(truth)) if groups is None else groups, return_inverse=True)
    result["accuracy_interval"] = fraction_interval(hits, group_of, seed=seed, resamples=resamples)
    balanced, areas = [], []
    for weights in bootstrap_weights(group_of, seed=seed, resamples=resamples):
        if np.count_nonzero(np.bincount(truth, weights)) < np.count_nonzero(images):
            continue  # both metrics are undefined if a class is not drawn
        balanced.append(_balanced_accuracy(truth, hits, weights))
        if curves:
            areas.append(_mean_area(curves, weights))
    for name, values in (("balanced_accuracy", balanced), ("auroc", areas)):
        usable = values and len(values) >= MIN_USABLE * resamples
        result[f"{name}_interval"] = percentile_interval(values) if usable else None
    if result["balanced_accuracy_interval"] and is_constant(hits):
        units = [len(np.unique(group_of[truth == number])) for number in np.flatnonzero(images)]
        result["balanced_accuracy_interval"] = exact_mean_interval(hits[0], units)
    return result


def weighted_metrics(scores: np.ndarray, truth: np.ndarray, positive: int) -> dict[str, Metric]:
    """Return the metrics as functions of the number of times that each image counts, without those that are undefined.

    A value is None if a class has no weight. See [`measure_classification`] for the arguments.
    """
    images = np.bincount(truth, minlength=scores.shape[1])
    undefined = _undefined(scores, images)
    hits = (scores.argmax(axis=1) == truth).astype(float)
    curves = [] if "auroc" in undefined else _curves(scores, truth, positive)

    def of_classes(metric: Metric) -> Metric:
        present = np.count_nonzero(images)
        return lambda weights: metric(weights) if np.count_nonzero(np.bincount(truth, weights)) == present else None

    metrics: dict[str, Metric] = {
        "accuracy": ratio(hits, np.ones(len(hits))),
        "balanced_accuracy": of_classes(lambda weights: _balanced_accuracy(truth, hits, weights)),
        "auroc": of_classes(lambda weights: _mean_area(curves, weights)),
    }
    return {name: metric for name, metric in metrics.items() if name not in undefined}


def _undefined(scores: np.ndarray, images: np.ndarray) -> dict[str, str]:
    """Return the reason for each undefined metric; `images` is the number of images of each class."""
    bad = int((~np.isfinite(scores)).any(axis=1).sum())
    if bad:
        return dict.fromkeys(_METRICS, f"the scores of {bad:,} of {len(scores):,} images are NaN or infinite")
    empty = int((images == 0).sum())
    if np.count_nonzero(images) == 1:
        return {"auroc": "all images are of one class"}
    return {"auroc": f"{empty:,} of {len(images):,} classes have no images"} if empty else {}


class Curve:
    """The area under a ROC curve and the average precision for any image weights. The images are sorted only once."""

    def __init__(self, margins: np.ndarray, is_positive: np.ndarray):
        distinct, self.place = np.unique(margins, return_inverse=True)
        self.places = len(distinct)
        self.is_positive = is_positive

    def area(self, weights: np.ndarray) -> float:
        """Return the fraction of pairs of a positive and a negative image in which the positive one scores higher."""
        positive = np.bincount(self.place, weights * self.is_positive, self.places)
        negative = np.bincount(self.place, weights * ~self.is_positive, self.places)
        below = np.cumsum(negative) - negative / 2
        return float((positive * below).sum() / (positive.sum() * negative.sum()))

    def average_precision(self, weights: np.ndarray) -> float:
        """Return the mean precision over the positive images, at the score of each. Ties share one threshold."""
        positive = np.bincount(self.place, weights * self.is_positive, self.places)[::-1]
        every = np.bincount(self.place, weights, self.places)[::-1]
        precision = np.cumsum(positive) / np.maximum(np.cumsum(every), 1e-12)
        return float((positive * precision).sum() / positive.sum())


def _curves(scores: np.ndarray, truth: np.ndarray, positive: int) -> list[Curve]:
    """Return the curve of each class that AUROC covers.

    The curves use log-odds, because probabilities of scores that are far apart all round to 1.0.
    """
    if scores.shape[1] == 2:
        return [Curve(scores[:, positive] - scores[:, 1 - positive], truth == positive)]
    rows, best = np.arange(len(scores)), scores.argmax(axis=1)
    largest = scores[rows, best]
    relative = scores - largest[:, None]  # of scores that differ by a constant, the log-odds are exactly equal
    powers = np.exp(relative)
    sums = np.sort(powers, axis=1).sum(axis=1)  # sorted, so that the order of the classes changes nothing
    relative[rows, best] = -np.inf
    second = relative.max(axis=1)
    beside_best = -second - np.log(np.sort(np.exp(relative - second[:, None]), axis=1).sum(axis=1))
    curves = []
    for number in range(scores.shape[1]):
        # The sum without a class is a difference, unless the class has the highest score and little would remain.
        is_best = scores[:, number] == largest
        others = np.log(np.where(is_best, 1, sums - powers[:, number]))
        margins = np.where(is_best, beside_best, scores[:, number] - largest - others)
        curves.append(Curve(margins, truth == number))
    return curves


def _mean_area(curves: Sequence[Curve], weights: np.ndarray) -> float:
    return float(np.mean([curve.area(weights) for curve in curves]))


def _balanced_accuracy(truth: np.ndarray, hits: np.ndarray, weights: np.ndarray) -> float:
    of_class, right = np.bincount(truth, weights), np.bincount(truth, weights * hits)
    return float((right[of_class > 0] / of_class[of_class > 0]).mean())
