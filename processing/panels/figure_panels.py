"""The panels of a figure, as detectors return them."""

from dataclasses import dataclass, field

from .image_types import TypeScore


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Panel:
    """A panel of a figure.

    Attributes:
        box: Left, top, right and bottom in pixels of the original figure.
        score: Between 0 and 1.
        label: Printed label. Letters are upper case. None if there is none.
        image_type: Type of the image and its group, without names if the detector knows no types.
    """

    box: Box
    score: float
    label: str | None = None
    image_type: TypeScore = TypeScore()


@dataclass(frozen=True)
class FigurePanels:
    """The panels of a figure in reading order. A single figure has one panel: the whole figure, without a label."""

    compound: bool
    compound_score: float
    panels: tuple[Panel, ...] = field(default_factory=tuple)


def pixel_box(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Round a box to whole pixels in an image of this width and height, at least one pixel wide and high."""
    spans = []
    for low, high, length in ((box[0], box[2], size[0]), (box[1], box[3], size[1])):
        start = min(max(round(low), 0), length - 1)
        spans.append((start, min(max(round(high), start + 1), length)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom
