"""Network that finds the panels of a figure, the labels printed on them, and the types of the images.

It has no anchors. Each cell of a map of stride 8 tells whether the center of a panel or of a printed label lies in it,
the distances to the four edges, and the class, as in CenterNet (Zhou et al. 2019, https://arxiv.org/abs/1904.07850) and
FCOS (Tian et al. 2019, https://arxiv.org/abs/1904.01355).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_panel_detection import PanelDetectionConfig


STRIDE = 8
TYPE_SMOOTHING = 0.05  # part of the probability that the loss spreads over all types, as many are hard to tell
IGNORED = -1  # class of a panel or label, or state of a figure, that is unknown
# Weights of the parts of the loss. Sums over a batch are divided by its number of panels or labels.
LOSS_WEIGHTS = {
    "panels": 1.0,
    "boxes": 2.0,
    "labels": 1.0,
    "label_boxes": 1.0,
    "letters": 1.0,
    "types": 1.0,
    "compound": 0.5,
}


@dataclass
class PanelDetectionOutput(ModelOutput):
    """Output of [`PanelDetectionModel`]. N is the number of cells, 4,096 for an input of 512 pixels.

    Attributes:
        loss: Weighted sum of all parts, if `labels` were passed.
        losses: Each part before it is weighted.
        logits: Shape (batch, N, 1). Whether the center of a panel lies in the cell.
        pred_boxes: Shape (batch, N, 4). Box of this panel: center and size, in parts of the input.
        type_logits: Shape (batch, N, types). Type of its image.
        label_logits: Shape (batch, N, 1). Whether the center of a printed label lies in the cell.
        label_boxes: Shape (batch, N, 4). Box of this label, like `pred_boxes`.
        letter_logits: Shape (batch, N, printed labels). Which label it is.
        compound_logits: Shape (batch,). Whether the figure has several panels.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    pred_boxes: Tensor | None = None
    type_logits: Tensor | None = None
    label_logits: Tensor | None = None
    label_boxes: Tensor | None = None
    letter_logits: Tensor | None = None
    compound_logits: Tensor | None = None


class _ConvNorm(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1, relu: bool = True):
        layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(_ConvNorm(width, width), _ConvNorm(width, width, relu=False))

    def forward(self, features: Tensor) -> Tensor:
        return functional.relu(features + self.body(features))


class _Output(nn.Conv2d):
    """Last layer of a head, whose outputs are nearly `start` before training."""

    def __init__(self, inputs: int, outputs: int, start: float = 0.0):
        super().__init__(inputs, outputs, 1)
        self.start = start


