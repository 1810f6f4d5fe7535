"""From the output of a detector to the panels of a figure, with their labels in reading order.

A caption helps: it names the labels and the types that the figure should have.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from ..bit_depth_biomedclip import on_white
from ..image_processing_panel_detection import suppressed
from .captions import in_order, split_caption
from .cutting import background_level, cut_panels
from .figure_panels import FigurePanels, Panel
from .image_types import most_probable_type, with_caption
from .label_reading import Marks, read_labels, reading_order
from .letter_level import images_of_letters, joined
from .pairing import split_for


OURS = Path(__file__).parent / "packaged_detector"  # weights that are part of the package
SCORE = 0.25  # least score of a panel
LOWER = (0.2, 0.15, 0.1, 0.07, 0.05)  # the same, tried in turn if the caption names more panels than were found
LABEL_SCORE = 0.35  # least score of a printed label
COMPOUND = 0.5  # from this probability on, a figure has several panels
PERHAPS = 0.1  # the same, if several panels were found
OVERLAP = 0.4  # largest intersection over union of two panels
MOST = 100  # panels or labels of a figure
SMALLEST = 4  # pixels of the shorter side of a panel
SNAP = 0.02  # how far an edge moves to the border of the content, in parts of the longer side
SIDE = 800  # pixels of the longer side of the figure in which edges move


class PanelDetector:
    """Finds the panels of figures.

    Args:
        model: [`PanelDetectionModel`] or another object detector of transformers. Others tell no labels and no types.
        image_processor: Image processor of the model.

    Example:
        >>> from biomedclip import PanelDetector
        >>> from PIL import Image
        >>> detect = PanelDetector.from_pretrained()
        >>> [figure] = detect([Image.new("RGB", (300, 200), "white")])
        >>> figure.compound
        False
    """

    def __init__(self, model: Any, image_processor: Any):
        self.model = model.eval()
        self.image_processor = image_processor

    @classmethod
    def from_pretrained(
        cls, name: str | Path | None = None, *, device: Any = "cpu", trust_remote_code: bool = False
    ) -> "PanelDetector":
        """Load a detector.

        Args:
            name: Folder or Hub id of an object detector of transformers (default: the detector of this package).
            device: Where it computes.
            trust_remote_code: Whether code of the folder may run.
        """
        source = OURS if name is None else name
        model = AutoModelForObjectDetection.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
        return cls(model.to(device), AutoImageProcessor.from_pretrained(source, trust_remote_code=trust_remote_code))

    @property
    def image_types(self) -> tuple[str, ...]:
        """Return the types of images that the model tells."""
        return tuple(getattr(self.model.config, "image_types", ()))

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str | None] | None = None
    ) -> list[FigurePanels]:
        """Return the panels of each figure.

        Args:
            images: The figures.
            captions: Caption of each figure, None where it is unknown. The labels and types of images that it names
                become more probable. Detectors that tell neither ignore captions.
        """
        return self.figures_of(self.outputs_of(images), images, captions)

    @torch.inference_mode()
    def outputs_of(self, images: Sequence[Image.Image]) -> Any:
        """Return the output of the model for figures."""
        inputs = self.image_processor(images=list(images), return_tensors="pt").to(self.model.device)
        return self.model(**inputs)

    def figures_of(
        self, outputs: Any, images: Sequence[Image.Image], captions: Sequence[str | None] | None = None
    ) -> list[FigurePanels]:
        """Return the panels of figures for which the model had these outputs."""
        if not hasattr(outputs, "compound_logits"):
            return self._of_other_detector(outputs, images)
        found = _Outputs(outputs)
        return [
            _figure(found.of(number), image, caption, self.model.config)
            for number, (image, caption) in enumerate(zip(images, captions or [None] * len(images), strict=True))
        ]

    def _of_other_detector(self, outputs: Any, images: Sequence[Image.Image]) -> list[FigurePanels]:
        sizes = torch.tensor([(image.height, image.width) for image in images])
        answers = self.image_processor.post_process_object_detection(outputs, threshold=SCORE, target_sizes=sizes)
        figures = []
        for answer, image in zip(answers, images, strict=True):
            boxes, scores = answer["boxes"].float().cpu(), answer["scores"].float().cpu()
            kept = suppressed(boxes, scores, OVERLAP)
            panels = [Panel(tuple(boxes[number].tolist()), float(scores[number])) for number in kept.tolist()]
            if len(panels) < 2:
                figures.append(FigurePanels(False, 0.0, (Panel((0, 0, *image.size), 1.0),)))
            else:
                figures.append(FigurePanels(True, 1.0, _in_reading_order(panels)))
        return figures


class _Outputs:
    """Outputs of [`PanelDetectionModel`] as arrays of single figures."""

    names = "logits pred_boxes type_logits label_logits label_boxes letter_logits compound_logits".split()

    def __init__(self, outputs: Any):
        self.arrays = {name: getattr(outputs, name).float().cpu() for name in self.names}

    def of(self, number: int) -> dict[str, torch.Tensor]:
        return {name: values[number] for name, values in self.arrays.items()}


def _figure(output: dict[str, torch.Tensor], image: Image.Image, caption: str | None, config: Any) -> FigurePanels:
    """Return the panels of a figure. If the caption names more than were found, weaker ones count too."""
    expected = _labels_in(caption, config.printed_labels)
    figure = _at_threshold(SCORE, output, image, caption, expected, config)
    for threshold in LOWER:
        if expected is None or not figure.compound or len(figure.panels) >= len(expected):
            break
        more = _at_threshold(threshold, output, image, caption, expected, config)
        if len(more.panels) > len(expected):
            break
        figure = more
    return figure


def _labels_in(caption: str | None, names: Sequence[str]) -> list[str] | None:
    """Return the labels that a caption names, None if it names fewer than two, or one that cannot be read."""
    labels = [] if caption is None else list(split_caption(caption).panels)
    return labels if len(labels) > 1 and {name.upper() for name in names}.issuperset(labels) else None


def _at_threshold(
    least: float,
    output: dict[str, torch.Tensor],
    image: Image.Image,
    caption: str | None,
    expected: Sequence[str] | None,
    config: Any,
) -> FigurePanels:
    probability = float(output["compound_logits"].sigmoid())
    whole = (0.0, 0.0, float(image.width), float(image.height))
    longest = max(image.size)
    boxes, scores, cells = _peaks(output["logits"], output["pred_boxes"], least, OVERLAP)
    marks = _peaks(output["label_logits"], output["label_boxes"], LABEL_SCORE, 0.3)
    pixels = _snapped(np.clip(boxes.numpy() * longest, 0, np.array(whole[2:] * 2)), image, marks[0].numpy() * longest)
    large = (pixels[:, 2:] - pixels[:, :2]).min(1) >= SMALLEST
    pixels, scores, cells = pixels[large], scores[large], cells[large]
    is_compound = probability >= (PERHAPS if len(pixels) > 1 else COMPOUND)
    chances = output["type_logits"].softmax(-1)
    if is_compound and len(pixels) < 2:
        # The detector sees several panels but not where they are.
        cut = cut_panels(image)
        if len(cut) > 1:
            return FigurePanels(True, probability, _in_reading_order([Panel(box, 0.0) for box in cut]))
    if not is_compound or len(pixels) < 2:
        weights = output["logits"][:, 0].sigmoid()
        chance = (chances * weights[:, None]).sum(0) / weights.sum()
        figure = FigurePanels(False, probability, (Panel(whole, 1.0 - probability),))
        return _with_types(figure, [chance.tolist()], caption, config.image_types)
    found = Marks(marks[0].numpy(), marks[1].numpy(), output["letter_logits"][marks[2]].log_softmax(-1).numpy())
    read = read_labels(found, config.printed_labels, pixels / longest, expected)
    panels = [
        Panel(tuple(box), score, read[number].name if number in read else None)
        for number, (box, score) in enumerate(zip(pixels.tolist(), scores.tolist(), strict=True))
    ]
    kept = list(range(len(panels)))
    if 2 * sum(label.is_sure for label in read.values()) > len(read):
        panels, kept = _at_letters(panels)
    order = _reading_order(panels)
    figure = FigurePanels(True, probability, tuple(panels[number] for number in order))
    return _with_types(figure, chances[cells[kept][order]].tolist(), caption, config.image_types)


def _with_types(
    figure: FigurePanels, chances: Sequence[Sequence[float]], caption: str | None, names: Sequence[str]
) -> FigurePanels:
    """Set the type of each panel, from its probabilities and its part of the caption, or else the text for all."""
    if not names:
        return figure
    if caption is not None:
        split, texts = split_for(figure, caption)
        chances = [
            with_caption(chance, [text or "", split.context], names)
            for chance, text in zip(chances, texts, strict=True)
        ]
    panels = zip(figure.panels, chances, strict=True)
    return replace(
        figure, panels=tuple(replace(panel, image_type=most_probable_type(chance, names)) for panel, chance in panels)
    )


def _at_letters(panels: list[Panel]) -> tuple[list[Panel], list[int]]:
    """Join images under one printed letter. Return the panels, and the number of the labeled image of each."""
    groups = images_of_letters([panel.box for panel in panels], [panel.label for panel in panels])
    if groups is None:
        return panels, list(range(len(panels)))
    boxes = np.array([panel.box for panel in panels])
    return [replace(panels[group[0]], box=joined(boxes[group])) for group in groups], [group[0] for group in groups]


def _peaks(
    logits: torch.Tensor, boxes: torch.Tensor, threshold: float, overlap: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return boxes (left, top, right, bottom), scores and cells of the local maxima that remain after suppression."""
    scores = logits[:, 0].sigmoid()
    side = round(len(scores) ** 0.5)
    highest = torch.nn.functional.max_pool2d(scores.reshape(1, 1, side, side), 3, 1, 1).flatten()
    cells = torch.nonzero((scores == highest) & (scores >= threshold))[:, 0]
    cells = cells[torch.argsort(scores[cells], descending=True, stable=True)[:MOST]]
    corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)[cells]
    kept = suppressed(corners, scores[cells], overlap)
    return corners[kept], scores[cells][kept], cells[kept]


