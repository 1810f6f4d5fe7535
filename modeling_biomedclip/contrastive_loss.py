"""Contrastive losses over the batch of all processes: symmetric InfoNCE, and SigLIP's pairwise sigmoid loss."""

import math

import torch
import torch.distributed as dist
from torch import nn


LOSSES = ("infonce", "siglip")
# Where SigLIP's loss starts (arXiv 2303.15343, section 3.2): nearly all pairs are wrong ones, and the bias keeps
# them from outweighing the right ones.
SIGLIP_LOGIT_BIAS = -10.0
SIGLIP_LOGIT_SCALE = math.log(10)
# Logits that exist at a time. 64 MiB in float32: a product so large keeps any device busy, and it is little beside the
# activations of the towers.
LOGITS_AT_ONCE = 2**24


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    *,
    loss: str = "infonce",
) -> torch.Tensor:
    """The loss of this process's pairs against the images and texts of all processes.

    `infonce`: the cross-entropy of each image among all texts and of each text among all images, averaged. `siglip`:
    the binary cross-entropy of each image with each text, summed over texts and averaged over images.

    Each process works out the rows of its own pairs. The features of the others are gathered with their gradient, so
    that the gradients which DDP averages over W processes are those of one process with the whole batch. These are
    open_clip's `ClipLoss(local_loss=True, gather_with_grad=True)` and `SigLipLoss`. Logits are worked out a slice of
    rows at a time and never in less than float32, under autocast neither: at a temperature of 1 / 100, bfloat16 would
    round them to the next half.

    Args:
        image_embeds: L2-normalised, of shape `(pairs, dimension)`, as many on each process.
        text_embeds: L2-normalised, of shape `(pairs, dimension)`; text i belongs to image i.
        logit_scale: Inverse temperature (the exponential of the model's parameter), of shape `()` or `(1,)`.
        logit_bias: What is added to each logit, of shape `()` or `(1,)`. Nothing if left out. InfoNCE does not change
            with it, and gives it a gradient of zero.
        loss: `infonce` or `siglip`.

    Returns:
        The mean over this process's pairs, of shape `()`.

    Raises:
        ValueError: Unequal numbers of images and texts, or another loss.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(f"Images {tuple(image_embeds.shape)} and texts {tuple(text_embeds.shape)} are not pairs.")
    images, texts = _at_least_float32(image_embeds), _at_least_float32(text_embeds)
    first = dist.get_rank() * len(images) if _world_size() > 1 else 0
    total = summed_loss(images, _gathered(texts), logit_scale, logit_bias, loss=loss, first=first)
    if loss == "siglip":
        return total / len(images)
    total = total + summed_loss(texts, _gathered(images), logit_scale, logit_bias, loss=loss, first=first)
    return total / (2 * len(images))


def summed_loss(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    *,
    loss: str = "infonce",
    first: int = 0,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> torch.Tensor:
    """The loss of each query against all candidates, in one direction and summed.

    Args:
        queries: L2-normalised, of shape `(queries, dimension)`.
        candidates: L2-normalised, of shape `(candidates, dimension)`; query i belongs to candidate `first + i`.
        logit_scale: Inverse temperature, of shape `()` or `(1,)`.
        logit_bias: What is added to each logit, of shape `()` or `(1,)`.
        loss: `infonce` or `siglip`.
        first: The candidate of the first query.
        logits_at_once: Bound of the logits that are held at a time; at least one row of them is.

    Returns:
        The sum, of shape `()`.

    Raises:
        ValueError: Another loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"The loss is one of {', '.join(LOSSES)}, not {loss!r}.")
    rows = max(1, logits_at_once // len(candidates))
    with torch.autocast(queries.device.type, enabled=False):
        return _SummedLoss.apply(queries, candidates, logit_scale, logit_bias, loss, first, rows)


class _SummedLoss(torch.autograd.Function):
    """Works out the gradients along with the loss, so that the logits of a slice of rows are forgotten before the next.

    Both losses have the same derivative by the logits: probabilities, softmax or sigmoid, less 1 for the pairs.
    """

    @staticmethod
    def forward(ctx, queries, candidates, logit_scale, logit_bias, loss, first, rows):
        total = queries.new_zeros(())
        by_queries, by_candidates, by_bias = torch.empty_like(queries), torch.zeros_like(candidates), total.clone()
        for start in range(0, len(queries), rows):
            chunk = queries[start : start + rows]
            logits = logit_scale * chunk @ candidates.t()
            row = torch.arange(len(chunk), device=logits.device)
            pairs = (row, first + start + row)
            if loss == "siglip":
                if logit_bias is not None:
                    logits += logit_bias
                logits[pairs] *= -1
                total += nn.functional.softplus(logits).sum()
                by_logits = logits.sigmoid_()
                by_logits[pairs] *= -1
                by_bias += by_logits.sum()
            else:
                normalisers = logits.logsumexp(dim=1)
                total += (normalisers - logits[pairs]).sum()
                by_logits = logits.sub_(normalisers[:, None]).exp_()
                by_logits[pairs] -= 1
            if any(ctx.needs_input_grad):
                by_queries[start : start + rows] = by_logits @ candidates
                by_candidates.addmm_(by_logits.t(), chunk)
        by_scale = (by_queries * queries).sum().reshape(logit_scale.shape)
        by_bias = None if logit_bias is None else by_bias.reshape(logit_bias.shape)
        ctx.save_for_backward(by_queries.mul_(logit_scale), by_candidates.mul_(logit_scale), by_scale, by_bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        by_inputs = (None if saved is None else gradient * saved for saved in ctx.saved_tensors)
        return *by_inputs, None, None, None


def _at_least_float32(embeds: torch.Tensor) -> torch.Tensor:
    return embeds.to(torch.promote_types(embeds.dtype, torch.float32))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gathered(rows: torch.Tensor) -> torch.Tensor:
    return _GatherWithGradient.apply(rows) if _world_size() > 1 else rows


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


__all__ = ["LOSSES", "SIGLIP_LOGIT_BIAS", "SIGLIP_LOGIT_SCALE", "contrastive_loss", "summed_loss"]
