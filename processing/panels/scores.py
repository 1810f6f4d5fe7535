"""Scores of detected panels against those of a gold standard."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


Box = Sequence[float]
INSIDE = 0.66  # ImageCLEF: least part of a predicted panel that a true panel covers
IOU = 0.5


@dataclass(frozen=True)
class PanelCounts:
    """Numbers of panels, of which `found` are in both, one to one."""

    found: int
    predicted: int
    gold: int

    @property
    def precision(self) -> float:
        """Part of the predicted panels that are right, 0 without any."""
        return self.found / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Part of the true panels that are found, 0 without any."""
        return self.found / self.gold if self.gold else 0.0


def overlaps(predicted: Sequence[Box], gold: Sequence[Box]) -> tuple[np.ndarray, np.ndarray]:
    """Return intersection over union, and intersection over predicted area, of each pair of boxes.

    Boxes have left, top, right and bottom. Both results have the shape (predicted, gold).
    """
    first, second = (np.asarray(boxes, dtype=float).reshape(-1, 4) for boxes in (predicted, gold))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area, other = (np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (first, second))
    union = area[:, None] + other[None] - common
    return common / np.maximum(union, 1e-9), common / np.maximum(area[:, None], 1e-9)


def matches(predicted: Sequence[Box], gold: Sequence[Box], least: float = IOU) -> list[tuple[int, int]]:
    """Return pairs of a predicted and a true panel with at least this intersection over union, the best first.

    Each panel is in at most one pair.
    """
    iou, _ = overlaps(predicted, gold)
    pairs = []
    while iou.size and iou.max() >= least:
        first, second = (int(place) for place in np.unravel_index(int(iou.argmax()), iou.shape))
        pairs.append((first, second))
        iou[first, :] = iou[:, second] = -1
    return pairs


def imageclef_accuracy(predicted: Sequence[Box], gold: Sequence[Box]) -> float:
    """Return the score of a figure in ImageCLEF's figure separation: right panels by the larger number of panels.

    A predicted panel is right if a true panel, which no other one has taken, covers more than 66 % of it (Garcia Seco
    de Herrera et al. 2016, "Overview of the ImageCLEF 2016 medical task").
    """
    if not len(predicted) or not len(gold):
        return 0.0
    _, inside = overlaps(predicted, gold)
    right = 0
    while inside.max() > INSIDE:
        first, second = (int(place) for place in np.unravel_index(int(inside.argmax()), inside.shape))
        right += 1
        inside[first, :] = inside[:, second] = -1
    return right / max(len(predicted), len(gold))


@dataclass(frozen=True)
class Detections:
    """The predicted panels of several figures, from the highest score to the lowest.

    Attributes:
        found: Whether each is a true panel that no other one has taken.
        figures: Number of the figure of each.
        gold: Number of true panels of each figure.
    """

    found: np.ndarray
    figures: np.ndarray
    gold: np.ndarray

    def average_precision(self, weights: np.ndarray | None = None) -> float:
        """Return the area under the curve of precision over recall, as in COCO: the mean over 101 recalls.

        Args:
            weights: How often each figure is counted (default: once).
        """
        weights = np.ones(len(self.gold)) if weights is None else weights
        total, counted = float(weights @ self.gold), np.cumsum(weights[self.figures])
        if not total or not len(counted) or not counted[-1]:
            return 0.0
        right = np.cumsum(weights[self.figures] * self.found)
        precision = right / np.maximum(counted, 1e-9)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(right / total, np.linspace(0, 1, 101), side="left")
        return float(np.append(envelope, 0.0)[places].mean())


def judge(
    predicted: Sequence[Sequence[Box]],
    scores: Sequence[Sequence[float]],
    gold: Sequence[Sequence[Box]],
    least: float = IOU,
) -> Detections:
    """Return which predicted panels are found, in the order of their scores, as in COCO.

    Args:
        predicted: Boxes of each figure.
        scores: Their scores.
        gold: True boxes of each figure.
        least: Intersection over union from which a panel is found.
    """
    found: list[tuple[float, bool, int]] = []
    for figure, (boxes, values, truth) in enumerate(zip(predicted, scores, gold, strict=True)):
        iou, _ = overlaps(boxes, truth)
        taken: set[int] = set()
        for number in np.argsort(-np.asarray(values, dtype=float), kind="stable"):
            free = [(iou[number, other], -other) for other in range(len(truth)) if other not in taken]
            best = max(free, default=(0.0, 0))
            if best[0] >= least:
                taken.add(-best[1])
            found.append((float(values[number]), bool(best[0] >= least), figure))
    found.sort(key=lambda item: -item[0])
    return Detections(
        np.array([hit for _, hit, _ in found], dtype=bool),
        np.array([figure for _, _, figure in found], dtype=int),
        np.array([len(truth) for truth in gold], dtype=float),
    )


def average_precision(
    predicted: Sequence[Sequence[Box]],
    scores: Sequence[Sequence[float]],
    gold: Sequence[Sequence[Box]],
    least: float = IOU,
) -> float:
    """Return the average precision of predicted panels. See [`judge`] and [`Detections`]."""
    return judge(predicted, scores, gold, least).average_precision()
