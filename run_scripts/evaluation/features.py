"""Embeddings of images and texts, worked out once and kept on disk in numbered parts."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biomedclip.embedding import embed_texts
from biomedclip.processing.images.reading import ImageError, read_row_image

from .dual_encoders import DualEncoder
from .parts import Parts


FEATURES = "features"  # folder beside the results, where no other is named
# Rows of a part: what is lost at most when a run is killed. 2 MB of 512 numbers in float32.
PART = 1024
WORKERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Features:
    """Embeddings of the rows that could be used.

    Args:
        embeds: Of shape `(rows that could be used, dimension)`, float32, on the CPU.
        rows: Their numbers, ascending.
        damaged: `name` and `reason` of each row that could not be used.
    """

    embeds: torch.Tensor
    rows: torch.Tensor
    damaged: list[dict[str, str]]


class FeatureStore:
    """Extracts and keeps the features of one model.

    Features are keyed by the weights, the processor, the data, and what was embedded how. What is there already is not
    worked out again, and what an interrupted run has left is gone on with. Parts are the same for each number of
    processes.

    Args:
        encoder: The model.
        folder: Where the parts are kept.
        batch_size: Images or texts at a time. Other batches differ by rounding and count as the same features.
        max_length: Tokens a text is cut at; the tokenizer's limit when left out.
        workers: Batches of images that are read and resized at the same time, in threads: Pillow leaves Python's lock.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        folder: Path,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        workers: int = WORKERS,
    ):
        self.encoder = encoder
        self.folder = folder
        self.batch_size = batch_size
        self.max_length = max_length
        self.workers = workers

    def images(self, images: Sequence[Any], names: Sequence[str], data: str, *, features: str = "embeds") -> Features:
        """Features of images.

        Args:
            images: What [`read_row_image`] takes, one for each row; read when needed.
            names: What each is called in the list of damaged ones.
            data: Fingerprint of the images and their order.
            features: `embeds`, normalised; or `hidden`, the image tower's state before its projection.
        """
        parts = self._parts(len(images), {"data": data, "what": f"images, {features}"})

        def work(part: int) -> tuple[dict[str, torch.Tensor], Any]:
            rows = range(part * PART, min((part + 1) * PART, len(images)))
            good: list[int] = []
            damaged, embeds = [], []
            for kept, pixels, failed in self._prepared(images, rows):
                good += kept
                damaged += [{"name": names[row], "reason": reason} for row, reason in failed]
                if pixels is not None:
                    embeds.append(self.encoder.embed_pixels(pixels, features))
            return {"embeds": _joined(embeds), "rows": torch.tensor(good, dtype=torch.int64)}, damaged

        parts.complete(work, "Images")
        return _read_all(parts, len(images))

    def texts(self, texts: Sequence[str], data: str) -> Features:
        """Normalised embeddings of texts; none counts as damaged.

        Args:
            texts: Captions.
            data: Fingerprint of the texts and their order.
        """
        key = {"data": data, "what": "texts", "max_length": self.max_length}
        parts = self._parts(len(texts), key)

        def work(part: int) -> tuple[dict[str, torch.Tensor], Any]:
            rows = range(part * PART, min((part + 1) * PART, len(texts)))
            with self.encoder.precise():
                embeds = embed_texts(
                    self.encoder.model,
                    self.encoder.processor,
                    [texts[row] for row in rows],
                    batch_size=self.batch_size,
                    max_length=self.max_length,
                )
            return {"embeds": embeds, "rows": torch.tensor(rows)}, []

        parts.complete(work, "Texts")
        return _read_all(parts, len(texts))

    def _parts(self, rows: int, key: dict[str, Any]) -> Parts:
        key = key | {
            "weights": self.encoder.weights,
            "processor": self.encoder.processing,
            "precision": self.encoder.precision,
            "rows": rows,
            "part": PART,
        }
        return Parts(self.folder, key, -(-rows // PART))

    def _prepared(
        self, images: Sequence[Any], rows: range
    ) -> Iterator[tuple[list[int], torch.Tensor | None, list[tuple[int, str]]]]:
        """Batch by batch the rows that could be read, their pixels, and those that could not with the reason."""

        def prepare(batch: range) -> tuple[list[int], torch.Tensor | None, list[tuple[int, str]]]:
            pictures, good, failed = [], [], []
            for row in batch:
                try:
                    pictures.append(read_row_image(images[row]))
                    good.append(row)
                except ImageError as error:
                    failed.append((row, error.reason))
            pixels = (
                self.encoder.processor.image_processor(pictures, return_tensors="pt")["pixel_values"] if good else None
            )
            return good, pixels, failed

        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        with ThreadPoolExecutor(max_workers=self.workers) as threads:
            waiting: deque[Future[Any]] = deque()
            for batch in batches:
                waiting.append(threads.submit(prepare, batch))
                if len(waiting) > self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _joined(embeds: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(embeds) if embeds else torch.empty(0, 0)


def _read_all(parts: Parts, rows: int) -> Features:
    """All parts, in one tensor that is filled part by part: twice their size would not fit where once does."""
    embeds: torch.Tensor | None = None
    numbers = torch.empty(rows, dtype=torch.int64)
    damaged: list[dict[str, str]] = []
    filled = 0
    for number in range(parts.count):
        tensors, note = parts.read(number)
        damaged += note
        end = filled + len(tensors["rows"])
        if end > filled:
            embeds = tensors["embeds"].new_empty(rows, tensors["embeds"].shape[1]) if embeds is None else embeds
            embeds[filled:end], numbers[filled:end] = tensors["embeds"], tensors["rows"]
        filled = end
    if embeds is None:
        first = f": {damaged[0]['name']}: {damaged[0]['reason']}" if damaged else ""
        raise ValueError(f"None of the {rows:,} images can be read{first}.")
    return Features(embeds[:filled], numbers[:filled], damaged)
