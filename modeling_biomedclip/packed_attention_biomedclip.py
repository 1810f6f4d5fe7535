"""Attention within each text of a packed batch: texts in one row, one after the other, without padding."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


# Names of the boundaries of packed texts in transformers. Kernels of flash attention read them too.
BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def check_packed(
    input_shape: torch.Size,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    max_length: int | None,
) -> None:
    """Raise `ValueError` unless inputs with `cu_seq_lens_q` are one row of tokens with positions and without a mask."""
    if input_shape[0] != 1 or attention_mask is not None or position_ids is None or max_length is None:
        raise ValueError(
            "Packed texts (`cu_seq_lens_q`) are one row of tokens with `position_ids` that restart at each text, and "
            "with `max_length_q`, without `attention_mask`. `biomedclip.pack_texts` makes such a batch from a padded "
            "one."
        )


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_interface: Callable[..., Any],
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    dropout: float,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to the tokens of the same text.

    Args:
        module: The attention layer, with its `config`.
        query: Shape `(1, heads, tokens, head_dim)`, like `key` and `value`.
        key: Keys of the tokens.
        value: Values of the tokens.
        attention_interface: Attention function of transformers, used if it is flash attention.
        cu_seq_lens_q: Shape `(texts + 1,)`. Where each text begins and the last one ends.
        max_length_q: Number of tokens of the longest text.
        dropout: Probability of dropout.
        scaling: Factor of the products of queries and keys.
        kwargs: Further arguments of flash attention.

    Returns:
        The result, of shape `(1, tokens, heads, head_dim)`, and None in the place of the attention weights.
    """
    if "flash" in module.config._attn_implementation:
        boundaries = {"cu_seq_lens_q": cu_seq_lens_q, "cu_seq_lens_k": cu_seq_lens_q}
        lengths = {"max_length_q": max_length_q, "max_length_k": max_length_q}
        kwargs = {name: value for name, value in kwargs.items() if name not in BOUNDARIES} | boundaries | lengths
        output, _ = attention_interface(module, query, key, value, None, dropout=dropout, scaling=scaling, **kwargs)
    elif query.is_cuda:
        output = _nested_attention(query, key, value, cu_seq_lens_q, max_length_q, dropout, scaling)
    else:
        output = _attention_by_text(query, key, value, cu_seq_lens_q, dropout, scaling)
    return output, None


def _nested_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    edges: torch.Tensor,
    longest: int,
    dropout: float,
    scaling: float,
) -> torch.Tensor:
    """Run a variable-length kernel, flash attention in half precision. The host does not wait for the device."""
    # With known lengths, nested tensors need not ask the device for them. Each text has at least one token.
    nested = (
        torch.nested.nested_tensor_from_jagged(states[0].transpose(0, 1), edges, min_seqlen=1, max_seqlen=longest)
        for states in (query, key, value)
    )
    query, key, value = (states.transpose(1, 2) for states in nested)  # (texts, heads, tokens, head_dim)
    output = scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2).values()[None]


@torch.compiler.disable  # each batch has other lengths, for which it would be compiled again
def _attention_by_text(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, edges: torch.Tensor, dropout: float, scaling: float
) -> torch.Tensor:
    lengths = edges.diff().tolist()
    queries, keys, values = (states.split(lengths, dim=2) for states in (query, key, value))
    outputs = [
        scaled_dot_product_attention(own_query, own_key, own_value, dropout_p=dropout, scale=scaling)
        for own_query, own_key, own_value in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2)
