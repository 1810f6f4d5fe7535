"""Shapes and textures on an image of random size."""

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


Color = tuple[int, int, int]
Point = tuple[float, float]

INK: Color = (40, 40, 40)
SHORTEST_SIDE, LONGEST_SIDE = 120, 260
_OVERSAMPLING = 2  # Pillow draws jagged edges, which are smoothed by downscaling a larger image


class Canvas:
    """An RGB image. Its coordinates range from 0 to 1 over its central square, with y pointing down.

    Only the central square is always visible, because training resizes the shortest side and crops the center.
    """

    def __init__(self, rng: np.random.Generator, background: Color):
        short = int(rng.integers(SHORTEST_SIDE, 201))
        long = min(LONGEST_SIDE, round(short * rng.uniform(1.0, 1.4)))
        width, height = (long, short) if rng.random() < 0.65 else (short, long)
        self.rng = rng
        self.image = Image.new("RGB", (_OVERSAMPLING * width, _OVERSAMPLING * height), background)
        self.pen = ImageDraw.Draw(self.image)
        self.side = _OVERSAMPLING * short
        self.left, self.top = ((pixels - self.side) / 2 for pixels in self.image.size)
        self.margins = (self.left / self.side, self.top / self.side)

    def line(self, points: Iterable[Point], color: Color, width: float) -> None:
        """Draw a line through points."""
        self.pen.line([self._pixel(*point) for point in points], color, self._length(width), joint="curve")

    def box(self, box: tuple[float, float, float, float], color: Color | None, outline: Color | None = None) -> None:
        """Draw a rectangle, given its left, top, right and bottom."""
        self.pen.rectangle((*self._pixel(*box[:2]), *self._pixel(*box[2:])), color, outline, self._length(0.008))

    def ellipse(
        self, x: float, y: float, radii: Point, color: Color | None, outline: Color | None = None, width: float = 0.01
    ) -> None:
        """Draw an ellipse around a center."""
        self.pen.ellipse(self._around(x, y, radii), color, outline, self._length(width))

    def arc(self, x: float, y: float, radii: Point, angles: tuple[int, int], color: Color) -> None:
        """Draw an arc of an ellipse between two angles, in degrees clockwise from the right."""
        self.pen.arc(self._around(x, y, radii), *angles, color, self._length(0.014))

    def slice(self, x: float, y: float, radius: float, angles: tuple[float, float], color: Color) -> None:
        """Draw a slice of a pie between two angles, in degrees clockwise from the right."""
        self.pen.pieslice(self._around(x, y, (radius, radius)), *angles, color, (255, 255, 255), self._length(0.012))

    def cloud(self, color: Color, columns: int, rows: int) -> None:
        """Blend a color into the image with smooth noise of about `columns` x `rows` spots."""
        spots = Image.fromarray(self.rng.integers(0, 256, (rows, columns), dtype=np.uint8))
        self.image.paste(color, mask=spots.resize(self.image.size, Image.Resampling.BICUBIC))

    def glow(self, x: float, y: float, radius: float, color: Color, blur: float) -> None:
        """Draw a disk with a soft edge."""
        mask = Image.new("L", self.image.size)
        ImageDraw.Draw(mask).ellipse(self._around(x, y, (radius, radius)), 255)
        self.image.paste(color, mask=mask.filter(ImageFilter.BoxBlur(blur * self.side)))

    def finish(self, blur: float = 0.0, grain: float = 0.0) -> Image.Image:
        """Return the image at its final size, with a blur in pixels and noise of a strength from 0 to 1."""
        image = self.image.reduce(_OVERSAMPLING)
        if blur:
            image = image.filter(ImageFilter.GaussianBlur(blur))
        if grain:
            noise = Image.fromarray(self.rng.integers(0, 256, image.size[::-1], dtype=np.uint8))
            image = Image.blend(image, noise.convert("RGB"), grain)
        return image

    def _length(self, fraction: float) -> int:
        return max(1, round(fraction * self.side))

    def _pixel(self, x: float, y: float) -> Point:
        return self.left + x * self.side, self.top + y * self.side

    def _around(self, x: float, y: float, radii: Point) -> tuple[float, ...]:
        return (*self._pixel(x - radii[0], y - radii[1]), *self._pixel(x + radii[0], y + radii[1]))
