"""What the processes of a gradient test run: in a module of its own, as each of them imports it by its name."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import normalize

from modeling_biomedclip.contrastive_loss import contrastive_loss


def unit(pairs: int, seed: int) -> torch.Tensor:
    """Rows of length 1."""
    return normalize(torch.randn(pairs, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def gradients_of_a_process(rank: int, world_size: int, port: int, results: Any) -> None:
    """One process's share of a batch of eight; the mean of the gradients over processes is what DDP makes of them."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    torch.manual_seed(0)
    image_tower, text_tower = nn.Linear(8, 4), nn.Linear(8, 4)
    scale = nn.Parameter(torch.tensor(1.5))
    share = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    images, texts = normalize(image_tower(unit(8, 0)[share]), dim=-1), normalize(text_tower(unit(8, 1)[share]), dim=-1)
    contrastive_loss(images, texts, scale.exp()).backward()
    gradients = [image_tower.weight.grad, text_tower.weight.grad, scale.grad]
    for gradient in gradients:
        torch.distributed.all_reduce(gradient)
    if rank == 0:
        results[world_size] = [(gradient / world_size).tolist() for gradient in gradients]
    torch.distributed.destroy_process_group()