class _Head(nn.Module):
    """Predict an object in each cell: its score, the distances to its edges, and its class."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.body = _ConvNorm(width, width)
        self.score = _Output(width, 1, start=-4.6)  # one object in a hundred cells
        self.distances = _Output(width, 4)
        self.classes = _Output(width, classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.body(features)
        # Distances in parts of the input. Raw values of 0 are an eighth of it.
        distances = functional.softplus(self.distances(features)) * (0.125 / 0.6931)
        return _cells(self.score(features)), _boxes(distances), _cells(self.classes(features))


def _cells(maps: Tensor) -> Tensor:
    return maps.flatten(2).transpose(1, 2)


def _boxes(distances: Tensor) -> Tensor:
    """Return boxes (center and size) from distances of the center of each cell to left, top, right and bottom."""
    height, width = distances.shape[-2:]
    y = (torch.arange(height, device=distances.device, dtype=distances.dtype) + 0.5) / height
    x = (torch.arange(width, device=distances.device, dtype=distances.dtype) + 0.5) / width
    left, top, right, bottom = distances.unbind(1)
    center_x, center_y = x + (right - left) / 2, y[:, None] + (bottom - top) / 2
    return torch.stack([center_x, center_y, left + right, top + bottom], dim=-1).flatten(1, 2)


class PanelDetectionPreTrainedModel(PreTrainedModel):
    """Base class: initialization, loading and saving."""

    config_class = PanelDetectionConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, _Output):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.constant_(module.bias, module.start)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


class PanelDetectionModel(PanelDetectionPreTrainedModel):
    """Find panels, printed labels and image types.

    Example:
        >>> import torch
        >>> from biomedclip import PanelDetectionConfig, PanelDetectionModel
        >>> model = PanelDetectionModel(PanelDetectionConfig(printed_labels=["A", "B"], image_types=["plot"])).eval()
        >>> model(torch.zeros(1, 3, 512, 512)).pred_boxes.shape
        torch.Size([1, 4096, 4])
    """

    def __init__(self, config: PanelDetectionConfig):
        super().__init__(config)
        inputs = 3
        self.stages = nn.ModuleList()
        for width, depth in zip(config.widths, config.depths, strict=True):
            blocks = [_ConvNorm(inputs, width, stride=2), *(_Residual(width) for _ in range(depth))]
            self.stages.append(nn.Sequential(*blocks))
            inputs = width
        neck = config.neck_width
        self.lateral = nn.ModuleList(_ConvNorm(width, neck, 1) for width in config.widths[2:])
        self.merge = _ConvNorm(neck, neck)
        self.fine = _ConvNorm(4 * config.widths[1], neck, 1)
        self.panel_head = _Head(neck, max(1, len(config.image_types)))
        self.label_head = _Head(neck, max(1, len(config.printed_labels)))
        self.compound_head = nn.Linear(config.widths[-1] + neck, 1)
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Sequence[dict[str, Tensor]] | None = None, **kwargs: Any
    ) -> PanelDetectionOutput:
        """Find the panels of figures.

        Args:
            pixel_values: Shape (batch, 3, image_size, image_size), from [`PanelDetectionImageProcessor`].
            labels: What each figure contains: `boxes` (n, 4) and `label_boxes` (m, 4) with left, top, right and bottom
                in parts of the input, `types` (n,), `letters` (m,) and `compound` (); -1 is unknown. Without
                `label_boxes`, it is unknown where labels are printed.
            **kwargs: Ignored, as transformers' pipelines pass the mask of images of several sizes.

        Returns:
            Predictions of all cells, and the loss if there are labels.
        """
        # Channels last is several times as fast on CPUs with bfloat16.
        features, maps = pixel_values.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        merged = self.lateral[-1](maps[-1])
        for lateral, finer in zip(reversed(self.lateral[:-1]), reversed(maps[2:-1]), strict=True):
            merged = functional.interpolate(merged, scale_factor=2.0, mode="nearest") + lateral(finer)
        merged = self.merge(merged)
        panels = self.panel_head(merged)
        printed = self.label_head(merged + self.fine(functional.pixel_unshuffle(maps[1], 2)))
        pooled = torch.cat([maps[-1].mean((2, 3)), merged.amax((2, 3))], dim=1)
        compound = self.compound_head(pooled)[:, 0]
        output = PanelDetectionOutput(
            logits=panels[0],
            pred_boxes=panels[1],
            type_logits=panels[2],
            label_logits=printed[0],
            label_boxes=printed[1],
            letter_logits=printed[2],
            compound_logits=compound,
        )
        if labels is not None:
            output.losses = detection_losses(output, labels)
            output.loss = sum(LOSS_WEIGHTS[name] * value for name, value in output.losses.items())
        return output


def detection_losses(output: Any, labels: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the parts of the loss of a batch, from [`PanelDetectionOutput`] and the labels of its figures.

    Scores have the penalty-reduced focal loss of CenterNet (equation 1), boxes the generalized IoU loss (Rezatofighi et
    al. 2019, https://arxiv.org/abs/1902.09630), classes cross-entropy.
    """
    side = round(output.logits.shape[1] ** 0.5)
    panels = [_targets(each["boxes"], each["types"], side, spread=0.12) for each in labels]
    with_labels = [number for number, each in enumerate(labels) if "label_boxes" in each]
    printed = [_targets(labels[n]["label_boxes"], labels[n]["letters"], side, spread=0.3) for n in with_labels]
    read = [part[with_labels] for part in (output.label_logits, output.label_boxes, output.letter_logits)]
    losses: dict[str, Tensor] = {}
    for names, targets, scores, boxes, classes in (
        (("panels", "boxes", "types"), panels, output.logits, output.pred_boxes, output.type_logits),
        (("labels", "label_boxes", "letters"), printed, *read),
    ):
        if not targets:
            losses |= dict.fromkeys(names, scores.sum() * 0)
            continue
        heat, gold_boxes, gold_classes, weights = (torch.stack(part) for part in zip(*targets, strict=True))
        losses[names[0]] = _focal_loss(scores[..., 0].float(), heat)
        inside = weights > 0
        total = weights.sum().clamp(min=1)
        overlap = _generalized_iou(_corners(boxes[inside].float()), gold_boxes[inside])
        losses[names[1]] = ((1 - overlap) * weights[inside]).sum() / total
        known = inside & (gold_classes != IGNORED)
        entropy = functional.cross_entropy(
            classes[known].float(),
            gold_classes[known],
            reduction="none",
            label_smoothing=TYPE_SMOOTHING if names[2] == "types" else 0.0,
        )
        losses[names[2]] = (entropy * weights[known]).sum() / weights[known].sum().clamp(min=1)
    compound = torch.stack([each["compound"] for each in labels])
    known = compound != IGNORED
    logits = output.compound_logits.float()
    entropy = functional.binary_cross_entropy_with_logits(logits, compound.clamp(min=0).float(), reduction="none")
    losses["compound"] = (entropy * known).sum() / known.sum().clamp(min=1)
    return losses


