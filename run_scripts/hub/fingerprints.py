"""What tells one set of weights from another."""

import copy
import hashlib

import torch
from torch import nn
from transformers import AutoModel


def weights_fingerprint(model: nn.Module) -> str:
    """16 hex digits: blake2b of names, types, shapes and bytes of all tensors of a model, as it is loaded."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, since numpy has no bfloat16; a tensor without dimensions has no view of another width.
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def evaluated_fingerprint(model: nn.Module) -> str:
    """The fingerprint of a model as it is evaluated: in float32, whatever the checkpoint holds."""
    parameters = {parameter.dtype for parameter in model.parameters()}
    return weights_fingerprint(model if parameters == {torch.float32} else copy.deepcopy(model).float())


def base_fingerprint(name: str, *, trust_remote_code: bool = False) -> str | None:
    """The fingerprint, as it is evaluated, of the dual encoder that a checkpoint holds.

    Args:
        name: Folder or Hub id.
        trust_remote_code: Whether the code of the checkpoint may be run.

    Returns:
        None for a checkpoint that is no whole dual encoder, such as one with a head in the place of the projections.
    """
    model, info = AutoModel.from_pretrained(
        name, dtype=torch.float32, output_loading_info=True, trust_remote_code=trust_remote_code
    )
    return None if info["missing_keys"] else evaluated_fingerprint(model)
