"""From rows of a data set to the tensors of one contrastive batch."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from .image_processing_biomedclip import to_8_bit
from .images import ImageError, read_image


logger = logging.getLogger(__name__)

MAX_WORKERS = 1024  # slots of the counter that loader workers share


class ContrastiveCollator:
    r"""
    Collates rows with `image` and `caption` into `input_ids`, `attention_mask` and `pixel_values`.

    Captions are padded to the longest of the batch. In training images are cropped at random (open_clip's
    RandomResizedCrop, bicubic, no flips). The crop depends on the seed, the row's `pair_id` and the epoch alone, not on
    the process that draws it, so that every number of workers and ranks sees the same pixels.

    Args:
        processor: A processor with `image_processor` and `tokenizer`: [`BiomedCLIPProcessor`], `CLIPProcessor`, ...
        training (`bool`, defaults to `False`): Crop at random.
        max_length (`int`, *optional*): Longer captions are cut; the tokenizer's limit when left out.
        crop_scale (`tuple[float, float]`, defaults to `(0.9, 1.0)`): Share of the area that a crop keeps.
        crop_ratio (`tuple[float, float]`, defaults to `(3/4, 4/3)`): Width over height of a crop.
        seed (`int`, defaults to 0): Seed of crops and substitutes.
        on_error (`"raise"` or `"substitute"`): What a row does that cannot be used, because its image cannot be decoded
            or its caption is empty: raise an error that names it, or give its place to another row of the batch,
            drawn by seed, with a warning and a count in `substituted_rows`.

    Example:

    ```python
    >>> from processing import BiomedCLIPProcessor, ContrastiveCollator, load_pmc15m

    >>> collator = ContrastiveCollator(BiomedCLIPProcessor.from_pretrained("out/model"), training=True)
    >>> batch = collator(list(load_pmc15m("out", split="train").take(8)))
    ```"""

    def __init__(
        self,
        processor: Any,
        *,
        training: bool = False,
        max_length: int | None = None,
        crop_scale: tuple[float, float] = (0.9, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        seed: int = 0,
        on_error: Literal["raise", "substitute"] = "raise",
    ):
        if on_error not in ("raise", "substitute"):
            raise ValueError(f"on_error must be 'raise' or 'substitute', not {on_error!r}.")
        self.processor = processor
        self.training = training
        self.max_length = max_length
        self.crop_scale = crop_scale
        self.crop_ratio = crop_ratio
        self.seed = seed
        self.on_error = on_error
        self.epoch = 0
        # One slot for each worker in memory that all of them share: no lock, and no count is lost.
        self._substituted = torch.zeros(MAX_WORKERS + 1, dtype=torch.int64).share_memory_()

    @property
    def substituted_rows(self) -> int:
        """Rows replaced so far, in all workers of this process."""
        return int(self._substituted.sum())

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of rows that do not carry their own."""
        self.epoch = epoch

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: Rows with `image` (whatever [`read_image`] takes) and `caption`, and optionally `pair_id` and `epoch`.

        Returns:
            `input_ids` and `attention_mask` of shape `(rows, longest caption)`, `pixel_values` of shape
            `(rows, 3, height, width)`.

        Raises:
            ValueError: A row that cannot be used (with `on_error="raise"`), or none that can.
        """
        images, captions = self._usable(rows)
        text = self.processor(
            text=captions,
            # SigLIP pools the last position, so its texts must always have the same length.
            padding="max_length" if "siglip" in type(self.processor).__name__.lower() else True,
            truncation=True,
            max_length=self.max_length,
            return_token_type_ids=False,
            return_tensors="pt",
        )
        pixels = self.processor.image_processor(images, return_tensors="pt")
        texts = {name: text[name] for name in ("input_ids", "attention_mask") if name in text}
        return {**texts, "pixel_values": pixels["pixel_values"]}

    def _usable(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Image.Image], list[str]]:
        """Images and captions of all rows, the unusable ones replaced."""
        pairs: list[tuple[Image.Image, str] | None] = []
        for position, row in enumerate(rows):
            try:
                pairs.append(self._read(row, position))
            except ImageError as error:
                message = f"Row {_row_name(row, position)} cannot be used: {error}."
                if self.on_error == "raise":
                    raise ValueError(
                        f"{message} Remove it from the data set, or pass on_error='substitute'."
                    ) from error
                logger.warning("%s Another row takes its place.", message)
                pairs.append(None)

        good = [pair for pair in pairs if pair is not None]
        if not good:
            raise ValueError(f"None of the {len(rows)} rows of the batch can be used.")
        for position, row in enumerate(rows):
            if pairs[position] is None:
                pairs[position] = good[self._generator(row, position, "substitute").integers(len(good))]
                worker = get_worker_info()
                self._substituted[0 if worker is None else worker.id % MAX_WORKERS + 1] += 1
        images, captions = zip(*(pair for pair in pairs if pair is not None), strict=True)
        return list(images), list(captions)

    def _read(self, row: Mapping[str, Any], position: int) -> tuple[Image.Image, str]:
        for column in ("image", "caption"):
            if column not in row:
                raise ValueError(f"Row {_row_name(row, position)} has no {column!r}; it has {sorted(row)}.")
        caption = row["caption"]
        if not isinstance(caption, str) or not caption.strip():
            raise ImageError("its caption is empty")
        image = read_image(row["image"])
        if self.training:
            generator = self._generator(row, position, "crop")
            image = random_resized_crop(image, self._crop_size(), generator, self.crop_scale, self.crop_ratio)
        return image, caption

    def _generator(self, row: Mapping[str, Any], position: int, purpose: str) -> np.random.Generator:
        key = f"{purpose}/{row.get('epoch', self.epoch)}/{row.get('pair_id') or row.get('caption') or position}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return np.random.default_rng([self.seed, int.from_bytes(digest, "little")])

    def _crop_size(self) -> tuple[int, int]:
        """Height and width of the images that the processor puts out."""
        image_processor = self.processor.image_processor
        size = dict(
            image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
        )
        return (size.get("height") or size["shortest_edge"], size.get("width") or size["shortest_edge"])


def random_resized_crop(
    image: Image.Image,
    size: tuple[int, int],
    generator: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Image.Image:
    """
    Crops a random part of random area and shape, and resizes it (bicubic, antialiased).

    The rule is torchvision's RandomResizedCrop: ten tries of a uniform share of the area and a log-uniform ratio of
    the sides, then the largest central crop of a permitted ratio.

    Args:
        image: Any Pillow image; it comes back in RGB.
        size: Height and width of the result, in pixels.
        generator: Source of randomness.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width over height.
    """
    width, height = image.size
    box = _central_box(width, height, ratio)
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(generator.integers(width - crop_width + 1))
            top = int(generator.integers(height - crop_height + 1))
            box = (left, top, left + crop_width, top + crop_height)
            break
    cropped = to_8_bit(image).crop(box).convert("RGB")
    return cropped.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def _central_box(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    crop_width = min(width, max(1, round(height * ratio[1])))
    crop_height = min(height, max(1, round(width / ratio[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _row_name(row: Mapping[str, Any], position: int) -> str:
    return repr(row["pair_id"]) if row.get("pair_id") else f"{position} of the batch"


__all__ = ["ContrastiveCollator", "random_resized_crop"]