def _targets(boxes: Tensor, classes: Tensor, side: int, spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return for each cell the target score, box and class, and the weight of box and class.

    The score is a Gaussian around each center with a standard deviation of `spread` of the box, and at least 0.6 cells.
    Boxes and classes are learned in cells near the center, those of the smallest box where several overlap. The weights
    of each box sum to 1.
    """
    cells = side * side
    device = boxes.device
    heat = torch.zeros(cells, device=device)
    gold = torch.zeros(cells, 4, device=device)
    gold_classes = torch.full((cells,), IGNORED, dtype=torch.long, device=device)
    weights = torch.zeros(cells, device=device)
    if not len(boxes):
        return heat, gold, gold_classes, weights
    centers = (torch.arange(side, device=device) + 0.5) / side
    x, y = centers.repeat(side), centers.repeat_interleave(side)
    sizes = boxes[:, 2:] - boxes[:, :2]
    middle = (boxes[:, 2:] + boxes[:, :2]) / 2
    # The center of a box lies in a cell. Measured from the center of that cell, its score is exactly 1.
    nearest = ((middle * side).floor().clamp(0, side - 1) + 0.5) / side
    sigma = (sizes * spread / 2).clamp(min=0.6 / side)
    across = (x - nearest[:, :1]) / sigma[:, :1]
    down = (y - nearest[:, 1:]) / sigma[:, 1:]
    values = torch.exp(-(across**2 + down**2) / 2)
    heat = values.amax(0)
    order = torch.argsort(sizes.prod(1), descending=True)
    for number in order.tolist():  # smaller boxes overwrite larger ones
        near = values[number] > 0.45
        gold[near] = boxes[number]
        gold_classes[near] = classes[number]
        weights[near] = 1 / near.sum()
    return heat, gold, gold_classes, weights


def _focal_loss(logits: Tensor, heat: Tensor) -> Tensor:
    found = heat >= 1
    probability = logits.sigmoid()
    hit = functional.logsigmoid(logits) * (1 - probability) ** 2
    missed = functional.logsigmoid(-logits) * probability**2 * (1 - heat) ** 4
    return -torch.where(found, hit, missed).sum() / found.sum().clamp(min=1)


def _corners(boxes: Tensor) -> Tensor:
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def _generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the generalized IoU of each pair of boxes with left, top, right and bottom."""
    common = (torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])).clamp(min=0)
    hull = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) for boxes in (first, second)]
    intersection = common.prod(1)
    union = areas[0] + areas[1] - intersection
    enclosing = hull.prod(1).clamp(min=1e-9)
    return intersection / union.clamp(min=1e-9) - (enclosing - union) / enclosing
