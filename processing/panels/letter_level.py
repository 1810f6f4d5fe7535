"""Join images that stand under one printed letter. A panel is what a letter names, and may have several images."""

from collections.abc import Sequence

import numpy as np


Box = Sequence[float]
SLACK = 0.03  # how far an image may begin before its labeled one, in parts of the longer side
COMMON = 0.15  # largest part of a panel that another one covers


def images_of_letters(boxes: Sequence[Box], labels: Sequence[str | None]) -> list[list[int]] | None:
    """Return the numbers of the images of each panel, the labeled one first, or None if they cannot be joined.

    They are joined if some images have no label and the labels of the others are A, B and so on without a gap. An image
    belongs to the labeled one at its left or above. Panels must not overlap then.

    Example:
        >>> from biomedclip.processing.panels.letter_level import images_of_letters
        >>> images_of_letters([(0, 0, 4, 4), (5, 0, 9, 4), (0, 5, 4, 9), (5, 5, 9, 9)], ["A", None, "B", None])
        [[0, 1], [2, 3]]
    """
    places = {label: number for number, label in enumerate(labels) if label is not None}
    named = [places[letter] for letter in _sequence(places)]
    strange = sum(label is not None for label in labels) - len(named)
    if len(named) < 2 or len(named) == len(boxes) or strange > len(named):
        return None
    array = np.asarray(boxes, dtype=float)
    for axes in ((0, 1), (0,), (1,)):  # the nearest, those of one column, those of one row
        groups = _groups(array, named, axes)
        if groups is not None and not _overlapping([joined(array[group]) for group in groups]):
            return groups
    return None


def joined(boxes: np.ndarray) -> tuple[float, float, float, float]:
    """Return the box around boxes."""
    (left, top), (right, bottom) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    return float(left), float(top), float(right), float(bottom)


def _sequence(labels: dict[str, int]) -> list[str]:
    letters = [chr(65 + number) for number in range(26)]
    missing = next((number for number, letter in enumerate(letters) if letter not in labels), 26)
    return letters[:missing]


def _groups(boxes: np.ndarray, named: Sequence[int], axes: Sequence[int]) -> list[list[int]] | None:
    """Add each image to the nearest labeled one that begins before it. With one axis, it must share a column or row."""
    slack = SLACK * boxes[:, 2:].max()
    groups = {number: [number] for number in named}
    rest = [number for number in range(len(boxes)) if number not in groups]
    for number in sorted(rest, key=lambda each: (boxes[each][1], boxes[each][0])):
        image = boxes[number]
        distances = {}
        for owner, group in groups.items():
            before = (boxes[owner][:2] <= image[:2] + slack).all()
            if before and (len(axes) == 2 or _shared(image, boxes[owner], axes[0]) > 0.5):
                distances[owner] = min(_distance(image, boxes[other]) for other in group)
        if not distances:
            return None
        groups[min(distances, key=lambda owner: distances[owner])].append(number)
    return list(groups.values())


def _shared(first: np.ndarray, second: np.ndarray, axis: int) -> float:
    """Return the common part of two intervals, in parts of the shorter one."""
    common = min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis])
    return float(common / max(min(first[axis + 2] - first[axis], second[axis + 2] - second[axis]), 1e-9))


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.hypot(*np.maximum(np.maximum(first[:2] - second[2:], second[:2] - first[2:]), 0)))


def _overlapping(boxes: Sequence[Box]) -> bool:
    for number, first in enumerate(boxes):
        for second in boxes[:number]:
            sides = [min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1)]
            areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
            if min(sides) > 0 and sides[0] * sides[1] > COMMON * min(areas):
                return True
    return False
