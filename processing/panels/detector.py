"""The interface of a detector of panels that a build sends to its workers."""

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from .figure_panels import FigurePanels


class Detector(Protocol):
    """Finds the panels of figures. It is pickled for each worker, so it should load its weights in `prepare`.

    The result for a figure must depend only on the figure, its caption and the detector: not on other figures, the
    number of threads, or the process.
    """

    @property
    def fingerprint(self) -> str:
        """Identifies the detector and its weights."""
        ...

    @property
    def image_types(self) -> Sequence[str]:
        """Names of the types of images that it tells, empty if it tells none."""
        ...

    def prepare(self) -> None:
        """Load the weights in this process. Called before the first figure of each task."""

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str | None] | None = None
    ) -> list[FigurePanels]:
        """Return the panels of each figure. Captions, if they are known, may help."""
        ...
