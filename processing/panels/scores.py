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


def average_precision(
    predicted: Sequence[Sequence[Box]],
    scores: Sequence[Sequence[float]],
    gold: Sequence[Sequence[Box]],
    least: float = IOU,
) -> float:
    """Return the area under the curve of precision over recall for the panels of several figures, as in COCO.

    Args:
        predicted: Boxes of each figure.
        scores: Their scores.
        gold: True boxes of each figure.
        least: Intersection over union from which a panel is found.
    """
    found: list[tuple[float, bool]] = []
    for boxes, values, truth in zip(predicted, scores, gold, strict=True):
        iou, _ = overlaps(boxes, truth)
        taken: set[int] = set()
        for number in np.argsort(-np.asarray(values, dtype=float), kind="stable"):
            free = [(iou[number, other], -other) for other in range(len(truth)) if other not in taken]
            best = max(free, default=(0.0, 0))
            if best[0] >= least:
                taken.add(-best[1])
            found.append((float(values[number]), bool(best[0] >= least)))
    total = sum(map(len, gold))
    if not total or not found:
        return 0.0
    right = np.array([hit for _, hit in sorted(found, key=lambda item: -item[0])])
    recall = np.cumsum(right) / total
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # The mean of the best precision at 101 recalls.
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean([envelope[place] if place < len(envelope) else 0.0 for place in places]))
