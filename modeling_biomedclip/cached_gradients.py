"""Cached gradients: loss and gradients of a large batch on the memory of a mini-batch (GradCache, arXiv:2101.06983).

A contrastive loss needs the embeddings of the whole batch at once, but not the graphs that they come from:

1. Embed one mini-batch after the other without a graph, and keep the random state that each started from.
2. Work out the loss of all embeddings, and its gradient with respect to each of them.
3. Embed each mini-batch again, from the random state it had, and send those gradients down its graph.

The price is a second forward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn


_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


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
    """Adds to every parameter's `grad` that of the loss of all mini-batches together.

    With dropout they are the gradients of the plain backward of the same mini-batches, each embedded in its turn.

    Args:
        embed: Gives image and text embeddings, of shape `(rows, dimension)`, of rows of the batch. Under autocast it
            must enter it anew each time: the weights that autocast has cast in step 1 have no graph.
        mini_batches: The rows of each mini-batch.
        loss_of: Gives the loss of all image and text embeddings, in the order of the mini-batches.
        scalars: Parameters that the loss uses itself, such as the temperature, and that are trained.
        backward: What is done instead of `loss.backward()`.
        no_sync: Context in which gradients are not reduced over processes; entered for all but the last mini-batch.
        device: Where the model draws its random numbers, beside the CPU.

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
            # A sum of products has the cached gradients as its own.
            products = sum((part * gradient).sum() for part, gradient in zip(embed(rows), gradients, strict=True))
            if is_last:
                # Inside the one backward in which DDP waits for every parameter.
                products += sum((part * by).sum() for part, by in zip(scalars, by_scalars, strict=True))
            backward(products)
    state_after.restore()
    return loss.detach()


def mini_batch_rows(inputs: Mapping[str, Any], size: int) -> list[torch.Tensor]:
    """Rows of a batch in mini-batches of `size`, the last one perhaps smaller, longest texts first.

    Texts of like length then share a mini-batch, which [`take_rows`] cuts to the longest of them. The longest come
    first, so that what does not fit into memory fails at once.

    Args:
        inputs: A batch with `pixel_values`, of shape `(rows, ...)`, and perhaps `attention_mask`, of shape
            `(rows, length)`.
        size: Rows of a mini-batch.
    """
    mask = inputs.get("attention_mask")
    if mask is None:
        return list(torch.arange(len(inputs["pixel_values"])).split(size))
    return list(mask.sum(dim=1).argsort(descending=True, stable=True).cpu().split(size))


def take_rows(inputs: Mapping[str, Any], rows: torch.Tensor, *, cut_text: bool = True) -> dict[str, Any]:
    """Some rows of a batch, in the order given.

    Args:
        inputs: Tensors of shape `(rows, ...)`, and what is no tensor, which stays as it is.
        rows: Indices.
        cut_text: Leave out the padding that follows the longest text of these rows, if there is an `attention_mask`.
            Embeddings do not change but for rounding, unless the model pools the last position.
    """
    taken = {
        name: value[rows.to(value.device)] if isinstance(value, torch.Tensor) else value
        for name, value in inputs.items()
    }
    if cut_text and (mask := taken.get("attention_mask")) is not None:
        length = int(mask.any(dim=0).nonzero().max()) + 1
        taken |= {name: taken[name][:, :length] for name in _TEXT_INPUTS if name in taken}
    return taken


def copy_to_device(inputs: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Tensors on an accelerator, copied while it is still at work on what came before.

    From memory that is not pinned the copy would wait for that work, and the accelerator then for the copy.

    Args:
        inputs: Tensors, and what is no tensor, which stays as it is.
        device: The accelerator.
    """
    return {
        name: value.pin_memory().to(device, non_blocking=True)
        if isinstance(value, torch.Tensor) and value.device.type == "cpu"
        else value
        for name, value in inputs.items()
    }


class RandomState:
    """Torch's random state on the CPU and on a device."""

    def __init__(self, device: torch.device | str):
        device = torch.device(device)
        self.generators = None if device.type == "cpu" else torch.get_device_module(device)
        self.device = device
        self.on_cpu = torch.get_rng_state()
        self.on_device = None if self.generators is None else self.generators.get_rng_state(device)

    def restore(self) -> None:
        torch.set_rng_state(self.on_cpu)
        if self.generators is not None:
            self.generators.set_rng_state(self.on_device, device=self.device)


__all__ = ["RandomState", "cached_backward", "copy_to_device", "mini_batch_rows", "take_rows"]
