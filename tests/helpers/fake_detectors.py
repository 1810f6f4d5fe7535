"""Detectors of panels without weights, for tests of the build."""

from dataclasses import dataclass

from PIL import Image

from biomedclip.processing.panels.figure_panels import FigurePanels, Panel
from biomedclip.processing.panels.image_types import TypeScore


@dataclass(frozen=True)
class Halves:
    """Splits wide images into a left half A, a radiograph, and a right half B, a PET scan. Others are light microscopy.

    Images of a width of `fails_at` pixels raise an error.
    """

    fingerprint: str = "halves"
    image_types: tuple[str, ...] = ("X-Ray 2D Radiography", "PET", "Light microscopy")
    labels: tuple[str | None, str | None] = ("A", "B")
    fails_at: int = 0

    def prepare(self) -> None:
        """Nothing is loaded."""

    def __call__(self, images, captions=None) -> list[FigurePanels]:
        return list(map(self._of_image, images))

    def _of_image(self, image: Image.Image) -> FigurePanels:
        width, height = image.size
        if width == self.fails_at:
            raise OSError("broken image")
        xray, pet, microscopy = (TypeScore(name, 0.87654321) for name in self.image_types)
        if width < 2 * height:
            return FigurePanels(False, 0.1, (Panel((0, 0, width, height), 0.9, None, microscopy),))
        middle = width / 2
        left = Panel((0, 0, middle, height), 0.98765432, self.labels[0], xray)
        right = Panel((middle, 0, width, height), 0.5, self.labels[1], pet)
        return FigurePanels(True, 0.8, (left, right))
