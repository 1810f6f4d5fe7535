"""Embed the items of shards. Threads read, decode and resize images ahead of the model."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from biomedclip.processing.images.inputs import InputImage
from biomedclip.processing.images.reading import ImageError, decode_content, read_row_content

from ..evaluation.dual_encoders import DualEncoder
from ..evaluation.threads import results_in_order
from .encoders import text_embeds
from .inputs import Inputs
from .plan import Shard, read_items
from .shards import EmbeddedRow, ShardWriter


class _Batch(NamedTuple):
    """Rows of a batch without embeddings, and the pixels of those without an error."""

    rows: list[EmbeddedRow]
    pixels: torch.Tensor | None


def embed_image_shards(
    encoder: DualEncoder,
    images: Inputs,
    shards: Sequence[Shard],
    writer: ShardWriter,
    *,
    batch_size: int,
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Embed the images of shards and write them. Call `advance` with the number of images of each batch.

    A batch always has the same images, so that its embeddings do not depend on where an earlier run was interrupted.
    """
    batches = ((shard, batch) for shard in shards for batch in shard.batches(batch_size))
    prepared = _prepared(encoder, images, (batch for _, batch in batches), workers)
    for shard in shards:
        rows: list[EmbeddedRow] = []
        for _ in shard.batches(batch_size):
            batch = next(prepared)
            if batch.pixels is not None:
                embeds = iter(encoder.embed_pixels(batch.pixels).numpy())
                for row in batch.rows:
                    row.embedding = next(embeds) if row.error is None else None
            rows += batch.rows
            advance(len(batch.rows))
        writer.write(shard.number, rows)


def embed_text_shards(
    encoder: DualEncoder,
    texts: Inputs,
    shards: Sequence[Shard],
    writer: ShardWriter,
    *,
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    """Embed the texts of shards and write them. Texts of similar length of a shard share a batch."""
    for shard in shards:
        items = list(read_items(texts, shard.items))
        rows = [EmbeddedRow(item.id, item.path, item.columns, error=_text_error(item.text)) for item in items]
        good = [number for number, row in enumerate(rows) if row.error is None]
        if good:
            embeds = text_embeds(encoder, [items[number].text for number in good], batch_size).numpy()
            for number, embedding in zip(good, embeds, strict=True):
                rows[number].embedding = embedding
        writer.write(shard.number, rows)
        advance(len(rows))


def _text_error(text: Any) -> str | None:
    if not isinstance(text, str):
        return "there is no text" if text is None else f"a value of type {type(text).__name__} is not a text"
    return None if text.strip() else "the text is empty"


def _prepared(encoder: DualEncoder, images: Inputs, batches: Iterable[Sequence[int]], workers: int) -> Iterator[_Batch]:
    """Yield batches in order. One thread reads the rows, and `workers` threads decode and resize the images."""

    def read(batch: Sequence[int]) -> list[InputImage]:
        return list(read_items(images, batch))

    def prepare(found: Future[list[InputImage]]) -> _Batch:
        rows, pixels = [], []
        for image in found.result():
            row = EmbeddedRow(image.id, image.path, image.columns)
            try:
                content, name = read_row_content(image.image)
                row.image_md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
                # One by one: a batch of decoded images can be large.
                decoded = [decode_content(content, name)]
                pixels.append(encoder.processor.image_processor(decoded, return_tensors="pt")["pixel_values"])
            except (ImageError, ImportError) as error:  # DICOM without pydicom
                row.error = str(error)
            rows.append(row)
        return _Batch(rows, torch.cat(pixels) if pixels else None)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(workers) as threads:
        try:
            submitted = (threads.submit(prepare, reader.submit(read, batch)) for batch in batches)
            yield from results_in_order(submitted, workers)
        finally:
            threads.shutdown(cancel_futures=True)
