"""Image types of panels by the prompts of a dual encoder, and `unknown` below a threshold."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from PIL import Image

from biomedclip.processing.bit_depth_biomedclip import on_white
from biomedclip.processing.panels.figure_panels import FigurePanels, pixel_box
from biomedclip.processing.panels.image_types import (
    IMAGE_TYPES,
    PROMPTS,
    TEMPLATES,
    TypeScore,
    most_probable_type,
    unknown_below,
)

from ..classification.classifiers import Classifier, load_zero_shot
from ..embedding.encoders import check_encoder
from .detectors import Detector


def check_type_model(name: str, *, device: str) -> str:
    """Check that a model can tell image types, and return its precision. See [`check_encoder`] for the errors."""
    return check_encoder(name, None, "panels", device=device)


def load_type_model(name: str, precision: str, *, device: torch.device) -> Classifier:
    """Load a dual encoder that tells the 30 image types by their prompts in all templates."""
    return load_zero_shot(name, zero_shot_prompts(), precision=precision, device=device)


def zero_shot_prompts() -> dict[str, list[str]]:
    """Return the prompts of each image type."""
    return {
        name: [template.replace("{}", prompt) for template in TEMPLATES for prompt in PROMPTS[name]]
        for name in IMAGE_TYPES
    }


def with_zero_shot_types(detect: Detector, classifier: Classifier, *, batch_size: int) -> Detector:
    """Return a detector that replaces the types of panels by those of a classifier of [`load_type_model`].

    `batch_size` is the number of panels that are classified at once.
    """

    def detect_and_classify(
        images: Sequence[Image.Image], captions: Sequence[str | None] | None = None
    ) -> list[FigurePanels]:
        figures = detect(images, captions)
        types = _classified(classifier, _crops(images, figures), batch_size)
        return [_with_types(figure, list(islice(types, len(figure.panels)))) for figure in figures]

    return detect_and_classify


def with_unknown_types(detect: Detector, threshold: float) -> Detector:
    """Return a detector that names types and groups with a smaller probability `unknown`."""

    def detect_and_reject(
        images: Sequence[Image.Image], captions: Sequence[str | None] | None = None
    ) -> list[FigurePanels]:
        return [
            _with_types(figure, [unknown_below(panel.image_type, threshold) for panel in figure.panels])
            for figure in detect(images, captions)
        ]

    return detect_and_reject


def _with_types(figure: FigurePanels, types: Sequence[TypeScore]) -> FigurePanels:
    panels = [replace(panel, image_type=found) for panel, found in zip(figure.panels, types, strict=True)]
    return replace(figure, panels=tuple(panels))


def _crops(images: Sequence[Image.Image], figures: Sequence[FigurePanels]) -> Iterator[Image.Image]:
    for image, figure in zip(images, figures, strict=True):
        whole = on_white(image)
        for panel in figure.panels:
            yield whole.crop(pixel_box(panel.box, image.size))


def _classified(classifier: Classifier, crops: Iterator[Image.Image], batch_size: int) -> Iterator[TypeScore]:
    while batch := list(islice(crops, batch_size)):
        pixels = [classifier.image_processor([crop], return_tensors="pt")["pixel_values"] for crop in batch]
        probabilities, _ = classifier.predict(torch.cat(pixels))
        yield from (most_probable_type(row, classifier.labels) for row in probabilities.tolist())
