"""Kinds of synthetic figures, each drawn from explicit attributes.

Each combination of attribute values is a different figure. The differences are visible at 64 x 64 pixels. Captions
mention the attributes, but not the other variations: size, noise and small shifts.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .canvas import INK, Canvas, Color, Point


Rng = np.random.Generator
Region = Callable[[np.ndarray, np.ndarray], np.ndarray]
Trend = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class FigureKind:
    """One kind of figure. `function` draws it, given a random number generator and a value of each attribute."""

    function: Callable[..., Image.Image]
    topic: str  # for captions and titles
    description: str  # with the attributes in braces
    attributes: Mapping[str, Mapping[str, Any]]  # the values of each attribute, by their names in descriptions

    @property
    def combinations(self) -> int:
        """Number of different figures."""
        return math.prod(len(values) for values in self.attributes.values())

    def combination(self, number: int) -> dict[str, str]:
        """Return the attributes of the figure with a number from 0 to `combinations - 1`."""
        chosen = {}
        for attribute, values in self.attributes.items():
            number, position = divmod(number, len(values))
            chosen[attribute] = list(values)[position]
        return chosen

    def draw(self, chosen: Mapping[str, str], rng: Rng) -> Image.Image:
        """Draw the figure with the chosen attributes."""
        return self.function(rng, **{name: values[chosen[name]] for name, values in self.attributes.items()})


FIGURE_KINDS: dict[str, FigureKind] = {}

_COLORS: dict[str, Color] = {
    "red": (214, 30, 35),
    "blue": (30, 80, 205),
    "green": (35, 150, 55),
    "orange": (255, 140, 0),
    "purple": (135, 45, 175),
    "black": (25, 25, 25),
}
_BACKGROUNDS: dict[str, Color] = {
    "white": (255, 255, 255),
    "gray": (200, 200, 200),
    "pale yellow": (255, 247, 178),
    "pale blue": (190, 222, 255),
    "pale pink": (255, 208, 222),
}
_NUMBERS = ("no", "one", "two", "three", "four", "five")
_REGIONS: dict[str, Region] = {
    "on the left": lambda x, y: x < 0.42,
    "on the right": lambda x, y: x > 0.58,
    "in the upper half": lambda x, y: y < 0.42,
    "in the lower half": lambda x, y: y > 0.58,
    "in the center": lambda x, y: (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.075,
    "throughout": lambda x, y: np.ones_like(x, dtype=bool),
}


def _figure_kind(name: str, topic: str, description: str, **attributes: Mapping[str, Any]) -> Callable[..., Any]:
    """Add the kind of figure that the decorated function draws to `FIGURE_KINDS`."""

    def add(function: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
        FIGURE_KINDS[name] = FigureKind(function, topic, description, attributes)
        return function

    return add


def _counted(noun: str, *numbers: int) -> dict[str, int]:
    return {f"{_NUMBERS[number]} {noun}{'' if number == 1 else 's'}": number for number in numbers}


# Charts

_TRENDS: dict[str, Trend] = {
    "rising": lambda x: x,
    "falling": lambda x: 1 - x,
    "peaking in the middle": lambda x: np.exp(-(((x - 0.5) / 0.25) ** 2)),
    "dipping in the middle": lambda x: 1 - np.exp(-(((x - 0.5) / 0.25) ** 2)),
    "staying flat": lambda x: np.full_like(x, 0.5),
    "oscillating": lambda x: 0.5 + 0.5 * np.sin(x * 5 * math.pi),
}
_GRAYS = (225, 110, 180, 75)  # of the remaining slices


def _on_axes(x: float, y: float) -> Point:
    """Return the position of a point in a chart, whose axes range from 0 to 1."""
    return 0.15 + 0.8 * x, 0.86 - 0.79 * y


def _chart(rng: Rng, background: Color) -> Canvas:
    """Return a canvas with the axes of a chart."""
    canvas = Canvas(rng, background)
    canvas.line([_on_axes(0, 1), _on_axes(0, 0), _on_axes(1, 0)], INK, 0.012)
    for tick in np.linspace(0, 1, int(rng.integers(3, 6))):
        canvas.line([_on_axes(tick, -0.04), _on_axes(tick, 0)], INK, 0.01)
        canvas.line([_on_axes(-0.04, tick), _on_axes(0, tick)], INK, 0.01)
    return canvas


@_figure_kind(
    "line chart",
    "Release of TNF-α over time",
    "{curves} in {color} {trend} on a {background} background",
    curves=_counted("curve", 1, 2, 3),
    color=_COLORS,
    trend=_TRENDS,
    background=_BACKGROUNDS,
)
def _line_chart(rng: Rng, curves: int, color: Color, trend: Trend, background: Color) -> Image.Image:
    canvas = _chart(rng, background)
    x = np.linspace(0.03, 0.97, 24)
    shape = trend(x) - 0.5
    for number in range(curves):
        middle = 0.5 + (number - (curves - 1) / 2) * 0.22
        y = middle + shape * rng.uniform(0.42, 0.5) + rng.normal(0, 0.008, x.size)
        canvas.line(map(_on_axes, x, y), color, 0.034)
    return canvas.finish()


@_figure_kind(
    "bar chart",
    "Relative expression of IL-1β",
    "{bars} in {color} {trend} on a {background} background",
    bars=_counted("bar", 3, 4, 5),
    color=_COLORS,
    # A small number of bars cannot oscillate.
    trend={name: trend for name, trend in _TRENDS.items() if name != "oscillating"},
    background=_BACKGROUNDS,
)
def _bar_chart(rng: Rng, bars: int, color: Color, trend: Trend, background: Color) -> Image.Image:
    canvas = _chart(rng, background)
    heights = 0.25 + 0.65 * trend(np.linspace(0, 1, bars)) + rng.normal(0, 0.02, bars)
    for number, height in enumerate(heights):
        left, right = (number + 0.2) / bars, (number + 0.8) / bars
        canvas.box((*_on_axes(left, height), *_on_axes(right, 0)), color, INK)
    return canvas.finish()


@_figure_kind(
    "pie chart",
    "Composition of the cohort",
    "{slices} and the largest slice in {color} {place}, on a {background} background",
    slices=_counted("slice", 2, 3, 4, 5),
    color=_COLORS,
    place={"on the right": 0, "at the bottom": 90, "on the left": 180, "at the top": 270},
    background=_BACKGROUNDS,
)
def _pie_chart(rng: Rng, slices: int, color: Color, place: int, background: Color) -> Image.Image:
    """Draw one colored half and gray slices."""
    canvas = Canvas(rng, background)
    radius = rng.uniform(0.36, 0.43)
    start = place - 90 + rng.uniform(-10, 10)
    canvas.slice(0.5, 0.5, radius, (start, start + 180), color)
    angles = start + 180 + 180 * np.arange(slices) / (slices - 1)
    for first, last, gray in zip(angles[:-1], angles[1:], _GRAYS, strict=False):
        canvas.slice(0.5, 0.5, radius, (first, last), _gray(gray))
    return canvas.finish()


# Laboratory


@_figure_kind(
    "gel electrophoresis",
    "Detection of α-tubulin",
    "{lanes} and {look} {level}, {strength}",
    lanes=_counted("lane", 3, 4, 5),
    look={
        "black bands on white": ((20, 20, 20), (238, 238, 238)),
        "white bands on black": ((250, 250, 250), (15, 15, 15)),
        "blue bands on pale blue": ((20, 45, 150), (200, 215, 245)),
        "orange bands on black": ((255, 150, 30), (30, 10, 5)),
        "green bands on black": ((60, 250, 90), (5, 20, 8)),
        "purple bands on pale pink": ((95, 25, 120), (248, 215, 228)),
    },
    level={
        "near the top": lambda lane: (0.25,),
        "at mid-height": lambda lane: (0.5,),
        "near the bottom": lambda lane: (0.78,),
        "descending from left to right": lambda lane: (0.22 + 0.56 * lane,),
        "ascending from left to right": lambda lane: (0.78 - 0.56 * lane,),
        "at the top and at the bottom": lambda lane: (0.25, 0.78),
    },
    strength={
        "equally strong": lambda lane: 1.0,
        "strongest on the left": lambda lane: 1.0 - 0.75 * lane,
        "strongest on the right": lambda lane: 0.25 + 0.75 * lane,
        "weakest in the middle": lambda lane: 0.25 + 1.5 * abs(lane - 0.5),
    },
)
def _gel(
    rng: Rng, lanes: int, look: tuple[Color, Color], level: Callable[[float], Any], strength: Callable[[float], float]
) -> Image.Image:
    """Draw lanes with one or two bands. The position of a lane is between 0 and 1."""
    band, ground = look
    canvas = Canvas(rng, ground)
    for number in range(lanes):
        lane, x, half = number / (lanes - 1), (number + 0.5) / lanes, 0.36 / lanes
        canvas.box((x - half, 0.03, x + half, 0.97), _mixed(ground, band, 0.07))
        for height in level(lane):
            y = height + rng.normal(0, 0.008)
            canvas.ellipse(x, y, (half, 0.045 + 0.015 * strength(lane)), _mixed(ground, band, strength(lane)))
    return canvas.finish(blur=1.2, grain=0.03)


@_figure_kind(
    "fluorescence microscopy",
    "Localization of β-actin",
    "{amount} {shape} {color} cells {place}",
    amount={"a few": (7, 0.075), "many": (22, 0.055), "very many": (75, 0.036)},  # number and radius
    color={
        "green": (40, 255, 60),
        "red": (255, 35, 35),
        "blue": (50, 80, 255),
        "magenta": (255, 40, 230),
        "cyan": (30, 235, 255),
        "yellow": (255, 235, 40),
        "orange": (255, 135, 20),
        "white": (255, 255, 255),
    },
    shape={shape: shape for shape in ("round", "ring-shaped", "elongated")},
    place=_REGIONS,
)
def _fluorescence(rng: Rng, amount: tuple[int, float], color: Color, shape: str, place: Region) -> Image.Image:
    canvas = Canvas(rng, (0, 0, 0))
    count, radius = amount
    for x, y in _crowd(canvas, place, count):
        light = _mixed((0, 0, 0), color, rng.uniform(0.7, 1.0))
        size = radius * rng.uniform(0.85, 1.15)
        if shape == "round":
            canvas.ellipse(x, y, (size, size), light)
        elif shape == "ring-shaped":
            canvas.ellipse(x, y, (size, size), None, light, size * 0.42)
        else:
            canvas.line([(x - size * 2.1, y), (x + size * 2.1, y + rng.normal(0, 0.3) * size)], light, size * 0.6)
    return canvas.finish(blur=1.1, grain=0.035)


def _gray(level: int) -> Color:
    return level, level, level


def _mixed(color: Color, other: Color, share: float) -> Color:
    red, green, blue = (round(one + share * (two - one)) for one, two in zip(color, other, strict=True))
    return red, green, blue


def _crowd(canvas: Canvas, inside: Region, amount: float, outside: float = 0.0) -> Iterable[Point]:
    """Return positions in a region that keep a minimum distance from each other.

    `amount` is their approximate number in the central square, if the region covers all of it. `outside` is the density
    outside the region, as a fraction of the density inside.
    """
    across, down = (1 + 2 * margin for margin in canvas.margins)
    columns = math.ceil(math.sqrt(amount * (1.0 if inside is _REGIONS["throughout"] else 1.6)) * across)
    rows = math.ceil(columns * down / across)
    column, row = np.meshgrid(np.arange(columns), np.arange(rows))
    x = (column + canvas.rng.uniform(0.15, 0.85, column.shape)) / columns * across - canvas.margins[0]
    y = (row + canvas.rng.uniform(0.15, 0.85, row.shape)) / rows * down - canvas.margins[1]
    kept = inside(x, y) | (canvas.rng.random(x.shape) < outside)
    return zip(x[kept].tolist(), y[kept].tolist(), strict=True)


# Histopathology

_NUCLEUS: Color = (72, 38, 130)
_GLAND_PLACES: tuple[Point, ...] = ((0.25, 0.25), (0.75, 0.74), (0.75, 0.25), (0.25, 0.74), (0.5, 0.5))


@_figure_kind(
    "hematoxylin and eosin histopathology",
    "Section of the resected tissue",
    "{nuclei} nuclei crowded {place}, {glands} and {eosin} stroma",
    eosin={
        "pale pink": ((250, 224, 234), (242, 203, 219)),
        "bright pink": ((246, 150, 190), (236, 125, 172)),
        "red": ((226, 92, 110), (208, 72, 92)),
        "violet": ((206, 160, 222), (186, 136, 206)),
    },
    nuclei={"small": (420, 0.014), "medium-sized": (190, 0.024), "large": (90, 0.04)},  # number and radius
    place=_REGIONS,
    glands=_counted("gland", *range(6)),
)
def _hematoxylin_eosin(
    rng: Rng, eosin: tuple[Color, Color], nuclei: tuple[int, float], place: Region, glands: int
) -> Image.Image:
    """Draw fibrous stroma with dark nuclei and white glands."""
    light, dark = eosin
    canvas = Canvas(rng, dark)
    canvas.cloud(light, columns=6, rows=28)
    count, radius = nuclei
    for x, y in _crowd(canvas, place, count, outside=0.08):
        stretch = rng.uniform(0.8, 1.25)
        canvas.ellipse(x, y, (radius * stretch, radius / stretch), _NUCLEUS)
    first = int(rng.integers(len(_GLAND_PLACES)))
    for number in range(glands):
        x, y = _GLAND_PLACES[(first + number) % len(_GLAND_PLACES)]
        size = rng.uniform(0.1, 0.12)
        canvas.ellipse(x, y, (size + 0.05, size + 0.05), (188, 120, 188))
        canvas.ellipse(x, y, (size, size), (252, 250, 252))
    return canvas.finish(blur=0.6)


# Radiology. Left and right are those of the image.

_LUNG_PLACES: dict[str, Point] = {
    "upper left": (0.29, 0.27),
    "middle left": (0.25, 0.47),
    "lower left": (0.25, 0.68),
    "upper right": (0.71, 0.27),
    "middle right": (0.76, 0.47),
    "lower right": (0.81, 0.66),
}
_FINDINGS = {"a small nodule": (0.045, 255), "a large mass": (0.11, 250), "a haze": (0.16, 175)}  # radius and gray
_LESION_RADII = {"small": 0.058, "large": 0.1}
_LESION_LOOKS = {"bright": 250, "dark": 5, "ring-shaped": 10}


@_figure_kind(
    "chest X-ray",
    "Radiograph on admission",
    "{finding}, a {heart} heart, {display} display and {electrodes}",
    finding={
        f"{form} in the {place}": (*look, position)
        for form, look in _FINDINGS.items()
        for place, position in _LUNG_PLACES.items()
    },
    heart={"small": 0.1, "normal": 0.16, "large": 0.21},
    display={"dark": (0.5, 0), "medium": (0.8, 10), "bright": (0.75, 64), "inverted": (-0.85, 240)},  # gain and offset
    electrodes={"electrodes": True, "no electrodes": False},
)
def _chest_x_ray(
    rng: Rng, finding: tuple[float, int, Point], heart: float, display: tuple[float, int], electrodes: bool
) -> Image.Image:
    """Draw a frontal chest with one opacity."""
    canvas = Canvas(rng, _gray(30))
    canvas.ellipse(0.5, 0.62, (0.56, 0.68), _gray(165))
    for side in (-1, 1):
        x = 0.5 + side * 0.235
        canvas.ellipse(x, 0.5, (0.185, 0.4), _gray(55))
        canvas.ellipse(x + side * 0.02, 0.68, (0.185, 0.25), _gray(55))
        for rib in range(6):
            canvas.arc(x, 0.25 + rib * 0.12, (0.21, 0.07), (190, 350), _gray(95))
    canvas.box((0.46, -0.1, 0.54, 1.1), _gray(190))
    canvas.ellipse(0.5 + heart * 0.35, 0.68, (heart, 0.14 + heart * 0.2), _gray(215))
    for x in (0.27, 0.74):
        canvas.ellipse(x, 0.98, (0.25, 0.12), _gray(205))
    radius, level, place = finding
    canvas.glow(*place, radius * rng.uniform(0.95, 1.1), _gray(level), 0.012 if level > 200 else 0.05)
    if electrodes:
        for x, y in ((0.14, 0.14), (0.86, 0.14), (0.9, 0.86)):
            canvas.line([(x, y), ((x + 0.5) / 2, 0.88), (0.42, 1.4)], _gray(255), 0.02)
            canvas.ellipse(x, y, (0.05, 0.05), _gray(255))
    gain, offset = display
    film = canvas.finish(blur=1.0, grain=0.03).convert("L")
    return film.point([round(min(255, max(0, gain * level + offset))) for level in range(256)])


@_figure_kind(
    "brain MRI",
    "Imaging before surgery",
    "a {lesion} lesion {place}, {ventricles} ventricles and {scalp} scalp",
    lesion={
        f"{size} {look}": (radius, level, look == "ring-shaped")
        for size, radius in _LESION_RADII.items()
        for look, level in _LESION_LOOKS.items()
    },
    place={
        "in the upper left": ((0.36, 0.3),),
        "in the upper middle": ((0.5, 0.22),),
        "in the upper right": ((0.64, 0.3),),
        "on the left": ((0.27, 0.5),),
        "on the right": ((0.73, 0.5),),
        "on both sides": ((0.27, 0.5), (0.73, 0.5)),
        "in the lower left": ((0.36, 0.72),),
        "in the lower middle": ((0.5, 0.8),),
        "in the lower right": ((0.64, 0.72),),
    },
    ventricles={  # width and gray
        "narrow and dark": (0.022, 15),
        "narrow and bright": (0.022, 245),
        "wide and dark": (0.05, 15),
        "wide and bright": (0.05, 245),
    },
    scalp={"bright": 225, "dark": 75},
)
def _brain_mri(
    rng: Rng, lesion: tuple[float, int, bool], place: Iterable[Point], ventricles: tuple[float, int], scalp: int
) -> Image.Image:
    """Draw an axial slice with one or two lesions."""
    canvas = Canvas(rng, _gray(0))
    for radii, level in (((0.41, 0.48), scalp), ((0.37, 0.44), 10), ((0.35, 0.42), 110)):
        canvas.ellipse(0.5, 0.5, radii, _gray(level))
    canvas.line([(0.5, 0.09), (0.5, 0.91)], _gray(70), 0.01)
    width, level = ventricles
    for side in (-1, 1):
        for end in (-1, 1):
            horn = [(0.5 + side * width, 0.5), (0.5 + side * (width + 0.05), 0.5 + end * 0.12)]
            canvas.line(horn, _gray(level), width * 1.7)
    radius, level, is_ring = lesion
    radius *= rng.uniform(0.93, 1.07)
    for x, y in place:
        canvas.ellipse(x, y, (radius, radius), _gray(level), _gray(250) if is_ring else None, radius * 0.4)
    return canvas.finish(blur=1.0, grain=0.03).convert("L")
