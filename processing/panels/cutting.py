"""Recursive X-Y cut: find panels by the empty stripes between them, without a model.

It is the baseline of the panel detector and its fallback (Nagy and Seth 1984, "Hierarchical representation of optically
scanned documents"). Panels that touch are not separated.
"""

import numpy as np
from PIL import Image

from ..bit_depth_biomedclip import on_white


Box = tuple[int, int, int, int]
WHITE = 255
SIDE = 800  # pixels of the longer side of the figure that is cut
DIFFERENCE = 24  # gray levels by which content differs from the background
STRIPE = 0.008  # least width of an empty stripe, in parts of the longer side
LEAST = 0.15  # least width and height of a panel, in parts of the figure
DEEPEST = 6  # cuts within cuts


def cut_panels(image: Image.Image) -> list[Box]:
    """Return the boxes of panels in pixels (left, top, right, bottom), in reading order.

    A figure without empty stripes is one panel: the whole figure.

    Example:
        >>> from PIL import Image
        >>> from biomedclip.processing.panels import cut_panels
        >>> figure = Image.new("L", (420, 200), "white")
        >>> figure.paste("black", (0, 0, 200, 200)); figure.paste("black", (220, 0, 420, 200))
        >>> cut_panels(figure)
        [(0, 0, 200, 200), (220, 0, 420, 200)]
    """
    gray = on_white(image).convert("L")
    scale = min(1.0, SIDE / max(gray.size))
    size = (max(1, round(gray.width * scale)), max(1, round(gray.height * scale)))
    levels = np.asarray(gray.resize(size, Image.Resampling.BOX) if scale < 1 else gray, dtype=np.int16)
    least = (LEAST * size[0], LEAST * size[1])
    # Pictures that reach the border hide a white background there.
    for background in (WHITE, background_level(levels)):
        content = np.abs(levels - background) > DIFFERENCE
        found = _cut(content, 0, 0, STRIPE * max(size), least, DEEPEST)
        if len(found) > 1:
            break
    else:
        return [(0, 0, *image.size)]
    across, down = image.width / size[0], image.height / size[1]
    return [(round(a * across), round(b * down), round(c * across), round(d * down)) for a, b, c, d in found]


def background_level(levels: np.ndarray) -> int:
    """Return the most frequent gray level at the border of an image."""
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    counts = np.bincount(border, minlength=256)
    return int(np.argmax(np.convolve(counts, np.ones(5), mode="same")))


def _cut(content: np.ndarray, left: int, top: int, stripe: float, least: tuple[float, float], depth: int) -> list[Box]:
    rows, columns = np.flatnonzero(content.any(1)), np.flatnonzero(content.any(0))
    if not len(rows):
        return []
    left, top = left + int(columns[0]), top + int(rows[0])
    content = content[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    whole = [(left, top, left + content.shape[1], top + content.shape[0])]
    if depth == 0:
        return whole
    options = []
    for axis in (0, 1):
        parts = _parts(content, axis, stripe, least[1 - axis])
        if len(parts) > 1:
            widest = max(after[0] - before[1] for before, after in zip(parts, parts[1:], strict=False))
            options.append((widest, axis, parts))
    if not options:
        return whole
    _, axis, parts = max(options, key=lambda option: option[0])
    found = []
    for start, stop in parts:
        piece = content[start:stop] if axis == 0 else content[:, start:stop]
        x, y = (left, top + start) if axis == 0 else (left + start, top)
        found += _cut(piece, x, y, stripe, least, depth - 1)
    return found


def _parts(content: np.ndarray, axis: int, stripe: float, least: float) -> list[tuple[int, int]]:
    """Return intervals between empty stripes. Those that are too small for a panel belong to their nearest neighbor."""
    filled = content.mean(1 - axis) > 0.002
    edges = np.flatnonzero(np.diff(np.concatenate([[False], filled, [False]]).astype(np.int8)))
    intervals = [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
    merged = intervals[:1]
    for start, stop in intervals[1:]:
        if start - merged[-1][1] < stripe:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    while len(merged) > 1:
        sizes = [stop - start for start, stop in merged]
        smallest = int(np.argmin(sizes))
        if sizes[smallest] >= least:
            break
        before = merged[smallest][0] - merged[smallest - 1][1] if smallest else np.inf
        after = merged[smallest + 1][0] - merged[smallest][1] if smallest + 1 < len(merged) else np.inf
        other = smallest - 1 if before <= after else smallest + 1
        first, second = sorted((smallest, other))
        merged[first : second + 1] = [(merged[first][0], merged[second][1])]
    return merged
