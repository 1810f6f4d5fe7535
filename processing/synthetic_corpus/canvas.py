"""A small drawing surface: shapes and textures in fractions of the picture's central square.

Training resizes the shortest side and crops the centre, so only the central square is sure to be seen. Coordinates run
from 0 to 1 across it, y downwards; what lies beyond is margin.
"""

from collections.abc import Sequence
from copy import copy
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont


Colour = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]

SHORTEST_SIDE = 120
LONGEST_SIDE = 260
_OVERSAMPLING = 2  # Pillow draws jagged edges; drawing twice as large and reducing makes them smooth


class Canvas:
    """A picture of random size in the making.

    Args:
        rng: Decides the size.
        background: Colour to start from; one number makes a grey-scale picture, three an RGB one.
        widest: Largest ratio of the longer side to the shorter.
    """

    def __init__(self, rng: np.random.Generator, background: Colour | int, *, widest: float = 1.6):
        short = int(rng.integers(SHORTEST_SIDE, 201))
        long = min(LONGEST_SIDE, round(short * rng.uniform(1.0, widest)))
        self.size = (long, short) if rng.random() < 0.65 else (short, long)
        width, height = (side * _OVERSAMPLING for side in self.size)
        mode = "L" if isinstance(background, int) else "RGB"
        self.image = Image.new(mode, (width, height), background)
        self._pen = ImageDraw.Draw(self.image)
        self._side = short * _OVERSAMPLING
        self._origin = ((width - self._side) / 2, (height - self._side) / 2)
        self.margins = (self._origin[0] / self._side, self._origin[1] / self._side)

    @classmethod
    def like(cls, other: "Canvas", background: int) -> "Canvas":
        """An empty grey-scale canvas with the size and the coordinates of another: for masks."""
        canvas = copy(other)
        canvas.image = Image.new("L", other.image.size, background)
        canvas._pen = ImageDraw.Draw(canvas.image)
        return canvas

    def paint(self, picture: Image.Image) -> None:
        """Covers everything with `picture`, which has the size of `image`."""
        self.image.paste(picture)

    def line(self, points: Sequence[Point], colour: Colour | int, width: float) -> None:
        """Draws a line through all points, `width` as a fraction of the side."""
        self._pen.line([self._pixel(point) for point in points], colour, self._length(width), joint="curve")

    def polygon(self, points: Sequence[Point], colour: Colour | int) -> None:
        """Fills a polygon."""
        self._pen.polygon([self._pixel(point) for point in points], colour)

    def rectangle(self, box: Box, fill: Colour | int | None, outline: Colour | int | None = None) -> None:
        """Draws a box, filled, outlined or both."""
        self._pen.rectangle(self._pixels(box), fill, outline, self._length(0.008))

    def ellipse(
        self,
        centre: Point,
        radii: Point,
        fill: Colour | int | None,
        outline: Colour | int | None = None,
        outline_width: float = 0.01,
    ) -> None:
        """Draws an ellipse, filled, outlined or both."""
        box = (centre[0] - radii[0], centre[1] - radii[1], centre[0] + radii[0], centre[1] + radii[1])
        self._pen.ellipse(self._pixels(box), fill, outline, self._length(outline_width))

    def arc(self, box: Box, start: float, end: float, colour: Colour | int, width: float) -> None:
        """Draws a part of an ellipse's outline, from `start` to `end` in degrees, clockwise from the right."""
        self._pen.arc(self._pixels(box), start, end, colour, self._length(width))

    def slice(self, box: Box, start: float, end: float, fill: Colour, outline: Colour) -> None:
        """Draws a slice of a pie, from `start` to `end` in degrees, clockwise from the right."""
        self._pen.pieslice(self._pixels(box), start, end, fill, outline, self._length(0.012))

    def text(self, centre: Point, text: str, colour: Colour, height: float = 0.07) -> None:
        """Writes a few letters around `centre`, `height` as a fraction of the side."""
        self._pen.text(self._pixel(centre), text, colour, _font(max(8, round(height * self._side))), anchor="mm")

    def softened(self, radius: float) -> Image.Image:
        """What is drawn so far, blurred."""
        return self.image.filter(ImageFilter.BoxBlur(radius * self._side))

    def finish(self, blur: float = 0.0) -> Image.Image:
        """The picture in its final size, softened by `blur` pixels."""
        picture = self.image.reduce(_OVERSAMPLING)
        return picture.filter(ImageFilter.GaussianBlur(blur)) if blur else picture

    def _length(self, fraction: float) -> int:
        return max(1, round(fraction * self._side))

    def _pixel(self, point: Point) -> Point:
        return self._origin[0] + point[0] * self._side, self._origin[1] + point[1] * self._side

    def _pixels(self, box: Box) -> Box:
        return (*self._pixel(box[:2]), *self._pixel(box[2:]))


def clouds(size: tuple[int, int], rng: np.random.Generator, *, columns: int, rows: int) -> Image.Image:
    """Smooth grey noise with about `columns` x `rows` spots: unlike the two numbers, streaks."""
    spots = rng.integers(0, 256, (rows, columns), dtype=np.uint8)
    return Image.fromarray(spots).resize(size, Image.Resampling.BICUBIC)


def with_grain(picture: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    """The picture with the grain of film or of a camera; `strength` from 0 to 1."""
    grain = Image.fromarray(rng.integers(0, 256, picture.size[::-1], dtype=np.uint8))
    return Image.blend(picture, grain.convert(picture.mode), strength)


@cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
