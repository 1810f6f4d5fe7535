"""Find the panels of the figures of an input, batch by batch, and make the rows of the result."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from biomedclip.processing.images.inputs import InputImage
from biomedclip.processing.images.reading import ImageError, read_row_image
from biomedclip.processing.panels.figure_panels import FigurePanels, Panel, pixel_box
from biomedclip.processing.panels.pairing import split_for

from ..evaluation.threads import prepared_batches
from .captions import caption_of
from .detectors import Detector


COLUMNS = ("file", "compound", "compound_score", "panels", "context", "caption_match", "error")


@dataclass(frozen=True)
class Found:
    """A figure and its panels, or the error if it cannot be read."""

    input: InputImage
    image: Image.Image | None = None
    figure: FigurePanels | None = None
    error: str | None = None


def find_panels(
    detect: Detector, images: Iterator[InputImage], captions: Mapping[str, str], *, batch_size: int, workers: int
) -> Iterator[Found]:
    """Yield the panels of each figure in order. Threads decode figures ahead of the detector.

    `captions` are those of a file by the ids of images. Rows of a dataset have their own.
    """
    for batch in prepared_batches(_read_all, images, batch_size, workers):
        readable = [found for found in batch if found.image is not None]
        pictures = [found.image for found in readable if found.image is not None]
        texts = [caption_of(captions, found.input.id, found.input.columns) for found in readable]
        figures = iter(detect(pictures, texts) if pictures else [])
        for found in batch:
            yield found if found.image is None else Found(found.input, found.image, next(figures))


def _read_all(images: Sequence[InputImage]) -> list[Found]:
    return [_read(image) for image in images]


def _read(image: InputImage) -> Found:
    try:
        return Found(image, read_row_image(image.image))
    except (ImageError, ImportError) as error:  # DICOM without pydicom
        return Found(image, error=str(error).removeprefix(f"{image.id}: "))


def row_of(found: Found, captions: Mapping[str, str]) -> dict[str, Any]:
    """Return the row of a figure. Boxes are whole pixels of the original figure."""
    if found.figure is None or found.image is None:
        return {"file": found.input.id, "error": found.error}
    figure, size = found.figure, found.image.size
    row: dict[str, Any] = {"file": found.input.id, "compound": figure.compound, "compound_score": figure.compound_score}
    caption = caption_of(captions, found.input.id, found.input.columns)
    texts: Sequence[str | None] = [None] * len(figure.panels)
    if caption is not None:
        split, texts = split_for(figure, caption)
        row |= {"context": split.context, "caption_match": split.match}
    row["panels"] = [_panel(panel, size, text) for panel, text in zip(figure.panels, texts, strict=True)]
    return row


def _panel(panel: Panel, size: tuple[int, int], sub_caption: str | None) -> dict[str, Any]:
    return {
        "box": list(pixel_box(panel.box, size)),
        "label": panel.label,
        "score": panel.score,
        "type": panel.image_type.name,
        "type_score": panel.image_type.score,
        "type_margin": panel.image_type.margin,
        "group": panel.image_type.group,
        "group_score": panel.image_type.group_score,
        "sub_caption": sub_caption,
    }
