"""Embeddings of many images and texts: in batches, prepared while the model works, padding not paid for."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


BATCH_SIZE = 32
PROMPTS_AT_A_TIME = 256
LARGEST_LIMIT = 1_000_000  # transformers writes «no limit» as 10^30
# Characters of a text that are kept for each token that it may have, as of [`BiomedCLIPProcessor`]: what is behind them
# cannot matter, and may be long.
CHARACTERS_PER_TOKEN = 128
# Share of a text's place in a batch that may be padding. On a CPU a small batch costs less than padding does, and where
# there are many texts, batches fill up all the same.
MOST_PADDING = 1 / 8


def embed_images(model: Any, processor: Any, images: Sequence[Any], *, batch_size: int = BATCH_SIZE) -> torch.Tensor:
    """Normalised embeddings of images.

    Args:
        model: A dual encoder with `get_image_features`, or an [`ExportedModel`].
        processor: Its processor.
        images: Pillow images, or a sequence that reads them when they are asked for.
        batch_size: Images at a time.

    Returns:
        L2-normalised, float32, on the CPU, of shape `(images, dimension)`.
    """
    embeds = list(image_batches(model, processor, images, batch_size))
    return torch.cat(embeds) if embeds else torch.empty(0, model.config.projection_dim)


def image_batches(model: Any, processor: Any, images: Sequence[Any], batch_size: int) -> Iterator[torch.Tensor]:
    """The embeddings of [`embed_images`], batch by batch."""

    def prepare(start: int) -> torch.Tensor:
        batch = list(images[start : start + batch_size])
        return processor.image_processor(batch, return_tensors="pt")["pixel_values"]

    for pixel_values in _prepared_ahead(prepare, range(0, len(images), batch_size)):
        with torch.no_grad(), _in_evaluation(model):
            features = model.get_image_features(pixel_values=pixel_values.to(model.device)).pooler_output
            embeds = normalize(features).cpu()
        yield embeds


@torch.no_grad()
def embed_texts(
    model: Any, processor: Any, texts: Sequence[str], *, batch_size: int = BATCH_SIZE, max_length: int | None = None
) -> torch.Tensor:
    """Normalised embeddings of texts, in their order.

    Texts of like length go together, so that next to no padding is worked on: real captions average 107 of 256 tokens.

    Args:
        model: A dual encoder with `get_text_features`, or an [`ExportedModel`].
        processor: Its processor.
        texts: Captions or prompts.
        batch_size: Texts of the full length at a time; of shorter ones as many more as have the same number of tokens.
        max_length: Tokens that a text is cut at; the tokenizer's limit when left out.

    Returns:
        L2-normalised, float32, on the CPU, of shape `(texts, dimension)`.
    """
    if not texts:
        return torch.empty(0, model.config.projection_dim)
    token_ids, fixed_length = _token_ids(model, processor, texts, max_length)
    longest_first = sorted(range(len(texts)), key=lambda index: -len(token_ids[index]))
    budget = batch_size * (fixed_length or len(token_ids[longest_first[0]]))
    embeds: torch.Tensor | None = None
    start = 0
    while start < len(texts):
        longest = fixed_length or len(token_ids[longest_first[start]])
        shortest = longest * (1 - MOST_PADDING) if fixed_length is None else 0
        at_most = longest_first[start : start + max(1, budget // longest)]
        chosen = [index for index in at_most if len(token_ids[index]) >= shortest]
        rows = _embed_batch(model, processor, [token_ids[index] for index in chosen], longest)
        embeds = rows.new_empty(len(texts), rows.shape[1]) if embeds is None else embeds
        embeds[chosen] = rows
        start += len(chosen)
    assert embeds is not None
    return embeds


@torch.no_grad()
def embed_prompts(
    model: Any, processor: Any, prompts: Sequence[str], *, max_length: int | None = None
) -> tuple[torch.Tensor, list[int]]:
    """Normalised embeddings of prompts in one batch, padded to the longest, as the model itself would embed them.

    Args:
        model: A dual encoder with `get_text_features`, or an [`ExportedModel`].
        processor: Its processor.
        prompts: Some hundreds at most are worked on at a time.
        max_length: Tokens that a prompt is cut at; the tokenizer's limit when left out.

    Returns:
        Embeddings as of [`embed_texts`], and the number of tokens of each prompt; of a prompt of more than
        `CHARACTERS_PER_TOKEN` characters for each token of the limit, the number of tokens of its beginning.
    """
    prompts = _cut(model, processor, prompts, max_length)
    token_ids, fixed_length = _token_ids(model, processor, prompts, max_length)
    whole = processor(text=list(prompts), padding=False, truncation=False, verbose=False)["input_ids"]
    embeds = []
    for start in range(0, len(prompts), PROMPTS_AT_A_TIME):
        batch = token_ids[start : start + PROMPTS_AT_A_TIME]
        embeds.append(_embed_batch(model, processor, batch, fixed_length or max(map(len, batch))))
    return torch.cat(embeds), [len(ids) for ids in whole]


def text_limit(model: Any, processor: Any) -> int:
    """Tokens that a text may have: the tokenizer's limit or, where it has none, the model's positions."""
    limit = processor.tokenizer.model_max_length
    if limit < LARGEST_LIMIT:
        return limit
    return getattr(getattr(model.config, "text_config", None), "max_position_embeddings", None) or 512


def normalize(features: torch.Tensor) -> torch.Tensor:
    """Unit vectors in float32, whatever the model's precision: similarities in half precision would tie."""
    return nn.functional.normalize(features.float(), dim=-1)


