"""Accuracy, balanced accuracy, AUROC, recall of each class and the confusion matrix, with bootstrap intervals."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from modeling_biomedclip.retrieval_metrics import bootstrap_interval


_DESCRIPTION = """\
Classification by scores. The answer is the class with the highest score, of equal ones the first. AUROC is that of the
positive class where there are two, otherwise the mean over the classes of the data, each against the rest, by their
probabilities (softmax of the scores). A tie of two images counts half.
"""
_INPUTS = """\
Args:
    predictions: Scores (logits) of each image, of shape (images, classes).
    references: The class of each image, from 0.
    positive: The class that AUROC is about where there are two; the second.
    groups: Patient or source of each image: the bootstrap draws whole groups; single images if left out.
    resamples: Resampled sets for the 95 % intervals; 0 for none.
    seed: Seed of the resampling.
Returns:
    accuracy, balanced_accuracy, auroc (none where the data hold a single class), each with ..._interval;
    recall_of_class (none for a class without images) and confusion_matrix (rows: truth).
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class Classification(evaluate.Metric):
    """The metric, as `evaluate.load` finds it."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[int],
        positive: int = 1,
        groups: Sequence[Any] | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Any]:
        scores, truth = np.asarray(predictions, dtype=np.float64), np.asarray(references)
        classes = scores.shape[1]
        if not np.isfinite(scores).all():
            raise ValueError("The scores hold NaN or infinity: the model has diverged, there is nothing to measure.")
        if truth.min() < 0 or truth.max() >= classes:
            raise ValueError(f"References must be classes from 0 to {classes - 1}.")
        answers = scores.argmax(axis=1)
        matrix = np.bincount(truth * classes + answers, minlength=classes**2).reshape(classes, classes)
        curves = [
            _Curve(margin, truth == number)
            for number, margin in _margins(scores, positive)
            if 0 < (truth == number).sum() < len(truth)
        ]
        ones = np.ones(len(truth))
        result: dict[str, Any] = {
            "accuracy": float((answers == truth).mean()),
            "balanced_accuracy": _balanced_accuracy(truth, answers, ones),
            "auroc": float(np.mean([curve.area(ones) for curve in curves])) if curves else None,
            "recall_of_class": [
                float(row[number] / row.sum()) if row.sum() else None for number, row in enumerate(matrix)
            ],
            "confusion_matrix": matrix.tolist(),
        }
        if resamples:
            _, group_of = np.unique(np.arange(len(truth)) if groups is None else groups, return_inverse=True)
            result["accuracy_interval"] = list(
                bootstrap_interval((answers == truth).astype(float), group_of.tolist(), seed=seed, resamples=resamples)
            )
            balanced, areas = [], []
            generator = np.random.default_rng(seed)
            present = len(np.unique(truth))
            for _ in range(resamples):
                drawn = generator.integers(group_of.max() + 1, size=group_of.max() + 1)
                weights = np.bincount(drawn, minlength=group_of.max() + 1)[group_of].astype(float)
                if np.count_nonzero(np.bincount(truth, weights)) < present:
                    continue  # a set without one of the classes has no balanced accuracy of all of them
                balanced.append(_balanced_accuracy(truth, answers, weights))
                if curves:
                    areas.append(float(np.mean([curve.area(weights) for curve in curves])))
            result["balanced_accuracy_interval"] = _interval(balanced)
            result["auroc_interval"] = _interval(areas)
        return result


def _margins(scores: np.ndarray, positive: int) -> list[tuple[int, np.ndarray]]:
    """
    Classes that AUROC is about, each with numbers that order the images as the class's probability does.

    The log-odds: probabilities themselves would be 1.0, and tie, where the scores are far apart.
    """
    chosen = [positive] if scores.shape[1] == 2 else range(scores.shape[1])
    margins = []
    for number in chosen:
        rest = np.delete(scores, number, axis=1)
        largest = rest.max(axis=1, keepdims=True)
        others = largest[:, 0] + np.log(np.exp(rest - largest).sum(axis=1))
        margins.append((number, scores[:, number] - others))
    return margins


class _Curve:
    """The area under a ROC curve for any weights of the images, which are sorted once."""

    def __init__(self, margins: np.ndarray, is_positive: np.ndarray):
        distinct, self.place = np.unique(margins, return_inverse=True)
        self.places = len(distinct)
        self.is_positive = is_positive

    def area(self, weights: np.ndarray) -> float:
        """Share of the pairs of a positive and a negative image in which the positive one scores higher."""
        positive = np.bincount(self.place, weights * self.is_positive, self.places)
        negative = np.bincount(self.place, weights * ~self.is_positive, self.places)
        below = np.cumsum(negative) - negative / 2
        return float((positive * below).sum() / (positive.sum() * negative.sum()))


def _balanced_accuracy(truth: np.ndarray, answers: np.ndarray, weights: np.ndarray) -> float:
    of_class, right = np.bincount(truth, weights), np.bincount(truth, weights * (truth == answers))
    return float((right[of_class > 0] / of_class[of_class > 0]).mean())


def _interval(values: list[float]) -> list[float] | None:
    return np.quantile(values, [0.025, 0.975]).tolist() if values else None
