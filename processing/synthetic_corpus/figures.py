"""Kinds of synthetic figures, each drawn from explicit attributes.

Each combination of attribute values is a different figure. The differences are visible at 64 x 64 pixels. Captions
mention the attributes, but not the other variations: size, noise and small shifts.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .canvas import INK, Canvas, Color, Point


Attributes = Mapping[str, str]

COLORS: dict[str, Color] = {
    "red": (214, 30, 35),
    "blue": (30, 80, 205),
    "green": (35, 150, 55),
    "orange": (255, 140, 0),
    "purple": (135, 45, 175),
    "black": (25, 25, 25),
}
BACKGROUNDS: dict[str, Color] = {
    "white": (255, 255, 255),
    "gray": (200, 200, 200),
    "pale yellow": (255, 247, 178),
    "pale blue": (190, 222, 255),
    "pale pink": (255, 208, 222),
}
NUMBERS = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
REGIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "on the left": lambda x, y: x < 0.42,
    "on the right": lambda x, y: x > 0.58,
    "in the upper half": lambda x, y: y < 0.42,
    "in the lower half": lambda x, y: y > 0.58,
    "in the center": lambda x, y: (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.075,
    "throughout": lambda x, y: np.ones_like(x, dtype=bool),
}


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure.

    Args:
        draw: Function that draws a figure, given a value for each attribute.
        topic: Topic of these figures, for captions and titles.
        description: Description of a figure, with the attributes in braces.
        attributes: Values of each attribute.
    """

    draw: Callable[[Attributes, np.random.Generator], Image.Image]
    topic: str
    description: str
    attributes: Mapping[str, tuple[str, ...]]

    @property
    def combinations(self) -> int:
        """Number of different figures."""
        return math.prod(len(values) for values in self.attributes.values())

    def combination(self, number: int) -> dict[str, str]:
        """Return the attributes of the figure with a number from 0 to `combinations - 1`."""
        chosen = {}
        for attribute, values in self.attributes.items():
            number, position = divmod(number, len(values))
            chosen[attribute] = values[position]
        return chosen


def _number(text: str) -> int:
    """Return the number at the beginning of a value such as "three bars"."""
    return NUMBERS[text.split()[0]]


def _counted(noun: str, *numbers: str) -> tuple[str, ...]:
    return tuple(f"{number} {noun}{'' if number == 'one' else 's'}" for number in numbers)


# Charts

_TRENDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "rising": lambda x: x,
    "falling": lambda x: 1 - x,
    "peaking in the middle": lambda x: np.exp(-(((x - 0.5) / 0.25) ** 2)),
    "dipping in the middle": lambda x: 1 - np.exp(-(((x - 0.5) / 0.25) ** 2)),
    "staying flat": lambda x: np.full_like(x, 0.5),
    "oscillating": lambda x: 0.5 + 0.5 * np.sin(x * 5 * math.pi),
}
_DIRECTIONS = {"on the right": 0, "at the bottom": 90, "on the left": 180, "at the top": 270}
_GRAYS = (225, 110, 180, 75)  # of the remaining slices


def _on_axes(x: float, y: float) -> Point:
    """Return the position of a point in a chart, whose axes range from 0 to 1."""
    return 0.15 + 0.8 * x, 0.86 - 0.79 * y


def _chart(attributes: Attributes, rng: np.random.Generator) -> Canvas:
    """Return a canvas with the axes of a chart."""
    canvas = Canvas(rng, BACKGROUNDS[attributes["background"]])
    canvas.line([_on_axes(0, 1), _on_axes(0, 0), _on_axes(1, 0)], INK, 0.012)
    for tick in np.linspace(0, 1, int(rng.integers(3, 6))):
        canvas.line([_on_axes(tick, -0.04), _on_axes(tick, 0)], INK, 0.01)
        canvas.line([_on_axes(-0.04, tick), _on_axes(0, tick)], INK, 0.01)
    return canvas


