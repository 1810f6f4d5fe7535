"""Tell which printed label belongs to which panel.

A network finds marks that look like labels, and a chance for each letter. In one figure, labels stand at the same place
beside or in their panels, begin with the first letter, and follow the panels by rows or by columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment


FARTHEST = 0.12  # from a corner of the panel to the label, in parts of the longer side of the figure
NEAREST = 0.1  # the same for a label at another place than those of the other panels
SPREAD = 0.045  # how far labels of a figure differ in their place
MOST = 40  # marks that are looked at
UNEXPECTED = 2.5  # loss of log probability of a letter that is none of the first n for n panels
IN_ORDER = 0.5  # gain of log probability of a letter that is expected from the order of the panels


@dataclass(frozen=True)
class Marks:
    """Things in a figure that look like printed labels.

    Attributes:
        boxes: Shape (marks, 4). Left, top, right and bottom in parts of the longer side of the figure.
        scores: Shape (marks,). Between 0 and 1.
        chances: Shape (marks, names). Log probability of each name.
    """

    boxes: np.ndarray
    scores: np.ndarray
    chances: np.ndarray


def read_labels(marks: Marks, names: Sequence[str], panels: np.ndarray) -> dict[int, str]:
    """Return the labels of panels by the number of the panel. Not all panels have one.

    Args:
        marks: Marks of the network.
        names: Names of labels: upper case letters, numbers, and Roman numerals in lower case.
        panels: Shape (panels, 4). Boxes in the same units as those of the marks.
    """
    if not len(marks.boxes) or not len(panels) or not names:
        return {}
    best = np.argsort(-marks.scores, kind="stable")[:MOST]
    owners = _owners(marks.boxes[best], marks.scores[best], panels)[: len(names)]
    if not owners:
        return {}
    chances = marks.chances[best[[mark for mark, _ in owners]]]
    orders = [_positions(panels), _positions(panels[:, [1, 0, 3, 2]])]
    placed = [panel for _, panel in owners]
    options = [_named(chances, names, len(panels), [order[panel] for panel in placed]) for order in orders]
    _, chosen = max(options, key=lambda option: option[0])
    read = {panel: name.upper() for panel, name in zip(placed, chosen, strict=True)}
    return _completed(read, names, orders)


def _completed(read: dict[int, str], names: Sequence[str], orders: Sequence[dict[int, int]]) -> dict[int, str]:
    """Add the labels of panels whose mark was not found, if those of most panels follow the order without a fault."""
    for order in orders:
        for kind in _kinds(names):
            expected = {panel: names[kind[place]].upper() for panel, place in order.items() if place < len(kind)}
            if 2 * len(read) > len(order) and expected.items() >= read.items() and len(expected) == len(order):
                return expected
    return read


def _owners(boxes: np.ndarray, scores: np.ndarray, panels: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of a mark and its panel, for the place beside panels that explains the marks best."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    best: tuple[float, list[tuple[int, int]]] = (0.0, [])
    for offsets in _offsets(centers, panels):
        distance = np.hypot(offsets[..., 0], offsets[..., 1])
        near = distance.argmin(1)
        for mark in np.flatnonzero(distance.min(1) < FARTHEST):
            place = offsets[mark, near[mark]]
            difference = np.hypot(*np.moveaxis(offsets - place, -1, 0))
            gain = scores[:, None] * np.clip(1 - difference / SPREAD, 0, None)
            pairs = [(int(m), int(p)) for m, p in zip(*linear_sum_assignment(-gain), strict=True) if gain[m, p] > 0]
            total = sum(gain[pair] for pair in pairs) - float(np.hypot(*place))
            if total > best[0]:
                best = (total, pairs)
    return [*best[1], *_nearest(centers, scores, panels, best[1])]


def _nearest(
    centers: np.ndarray, scores: np.ndarray, panels: np.ndarray, pairs: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Return pairs of the marks and panels that are not yet in a pair, by their distance."""
    marks = [number for number in range(len(centers)) if number not in {mark for mark, _ in pairs}]
    rest = [number for number in range(len(panels)) if number not in {panel for _, panel in pairs}]
    if not marks or not rest:
        return []
    distances = [np.hypot(each[..., 0], each[..., 1]) for each in _offsets(centers[marks], panels[rest])]
    distance = np.min(distances, axis=0)
    rows, columns = linear_sum_assignment(distance - 0.05 * scores[marks][:, None])
    return [(marks[m], rest[p]) for m, p in zip(rows, columns, strict=True) if distance[m, p] < NEAREST]


def _offsets(points: np.ndarray, panels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the vectors from a corner, or the middle of the upper or lower edge, of each panel to each point."""
    for across in (0.0, 0.5, 1.0):
        for down in (0.0, 1.0):
            x = panels[:, 0] + across * (panels[:, 2] - panels[:, 0])
            y = panels[:, 1] + down * (panels[:, 3] - panels[:, 1])
            yield points[:, None] - np.stack([x, y], axis=1)[None]


def _positions(panels: np.ndarray) -> dict[int, int]:
    """Return the position of each panel in reading order, by rows."""
    return {panel: position for position, panel in enumerate(reading_order(panels))}


def reading_order(boxes: np.ndarray) -> list[int]:
    """Return the numbers of boxes by rows: a box that begins below the middle of another is in a later row."""
    rest = sorted(range(len(boxes)), key=lambda number: boxes[number][1])
    ordered: list[int] = []
    while rest:
        middle = (boxes[rest[0]][1] + boxes[rest[0]][3]) / 2
        row = [number for number in rest if boxes[number][1] < middle] or rest[:1]
        ordered += sorted(row, key=lambda number: boxes[number][0])
        rest = [number for number in rest if number not in row]
    return ordered


def _named(chances: np.ndarray, names: Sequence[str], count: int, positions: Sequence[int]) -> tuple[float, list[str]]:
    """Return different names for marks in panels at these positions, and the sum of their log probabilities."""
    best: tuple[float, list[str]] = (-np.inf, [])
    for kind in _kinds(names):
        values = chances.astype(float)
        expected = np.zeros(len(names), dtype=bool)
        expected[kind[:count]] = True
        values = values - UNEXPECTED * ~expected
        for row, position in enumerate(positions):
            if position < len(kind):
                values[row, kind[position]] += IN_ORDER
        rows, columns = linear_sum_assignment(-values)
        total = float(values[rows, columns].sum())
        if len(rows) == len(chances) and total > best[0]:
            best = (total, [names[column] for column in columns])
    return best


def _kinds(names: Sequence[str]) -> list[list[int]]:
    """Return the places of letters, of numbers, and of Roman numerals in their order."""
    letters = [number for number, name in enumerate(names) if len(name) == 1 and name.isalpha()]
    numbers = [number for number, name in enumerate(names) if name.isdigit()]
    places = {name.lower(): number for number, name in enumerate(names)}
    roman = [places[name] for name in "i ii iii iv v vi vii viii ix x xi xii".split() if name in places]
    return [kind for kind in (letters, numbers, roman) if kind]