def _token_ids(
    model: Any, processor: Any, texts: Sequence[str], max_length: int | None
) -> tuple[list[list[int]], int | None]:
    """Token ids of each text, cut at the limit, and the length that all must have, where there is one."""
    limit = max_length or text_limit(model, processor)
    texts = _cut(model, processor, texts, max_length)
    token_ids = processor(text=texts, padding=False, truncation=True, max_length=limit)["input_ids"]
    # SigLIP pools the last position, so its texts must always have the same length.
    return token_ids, limit if "siglip" in model.config.model_type else None


def _cut(model: Any, processor: Any, texts: Sequence[str], max_length: int | None) -> list[str]:
    """The beginnings of texts that can matter for the tokens that are used."""
    if getattr(processor.tokenizer, "truncation_side", "right") != "right":
        return list(texts)
    limit = max_length or text_limit(model, processor)
    return [text[: limit * CHARACTERS_PER_TOKEN] for text in texts]


def _embed_batch(model: Any, processor: Any, token_ids: list[list[int]], length: int) -> torch.Tensor:
    pad = processor.tokenizer.pad_token_id or 0
    input_ids = torch.tensor([ids + [pad] * (length - len(ids)) for ids in token_ids])
    inputs = {"input_ids": input_ids.to(model.device)}
    if "attention_mask" in processor.tokenizer.model_input_names:
        mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in token_ids])
        inputs["attention_mask"] = mask.to(model.device)
    with _in_evaluation(model):
        return normalize(model.get_text_features(**inputs).pooler_output).cpu()


@contextmanager
def _in_evaluation(model: Any) -> Iterator[None]:
    """Without dropout, which would give other embeddings at each call; the model's mode is as before afterwards."""
    training = getattr(model, "training", False)
    model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def _prepared_ahead(prepare: Callable[[int], torch.Tensor], starts: Sequence[int]) -> Iterator[torch.Tensor]:
    """Batches, the next one being prepared in a thread while the caller works on the last."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = thread.submit(prepare, starts[0]) if starts else None
        for following in [*starts[1:], None]:
            if waiting is None:
                return
            batch = waiting.result()
            waiting = thread.submit(prepare, following) if following is not None else None
            yield batch


__all__ = ["embed_images", "embed_prompts", "embed_texts", "image_batches", "normalize", "text_limit"]
