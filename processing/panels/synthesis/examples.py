"""Training examples of the panel detector: drawn and annotated figures as tensors, determined by index and seed."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ...image_processing_panel_detection import letterbox
from ..annotations import AnnotatedFigure
from ..image_types import GROUP_OF, IMAGE_TYPES
from ..singles import PHOTOGRAPHS, SingleFigure
from .compounds import DrawnFigure, DrawnPanel, Single, degrade, draw_figure, stretched
from .labels import UNKNOWN, label_class
from .plots import draw_plot


Rng = np.random.Generator


class DrawnFigures(Dataset[dict[str, torch.Tensor]]):
    """Figures that are drawn when they are read.

    Args:
        singles: Figures with one panel.
        count: Number of figures.
        plots: Number of different plots, from which figures choose. Each is drawn when it is first used.
        seed: Figure `n` is determined by the seed, `n`, and the singles.
        side: Width and height of the tensors.
        plot_share: Part of single figures that are plots.
        annotated: Real compound figures, which are changed a little each time.
        annotated_share: Part of the figures that are chosen from them.
        balance: How often single figures of rare types are chosen. With 0, each single figure is as probable as any
            other, with 1 each type.
    """

    def __init__(
        self,
        singles: Sequence[SingleFigure],
        count: int,
        *,
        plots: int = 1500,
        seed: int = 0,
        side: int = 512,
        plot_share: float = 0.5,
        annotated: Sequence[AnnotatedFigure] = (),
        annotated_share: float = 0.2,
        balance: float = 0.75,
    ):
        self.kinds: dict[str, list[SingleFigure]] = defaultdict(list)
        for single in singles:
            self.kinds[single.kind].append(single)
        self.types = _by_type(singles)
        self.count = count
        self.plots = plots
        self.seed = seed
        self.side = side
        self.plot_share = plot_share if self.kinds else 1.0
        self.annotated = list(annotated)
        self.annotated_share = annotated_share if self.annotated else 0.0
        weights = np.array([sum(map(len, kinds)) for kinds in self.types], dtype=float) ** (1 - balance)
        self._chances = weights / weights.sum()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return example_of(self.figure(index), self.side)

    def figure(self, index: int) -> DrawnFigure:
        """Draw the figure with an index, or choose an annotated one."""
        rng = np.random.default_rng([self.seed, index])
        if self.annotated_share and rng.random() < self.annotated_share:
            figure = _annotated(self.annotated[rng.integers(len(self.annotated))])
            return degrade(rng, stretched(rng, figure) if rng.random() < 0.5 else figure, strip=0.0)
        return draw_figure(rng, self._single)

    def _single(self, rng: Rng, kind: str | None) -> Single:
        if kind == "plot" or (kind is None and rng.random() < self.plot_share):
            image, image_type = _plot(self.seed, int(rng.integers(self.plots)))
            return Single(image, image_type, "plot", GROUP_OF[image_type] in PHOTOGRAPHS)
        files = self.kinds[kind] if kind is not None else self._of_random_type(rng)
        kind = files[0].kind
        single = files[rng.integers(len(files))]
        return Single(_read(single), single.image_type, kind, single.is_photograph)

    def _of_random_type(self, rng: Rng) -> list[SingleFigure]:
        kinds = self.types[rng.choice(len(self.types), p=self._chances)]
        # Collections of many images are chosen more often than an article with one, but not in proportion.
        weights = np.sqrt([len(files) for files in kinds])
        return kinds[rng.choice(len(kinds), p=weights / weights.sum())]


def _by_type(singles: Sequence[SingleFigure]) -> list[list[list[SingleFigure]]]:
    """Return the single figures of each type and kind. An unknown type is one, too."""
    found: dict[str | None, dict[str, list[SingleFigure]]] = defaultdict(lambda: defaultdict(list))
    for single in singles:
        found[single.image_type][single.kind].append(single)
    return [list(kinds.values()) for kinds in found.values()]


@lru_cache(maxsize=4096)
def _plot(seed: int, number: int) -> tuple[Image.Image, str]:
    return draw_plot(np.random.default_rng([seed, number, 1]))


@lru_cache(maxsize=4096)
def _read(single: SingleFigure) -> Image.Image:
    image = single.open()
    image.thumbnail((900, 900))
    return image


@lru_cache(maxsize=1024)
def _annotated(figure: AnnotatedFigure) -> DrawnFigure:
    image = figure.open()
    across = image.width
    image.thumbnail((1200, 1200))
    scale = image.width / across
    panels = [
        DrawnPanel(
            _scaled_box(panel.box, scale),
            panel.image_type,
            panel.label if panel.label_box else None,
            _scaled_box(panel.label_box, scale) if panel.label_box else None,
        )
        for panel in figure.panels
    ]
    return DrawnFigure(image, tuple(panels), labels_known=figure.has_label_boxes)


def _scaled_box(box: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    left, top, right, bottom = (edge * scale for edge in box)
    return (left, top, right, bottom)


def example_of(figure: DrawnFigure, side: int) -> dict[str, torch.Tensor]:
    """Return the input and the labels of [`PanelDetectionModel`] for a drawn figure."""
    longest = max(figure.image.size)
    printed = [panel for panel in figure.panels if panel.label is not None and panel.label_box is not None]
    example = {
        "pixel_values": torch.from_numpy(letterbox(figure.image, side)).permute(2, 0, 1),
        "boxes": _boxes([panel.box for panel in figure.panels], longest),
        "types": torch.tensor([_type_of(panel.image_type) for panel in figure.panels], dtype=torch.long),
        "compound": torch.tensor(int(figure.is_compound)),
    }
    if figure.labels_known:
        example["label_boxes"] = _boxes([panel.label_box for panel in printed], longest)
        example["letters"] = torch.tensor([label_class(str(panel.label)) for panel in printed], dtype=torch.long)
    return example


def _boxes(boxes: Sequence[object], longest: int) -> torch.Tensor:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / longest


def _type_of(name: str | None) -> int:
    return IMAGE_TYPES.index(name) if name else UNKNOWN


def collate(examples: Sequence[dict[str, torch.Tensor]]) -> dict[str, object]:
    """Return a batch of [`DrawnFigures`] for [`PanelDetectionModel`]."""
    pixels = torch.stack([example["pixel_values"] for example in examples])
    labels = [{name: value for name, value in example.items() if name != "pixel_values"} for example in examples]
    return {"pixel_values": pixels.float() / 127.5 - 1, "labels": labels}
