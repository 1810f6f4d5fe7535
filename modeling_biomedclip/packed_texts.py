"""Batches of texts without padding: all tokens in one row, as in transformers' `DataCollatorWithFlattening`.

Linear layers and norms then compute real tokens only, and attention stays within each text.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch.nn.functional import pad


OF_TOKENS = ("input_ids", "token_type_ids", "position_ids")
DEVICES = ("cpu", "cuda")  # with fast attention for packed texts


def packs_texts(model: Any, device: torch.device) -> bool:
    """Return whether a model on a device gets packed texts."""
    return bool(getattr(model, "supports_packed_texts", False)) and device.type in DEVICES


def pack_texts(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the padding of a batch, on the device on which it is, which should be the CPU.

    Args:
        batch: Batch with `input_ids` and `attention_mask` of shape `(texts, length)`, and other entries.

    Returns:
        The batch with `input_ids` and `position_ids` of shape `(1, tokens)`, `cu_seq_lens_q` and `cu_seq_lens_k` of
        shape `(texts + 1,)` in int32, `max_length_q` and `max_length_k`, and without `attention_mask`. A batch without
        these entries or with padding before the first token is returned as it is.

    Example:
    ```python
    >>> import torch
    >>> from biomedclip import pack_texts

    >>> ids, mask = torch.tensor([[2, 7, 3], [2, 3, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    >>> packed = pack_texts({"input_ids": ids, "attention_mask": mask})
    >>> packed["input_ids"], packed["cu_seq_lens_q"]
    (tensor([[2, 7, 3, 2, 3]]), tensor([0, 3, 5], dtype=torch.int32))
    ```
    """
    mask = batch.get("attention_mask")
    # The model pools the first position of each row.
    if mask is None or "input_ids" not in batch or not mask[:, 0].all():
        return dict(batch)
    kept = mask.bool()
    # As in a row with padding, even if there are gaps.
    positions = batch.get("position_ids", torch.arange(mask.shape[1], device=mask.device))
    of_tokens = {**batch, "position_ids": positions.expand_as(mask)}
    packed = {name: of_tokens[name][kept][None] for name in OF_TOKENS if name in of_tokens}
    rest = {name: value for name, value in batch.items() if name not in (*OF_TOKENS, "attention_mask")}
    return packed | _boundaries(kept.sum(dim=1)) | rest


def pack_token_ids(token_ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the inputs of [`pack_texts`] for lists of token ids."""
    lengths = [len(ids) for ids in token_ids]
    positions = [torch.arange(length) for length in lengths]
    packed = {
        "input_ids": torch.tensor(list(chain.from_iterable(token_ids)))[None],
        "position_ids": torch.cat(positions)[None],
    }
    return packed | _boundaries(torch.tensor(lengths))


def take_packed_texts(batch: Mapping[str, Any], rows: torch.Tensor) -> dict[str, Any]:
    """Return the inputs of some texts of a packed batch, in the order of `rows`."""
    edges = batch["cu_seq_lens_q"].long()
    rows = rows.to(edges.device)
    starts, lengths = edges[rows], edges.diff()[rows]
    within = torch.arange(int(lengths.sum()), device=edges.device)
    tokens = within + (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
    return {name: batch[name][:, tokens] for name in OF_TOKENS if name in batch} | _boundaries(lengths)


def _boundaries(lengths: torch.Tensor) -> dict[str, Any]:
    edges = pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}


class PackingCollator:
    """Another collator, whose batches are packed by [`pack_texts`]. It has the attributes of the other one."""

    def __init__(self, collator: Callable[[Any], Mapping[str, Any]]):
        self.collator = collator

    def __call__(self, rows: Any) -> dict[str, Any]:
        """Return the packed batch of rows."""
        return pack_texts(self.collator(rows))

    def __getattr__(self, name: str) -> Any:
        if name == "collator":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.collator, name)
