"""Towers of a dual encoder: which weight belongs to which, and the image tower locked."""

from types import MethodType
from typing import Any

import torch
from torch import nn


# Parts of BiomedCLIPModel and CLIPModel, by the beginning of a parameter's name. What is left is
# the temperature, and SigLIP's bias.
PARTS = {
    "vision_model.": "image tower",
    "visual_projection.": "image projection",
    "text_model.": "text tower",
    "text_projection.": "text projection",
}
REST = "temperature"


def part_of(name: str) -> str:
    """The part of a dual encoder that a parameter belongs to, inside whatever wraps the model."""
    # A tower has no projection in it, but an adapter's wrapper stands before both.
    found = (part for beginning, part in PARTS.items() if f".{beginning}" in f".{name}")
    return next(found, REST)


def lock_image_tower(model: Any) -> None:
    """Freezes the image tower as LiT (arXiv 2111.07991) does: what it has learned stays, and the text tower learns it.

    As open_clip's `lock_image_tower` does with a tower of timm's, this leaves the projection behind the tower free: it
    is new, and without it the features could not move. The tower also stays in evaluation mode, so that dropout does
    not blur features which cannot adapt to it.

    Args:
        model: BiomedCLIPModel or CLIPModel.
    """
    tower = model.vision_model
    tower.requires_grad_(False)
    tower.eval()
    # `Trainer` calls `train()` on the whole model at each step. With gradient checkpointing transformers makes what
    # leaves the patch embedding require gradients: the tower would keep its activations for a pass that leads nowhere.
    tower.train = MethodType(_stay_in_evaluation, tower)
    tower.forward = MethodType(_forward_without_gradients, tower)


def _stay_in_evaluation(tower: nn.Module, mode: bool = True) -> nn.Module:
    return tower


@torch.no_grad()
def _forward_without_gradients(tower: nn.Module, *arguments: Any, **options: Any) -> Any:
    return type(tower).forward(tower, *arguments, **options)
