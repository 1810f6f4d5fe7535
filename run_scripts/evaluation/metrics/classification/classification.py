"""Accuracy, balanced accuracy, AUROC, recall of each class and the confusion matrix, with bootstrap intervals."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from biomedclip.retrieval_metrics import bootstrap_interval


_DESCRIPTION = """\
Classification by scores. The answer is the class with the highest score, of equal ones the first. AUROC is that of the
positive class where there are two classes, otherwise the mean over all classes, each against the rest, by their
probabilities (softmax of the scores). A tie of two images counts half, so constant scores give 0.5.

A metric that is undefined is None, and `undefined` gives the reason: all metrics if a score is NaN or infinite; AUROC
if a class has no images or has all of them, as in scikit-learn. Balanced accuracy is the mean over the classes that
have images.
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
    accuracy, balanced_accuracy and auroc, each with ..._interval; recall_of_class (None for a class without images);
    confusion_matrix (rows: truth); and undefined, the reason by the name of each metric that is None.
"""
_METRICS = ("accuracy", "balanced_accuracy", "auroc")
# Share of the resampled sets that must hold all classes. The ends of an interval over fewer would mean nothing.
_USABLE = 0.1


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
        matrix = np.bincount(truth * classes + answers, minlength=classes**2).reshape(classes, classes)
        curves = []
        if "auroc" not in undefined:
            curves = [_Curve(margin, truth == number) for number, margin in _margins(scores, positive)]
        ones = np.ones(len(truth))
        result |= {
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
            for name, values in (("balanced_accuracy", balanced), ("auroc", areas)):
                result[f"{name}_interval"] = _interval(values, resamples)
        return result


def _undefined(scores: np.ndarray, images: np.ndarray) -> dict[str, str]:
    """The reason of each metric that is undefined; `images` is the number of images of each class."""
    bad = int((~np.isfinite(scores)).any(axis=1).sum())
    if bad:
        return dict.fromkeys(_METRICS, f"the scores of {bad:,} of {len(scores):,} images are NaN or infinite")
    empty = int((images == 0).sum())
    if np.count_nonzero(images) == 1:
        return {"auroc": "all images are of one class"}
    return {"auroc": f"{empty:,} of {len(images):,} classes have no images"} if empty else {}


def _margins(scores: np.ndarray, positive: int) -> list[tuple[int, np.ndarray]]:
    """Classes that AUROC is about, each with numbers that order the images as the class's probability does.

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


def _interval(values: list[float], resamples: int) -> list[float] | None:
    usable = len(values) >= _USABLE * resamples
    return np.quantile(values, [0.025, 0.975]).tolist() if values and usable else None
