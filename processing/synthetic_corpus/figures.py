"""Kinds of biomedical figures, each drawn from explicit attributes.

A kind has a table of attributes; every combination of their values is a different picture, and the difference can be
seen at 64 x 64 pixels. Whatever else varies (size, jitter, grain, ticks) is up to the generator and is never named.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .canvas import Box, Canvas, Colour, Point, clouds, with_grain


Attributes = Mapping[str, str]

INK: Colour = (40, 40, 40)
WHITE: Colour = (255, 255, 255)

COLOURS: dict[str, Colour] = {
    "red": (214, 30, 35),
    "blue": (30, 80, 205),
    "green": (35, 150, 55),
    "orange": (255, 140, 0),
    "purple": (135, 45, 175),
    "black": (25, 25, 25),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "grey": (200, 200, 200),
    "pale yellow": (255, 247, 178),
    "pale blue": (190, 222, 255),
    "pale pink": (255, 208, 222),
}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}

REGIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "on the left": lambda x, y: x < 0.42,
    "on the right": lambda x, y: x > 0.58,
    "in the upper half": lambda x, y: y < 0.42,
    "in the lower half": lambda x, y: y > 0.58,
    "in the centre": lambda x, y: (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.075,
    "throughout": lambda x, y: np.ones_like(x, dtype=bool),
}
PLACES: dict[str, Point] = {
    "upper left": (0.22, 0.22),
    "upper middle": (0.5, 0.2),
    "upper right": (0.78, 0.22),
    "middle left": (0.2, 0.5),
    "centre": (0.5, 0.5),
    "middle right": (0.8, 0.5),
    "lower left": (0.22, 0.78),
    "lower middle": (0.5, 0.8),
    "lower right": (0.78, 0.78),
}


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure.

    Args:
        name: As captions say it.
        attributes: The values of each attribute.
        draw: Makes the picture (grey-scale or RGB) from one value of each attribute.
    """

    name: str
    attributes: Mapping[str, tuple[str, ...]]
    draw: Callable[[Attributes, np.random.Generator], Image.Image]

    @property
    def combinations(self) -> int:
        """How many pictures there are that deserve different captions."""
        return math.prod(len(values) for values in self.attributes.values())

    def combination(self, number: int) -> dict[str, str]:
        """The combination of attribute values with this number, from 0 to `combinations - 1`."""
        chosen = {}
        for attribute, values in self.attributes.items():
            number, position = divmod(number, len(values))
            chosen[attribute] = values[position]
        return chosen


# Charts ------------------------------------------------------------------------------------------------------------

_PLOT: Box = (0.15, 0.07, 0.96, 0.86)

_CURVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rising": lambda x: x,
    "falling": lambda x: 1 - x,
    "peaking in the middle": lambda x: np.exp(-(((x - 0.5) / 0.2) ** 2)),
    "dipping in the middle": lambda x: 1 - np.exp(-(((x - 0.5) / 0.2) ** 2)),
    "staying flat": lambda x: np.full_like(x, 0.5),
    "oscillating": lambda x: 0.5 + 0.5 * np.sin(x * 5 * math.pi),
}


def draw_line_chart(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Parallel curves of one colour between axes."""
    canvas = Canvas(rng, BACKGROUNDS[attributes["background"]], widest=1.3)
    _axes(canvas, rng)
    count = NUMBERS[attributes["curves"].split()[0]]
    steps = np.linspace(0.03, 0.97, 24)
    shape = _CURVES[attributes["trend"]](steps)
    markers = rng.random() < 0.4
    for number in range(count):
        offset = 0.5 + (number - (count - 1) / 2) * 0.22
        heights = offset + (shape - 0.5) * rng.uniform(0.42, 0.5) + rng.normal(0, 0.008, steps.size)
        curve = [_inside(_PLOT, x, y) for x, y in zip(steps, heights, strict=True)]
        _curve(canvas, curve, COLOURS[attributes["colour"]], markers)
    return canvas.finish()


_BAR_PATTERNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rising from left to right": lambda x: 0.25 + 0.65 * x,
    "falling from left to right": lambda x: 0.9 - 0.65 * x,
    "tallest in the middle": lambda x: 0.9 - 1.3 * np.abs(x - 0.5),
    "shortest in the middle": lambda x: 0.25 + 1.3 * np.abs(x - 0.5),
    "of equal height": lambda x: np.full_like(x, 0.7),
}


def draw_bar_chart(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Bars of one colour, with whiskers or without."""
    canvas = Canvas(rng, BACKGROUNDS[attributes["background"]], widest=1.3)
    _axes(canvas, rng)
    count = NUMBERS[attributes["bars"].split()[0]]
    heights = _BAR_PATTERNS[attributes["pattern"]](np.linspace(0, 1, count)) + rng.normal(0, 0.02, count)
    _bars(canvas, _PLOT, heights, COLOURS[attributes["colour"]], whiskers=rng.random() < 0.5)
    return canvas.finish()


def _rising_cloud(count: int, rng: np.random.Generator) -> np.ndarray:
    along = rng.uniform(0.08, 0.92, count)
    return np.stack([along, along + rng.normal(0, 0.05, count)], axis=1)


def _round_cloud(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0.5, 0.14, (count, 2))


def _two_clusters(count: int, rng: np.random.Generator) -> np.ndarray:
    centres = np.where(rng.random((count, 1)) < 0.5, [[0.22, 0.5]], [[0.78, 0.5]])
    return centres + rng.normal(0, 0.07, (count, 2))


def _valley(count: int, rng: np.random.Generator) -> np.ndarray:
    along = rng.uniform(0.08, 0.92, count)
    return np.stack([along, 0.12 + 4.2 * (along - 0.5) ** 2 + rng.normal(0, 0.04, count)], axis=1)


_POINT_CLOUDS: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "rising from left to right": _rising_cloud,
    "falling from left to right": lambda count, rng: _rising_cloud(count, rng) * [-1, 1] + [1, 0],
    "in one round cloud": _round_cloud,
    "in two separate clusters": _two_clusters,
    "in a U-shaped curve": _valley,
}
_POINT_COUNTS = {"a few": 14, "many": 50, "very many": 190}


