"""Embed many images and texts in batches. Batches are prepared in the background, with little padding."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .packed_texts import pack_token_ids, packs_texts


BATCH_SIZE = 32
LARGEST_LIMIT = 1_000_000  # transformers uses 10^30 for a tokenizer without a limit
# Maximum number of characters per token, as in `BiomedCLIPProcessor`. Longer text is cut before tokenization.
CHARACTERS_PER_TOKEN = 128
# Maximum fraction of padding in a row of a batch. On a CPU, a smaller batch costs less than padding.
MOST_PADDING = 1 / 8


def embed_images(model: Any, processor: Any, images: Sequence[Any], *, batch_size: int = BATCH_SIZE) -> torch.Tensor:
    """Embed images.

    Args:
        model: A dual encoder with `get_image_features`, or an [`ExportedModel`].
        processor: Processor of the model.
        images: Pillow images, or a sequence that loads each image on access.
        batch_size: Number of images per batch.

    Returns:
        L2-normalized embeddings of shape `(images, dimension)`, float32, on the CPU.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPModel, BiomedCLIPProcessor, embed_images, read_image

    >>> model = BiomedCLIPModel.from_pretrained("out/model")
    >>> processor = BiomedCLIPProcessor.from_pretrained("out/model")
    >>> embed_images(model, processor, [read_image("scan.png")]).shape
    torch.Size([1, 512])
    ```
    """
    embeds = list(image_batches(model, processor, images, batch_size))
    return torch.cat(embeds) if embeds else torch.empty(0, model.config.projection_dim)


def image_batches(model: Any, processor: Any, images: Sequence[Any], batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the embeddings of [`embed_images`] batch by batch."""

    def prepare(start: int) -> torch.Tensor:
        batch = list(images[start : start + batch_size])
        return processor.image_processor(batch, return_tensors="pt")["pixel_values"]

    for pixel_values in _prepared_ahead(prepare, range(0, len(images), batch_size)):
        with torch.no_grad(), in_evaluation(model):
            features = model.get_image_features(pixel_values=pixel_values.to(model.device)).pooler_output
            embeds = normalize(features).cpu()
        yield embeds


@torch.no_grad()
def embed_texts(
    model: Any, processor: Any, texts: Sequence[str], *, batch_size: int = BATCH_SIZE, max_length: int | None = None
) -> torch.Tensor:
    """Embed texts.

    A [`BiomedCLIPModel`] computes real tokens only (see [`pack_texts`]). For other models, texts of similar length are
    batched together to reduce padding.

    Args:
        model: A dual encoder with `get_text_features`, or an [`ExportedModel`].
        processor: Processor of the model.
        texts: Captions or prompts.
        batch_size: Batch size for the longest texts. Batches of shorter texts contain more texts, up to the same number
            of tokens.
        max_length: Maximum number of tokens of a text. The default is the limit of the tokenizer.

    Returns:
        L2-normalized embeddings in the order of `texts`, of shape `(texts, dimension)`, float32, on the CPU.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPModel, BiomedCLIPProcessor, embed_texts

    >>> model = BiomedCLIPModel.from_pretrained("out/model")
    >>> processor = BiomedCLIPProcessor.from_pretrained("out/model")
    >>> embed_texts(model, processor, ["chest X-ray"]).shape
    torch.Size([1, 512])
    ```
    """
    if not texts:
        return torch.empty(0, model.config.projection_dim)
    token_ids, fixed_length = tokenize(model, processor, texts, max_length)
    longest_first = sorted(range(len(texts)), key=lambda index: -len(token_ids[index]))
    budget = batch_size * (fixed_length or len(token_ids[longest_first[0]]))
    packs = _packs(model)
    embeds: torch.Tensor | None = None
    start = 0
    while start < len(texts):
        longest = fixed_length or len(token_ids[longest_first[start]])
        shortest = 0 if fixed_length or packs else longest * (1 - MOST_PADDING)
        at_most = longest_first[start : start + max(1, budget // longest)]
        chosen = [index for index in at_most if len(token_ids[index]) >= shortest]
        rows = _embed_batch(model, processor, [token_ids[index] for index in chosen], longest)
        embeds = rows.new_empty(len(texts), rows.shape[1]) if embeds is None else embeds
        embeds[chosen] = rows
        start += len(chosen)
    assert embeds is not None
    return embeds


def count_tokens(model: Any, processor: Any, texts: Sequence[str], *, max_length: int | None = None) -> list[int]:
    """Return the number of tokens of each text before truncation.

    Only the first `CHARACTERS_PER_TOKEN` characters per allowed token count.
    """
    texts = _cut(model, processor, texts, max_length)
    return [len(ids) for ids in processor(text=texts, padding=False, truncation=False, verbose=False)["input_ids"]]


def text_limit(model: Any, processor: Any) -> int:
    """Return the maximum number of tokens: the limit of the tokenizer, or else the positions of the model."""
    limit = processor.tokenizer.model_max_length
    if limit < LARGEST_LIMIT:
        return limit
    return getattr(getattr(model.config, "text_config", None), "max_position_embeddings", None) or 512


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Return L2-normalized features in float32. In half precision, many similarities would be tied."""
    return nn.functional.normalize(features.float(), dim=-1)


