"""Targets of fuzzing: panels of damaged figures, and captions that were changed. Both check their results."""

import json
import math
from functools import cache
from random import Random
from types import SimpleNamespace
from typing import Any

from biomedclip.processing.images.reading import read_row_image
from biomedclip.processing.panels import SplitCaption, cut_panels, split_caption


SIDE = 12  # cells of a map of the detector
TYPES = ("Ultrasound", "PET", "Endoscopy")
CAPTION = "Scans. (A) Ultrasound. (B) PET before, and (C) after."  # of figures of any content
LETTERS = ("A", "B", "C", "D", "1", "2", "ii", "iii")
ROMAN = "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII".split()
POSITIONS = {"left", "middle", "center", "centre", "right", "top", "bottom", "upper", "lower"}
# Labels of a figure as a detector, a person or a table may give them.
LABELS = ("A", "b", "C", "D", "ii", "IV", "1", "20", "A1", "B'", "left", "", " ", "ß", "\u212a", "\u0663", "AA", "(a)")


class NotSplit(ValueError):
    """Raised for a caption that is returned unsplit."""

    reason = "not split"


def split_and_check(content: bytes) -> None:
    """Split a caption with and without labels, and check the results.

    Raises:
        NotSplit: If the caption alone is returned unsplit.
        AssertionError: If a result is wrong.
    """
    text = content.decode("utf-8", "surrogateescape")
    random = Random(content)
    split = split_caption(text)
    _check_split(text, split)
    assert split.match in ("caption", "none")
    for labels in (split.panels, random.sample(LABELS, random.randint(0, 6)), "ABCDEF"[random.randrange(4) :]):
        with_labels = split_caption(text, labels)
        _check_split(text, with_labels)
        assert with_labels.match in ("labels", "some labels", "none")
    if split.panels:
        assert split_caption(text, split.panels).match == "labels"
    else:
        raise NotSplit


def _check_split(text: str, split: SplitCaption) -> None:
    labels = list(split.panels)
    if split.match == "none":
        assert not labels and split.opening == text.strip() and not split.closing
        return
    assert len(labels) > 1 and _is_sequence(labels), f"labels {labels}"
    caption = "".join(text.split())
    for label, part in split.panels.items():
        assert "".join(part.split()) in caption, f"{label}: {part!r} is not part of the caption"
        assert len("".join(split.with_context(label).split())) <= len(caption) + len(part)
    for part in (split.opening, split.closing):
        places = iter(caption)
        assert all(character in places for character in "".join(part.split())), f"{part!r} is not from the caption"


def _is_sequence(labels: list[str]) -> bool:
    """Return whether labels follow each other without gaps."""
    if set(labels) <= POSITIONS:
        return True
    for names in (ROMAN, [str(number) for number in range(1, 21)]):
        if set(labels) <= set(names) and labels[0] in names:
            start = names.index(labels[0])
            if labels == names[start : start + len(labels)]:
                return True
    places = [ord(label[0]) for label in labels]
    return all(after - before in (0, 1) for before, after in zip(places, places[1:], strict=False))


def find_and_check(content: bytes) -> None:
    """Find the panels of a figure by cuts, and from random outputs of a detector, and check the results.

    Raises:
        ImageError: If the picture cannot be read.
        AssertionError: If a result is wrong.
    """
    from biomedclip.run_scripts.panel_rows.detectors import cut_figures

    image = read_row_image({"bytes": content, "path": None})
    for left, top, right, bottom in cut_panels(image):
        assert 0 <= left < right <= image.width and 0 <= top < bottom <= image.height
    for detect in (cut_figures, *_detectors(Random(content))):
        for caption in (None, CAPTION):
            (figure,) = detect([image], [caption])
            _check_figure(figure, image, content)


def _check_figure(figure: Any, image: Any, content: bytes) -> None:
    from biomedclip.processing.images.inputs import InputImage
    from biomedclip.run_scripts.panel_rows.rows import Found, row_of

    assert figure.compound == (len(figure.panels) > 1) and 0 <= figure.compound_score <= 1
    row = row_of(Found(InputImage("x", content), image, figure), {"x": CAPTION})
    json.dumps(row, allow_nan=False)
    for panel in row["panels"]:
        left, top, right, bottom = panel["box"]
        assert 0 <= left < right <= image.width and 0 <= top < bottom <= image.height, f"{panel['box']} in {image.size}"
        assert math.isfinite(panel["score"]) and 0 <= panel["score"] <= 1
    if not figure.compound:
        assert row["panels"][0]["box"] == [0, 0, *image.size] and row["panels"][0]["label"] is None
    labels = [panel["label"] for panel in row["panels"] if panel["label"] is not None]
    assert len(set(labels)) == len(labels), f"labels {labels}"


def load_detectors() -> None:
    """Import all that [`find_and_check`] needs, because this takes time and memory."""
    import torch

    import biomedclip.run_scripts.panel_rows.rows  # noqa: F401

    torch.set_num_threads(1)
    _processor()


@cache
def _processor() -> Any:
    from biomedclip import PanelDetectionImageProcessor

    return PanelDetectionImageProcessor(size={"height": 8 * SIDE, "width": 8 * SIDE})


def _detectors(random: Random) -> list[Any]:
    """Return detectors whose outputs are random: the packaged kind, and another one of transformers."""
    import torch

    from biomedclip.processing.panels.detection import PanelDetector

    generator = torch.Generator().manual_seed(random.randrange(2**31))

    def values(*shape: int) -> Any:
        return torch.randn(1, *shape, generator=generator) * random.choice((0.1, 1.0, 5.0, 50.0, 1e4))

    cells = SIDE * SIDE
    boxes = {"pred_boxes": values(cells, 4).abs(), "label_boxes": values(cells, 4)}
    names = {"logits": 1, "type_logits": len(TYPES), "label_logits": 1, "letter_logits": len(LETTERS)}
    outputs = {name: values(cells, size) for name, size in names.items()} | boxes
    compound = {"compound_logits": values(1)[:, 0]}
    return [PanelDetector(_Model(outputs | compound), _processor()), PanelDetector(_Model(outputs), _processor())]


class _Model:
    """A model that returns given outputs."""

    device = "cpu"
    config = SimpleNamespace(image_types=TYPES, printed_labels=LETTERS)

    def __init__(self, outputs: dict[str, Any]):
        self.outputs = outputs

    def eval(self) -> "_Model":
        return self

    def __call__(self, **inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(**self.outputs)