def draw_line_chart(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Draw parallel curves of one color."""
    canvas = _chart(attributes, rng)
    count = _number(attributes["curves"])
    x = np.linspace(0.03, 0.97, 24)
    trend = _TRENDS[attributes["trend"]](x) - 0.5
    for number in range(count):
        middle = 0.5 + (number - (count - 1) / 2) * 0.22
        y = middle + trend * rng.uniform(0.42, 0.5) + rng.normal(0, 0.008, x.size)
        canvas.line(map(_on_axes, x, y), COLORS[attributes["color"]], 0.034)
    return canvas.finish()


def draw_bar_chart(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Draw bars of one color."""
    canvas = _chart(attributes, rng)
    count = _number(attributes["bars"])
    heights = 0.25 + 0.65 * _TRENDS[attributes["trend"]](np.linspace(0, 1, count)) + rng.normal(0, 0.02, count)
    for number, height in enumerate(heights):
        left, right = (number + 0.2) / count, (number + 0.8) / count
        canvas.box((*_on_axes(left, height), *_on_axes(right, 0)), COLORS[attributes["color"]], INK)
    return canvas.finish()


def draw_pie_chart(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Draw a pie with one colored half and gray slices."""
    canvas = Canvas(rng, BACKGROUNDS[attributes["background"]])
    others = _number(attributes["slices"]) - 1
    radius = rng.uniform(0.36, 0.43)
    start = _DIRECTIONS[attributes["place"]] - 90 + rng.uniform(-10, 10)
    canvas.slice(0.5, 0.5, radius, (start, start + 180), COLORS[attributes["color"]])
    for number in range(others):
        angles = (start + 180 + 180 * number / others, start + 180 + 180 * (number + 1) / others)
        canvas.slice(0.5, 0.5, radius, angles, (_GRAYS[number],) * 3)
    return canvas.finish()


# Laboratory

_GELS: dict[str, tuple[Color, Color]] = {
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
_GLOWS: dict[str, Color] = {
    "green": (40, 255, 60),
    "red": (255, 35, 35),
    "blue": (50, 80, 255),
    "magenta": (255, 40, 230),
    "cyan": (30, 235, 255),
    "yellow": (255, 235, 40),
    "orange": (255, 135, 20),
    "white": (255, 255, 255),
}
_CELLS = {"a few": (7, 0.075), "many": (22, 0.055), "very many": (75, 0.036)}  # number and radius


def draw_gel(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Draw lanes with one or two bands."""
    band, ground = _GELS[attributes["look"]]
    canvas = Canvas(rng, ground)
    count = _number(attributes["lanes"])
    for number in range(count):
        lane, x, half = number / (count - 1), (number + 0.5) / count, 0.36 / count
        canvas.box((x - half, 0.03, x + half, 0.97), _mixed(ground, band, 0.07))
        strength = _BAND_STRENGTHS[attributes["strength"]](lane)
        for level in _BAND_LEVELS[attributes["level"]](lane):
            y = level + rng.normal(0, 0.008)
            canvas.ellipse(x, y, (half, 0.045 + 0.015 * strength), _mixed(ground, band, strength))
    return canvas.finish(blur=1.2, grain=0.03)


def draw_fluorescence(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Draw glowing cells in the dark."""
    canvas = Canvas(rng, (0, 0, 0))
    count, radius = _CELLS[attributes["amount"]]
    for x, y in _crowd(canvas, attributes["place"], count):
        light = _mixed((0, 0, 0), _GLOWS[attributes["color"]], rng.uniform(0.7, 1.0))
        size = radius * rng.uniform(0.85, 1.15)
        if attributes["shape"] == "round":
            canvas.ellipse(x, y, (size, size), light)
        elif attributes["shape"] == "ring-shaped":
            canvas.ellipse(x, y, (size, size), None, light, size * 0.42)
        else:
            canvas.line([(x - size * 2.1, y), (x + size * 2.1, y + rng.normal(0, 0.3) * size)], light, size * 0.6)
    return canvas.finish(blur=1.1, grain=0.035)


def _mixed(color: Color, other: Color, share: float) -> Color:
    red, green, blue = (round(one + share * (two - one)) for one, two in zip(color, other, strict=True))
    return red, green, blue


def _crowd(canvas: Canvas, region: str, amount: float, outside: float = 0.0) -> Iterable[Point]:
    """Return positions in a region that keep a minimum distance from each other.

    Args:
        canvas: Canvas of the positions.
        region: One of `REGIONS`.
        amount: Approximate number of positions in the central square, if the region covers all of it.
        outside: Density outside the region, as a fraction of the density inside.
    """
    across, down = (1 + 2 * margin for margin in canvas.margins)
    columns = math.ceil(math.sqrt(amount * (1.0 if region == "throughout" else 1.6)) * across)
    rows = math.ceil(columns * down / across)
    column, row = np.meshgrid(np.arange(columns), np.arange(rows))
    x = (column + canvas.rng.uniform(0.15, 0.85, column.shape)) / columns * across - canvas.margins[0]
    y = (row + canvas.rng.uniform(0.15, 0.85, row.shape)) / rows * down - canvas.margins[1]
    kept = REGIONS[region](x, y) | (canvas.rng.random(x.shape) < outside)
    return zip(x[kept].tolist(), y[kept].tolist(), strict=True)


# Histopathology

_EOSIN: dict[str, tuple[Color, Color]] = {
    "pale pink": ((250, 224, 234), (242, 203, 219)),
    "bright pink": ((246, 150, 190), (236, 125, 172)),
    "red": ((226, 92, 110), (208, 72, 92)),
    "violet": ((206, 160, 222), (186, 136, 206)),
}
_NUCLEUS: Color = (72, 38, 130)
_NUCLEI = {"small": (420, 0.014), "medium-sized": (190, 0.024), "large": (90, 0.04)}  # number and radius
_GLAND_PLACES: tuple[Point, ...] = ((0.25, 0.25), (0.75, 0.74), (0.75, 0.25), (0.25, 0.74), (0.5, 0.5))


def draw_hematoxylin_eosin(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Draw fibrous stroma with dark nuclei and white glands."""
    light, dark = _EOSIN[attributes["eosin"]]
    canvas = Canvas(rng, dark)
    canvas.cloud(light, columns=6, rows=28)
    count, radius = _NUCLEI[attributes["nuclei"]]
    for x, y in _crowd(canvas, attributes["place"], count, outside=0.08):
        stretch = rng.uniform(0.8, 1.25)
        canvas.ellipse(x, y, (radius * stretch, radius / stretch), _NUCLEUS)
    first = int(rng.integers(len(_GLAND_PLACES)))
    for number in range(_number(attributes["glands"])):
        x, y = _GLAND_PLACES[(first + number) % len(_GLAND_PLACES)]
        size = rng.uniform(0.1, 0.12)
        canvas.ellipse(x, y, (size + 0.05, size + 0.05), (188, 120, 188))
        canvas.ellipse(x, y, (size, size), (252, 250, 252))
    return canvas.finish(blur=0.6)


# Radiology

_LUNG_PLACES: dict[str, Point] = {
    "upper left": (0.29, 0.27),
    "middle left": (0.25, 0.47),
    "lower left": (0.25, 0.68),
    "upper right": (0.71, 0.27),
    "middle right": (0.76, 0.47),
    "lower right": (0.81, 0.66),
}
_FINDINGS = {"a small nodule": (0.045, 255), "a large mass": (0.11, 250), "a haze": (0.16, 175)}  # radius and gray
_HEARTS = {"small": 0.1, "normal": 0.16, "large": 0.21}
_DISPLAYS = {"dark": (0.5, 0), "medium": (0.8, 10), "bright": (0.75, 64), "inverted": (-0.85, 240)}  # gain and offset
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
_LESION_LOOKS = {"bright": 250, "dark": 5, "ring-shaped": 10}
_VENTRICLES = {
    "narrow and dark": (0.022, 15),
    "narrow and bright": (0.022, 245),
    "wide and dark": (0.05, 15),
    "wide and bright": (0.05, 245),
}


def _gray(level: int) -> Color:
    return level, level, level


def draw_chest_x_ray(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Draw a frontal chest with one opacity. Left and right are those of the image."""
    canvas = Canvas(rng, _gray(30))
    canvas.ellipse(0.5, 0.62, (0.56, 0.68), _gray(165))
    for side in (-1, 1):
        x = 0.5 + side * 0.235
        canvas.ellipse(x, 0.5, (0.185, 0.4), _gray(55))
        canvas.ellipse(x + side * 0.02, 0.68, (0.185, 0.25), _gray(55))
        for rib in range(6):
            canvas.arc(x, 0.25 + rib * 0.12, (0.21, 0.07), (190, 350), _gray(95))
    canvas.box((0.46, -0.1, 0.54, 1.1), _gray(190))
    heart = _HEARTS[attributes["heart"]]
    canvas.ellipse(0.5 + heart * 0.35, 0.68, (heart, 0.14 + heart * 0.2), _gray(215))
    for x in (0.27, 0.74):
        canvas.ellipse(x, 0.98, (0.25, 0.12), _gray(205))
    form, _, place = attributes["finding"].partition(" in the ")
    radius, level = _FINDINGS[form]
    canvas.glow(*_LUNG_PLACES[place], radius * rng.uniform(0.95, 1.1), _gray(level), 0.012 if level > 200 else 0.05)
    if attributes["electrodes"] == "electrodes":
        for x, y in ((0.14, 0.14), (0.86, 0.14), (0.9, 0.86)):
            canvas.line([(x, y), ((x + 0.5) / 2, 0.88), (0.42, 1.4)], _gray(255), 0.02)
            canvas.ellipse(x, y, (0.05, 0.05), _gray(255))
    gain, offset = _DISPLAYS[attributes["display"]]
    film = canvas.finish(blur=1.0, grain=0.03).convert("L")
    return film.point([round(min(255, max(0, gain * level + offset))) for level in range(256)])


def draw_brain_mri(attributes: Attributes, rng: np.random.Generator) -> Image.Image:
    """Draw an axial slice with one or two lesions. Left and right are those of the image."""
    canvas = Canvas(rng, _gray(0))
    canvas.ellipse(0.5, 0.5, (0.41, 0.48), _gray(225 if attributes["scalp"] == "bright" else 75))
    canvas.ellipse(0.5, 0.5, (0.37, 0.44), _gray(10))
    canvas.ellipse(0.5, 0.5, (0.35, 0.42), _gray(110))
    canvas.line([(0.5, 0.09), (0.5, 0.91)], _gray(70), 0.01)
    width, level = _VENTRICLES[attributes["ventricles"]]
    for side in (-1, 1):
        for end in (-1, 1):
            horn = [(0.5 + side * width, 0.5), (0.5 + side * (width + 0.05), 0.5 + end * 0.12)]
            canvas.line(horn, _gray(level), width * 1.7)
    size, _, look = attributes["lesion"].partition(" ")
    radius = _LESION_RADII[size] * rng.uniform(0.93, 1.07)
    for x, y in _LESION_PLACES[attributes["place"]]:
        outline = _gray(250) if look == "ring-shaped" else None
        canvas.ellipse(x, y, (radius, radius), _gray(_LESION_LOOKS[look]), outline, radius * 0.4)
    return canvas.finish(blur=1.0, grain=0.03).convert("L")


FIGURE_KINDS: dict[str, FigureKind] = {
    "line chart": FigureKind(
        draw_line_chart,
        "Release of TNF-α over time",
        "{curves} in {color} {trend} on a {background} background",
        {
            "curves": _counted("curve", "one", "two", "three"),
            "color": tuple(COLORS),
            "trend": tuple(_TRENDS),
            "background": tuple(BACKGROUNDS),
        },
    ),
    "bar chart": FigureKind(
        draw_bar_chart,
        "Relative expression of IL-1β",
        "{bars} in {color} {trend} on a {background} background",
        {
            "bars": _counted("bar", "three", "four", "five"),
            "color": tuple(COLORS),
            "trend": tuple(_TRENDS)[:5],  # a small number of bars cannot oscillate
            "background": tuple(BACKGROUNDS),
        },
    ),
    "pie chart": FigureKind(
        draw_pie_chart,
        "Composition of the cohort",
        "{slices} and the largest slice in {color} {place}, on a {background} background",
        {
            "slices": _counted("slice", "two", "three", "four", "five"),
            "color": tuple(COLORS),
            "place": tuple(_DIRECTIONS),
            "background": tuple(BACKGROUNDS),
        },
    ),
    "gel electrophoresis": FigureKind(
        draw_gel,
        "Detection of α-tubulin",
        "{lanes} and {look} {level}, {strength}",
        {
            "lanes": _counted("lane", "three", "four", "five"),
            "look": tuple(_GELS),
            "level": tuple(_BAND_LEVELS),
            "strength": tuple(_BAND_STRENGTHS),
        },
    ),
    "fluorescence microscopy": FigureKind(
        draw_fluorescence,
        "Localization of β-actin",
        "{amount} {shape} {color} cells {place}",
        {
            "amount": tuple(_CELLS),
            "color": tuple(_GLOWS),
            "shape": ("round", "ring-shaped", "elongated"),
            "place": tuple(REGIONS),
        },
    ),
    "hematoxylin and eosin histopathology": FigureKind(
        draw_hematoxylin_eosin,
        "Section of the resected tissue",
        "{nuclei} nuclei crowded {place}, {glands} and {eosin} stroma",
        {
            "eosin": tuple(_EOSIN),
            "nuclei": tuple(_NUCLEI),
            "place": tuple(REGIONS),
            "glands": _counted("gland", *NUMBERS),
        },
    ),
    "chest X-ray": FigureKind(
        draw_chest_x_ray,
        "Radiograph on admission",
        "{finding}, a {heart} heart, {display} display and {electrodes}",
        {
            "finding": tuple(f"{form} in the {place}" for form in _FINDINGS for place in _LUNG_PLACES),
            "heart": tuple(_HEARTS),
            "display": tuple(_DISPLAYS),
            "electrodes": ("electrodes", "no electrodes"),
        },
    ),
    "brain MRI": FigureKind(
        draw_brain_mri,
        "Imaging before surgery",
        "a {lesion} lesion {place}, {ventricles} ventricles and {scalp} scalp",
        {
            "lesion": tuple(f"{size} {look}" for size in _LESION_RADII for look in _LESION_LOOKS),
            "place": tuple(_LESION_PLACES),
            "ventricles": tuple(_VENTRICLES),
            "scalp": ("bright", "dark"),
        },
    ),
}