def tokenize(
    model: Any, processor: Any, texts: Sequence[str], max_length: int | None
) -> tuple[list[list[int]], int | None]:
    """Return the truncated token ids of each text and, if all texts must have the same length, that length."""
    limit = max_length or text_limit(model, processor)
    texts = _cut(model, processor, texts, max_length)
    token_ids = processor(text=texts, padding=False, truncation=True, max_length=limit)["input_ids"]
    # SigLIP pools the last position, so all texts must have the same length.
    return token_ids, limit if "siglip" in model.config.model_type else None


def _cut(model: Any, processor: Any, texts: Sequence[str], max_length: int | None) -> list[str]:
    """Cut texts after the last character that can affect the tokens that are kept."""
    if getattr(processor.tokenizer, "truncation_side", "right") != "right":
        return list(texts)
    limit = max_length or text_limit(model, processor)
    return [text[: limit * CHARACTERS_PER_TOKEN] for text in texts]


def _embed_batch(model: Any, processor: Any, token_ids: list[list[int]], length: int) -> torch.Tensor:
    if _packs(model):
        inputs = pack_token_ids(token_ids)
    else:
        inputs = padded_texts(processor, token_ids, length)
    inputs = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    with in_evaluation(model):
        return normalize(model.get_text_features(**inputs).pooler_output).cpu()


def _packs(model: Any) -> bool:
    return packs_texts(model, torch.device(model.device))


def padded_texts(processor: Any, token_ids: list[list[int]], length: int) -> dict[str, Any]:
    """Return the inputs of the model for texts, padded to a number of tokens."""
    pad = processor.tokenizer.pad_token_id or 0
    inputs = {"input_ids": torch.tensor([ids + [pad] * (length - len(ids)) for ids in token_ids])}
    if "attention_mask" in processor.tokenizer.model_input_names:
        inputs["attention_mask"] = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in token_ids])
    return inputs


@contextmanager
def in_evaluation(model: Any) -> Iterator[None]:
    """Put the model in evaluation mode, and restore its mode afterwards."""
    training = getattr(model, "training", False)
    model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def _prepared_ahead(prepare: Callable[[int], torch.Tensor], starts: Sequence[int]) -> Iterator[torch.Tensor]:
    """Yield each batch while a thread prepares the next one."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = thread.submit(prepare, starts[0]) if starts else None
        for following in [*starts[1:], None]:
            if waiting is None:
                return
            batch = waiting.result()
            waiting = thread.submit(prepare, following) if following is not None else None
            yield batch
