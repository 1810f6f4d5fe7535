"""Identify the weights of a model in float32, whatever the precision of its checkpoint."""

import copy

import torch
from torch import nn
from transformers import AutoModel

from biomedclip.weights_fingerprint import weights_fingerprint


def evaluated_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of a model in float32, regardless of the precision of the checkpoint."""
    parameters = {parameter.dtype for parameter in model.parameters()}
    return weights_fingerprint(model if parameters == {torch.float32} else copy.deepcopy(model).float())


def base_fingerprint(name: str, *, trust_remote_code: bool = False) -> str | None:
    """Return the fingerprint in float32 of the dual encoder in a folder or on the Hub.

    It is None if the checkpoint lacks weights of a dual encoder, such as the projections.
    """
    model, info = AutoModel.from_pretrained(
        name, dtype=torch.float32, output_loading_info=True, trust_remote_code=trust_remote_code
    )
    return None if info["missing_keys"] else evaluated_fingerprint(model)
