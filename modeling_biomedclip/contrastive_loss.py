"""Symmetric InfoNCE over the batch of all processes."""

import torch
import torch.distributed as dist
from torch import nn


def contrastive_loss(image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """
    InfoNCE of this process's pairs against the images and texts of all processes, both directions averaged.

    Each process works out the rows of its own pairs. The features of the others are gathered with their gradient, so
    that the gradients which DDP averages over W processes are those of one process with the whole batch. This is
    open_clip's `ClipLoss(local_loss=True, gather_with_grad=True)`.

    Args:
        image_embeds: L2-normalised, of shape `(pairs, dimension)`.
        text_embeds: L2-normalised, of shape `(pairs, dimension)`; text i belongs to image i.
        logit_scale: Inverse temperature (the exponential of the model's parameter), of shape `()`.

    Returns:
        The mean over this process's pairs, of shape `()`.

    Raises:
        ValueError: Unequal numbers of images and texts.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(f"Images {tuple(image_embeds.shape)} and texts {tuple(text_embeds.shape)} are not pairs.")
    all_images, all_texts, first = image_embeds, text_embeds, 0
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        all_images, all_texts = map(_GatherWithGradient.apply, (image_embeds, text_embeds))
        first = dist.get_rank() * len(image_embeds)
    labels = torch.arange(first, first + len(image_embeds), device=image_embeds.device)
    image_loss = nn.functional.cross_entropy(logit_scale * image_embeds @ all_texts.t(), labels)
    text_loss = nn.functional.cross_entropy(logit_scale * text_embeds @ all_images.t(), labels)
    return (image_loss + text_loss) / 2


class _GatherWithGradient(torch.autograd.Function):
    """Concatenates the rows of all processes; each gets back the gradients that all of them have for its rows."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


__all__ = ["contrastive_loss"]