def draw_scatter_plot(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Dots of one colour between axes."""
    canvas = Canvas(rng, BACKGROUNDS[attributes["background"]], widest=1.3)
    _axes(canvas, rng)
    points = _POINT_CLOUDS[attributes["arrangement"]](_POINT_COUNTS[attributes["amount"]], rng)
    _dots(canvas, _PLOT, points.clip(0.03, 0.97), COLOURS[attributes["colour"]], radius=0.022)
    return canvas.finish()


_DIRECTIONS = {"on the right": 0, "at the bottom": 90, "on the left": 180, "at the top": 270}
_SLICE_GREYS: tuple[Colour, ...] = ((225, 225, 225), (110, 110, 110), (180, 180, 180), (75, 75, 75))


def draw_pie_chart(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """One coloured slice of a half, the others in grey."""
    canvas = Canvas(rng, BACKGROUNDS[attributes["background"]], widest=1.5)
    radius = rng.uniform(0.36, 0.43)
    box = (0.5 - radius, 0.5 - radius, 0.5 + radius, 0.5 + radius)
    others = NUMBERS[attributes["slices"].split()[0]] - 1
    shares = [0.5, *(0.5 / others for _ in range(others))]
    start = _DIRECTIONS[attributes["place"]] - 90 + rng.uniform(-10, 10)
    _pie(canvas, box, shares, [COLOURS[attributes["colour"]], *_SLICE_GREYS[:others]], start)
    return canvas.finish()


_SCHEMES: dict[str, tuple[Colour, Colour]] = {
    "red on blue": ((215, 30, 30), (40, 70, 190)),
    "yellow on purple": ((250, 230, 40), (75, 10, 100)),
    "red on green": ((225, 30, 30), (30, 140, 60)),
    "white on black": ((255, 255, 255), (15, 15, 15)),
    "red on white": ((210, 20, 25), (255, 255, 255)),
    "blue on white": ((25, 65, 190), (255, 255, 255)),
    "green on black": ((60, 230, 60), (10, 10, 10)),
    "purple on white": ((120, 30, 160), (255, 255, 255)),
}
_GRIDS = {"coarse": 5, "medium": 9, "fine": 18}
_SPREADS = {"small": 0.13, "large": 0.3}


def draw_heat_map(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """A grid of coloured cells, hot around one place."""
    canvas = Canvas(rng, WHITE, widest=1.4)
    cells = _GRIDS[attributes["grid"]]
    x, y = np.meshgrid((np.arange(cells) + 0.5) / cells, (np.arange(cells) + 0.5) / cells)
    place = PLACES[attributes["place"]]
    distance = np.hypot(x - place[0], y - place[1])
    heat = np.exp(-((distance / _SPREADS[attributes["patch"]]) ** 2))
    heat = heat / heat.max() + rng.uniform(-0.08, 0.08, x.shape)
    high, low = (np.array(colour) for colour in _SCHEMES[attributes["scheme"]])
    colours = low + heat.clip(0, 1)[..., None] * (high - low)
    side = min(canvas.image.size) // cells * cells
    tiles = Image.fromarray(colours.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    canvas.image.paste(tiles, ((canvas.image.width - side) // 2, (canvas.image.height - side) // 2))
    if canvas.margins[0] > 0.08:
        for row in range(0, cells, 2):
            canvas.line(
                [(1.02, (row + 0.5) / cells), (1.02 + rng.uniform(0.03, 0.05), (row + 0.5) / cells)], INK, 0.012
            )
    return canvas.finish()


def draw_flow_chart(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Boxes of one colour, joined by arrows in their order."""
    canvas = Canvas(rng, BACKGROUNDS[attributes["background"]], widest=1.5)
    count = NUMBERS[attributes["boxes"].split()[0]]
    steps = (np.arange(count) + 0.5) / count
    middle = np.full(count, 0.5)
    across, down = {
        "in a column": (middle, steps),
        "in a row": (steps, middle),
        "descending like stairs": (steps, steps),
        "ascending like stairs": (steps, 1 - steps),
    }[attributes["layout"]]
    half_width = 0.26 if attributes["layout"] == "in a column" else 0.34 / count
    half_height = 0.3 / count if attributes["layout"] != "in a row" else 0.2
    centres = list(zip(across.tolist(), down.tolist(), strict=True))
    for start, end in zip(centres, centres[1:], strict=False):
        _arrow(canvas, start, end, half_width, half_height)
    for x, y in centres:
        box = (x - half_width, y - half_height, x + half_width, y + half_height)
        canvas.rectangle(box, COLOURS[attributes["colour"]], INK)
        length = half_width * rng.uniform(0.4, 0.7)
        canvas.line([(x - length, y), (x + length, y)], WHITE, 0.014)
    return canvas.finish()


_PANEL_SHAPES = ("bars", "a curve", "dots", "a pie")


def draw_composite_figure(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Two panels side by side, lettered A and B."""
    canvas = Canvas(rng, WHITE, widest=1.3)
    panels = {"A": ("left", (0.05, 0.2, 0.47, 0.86)), "B": ("right", (0.56, 0.2, 0.98, 0.86))}
    for letter, (side, box) in panels.items():
        canvas.text((box[0] + 0.02, 0.1), letter, (0, 0, 0), 0.15)
        _panel(canvas, rng, box, attributes[f"{side} panel"], COLOURS[attributes[f"{side} colour"]])
    return canvas.finish()


def _panel(canvas: Canvas, rng: np.random.Generator, box: Box, shape: str, colour: Colour) -> None:
    if shape == "a pie":
        centre = (box[1] + box[3]) / 2
        half = (box[2] - box[0]) / 2
        _pie(canvas, (box[0], centre - half, box[2], centre + half), [0.65, 0.35], [colour, _SLICE_GREYS[0]], -90)
        return
    canvas.line([(box[0], box[1]), (box[0], box[3]), (box[2], box[3])], INK, 0.012)
    if shape == "bars":
        _bars(canvas, box, rng.uniform(0.4, 0.95, 3), colour, whiskers=False)
    elif shape == "dots":
        _dots(canvas, box, rng.uniform(0.1, 0.9, (16, 2)), colour, radius=0.026)
    else:
        steps = np.linspace(0.05, 0.95, 16)
        heights = 0.5 + 0.35 * np.sin(steps * 4 + rng.uniform(0, 6))
        _curve(canvas, [_inside(box, x, y) for x, y in zip(steps, heights, strict=True)], colour, markers=False)


def _inside(box: Box, x: float, y: float) -> Point:
    """A point of a plot, y upwards and both from 0 to 1, in the canvas's coordinates."""
    return box[0] + x * (box[2] - box[0]), box[3] - y * (box[3] - box[1])


def _axes(canvas: Canvas, rng: np.random.Generator) -> None:
    left, top, right, bottom = _PLOT
    if rng.random() < 0.4:
        canvas.rectangle(_PLOT, None, INK)
    canvas.line([(left, top), (left, bottom), (right, bottom)], INK, 0.012)
    ticks = int(rng.integers(3, 6))
    unit = int(rng.choice([1, 2, 5, 10]))
    for tick in range(ticks):
        x, y = _inside(_PLOT, tick / ticks, tick / ticks)
        canvas.line([(x, bottom), (x, bottom + 0.025)], INK, 0.01)
        canvas.line([(left, y), (left - 0.025, y)], INK, 0.01)
        canvas.text((left - 0.075, y), str(tick * unit), INK, 0.055)
        canvas.text((x, bottom + 0.075), str(tick), INK, 0.055)


def _curve(canvas: Canvas, points: Sequence[Point], colour: Colour, markers: bool) -> None:
    canvas.line(points, colour, 0.034)
    if markers:
        for point in points[::4]:
            canvas.ellipse(point, (0.027, 0.027), colour)


def _bars(canvas: Canvas, box: Box, heights: np.ndarray, colour: Colour, whiskers: bool) -> None:
    for number, height in enumerate(heights.tolist()):
        left, top = _inside(box, (number + 0.2) / len(heights), height)
        right, bottom = _inside(box, (number + 0.8) / len(heights), 0)
        canvas.rectangle((left, top, right, bottom), colour, INK)
        if whiskers:
            canvas.line([((left + right) / 2, top), ((left + right) / 2, top - 0.04)], INK, 0.012)


def _dots(canvas: Canvas, box: Box, points: np.ndarray, colour: Colour, radius: float) -> None:
    for x, y in points.tolist():
        canvas.ellipse(_inside(box, x, y), (radius, radius), colour)


def _pie(canvas: Canvas, box: Box, shares: Sequence[float], colours: Sequence[Colour], start: float) -> None:
    for share, colour in zip(shares, colours, strict=True):
        canvas.slice(box, start, start + 360 * share, colour, WHITE)
        start += 360 * share


def _arrow(canvas: Canvas, start: Point, end: Point, half_width: float, half_height: float) -> None:
    """An arrow between two boxes: straight where they share a row or column, else with one corner."""
    if start[1] == end[1]:
        tip, corner = (end[0] - half_width, end[1]), start
    else:
        upwards = end[1] < start[1]
        tip = (end[0], end[1] + (half_height if upwards else -half_height))
        corner = (end[0], start[1])
    canvas.line([start, corner, tip], INK, 0.018)
    before = corner if corner != tip else start
    length = math.dist(before, tip)
    along = ((tip[0] - before[0]) / length, (tip[1] - before[1]) / length)
    back = (tip[0] - 0.045 * along[0], tip[1] - 0.045 * along[1])
    aside = (0.03 * along[1], -0.03 * along[0])
    canvas.polygon([tip, (back[0] + aside[0], back[1] + aside[1]), (back[0] - aside[0], back[1] - aside[1])], INK)


# Laboratory --------------------------------------------------------------------------------------------------------

_GEL_LOOKS: dict[str, tuple[Colour, Colour]] = {
    "black bands on white": ((20, 20, 20), (238, 238, 238)),
    "white bands on black": ((250, 250, 250), (15, 15, 15)),
    "blue bands on pale blue": ((20, 45, 150), (200, 215, 245)),
    "orange bands on black": ((255, 150, 30), (30, 10, 5)),
    "green bands on black": ((60, 250, 90), (5, 20, 8)),
    "purple bands on pale pink": ((95, 25, 120), (248, 215, 228)),
}
_BAND_LEVELS: dict[str, Callable[[float], tuple[float, ...]]] = {
    "near the top": lambda lane: (0.25,),
    "at mid-height": lambda lane: (0.5,),
    "near the bottom": lambda lane: (0.78,),
    "descending from left to right": lambda lane: (0.22 + 0.56 * lane,),
    "ascending from left to right": lambda lane: (0.78 - 0.56 * lane,),
    "at the top and at the bottom": lambda lane: (0.25, 0.78),
}
_BAND_STRENGTHS: dict[str, Callable[[float], float]] = {
    "equally strong": lambda lane: 1.0,
    "strongest on the left": lambda lane: 1.0 - 0.75 * lane,
    "strongest on the right": lambda lane: 0.25 + 0.75 * lane,
    "weakest in the middle": lambda lane: 0.25 + 1.5 * abs(lane - 0.5),
}


def draw_gel(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Lanes with a band or two in each."""
    ink, ground = (np.array(colour) for colour in _GEL_LOOKS[attributes["look"]])
    canvas = Canvas(rng, _colour(ground), widest=1.4)
    count = NUMBERS[attributes["lanes"].split()[0]]
    for number in range(count):
        lane = number / (count - 1)
        x = (number + 0.5) / count
        half_width = 0.36 / count
        smear = _colour(ground + 0.07 * (ink - ground))
        canvas.rectangle((x - half_width, 0.03, x + half_width, 0.97), smear)
        canvas.rectangle((x - half_width, 0.04, x + half_width, 0.065), _colour(ground + 0.4 * (ink - ground)))
        strength = _BAND_STRENGTHS[attributes["strength"]](lane)
        for level in _BAND_LEVELS[attributes["level"]](lane):
            y = level + rng.normal(0, 0.008)
            half_height = 0.045 + 0.015 * strength
            colour = _colour(ground + strength * (ink - ground))
            canvas.ellipse((x, y), (half_width, half_height), colour)
            canvas.rectangle((x - half_width * 0.85, y - 0.03, x + half_width * 0.85, y + 0.03), colour)
    return with_grain(canvas.finish(blur=1.2), rng, 0.03)


_GLOWS: dict[str, Colour] = {
    "green": (40, 255, 60),
    "red": (255, 35, 35),
    "blue": (50, 80, 255),
    "magenta": (255, 40, 230),
    "cyan": (30, 235, 255),
    "yellow": (255, 235, 40),
    "orange": (255, 135, 20),
    "white": (255, 255, 255),
}
_CELL_COUNTS = {"a few": 7, "many": 22, "very many": 75}


def draw_fluorescence(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Glowing cells in the dark."""
    canvas = Canvas(rng, 0)
    # Crowded cells are smaller, so that single ones stay in sight.
    radius = {"a few": 0.075, "many": 0.055, "very many": 0.036}[attributes["amount"]]
    positions = _crowd(canvas, rng, attributes["place"], _CELL_COUNTS[attributes["amount"]], outside=0.0)
    for x, y in positions:
        light = int(rng.integers(170, 256))
        size = radius * rng.uniform(0.85, 1.15)
        if attributes["shape"] == "round":
            canvas.ellipse((x, y), (size, size), light * 2 // 3)
            canvas.ellipse((x, y), (size * 0.6, size * 0.6), light)
        elif attributes["shape"] == "ring-shaped":
            canvas.ellipse((x, y), (size, size), None, light, size * 0.42)
        else:
            angle = rng.uniform(-0.35, 0.35)
            reach = (size * 2.1 * math.cos(angle), size * 2.1 * math.sin(angle))
            canvas.line([(x - reach[0], y - reach[1]), (x + reach[0], y + reach[1])], light, size * 0.6)
    glow = with_grain(canvas.finish(blur=1.1), rng, 0.035)
    return Image.merge("RGB", [glow.point(_ramp(channel)) for channel in _GLOWS[attributes["colour"]]])


def _ramp(channel: int) -> list[int]:
    """Table that takes grey levels to one channel of a colour on black."""
    return [level * channel // 255 for level in range(256)]


# Histopathology ----------------------------------------------------------------------------------------------------

_EOSIN: dict[str, tuple[Colour, Colour]] = {
    "pale pink": ((250, 224, 234), (242, 203, 219)),
    "bright pink": ((246, 150, 190), (236, 125, 172)),
    "red": ((226, 92, 110), (208, 72, 92)),
    "violet": ((206, 160, 222), (186, 136, 206)),
}
_NUCLEI: tuple[Colour, ...] = ((72, 38, 130), (58, 26, 112), (92, 52, 148))
_NUCLEUS_RADII = {"small": 0.014, "medium-sized": 0.024, "large": 0.04}
_GLAND_PLACES: tuple[Point, ...] = ((0.25, 0.25), (0.75, 0.74), (0.75, 0.25), (0.25, 0.74), (0.5, 0.5))
_GLAND_COUNTS = {"no": 0, **NUMBERS}


def draw_hematoxylin_eosin(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Fibrous stroma with dark nuclei, and glands with a white lumen."""
    canvas = Canvas(rng, WHITE)
    light, dark = _EOSIN[attributes["eosin"]]
    fibres = clouds(canvas.image.size, rng, columns=6, rows=28)
    canvas.paint(Image.composite(Image.new("RGB", canvas.image.size, light), _plain(canvas, dark), fibres))
    radius = _NUCLEUS_RADII[attributes["nuclei"]]
    amount = {"small": 420, "medium-sized": 190, "large": 90}[attributes["nuclei"]]
    for position in _crowd(canvas, rng, attributes["place"], amount, outside=0.08):
        _nucleus(canvas, rng, position, radius)
    count = _GLAND_COUNTS[attributes["glands"].split()[0]]
    first = int(rng.integers(len(_GLAND_PLACES)))
    for number in range(count):
        x, y = _GLAND_PLACES[(first + number) % len(_GLAND_PLACES)]
        _gland(canvas, rng, (x + rng.normal(0, 0.015), y + rng.normal(0, 0.015)), radius)
    return canvas.finish(blur=0.6)


def _gland(canvas: Canvas, rng: np.random.Generator, centre: Point, nucleus_radius: float) -> None:
    """A white lumen in a ring of epithelium."""
    radii = (rng.uniform(0.1, 0.12), rng.uniform(0.1, 0.12))
    canvas.ellipse(centre, (radii[0] + 0.05, radii[1] + 0.05), (188, 120, 188))
    canvas.ellipse(centre, radii, (252, 250, 252))
    for angle in np.linspace(0, 2 * math.pi, round(0.8 / (nucleus_radius + 0.016)), endpoint=False):
        position = (
            centre[0] + (radii[0] + 0.03) * math.cos(angle),
            centre[1] + (radii[1] + 0.03) * math.sin(angle),
        )
        _nucleus(canvas, rng, position, min(nucleus_radius, 0.022))


def _nucleus(canvas: Canvas, rng: np.random.Generator, centre: Point, radius: float) -> None:
    stretch = rng.uniform(0.8, 1.25)
    canvas.ellipse(centre, (radius * stretch, radius / stretch), _NUCLEI[int(rng.integers(len(_NUCLEI)))])


_CHROMOGENS: dict[str, tuple[Colour, Colour]] = {
    "brown": ((176, 110, 55), (105, 55, 18)),
    "red": ((232, 90, 85), (190, 20, 30)),
    "black": ((95, 95, 95), (20, 20, 20)),
    "green": ((90, 180, 100), (20, 115, 50)),
    "purple": ((180, 95, 200), (115, 25, 145)),
}
_SECTION_GROUNDS: dict[str, Colour] = {
    "white": (250, 250, 250),
    "grey": (196, 198, 202),
    "pale blue": (186, 212, 242),
    "pale yellow": (252, 240, 188),
    "pale green": (204, 236, 200),
}
_CELL_RADII = {"small": 0.022, "medium-sized": 0.036, "large": 0.055}


def draw_immunohistochemistry(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Stained cells among pale blue nuclei."""
    canvas = Canvas(rng, WHITE)
    ground = np.array(_SECTION_GROUNDS[attributes["background"]])
    mottling = clouds(canvas.image.size, rng, columns=12, rows=10)
    canvas.paint(Image.composite(_plain(canvas, _colour(ground)), _plain(canvas, _colour(ground * 0.94)), mottling))
    radius = _CELL_RADII[attributes["cells"]]
    amount = {"small": 240, "medium-sized": 110, "large": 52}[attributes["cells"]]
    for x, y in _crowd(canvas, rng, "throughout", amount // 2, outside=0.0):
        canvas.ellipse((x, y), (radius * 0.5, radius * 0.5), (112, 138, 186))
    membrane, core = _CHROMOGENS[attributes["stain"]]
    for x, y in _crowd(canvas, rng, attributes["place"], amount, outside=0.0):
        canvas.ellipse((x, y), (radius, radius * rng.uniform(0.8, 1.0)), membrane)
        canvas.ellipse((x, y), (radius * 0.6, radius * 0.55), core)
    return canvas.finish(blur=0.6)


def _crowd(canvas: Canvas, rng: np.random.Generator, region: str, amount: int, outside: float) -> list[Point]:
    """About `amount` positions for each central square's worth of the region, none close to another.

    `outside` is the density beside the region, as a share of the density inside.
    """
    across, down = (1 + 2 * margin for margin in canvas.margins)
    # A jittered grid: quick, and cells keep their distance as in tissue. A small region is filled more tightly.
    columns = math.ceil(math.sqrt(amount * (1.0 if region == "throughout" else 1.6)) * across)
    rows = math.ceil(columns * down / across)
    column, row = np.meshgrid(np.arange(columns), np.arange(rows))
    x = (column + rng.uniform(0.15, 0.85, column.shape)) / columns * across - canvas.margins[0]
    y = (row + rng.uniform(0.15, 0.85, row.shape)) / rows * down - canvas.margins[1]
    kept = REGIONS[region](x, y) | (rng.random(x.shape) < outside)
    return list(zip(x[kept].tolist(), y[kept].tolist(), strict=True))


def _plain(canvas: Canvas, colour: Colour) -> Image.Image:
    return Image.new("RGB", canvas.image.size, colour)


def _colour(channels: np.ndarray) -> Colour:
    red, green, blue = (int(channel) for channel in channels)
    return red, green, blue


# Radiology ---------------------------------------------------------------------------------------------------------

_LUNG_PLACES: dict[str, Point] = {
    "upper left": (0.29, 0.27),
    "middle left": (0.25, 0.47),
    "lower left": (0.25, 0.68),
    "upper right": (0.71, 0.27),
    "middle right": (0.76, 0.47),
    "lower right": (0.81, 0.66),
}
_OPACITIES: dict[str, tuple[float, int]] = {
    "a small nodule": (0.045, 255),
    "a large mass": (0.11, 250),
    "a haze": (0.16, 150),
}
_HEARTS = {"small": 0.1, "normal": 0.16, "large": 0.21}
_DISPLAYS: dict[str, tuple[float, int]] = {
    "dark": (0.5, 0),
    "medium": (0.8, 10),
    "bright": (0.75, 64),
    "inverted": (-0.85, 240),
}


def draw_chest_x_ray(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """A frontal chest, grey-scale, with one opacity; left and right are those of the picture."""
    canvas = Canvas(rng, 30, widest=1.3)
    canvas.ellipse((0.5, 0.62), (0.56, 0.68), 165)
    canvas.rectangle((0.4, -0.2, 0.6, 0.2), 175)
    for side in (-1, 1):
        _lung(canvas, rng, side)
    canvas.rectangle((0.46, -0.1, 0.54, 1.1), 190)
    heart = _HEARTS[attributes["heart"]]
    canvas.ellipse((0.5 + heart * 0.35, 0.68), (heart, 0.14 + heart * 0.2), 215)
    canvas.ellipse((0.27, 0.98), (0.25, 0.13), 205)
    canvas.ellipse((0.74, 0.98), (0.25, 0.11), 205)
    form, _, place = attributes["finding"].partition(" in the ")
    spread, strength = _OPACITIES[form]
    x, y = _LUNG_PLACES[place]
    canvas.paint(_film(canvas, rng, (x, y), spread, strength))
    if attributes["electrodes"] == "electrodes":
        _electrodes(canvas, rng)
    gain, offset = _DISPLAYS[attributes["display"]]
    film = with_grain(canvas.finish(blur=1.0), rng, 0.03)
    return film.point([round(min(255, max(0, gain * level + offset))) for level in range(256)])


def _lung(canvas: Canvas, rng: np.random.Generator, side: int) -> None:
    x = 0.5 + side * 0.235
    canvas.ellipse((x, 0.5), (0.185, 0.4), 55)
    canvas.ellipse((x + side * 0.02, 0.68), (0.185, 0.25), 55)
    tilt = rng.uniform(0.02, 0.05)
    for rib in range(6):
        y = 0.2 + rib * 0.12
        canvas.arc((x - 0.21, y - 0.05 + tilt, x + 0.21, y + 0.12), 190, 350, 95, 0.014)
    canvas.line([(0.5 + side * 0.05, 0.16), (0.5 + side * 0.42, 0.08)], 205, 0.025)


def _film(canvas: Canvas, rng: np.random.Generator, centre: Point, spread: float, strength: int) -> Image.Image:
    """The film so far, with the anatomy softened and an opacity on top, as attenuation adds up."""
    veil = Canvas.like(canvas, 0)
    veil.ellipse(centre, (spread * rng.uniform(0.9, 1.1), spread), strength)
    soft = veil.softened(0.012 if strength > 200 else 0.05)
    return Image.composite(Image.new("L", canvas.image.size, 245), canvas.softened(0.008), soft)


def _electrodes(canvas: Canvas, rng: np.random.Generator) -> None:
    for x, y in ((0.14, 0.14), (0.86, 0.14), (0.9, 0.86)):
        x, y = x + rng.normal(0, 0.01), y + rng.normal(0, 0.01)
        canvas.line([(x, y), ((x + 0.5) / 2, 0.88), (0.42, 1.4)], 255, 0.02)
        canvas.ellipse((x, y), (0.05, 0.05), 255)


_LESION_PLACES: dict[str, tuple[Point, ...]] = {
    "in the upper left": ((0.36, 0.3),),
    "in the upper middle": ((0.5, 0.22),),
    "in the upper right": ((0.64, 0.3),),
    "on the left": ((0.27, 0.5),),
    "on the right": ((0.73, 0.5),),
    "on both sides": ((0.27, 0.5), (0.73, 0.5)),
    "in the lower left": ((0.36, 0.72),),
    "in the lower middle": ((0.5, 0.8),),
    "in the lower right": ((0.64, 0.72),),
}
_LESION_RADII = {"small": 0.058, "large": 0.1}
_VENTRICLE_WIDTHS = {"narrow": 0.022, "wide": 0.05}
_VENTRICLE_SHADES = {"dark": 15, "bright": 245}


def draw_brain_mri(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """An axial slice, grey-scale, with one lesion or a pair; left and right are those of the picture."""
    canvas = Canvas(rng, 0, widest=1.4)
    scalp = 225 if attributes["scalp"] == "bright" else 75
    canvas.ellipse((0.5, 0.5), (0.41, 0.48), scalp)
    canvas.ellipse((0.5, 0.5), (0.37, 0.44), 10)
    canvas.ellipse((0.5, 0.5), (0.35, 0.42), 120)
    folds = clouds(canvas.image.size, rng, columns=26, rows=26).point(lambda level: level * 0.45)
    brain = Canvas.like(canvas, 0)
    brain.ellipse((0.5, 0.5), (0.35, 0.42), 255)
    canvas.image.paste(80, mask=Image.composite(folds, Image.new("L", folds.size), brain.image))
    canvas.line([(0.5, 0.09), (0.5, 0.91)], 70, 0.01)
    width, shade = attributes["ventricles"].split(" and ")
    for side in (-1, 1):
        _ventricle(canvas, side, _VENTRICLE_WIDTHS[width], _VENTRICLE_SHADES[shade])
    size, _, look = attributes["lesion"].partition(" ")
    for x, y in _LESION_PLACES[attributes["place"]]:
        centre = (x + rng.normal(0, 0.008), y + rng.normal(0, 0.008))
        _lesion(canvas, centre, _LESION_RADII[size] * rng.uniform(0.93, 1.07), look)
    return with_grain(canvas.finish(blur=1.0), rng, 0.03)


def _ventricle(canvas: Canvas, side: int, width: float, shade: int) -> None:
    """One wing of the butterfly: a front and a back horn that lean outwards."""
    for end in (-1, 1):
        canvas.line([(0.5 + side * width, 0.5), (0.5 + side * (width + 0.05), 0.5 + end * 0.12)], shade, width * 1.7)
    canvas.ellipse((0.5 + side * width, 0.5), (width, 0.06), shade)


def _lesion(canvas: Canvas, centre: Point, radius: float, look: str) -> None:
    if look == "ring-shaped":
        canvas.ellipse(centre, (radius, radius), 10, 250, radius * 0.4)
    else:
        canvas.ellipse(centre, (radius, radius * 0.92), 250 if look == "bright" else 5)


def _counted(noun: str, plural: str, *numbers: str) -> tuple[str, ...]:
    return tuple(f"{number} {noun if number == 'one' else plural}" for number in numbers)


FIGURE_KINDS: dict[str, FigureKind] = {
    kind.name: kind
    for kind in (
        FigureKind(
            "line chart",
            {
                "curves": _counted("curve", "curves", "one", "two", "three"),
                "colour": tuple(COLOURS),
                "trend": tuple(_CURVES),
                "background": tuple(BACKGROUNDS),
            },
            draw_line_chart,
        ),
        FigureKind(
            "bar chart",
            {
                "bars": _counted("bar", "bars", "three", "four", "five"),
                "colour": tuple(COLOURS),
                "pattern": tuple(_BAR_PATTERNS),
                "background": tuple(BACKGROUNDS),
            },
            draw_bar_chart,
        ),
        FigureKind(
            "scatter plot",
            {
                "amount": tuple(_POINT_COUNTS),
                "colour": tuple(COLOURS),
                "arrangement": tuple(_POINT_CLOUDS),
                "background": tuple(BACKGROUNDS),
            },
            draw_scatter_plot,
        ),
        FigureKind(
            "pie chart",
            {
                "slices": _counted("slice", "slices", "two", "three", "four", "five"),
                "colour": tuple(COLOURS),
                "place": tuple(_DIRECTIONS),
                "background": tuple(BACKGROUNDS),
            },
            draw_pie_chart,
        ),
        FigureKind(
            "heat map",
            {
                "grid": tuple(_GRIDS),
                "scheme": tuple(_SCHEMES),
                "patch": tuple(_SPREADS),
                "place": tuple(PLACES),
            },
            draw_heat_map,
        ),
        FigureKind(
            "flow chart",
            {
                "boxes": _counted("box", "boxes", "two", "three", "four", "five"),
                "colour": tuple(COLOURS),
                "layout": ("in a column", "in a row", "descending like stairs", "ascending like stairs"),
                "background": tuple(BACKGROUNDS),
            },
            draw_flow_chart,
        ),
        FigureKind(
            "composite figure",
            {
                "left panel": _PANEL_SHAPES,
                "left colour": tuple(COLOURS),
                "right panel": _PANEL_SHAPES,
                "right colour": tuple(COLOURS),
            },
            draw_composite_figure,
        ),
        FigureKind(
            "gel electrophoresis",
            {
                "lanes": _counted("lane", "lanes", "three", "four", "five"),
                "look": tuple(_GEL_LOOKS),
                "level": tuple(_BAND_LEVELS),
                "strength": tuple(_BAND_STRENGTHS),
            },
            draw_gel,
        ),
        FigureKind(
            "fluorescence microscopy",
            {
                "amount": tuple(_CELL_COUNTS),
                "colour": tuple(_GLOWS),
                "shape": ("round", "ring-shaped", "elongated"),
                "place": tuple(REGIONS),
            },
            draw_fluorescence,
        ),
        FigureKind(
            "hematoxylin and eosin histopathology",
            {
                "eosin": tuple(_EOSIN),
                "nuclei": tuple(_NUCLEUS_RADII),
                "place": tuple(REGIONS),
                "glands": ("no gland", *_counted("gland", "glands", *NUMBERS)),
            },
            draw_hematoxylin_eosin,
        ),
        FigureKind(
            "immunohistochemistry histopathology",
            {
                "stain": tuple(_CHROMOGENS),
                "cells": tuple(_CELL_RADII),
                "place": tuple(REGIONS),
                "background": tuple(_SECTION_GROUNDS),
            },
            draw_immunohistochemistry,
        ),
        FigureKind(
            "chest X-ray",
            {
                "finding": tuple(f"{form} in the {place}" for form in _OPACITIES for place in _LUNG_PLACES),
                "heart": tuple(_HEARTS),
                "display": tuple(_DISPLAYS),
                "electrodes": ("electrodes", "no electrodes"),
            },
            draw_chest_x_ray,
        ),
        FigureKind(
            "brain MRI",
            {
                "lesion": tuple(
                    f"{size} {look}" for size in _LESION_RADII for look in ("bright", "dark", "ring-shaped")
                ),
                "place": tuple(_LESION_PLACES),
                "ventricles": tuple(
                    f"{width} and {shade}" for width in _VENTRICLE_WIDTHS for shade in _VENTRICLE_SHADES
                ),
                "scalp": ("bright", "dark"),
            },
            draw_brain_mri,
        ),
    )
}
