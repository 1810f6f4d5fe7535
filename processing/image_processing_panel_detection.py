"""Image processor of the panel detector: a figure of any size becomes a square, and boxes become pixels again."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput

from .bit_depth_biomedclip import on_white


WHITE = 255


class PanelDetectionImageProcessor(PilBackend):
    r"""Resize the longer side to `size["height"]` pixels, and fill the rest of the square with white.

    The figure stands in the upper left corner. Values are between -1 and 1.

    Example:
    ```python
    >>> from PIL import Image
    >>> from biomedclip.processing import PanelDetectionImageProcessor

    >>> PanelDetectionImageProcessor()(Image.new("RGB", (900, 300)), return_tensors="pt")["pixel_values"].shape
    torch.Size([1, 3, 512, 512])
    ```
    """

    size = {"height": 512, "width": 512}
    model_input_names = ["pixel_values"]

    def preprocess(
        self, images: ImageInput | Sequence[ImageInput], return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Prepare one or several figures.

        Args:
            images: Pillow images, of any mode and size.
            return_tensors: `pt` or `np`.
            **kwargs: None is known.

        Returns:
            `pixel_values` of shape (batch, 3, height, width).
        """
        figures: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
        pixels = np.stack([letterbox(image, self.size["height"]) for image in figures])
        values = (pixels.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
        return BatchFeature({"pixel_values": np.ascontiguousarray(values)}, tensor_type=return_tensors)

    def post_process_object_detection(
        self,
        outputs: Any,
        threshold: float = 0.3,
        target_sizes: torch.Tensor | Sequence[tuple[int, int]] | None = None,
        overlap: float = 0.5,
    ) -> list[dict[str, torch.Tensor]]:
        """Return the panels of each figure, as transformers' pipeline expects them.

        Args:
            outputs: Output of [`PanelDetectionModel`].
            threshold: Least score.
            target_sizes: Height and width of each original figure in pixels. Without them, boxes are parts of the
                longer side.
            overlap: Of two boxes whose intersection over union is larger, the better one is kept.

        Returns:
            For each figure `scores` (n,), `labels` (n,), which are 0, and `boxes` (n, 4) with left, top, right, bottom.
        """
        found = []
        for number, (scores, boxes) in enumerate(
            zip(outputs.logits[..., 0].sigmoid(), outputs.pred_boxes, strict=True)
        ):
            kept = scores >= threshold
            corners = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)[kept]
            best = suppressed(corners, scores[kept], overlap)
            corners = corners[best]
            if target_sizes is not None:
                height, width = (float(side) for side in target_sizes[number])
                limits = corners.new_tensor([width, height, width, height])
                corners = torch.minimum((corners * max(height, width)).clamp(min=0), limits)
            labels = torch.zeros(len(best), dtype=torch.long)
            found.append({"scores": scores[kept][best], "labels": labels, "boxes": corners})
        return found


def letterbox(image: Image.Image, side: int) -> np.ndarray:
    """Return a figure as RGB array of shape (side, side, 3)."""
    figure = on_white(image)
    scale = side / max(figure.size)
    width, height = (max(1, round(length * scale)) for length in figure.size)
    resized = figure.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    square = np.full((side, side, 3), WHITE, dtype=np.uint8)
    square[:height, :width] = np.asarray(resized)
    return square


def suppressed(boxes: torch.Tensor, scores: torch.Tensor, overlap: float, most: int = 300) -> torch.Tensor:
    """Return the indices of the boxes that remain after non-maximum suppression, the best first.

    Args:
        boxes: Shape (n, 4), with left, top, right and bottom.
        scores: Shape (n,).
        overlap: Of two boxes with a larger intersection over union, the one with the smaller score is removed.
        most: Number of boxes that are looked at, those with the largest scores.
    """
    order = torch.argsort(scores, descending=True, stable=True)[:most]
    kept: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    for number in order.tolist():
        if kept:
            others = boxes[kept]
            low = torch.maximum(boxes[number, :2], others[:, :2])
            high = torch.minimum(boxes[number, 2:], others[:, 2:])
            common = (high - low).clamp(min=0).prod(1)
            union = areas[number] + areas[kept] - common
            if bool((common / union.clamp(min=1e-9) > overlap).any()):
                continue
        kept.append(number)
    return torch.tensor(kept, dtype=torch.long)
