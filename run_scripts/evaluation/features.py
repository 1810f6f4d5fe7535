"""Compute embeddings of images and texts once, and keep them on disk in numbered parts."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from biomedclip.embedding import embed_texts
from biomedclip.processing.images.reading import ImageError, read_row_image

from ..cli.fields import WORKERS
from .dual_encoders import DualEncoder
from .parts import Part, Parts
from .threads import results_in_order


FEATURES = "features"  # default folder, next to the results
# Rows in a part, which are embedded again if a run is killed. 2 MB for 512 dimensions in float32.
PART = 1024

# The readable rows of a batch, their pixels, and the number and reason of each unreadable row.
_Batch = tuple[list[int], torch.Tensor | None, list[tuple[int, str]]]


@dataclass(frozen=True)
class Features:
    """The embeddings `(readable rows, dimension)` in float32 on the CPU, and the numbers of these rows, ascending.

    `damaged` contains the `name` and `reason` of each unreadable row.
    """

    embeds: torch.Tensor
    rows: torch.Tensor
    damaged: list[dict[str, str]]


@dataclass
class FeatureStore:
    """Compute and store the features of one model.

    Features are keyed by the weights, the processor, the data and the settings. Stored features are not computed again,
    and an interrupted run continues. The parts are the same for every number of processes. The batch size changes
    features only by rounding, so it is not part of their key.
    """

    encoder: DualEncoder
    folder: Path
    batch_size: int = field(default=32, kw_only=True)
    max_length: int | None = field(default=None, kw_only=True)
    workers: int = field(default=WORKERS, kw_only=True)

    def images(self, images: Sequence[Any], names: Sequence[str], data: str, *, features: str = "embeds") -> Features:
        """Return the features of images, in any form that [`read_row_image`] accepts.

        An image is read only when it is needed. `names` are for the list of damaged rows, `data` is a
        fingerprint of the images in order, and `features` is that of [`DualEncoder.embed_pixels`]. Raise `ValueError`
        if no image can be read.
        """
        return self.stored_images(images, names, data, features=features)()

    def stored_images(
        self, images: Sequence[Any], names: Sequence[str], data: str, *, features: str = "embeds"
    ) -> Callable[[], Features]:
        """Compute and store the features of images like [`images`], and return a function that reads them."""
        parts = self._parts(len(images), {"data": data, "what": f"images, {features}"})

        def work(part: int) -> Part:
            rows = range(part * PART, min((part + 1) * PART, len(images)))
            good: list[int] = []
            damaged, embeds = [], []
            for kept, pixels, failed in self._prepared(images, rows):
                good += kept
                damaged += [{"name": names[row], "reason": reason} for row, reason in failed]
                if pixels is not None:
                    embeds.append(self.encoder.embed_pixels(pixels, features))
            joined = torch.cat(embeds) if embeds else torch.empty(0, 0)
            return {"embeds": joined, "rows": torch.tensor(good, dtype=torch.int64)}, damaged

        parts.complete(work, "Images")
        return partial(_read_all, parts, len(images))

    def texts(self, texts: Sequence[str], data: str) -> Features:
        """Return the normalized embeddings of texts. `data` is a fingerprint of the texts, in order."""
        key = {"data": data, "what": "texts", "max_length": self.max_length}
        parts = self._parts(len(texts), key)

        def work(part: int) -> Part:
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

    def _prepared(self, images: Sequence[Any], rows: range) -> Iterator[_Batch]:
        """Yield batches in order. Threads read and resize them ahead of the model."""

        def prepare(batch: range) -> _Batch:
            pictures, good, failed = [], [], []
            for row in batch:
                try:
                    pictures.append(read_row_image(images[row]))
                    good.append(row)
                except ImageError as error:
                    failed.append((row, error.reason))
            processor = self.encoder.processor.image_processor
            return good, processor(pictures, return_tensors="pt")["pixel_values"] if good else None, failed

        with ThreadPoolExecutor(max_workers=self.workers) as threads:
            starts = range(0, len(rows), self.batch_size)
            submitted = (threads.submit(prepare, rows[start : start + self.batch_size]) for start in starts)
            yield from results_in_order(submitted, self.workers)


def _read_all(parts: Parts, rows: int) -> Features:
    """Read the parts one by one into a single tensor, to save memory."""
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
