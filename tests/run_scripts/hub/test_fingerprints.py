"""The fingerprint of weights."""

import hashlib

import pytest
import torch
from torch import nn

from biomedclip.run_scripts.hub.fingerprints import evaluated_fingerprint
from biomedclip.weights_fingerprint import weights_fingerprint


TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor(4.5),
    "c": torch.tensor([1, 2], dtype=torch.bfloat16),
}


def holding(tensors: dict[str, torch.Tensor]) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_parameter(name, nn.Parameter(tensor))
    return module


def test_it_is_the_blake2b_of_names_types_shapes_and_bytes():
    content = b"a torch.float32 ()\x00\x00\x90@"
    content += b"b torch.float32 (2, 3)" + TENSORS["b"].numpy().tobytes()
    content += b"c torch.bfloat16 (2,)\x80\x3f\x00\x40"
    assert weights_fingerprint(holding(TENSORS)) == hashlib.blake2b(content, digest_size=8).hexdigest()


def test_neither_order_nor_strides_count():
    turned = {"c": TENSORS["c"], "a": TENSORS["a"], "b": TENSORS["b"].t().contiguous().t()}
    assert weights_fingerprint(holding(turned)) == weights_fingerprint(holding(TENSORS))


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.nextafter(TENSORS["a"], torch.tensor(9.0))},
        {"b": TENSORS["b"].reshape(3, 2)},
        {"c": TENSORS["c"].float()},
        {"d": torch.tensor(0.0)},
    ],
)
def test_everything_else_counts(other):
    assert weights_fingerprint(holding(TENSORS | other)) != weights_fingerprint(holding(TENSORS))


def test_a_checkpoint_in_half_precision_has_the_fingerprint_that_evaluation_sees():
    half = holding({"a": torch.tensor([1.5, 2.0], dtype=torch.bfloat16)})
    whole = holding({"a": torch.tensor([1.5, 2.0])})
    assert evaluated_fingerprint(half) == evaluated_fingerprint(whole) == weights_fingerprint(whole)
    assert half.a.dtype == torch.bfloat16, "the model itself stays as it is"
