"""Detectors of panels: the recursive X-Y cut, or an object detector of transformers."""

from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from biomedclip.processing.panels import cut_panels
from biomedclip.processing.panels.detection import FigurePanels, Panel, PanelDetector
from biomedclip.source_checks import check_source

from ..cli.models import check_model_name


Detector = Callable[[Sequence[Image.Image]], list[FigurePanels]]
CUT = "X-Y cut"  # name of the detector without a model


def load_detector(name: str | None, *, device: Any = "cpu", trust_remote_code: bool = False) -> Detector:
    """Return the detector in a folder or on the Hub, or the recursive X-Y cut without a name."""
    trust = trust_remote_code
    if name is None:
        return cut_figures
    model = AutoModelForObjectDetection.from_pretrained(name, trust_remote_code=trust)
    return PanelDetector(model.to(device), AutoImageProcessor.from_pretrained(name, trust_remote_code=trust))


def check_detector(name: str | None, *, trust_remote_code: bool = False) -> None:
    """Check the name and the source of a detector before anything is read."""
    if name is not None:
        check_model_name(name, "--detector")
        check_source(name, trust_remote_code=trust_remote_code)


def cut_figures(images: Sequence[Image.Image]) -> list[FigurePanels]:
    """Return the panels of each figure by the recursive X-Y cut, which tells no labels, types and scores."""
    figures = []
    for image in images:
        boxes = cut_panels(image)
        panels = tuple(Panel((float(a), float(b), float(c), float(d)), 1.0) for a, b, c, d in boxes)
        figures.append(FigurePanels(len(panels) > 1, float(len(panels) > 1), panels))
    return figures
