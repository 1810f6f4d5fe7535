"""Losses of classifiers with class weights, and with several findings for each image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from biomedclip.processing.collator import IGNORED_LABEL

from .supervised import SupervisedTrainer


CLASS_WEIGHTS = ("none", "balanced")
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class WeightedTrainer(SupervisedTrainer):
    """`SupervisedTrainer` with its own loss of logits and labels, or that of the model without one.

    The losses of this module are means over images, so that accumulated batches and several processes give the
    gradient of one large batch.
    """

    def __init__(self, *args: Any, loss: Loss | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.loss = loss

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, **kwargs: Any) -> Any:
        """Return the loss of a batch, and the outputs of the model if they are wanted."""
        if self.loss is None:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = self.loss(outputs.logits.float(), inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def balanced_class_weights(labels: Sequence[str], classes: Sequence[str]) -> torch.Tensor:
    """Return images / (classes * images of the class) for each class, as in scikit-learn.

    Their mean over the images is 1, but not their mean over the classes.
    """
    counts = np.array([list(labels).count(name) for name in classes])
    return torch.tensor(len(labels) / (len(classes) * counts), dtype=torch.float32)


def weighted_cross_entropy(weights: torch.Tensor) -> Loss:
    """Return the cross-entropy in which each image counts with the weight of its class, as a mean over the images."""

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        known = labels != IGNORED_LABEL
        each = functional.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED_LABEL)
        return (each * weights.to(logits.device)[labels.clamp(min=0)] * known).mean()

    return loss


def positive_weights(targets: np.ndarray) -> torch.Tensor:
    """Return negative / positive labels of each finding, and 1 for a finding that lacks one of them."""
    positives, negatives = (targets == 1).sum(axis=0), (targets == 0).sum(axis=0)
    both = (positives > 0) & (negatives > 0)
    return torch.tensor(np.where(both, negatives / np.maximum(positives, 1), 1), dtype=torch.float32)


def masked_cross_entropy(weights: torch.Tensor | None = None) -> Loss:
    """Return the binary cross-entropy over the labels that are not NaN, by the number of images and findings.

    `weights` are those of the positive labels of each finding. The divisor counts ignored labels too, as in CheXpert's
    U-Ignore, whose loss is a sum over the findings.
    """

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        known = ~torch.isnan(labels)
        each = functional.binary_cross_entropy_with_logits(
            logits,
            torch.where(known, labels, 0.0),
            pos_weight=None if weights is None else weights.to(logits.device),
            reduction="none",
        )
        return (each * known).mean()

    return loss
