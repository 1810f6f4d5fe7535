"""Random arrangements of panels, whose sizes follow real compound figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


Rng = np.random.Generator
Cell = tuple[float, float, float, float]  # left, top, right and bottom in parts of the figure

# Rows and columns of the compound figures in `panelseg_train.csv` (NLM PanelSeg), with their number per thousand.
GRIDS = {
    **{(1, 2): 205, (2, 1): 165, (2, 2): 154, (3, 1): 81, (2, 3): 78, (3, 2): 71, (1, 3): 53, (3, 3): 36, (4, 1): 25},
    **{(4, 2): 23, (2, 4): 17, (4, 3): 15, (1, 4): 10, (3, 4): 10, (5, 1): 8, (5, 2): 7, (2, 5): 5, (3, 5): 5},
    **{(5, 3): 3, (4, 4): 4, (1, 5): 2, (4, 5): 2, (5, 4): 2, (5, 5): 2},
}


@dataclass(frozen=True)
class Layout:
    """Where panels lie in a figure, in reading order."""

    cells: tuple[Cell, ...]
    rows: int
    columns: int


def random_layout(rng: Rng) -> Layout:
    """Return a grid, rows of different numbers of panels, or a recursive division."""
    kind = rng.random()
    if kind < 0.62:
        grids = list(GRIDS)
        weights = np.array([GRIDS[grid] for grid in grids], dtype=float)
        rows, columns = grids[rng.choice(len(grids), p=weights / weights.sum())]
        return _grid(rng, rows, columns)
    if kind < 0.82:
        return _rows(rng)
    cells = _divide(rng, (0.0, 0.0, 1.0, 1.0), int(rng.integers(3, 8)))
    return Layout(tuple(sorted(cells, key=lambda cell: (round(cell[1], 2), cell[0]))), 0, 0)


def _edges(rng: Rng, count: int, even: float) -> list[float]:
    """Return the edges of intervals that are equal with a probability of `even`."""
    sizes = np.ones(count) if rng.random() < even else rng.uniform(0.5, 1.6, count)
    return [0.0, *(np.cumsum(sizes) / sizes.sum()).tolist()]


def _grid(rng: Rng, rows: int, columns: int) -> Layout:
    y, x = _edges(rng, rows, 0.7), _edges(rng, columns, 0.75)
    cells = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(rows) for c in range(columns)]
    if len(cells) > 3 and rng.random() < 0.15:
        cells.pop()  # the last place is often empty
    return Layout(tuple(cells), rows, columns)


def _rows(rng: Rng) -> Layout:
    counts = rng.integers(1, 5, size=rng.integers(2, 5))
    y = _edges(rng, len(counts), 0.4)
    cells: list[Cell] = []
    for row, count in enumerate(counts):
        x = _edges(rng, int(count), 0.6)
        cells += [(x[c], y[row], x[c + 1], y[row + 1]) for c in range(int(count))]
    if rng.random() < 0.3:  # columns instead of rows
        cells = sorted(((a, b, c, d) for b, a, d, c in cells), key=lambda cell: (cell[0], cell[1]))
    return Layout(tuple(cells), len(counts), 0)


def _divide(rng: Rng, cell: Cell, count: int) -> list[Cell]:
    if count <= 1:
        return [cell]
    left, top, right, bottom = cell
    first = int(rng.integers(1, count))
    at = float(np.clip(first / count + rng.uniform(-0.12, 0.12), 0.25, 0.75))
    if (right - left) * rng.uniform(0.6, 1.6) > bottom - top:
        middle = left + at * (right - left)
        parts: Sequence[Cell] = ((left, top, middle, bottom), (middle, top, right, bottom))
    else:
        middle = top + at * (bottom - top)
        parts = ((left, top, right, middle), (left, middle, right, bottom))
    return _divide(rng, parts[0], first) + _divide(rng, parts[1], count - first)
