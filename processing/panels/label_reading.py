"""Tell which printed label belongs to which panel.

A network finds marks that look like labels, and a chance for each letter. In one figure, labels stand at the same place
beside or in their panels, begin with the first letter, and follow the panels by rows or by columns. A caption that
names its panels tells which letters to expect.
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
NOT_IN_CAPTION = 5.0  # the same for a letter that the caption does not name
IN_ORDER = 0.5  # gain of log probability of a letter that is expected from the order of the panels
NAMING = 0.3  # weight of the log probability of letters beside the gain of their place
NO_LABEL = -6.0  # log probability of a mark that is no label
SURE = 0.5  # from this probability on, the network alone tells that a mark is a label with this letter


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


@dataclass(frozen=True)
class ReadLabel:
    """Label of a panel. It is sure if the network alone tells it, without the other labels of the figure."""

    name: str
    is_sure: bool


@dataclass(frozen=True)
class _Expected:
    """Names of the labels that a figure may have, in their order. `exactly` if a caption names them."""

    kinds: Sequence[Sequence[int]]
    exactly: bool

    def first(self, kind: Sequence[int], count: int) -> Sequence[int]:
        return kind if self.exactly else kind[:count]

    def at(self, kind: Sequence[int], position: int, count: int) -> int | None:
        """Return the name that is expected at a position among so many panels, if any."""
        tells_order = not self.exactly or len(kind) == count
        return kind[position] if tells_order and position < len(kind) else None


def read_labels(
    marks: Marks, names: Sequence[str], panels: np.ndarray, expected: Sequence[str] | None = None
) -> dict[int, ReadLabel]:
    """Return the labels of panels by the number of the panel. Not all panels have one.

    Args:
        marks: Marks of the network.
        names: Names of labels: upper case letters, numbers, and Roman numerals in lower case.
        panels: Shape (panels, 4). Boxes in the same units as those of the marks.
        expected: Labels that the caption names, in their order and in upper case.
    """
    if not len(marks.boxes) or not len(panels) or not names:
        return {}
    best = np.argsort(-marks.scores, kind="stable")[:MOST]
    boxes, scores, chances = marks.boxes[best], marks.scores[best], marks.chances[best]
    orders = [_positions(panels), _positions(panels[:, [1, 0, 3, 2]])]
    wanted = _expected(names, expected)
    highest, read = -np.inf, dict[int, ReadLabel]()
    for gain, pairs in _owners(boxes, scores, panels):
        used = [mark for mark, _ in pairs[: len(names)]]
        placed = [panel for _, panel in pairs[: len(names)]]
        for order in orders:
            likely, chosen = _named(chances[used], names, wanted, len(panels), [order[panel] for panel in placed])
            if gain + NAMING * likely > highest:
                highest = gain + NAMING * likely
                read = {
                    panel: ReadLabel(names[name].upper(), bool(scores[mark] * np.exp(chances[mark, name]) >= SURE))
                    for mark, panel, name in zip(used, placed, chosen, strict=True)
                    if name is not None
                }
    return _completed(read, names, wanted, orders)


def _expected(names: Sequence[str], expected: Sequence[str] | None) -> _Expected:
    places = {name.upper(): number for number, name in enumerate(names)}
    if expected and all(name in places for name in expected):
        return _Expected([[places[name] for name in expected]], True)
    return _Expected(_kinds(names), False)


def _completed(
    read: dict[int, ReadLabel], names: Sequence[str], wanted: _Expected, orders: Sequence[dict[int, int]]
) -> dict[int, ReadLabel]:
    """Add the labels of panels whose mark was not found, if the others follow the order of the panels without a fault.

    Most labels must be found, unless the caption names as many as there are panels.
    """
    if not read or (not wanted.exactly and 2 * len(read) <= len(orders[0])):
        return read
    found = {panel: label.name for panel, label in read.items()}
    for order in orders:
        for kind in wanted.kinds:
            places = {panel: wanted.at(kind, place, len(order)) for panel, place in order.items()}
            complete = {panel: names[place].upper() for panel, place in places.items() if place is not None}
            if complete.items() >= found.items() and len(complete) == len(order):
                return {panel: read.get(panel, ReadLabel(name, False)) for panel, name in complete.items()}
    return read


def _owners(boxes: np.ndarray, scores: np.ndarray, panels: np.ndarray) -> Iterator[tuple[float, list[tuple[int, int]]]]:
    """Yield the pairs of a mark and its panel, and how well the place of the marks explains them.

    There is one list for each corner, and the middle of the upper or lower edge, beside which the marks stand.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    for offsets in _offsets(centers, panels):
        best: tuple[float, list[tuple[int, int]]] = (0.0, [])
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
        pairs = [*best[1], *_nearest(centers, scores, panels, best[1])]
        if pairs:
            yield best[0], pairs


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


def _named(
    chances: np.ndarray, names: Sequence[str], wanted: _Expected, count: int, positions: Sequence[int]
) -> tuple[float, list[int | None]]:
    """Return different names for marks in panels at these positions, None for marks that are no labels.

    The other value is how much more probable they are than that no mark is a label, as a logarithm.
    """
    best: tuple[float, list[int | None]] = (-np.inf, [])
    none = np.full((len(chances), len(chances)), NO_LABEL)
    for kind in wanted.kinds:
        values = chances.astype(float)
        is_expected = np.zeros(len(names), dtype=bool)
        is_expected[list(wanted.first(kind, count))] = True
        values = values - (NOT_IN_CAPTION if wanted.exactly else UNEXPECTED) * ~is_expected
        for row, position in enumerate(positions):
            name = wanted.at(kind, position, count)
            if name is not None:
                values[row, name] += IN_ORDER
        values = np.hstack([values, none])
        rows, columns = linear_sum_assignment(-values)
        total = float(values[rows, columns].sum()) - NO_LABEL * len(chances)
        if total > best[0]:
            best = (total, [int(column) if column < len(names) else None for column in columns])
    return best


def _kinds(names: Sequence[str]) -> list[list[int]]:
    """Return the places of letters, of numbers, and of Roman numerals in their order."""
    letters = [number for number, name in enumerate(names) if len(name) == 1 and name.isalpha()]
    numbers = [number for number, name in enumerate(names) if name.isdigit()]
    places = {name.lower(): number for number, name in enumerate(names)}
    roman = [places[name] for name in "i ii iii iv v vi vii viii ix x xi xii".split() if name in places]
    return [kind for kind in (letters, numbers, roman) if kind]