def _snapped(boxes: np.ndarray, image: Image.Image, marks: np.ndarray) -> np.ndarray:
    """Move edges of boxes to the nearest border between content and background.

    Printed labels, whose boxes are `marks`, are no content.
    """
    scale = min(1.0, SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    levels = np.asarray(on_white(image).convert("L").resize(size, Image.Resampling.BOX), dtype=np.int16)
    content = np.abs(levels - background_level(levels)) > 20
    for left, top, right, bottom in (marks * scale).round().astype(int).clip(0):
        content[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = False
    reach = max(2, round(SNAP * max(size)))
    result = boxes * scale
    for number, (left, top, right, bottom) in enumerate(result.round().astype(int).clip(0)):
        top, left = min(top, size[1] - 1), min(left, size[0] - 1)
        rows, columns = slice(top, max(top + 1, bottom)), slice(left, max(left + 1, right))
        across, down = content[rows].mean(0) > 0.004, content[:, columns].mean(1) > 0.004
        result[number] = (
            _edge(across, result[number][0], reach, begins=True),
            _edge(down, result[number][1], reach, begins=True),
            _edge(across, result[number][2], reach, begins=False),
            _edge(down, result[number][3], reach, begins=False),
        )
    return result / scale


def _edge(filled: np.ndarray, at: float, reach: int, *, begins: bool) -> float:
    """Return the nearest place where content begins or ends, or the place itself if there is none in reach."""
    changes = np.diff(np.concatenate([[False], filled, [False]]).astype(np.int8))
    places = np.flatnonzero(changes == (1 if begins else -1))
    places = places[np.abs(places - at) <= reach]
    return float(places[np.argmin(np.abs(places - at))]) if len(places) else at


def _in_reading_order(panels: Sequence[Panel]) -> tuple[Panel, ...]:
    return tuple(panels[number] for number in _reading_order(panels))


def _reading_order(panels: Sequence[Panel]) -> list[int]:
    """Sort by labels if all panels have one, otherwise by rows: a panel below the middle of another is in the next."""
    names = [panel.label for panel in panels]
    if all(names) and len(set(names)) == len(names):
        place = {name: number for number, name in enumerate(in_order(map(str, names)))}
        return sorted(range(len(panels)), key=lambda number: place[str(names[number])])
    return reading_order(np.array([panel.box for panel in panels]))
