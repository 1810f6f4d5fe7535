"""What tells one set of weights from another."""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


def weights_fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """
    A short hash of weights: of each tensor its name, type, shape and bytes, whatever their order.

    Args:
        tensors: As `state_dict` gives them, on any device.

    Returns:
        16 hex digits of BLAKE2b.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        # As bytes, since numpy has no bfloat16; a tensor without dimensions has no view of another width.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_of_model(model: nn.Module) -> str:
    """The fingerprint of a model's weights in float32: one checkpoint has one, in whatever precision it is run."""
    return weights_fingerprint({name: tensor.float() for name, tensor in model.state_dict().items()})
