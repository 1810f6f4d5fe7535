"""Contrastive losses over the batch of all processes: symmetric InfoNCE and the pairwise sigmoid loss of SigLIP."""

import math

import torch
import torch.distributed as dist
from torch import nn


LOSSES = ("infonce", "siglip")
# Initial values for the SigLIP loss (arXiv 2303.15343, section 3.2). Nearly all pairs are negative, and the bias keeps
# them from dominating the loss.
SIGLIP_LOGIT_BIAS = -10.0
SIGLIP_LOGIT_SCALE = math.log(10)
# Maximum number of logits in memory: 64 MiB in float32, which is large enough to keep a device busy and small compared
# with the activations of the encoders.
LOGITS_AT_ONCE = 2**24


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    *,
    loss: str = "infonce",
) -> torch.Tensor:
    """Return the loss of the pairs of this process against the images and texts of all processes.

    `infonce` is the cross-entropy of each image over all texts and of each text over all images, averaged. `siglip` is
    the binary cross-entropy of each image with each text, summed over texts and averaged over images. They equal
    open_clip's `ClipLoss(local_loss=True, gather_with_grad=True)` and `SigLipLoss`.

    Each process computes the rows of its own pairs. The features of the other processes are gathered with their
    gradients, so that the gradients averaged by DDP equal those of a single process with the whole batch. The logits
    are computed for a few rows at a time and at least in float32, even under autocast. In bfloat16, they would be
    rounded to multiples of 0.5 at the maximum logit scale of 100.

    Args:
        image_embeds: L2-normalized embeddings of shape `(pairs, dimension)`, the same shape in each process.
        text_embeds: L2-normalized embeddings of shape `(pairs, dimension)`. Text i belongs to image i.
        logit_scale: Inverse temperature (the exponential of the model's parameter) of shape `()` or `(1,)`.
        logit_bias: Bias of the logits of shape `()` or `(1,)`. InfoNCE does not depend on it, so its gradient is zero.
        loss: `infonce` or `siglip`.

    Returns:
        The mean over the pairs of this process, of shape `()`.

    Raises:
        ValueError: If the shapes of images and texts differ, or if `loss` is unknown.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds {tuple(image_embeds.shape)} and text_embeds {tuple(text_embeds.shape)} differ in shape."
        )
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
    """Return the loss of the queries against all candidates in one direction, summed over queries.

    Args:
        queries: L2-normalized embeddings of shape `(queries, dimension)`.
        candidates: L2-normalized embeddings of shape `(candidates, dimension)`. Query i belongs to candidate
            `first + i`.
        logit_scale: Inverse temperature of shape `()` or `(1,)`.
        logit_bias: Bias of the logits of shape `()` or `(1,)`.
        loss: `infonce` or `siglip`.
        first: Index of the candidate that belongs to the first query.
        logits_at_once: Maximum number of logits in memory. At least the logits of one query are computed at once.

    Returns:
        The sum, of shape `()`.

    Raises:
        ValueError: If `loss` is unknown.
    """
    if loss not in LOSSES:
        raise ValueError(f"`loss={loss!r}` is unknown. Choose one of {', '.join(LOSSES)}.")
    rows = max(1, logits_at_once // len(candidates))
    with torch.autocast(queries.device.type, enabled=False):
        return _SummedLoss.apply(queries, candidates, logit_scale, logit_bias, loss, first, rows)


class _SummedLoss(torch.autograd.Function):
    """Compute the gradients together with the loss, so that only the logits of a few rows are in memory.

    Both losses have the same derivative with respect to the logits: the probabilities (softmax or sigmoid), minus 1
    for the positive pairs.
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
                normalizers = logits.logsumexp(dim=1)
                total += (normalizers - logits[pairs]).sum()
                by_logits = logits.sub_(normalizers[:, None]).exp_()
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
    """Concatenate the rows of all processes. The backward pass sums the gradients of all processes."""

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
