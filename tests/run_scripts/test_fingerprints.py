"""The fingerprint of weights."""

import hashlib

import pytest
import torch

from run_scripts.fingerprints import weights_fingerprint


TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.tensor(4.5),
    "c": torch.tensor([1, 2], dtype=torch.bfloat16),
}


def test_it_is_the_blake2b_of_names_types_shapes_and_bytes():
    content = b"a torch.float32 []\n" + b"\x00\x00\x90@"
    content += b"b torch.float32 [2, 3]\n" + TENSORS["b"].numpy().tobytes()
    content += b"c torch.bfloat16 [2]\n" + b"\x80\x3f\x00\x40"
    assert weights_fingerprint(TENSORS) == hashlib.blake2b(content, digest_size=8).hexdigest()


def test_neither_order_nor_strides_count():
    turned = {"c": TENSORS["c"], "a": TENSORS["a"], "b": TENSORS["b"].t().contiguous().t()}
    assert weights_fingerprint(turned) == weights_fingerprint(TENSORS)


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
    assert weights_fingerprint(TENSORS | other) != weights_fingerprint(TENSORS)
