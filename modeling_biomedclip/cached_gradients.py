"""Cached gradients: gradients of a large batch with the memory of a mini-batch (GradCache, arXiv 2101.06983).

A contrastive loss needs the embeddings of the whole batch at once, but not their graphs:

1. Embed the mini-batches without a graph, and store the random state before each of them.
2. Compute the loss of all embeddings and its gradient with respect to each embedding.
3. Embed each mini-batch again from its random state, and backpropagate these gradients.

This requires a second forward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from .packed_texts import OF_TOKENS, take_packed_texts


_TEXT_INPUTS = (*OF_TOKENS, "attention_mask")


def cached_backward(
    embed: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    mini_batches: Sequence[torch.Tensor],
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    scalars: Sequence[nn.Parameter],
    *,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Add the gradient of the loss of all mini-batches to `grad` of each parameter.

    Even with dropout, the gradients equal those of a plain backward pass over the same mini-batches.

    Args:
        embed: Function that returns the image and text embeddings of the given rows of the batch, each of shape
            `(rows, dimension)`. It must enter autocast on each call, because weights that autocast cached in step 1
            have no graph.
        mini_batches: Indices of the rows of each mini-batch.
        loss_of: Function that returns the loss of all image and text embeddings, in the order of the mini-batches.
        scalars: Trainable parameters that the loss uses directly, such as `logit_scale`.
        backward: Function to call instead of `loss.backward()`.
        no_sync: Context manager that disables gradient synchronization, used for all but the last mini-batch.
        device: Device of the model. Its random state is stored together with that of the CPU.

    Returns:
        The loss, without a graph.
    """
    states, embeds = [], []
    with torch.no_grad():
        for rows in mini_batches:
            states.append(RandomState(device))
            embeds.append(embed(rows))
    state_after = RandomState(device)

    image_embeds, text_embeds = (torch.cat(parts).requires_grad_() for parts in zip(*embeds, strict=True))
    loss = loss_of(image_embeds, text_embeds)
    by_images, by_texts, *by_scalars = torch.autograd.grad(loss, [image_embeds, text_embeds, *scalars])

    sizes = [len(rows) for rows in mini_batches]
    by_embeds = zip(by_images.split(sizes), by_texts.split(sizes), strict=True)
    for position, (rows, state, gradients) in enumerate(zip(mini_batches, states, by_embeds, strict=True)):
        is_last = position == len(mini_batches) - 1
        with nullcontext() if is_last else no_sync():
            state.restore()
            # The gradient of this sum with respect to the embeddings is the cached gradient.
            products = sum((part * gradient).sum() for part, gradient in zip(embed(rows), gradients, strict=True))
            if is_last:
                # DDP waits for all parameters in the last backward pass.
                products += sum((part * by).sum() for part, by in zip(scalars, by_scalars, strict=True))
            backward(products)
    state_after.restore()
    return loss.detach()


def mini_batch_rows(inputs: Mapping[str, Any], size: int) -> list[torch.Tensor]:
    """Split the rows of a batch into mini-batches, longest texts first.

    Texts of similar length share a mini-batch, so [`take_rows`] can remove most of the padding. The longest texts come
    first, so if memory is insufficient, the first mini-batch fails. Packed texts have no padding and keep their order.

    Args:
        inputs: Batch with `pixel_values` of shape `(rows, ...)` and optionally `attention_mask` of shape
            `(rows, length)`.
        size: Number of rows in a mini-batch. The last one may be smaller.

    Returns:
        The indices of the rows of each mini-batch.
    """
    mask = inputs.get("attention_mask")
    if mask is None:
        return list(torch.arange(len(inputs["pixel_values"])).split(size))
    return list(mask.sum(dim=1).argsort(descending=True, stable=True).cpu().split(size))


def take_rows(inputs: Mapping[str, Any], rows: torch.Tensor, *, cut_text: bool = True) -> dict[str, Any]:
    """Select rows of a batch.

    Args:
        inputs: Tensors of shape `(rows, ...)`, and packed texts. Other values are not changed.
        rows: Indices of the rows, in the order of the result.
        cut_text: Remove the padding after the longest text, if there is an `attention_mask`. The embeddings then
            change only by rounding errors, unless the model pools the last position.
    """
    packed = take_packed_texts(inputs, rows) if "cu_seq_lens_q" in inputs else {}
    taken = packed | {
        name: value[rows.to(value.device)] if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
        if name not in packed
    }
    if cut_text and (mask := taken.get("attention_mask")) is not None:
        length = int(mask.any(dim=0).nonzero().max()) + 1
        taken |= {name: taken[name][:, :length] for name in _TEXT_INPUTS if name in taken}
    return taken


def copy_to_device(inputs: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Copy the tensors of a batch to an accelerator without waiting for its current work.

    Without pinned memory, the copy would wait for the accelerator, and the accelerator would then wait for the copy.
    """
    return {
        name: value.pin_memory().to(device, non_blocking=True)
        if isinstance(value, torch.Tensor) and value.device.type == "cpu"
        else value
        for name, value in inputs.items()
    }


class RandomState:
    """Random state of torch on the CPU and on a device."""

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self.generators = None if self.device.type == "cpu" else torch.get_device_module(self.device)
        self.on_cpu = torch.get_rng_state()
        self.on_device = None if self.generators is None else self.generators.get_rng_state(self.device)

    def restore(self) -> None:
        """Restore the random state that was stored at construction."""
        torch.set_rng_state(self.on_cpu)
        if self.generators is not None:
            self.generators.set_rng_state(self.on_device, device=self.device)
