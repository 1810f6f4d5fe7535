"""Collators that turn rows of a dataset into a batch, for contrastive learning, classification and VQA."""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from .answers import normalize_answer
from .images.cropping import fast_resized_crop, random_box, reduce_jpeg, resized_crop
from .images.reading import ImageError, decode_image, open_row_image, read_row_image
from .processing_biomedclip import cut_text


logger = logging.getLogger(__name__)

MAX_WORKERS = 1024  # slots of the shared counters
IGNORED_LABEL = -100  # ignored by torch's cross-entropy
UNKNOWN_ANSWER = -1  # label of an answer that is not in the model's vocabulary


class CollatorOptions(TypedDict, total=False):
    """Options of all collators.

    Args:
        training: Crop images at random (default: `False`). The crop depends only on the seed, the name of the row and
            the epoch, so the pixels are the same for any number of workers and ranks.
        seed: Seed of crops and substitutes (default: 0).
        on_error: How to handle a row whose image cannot be decoded or whose text is empty. `raise` (default) raises an
            error with the name of the row. `substitute` logs a warning, counts the row in `substituted_rows` and
            replaces it with another row of the batch, chosen by the seed.
        fast_decode: In training, decode JPEG files at the smallest scale (1, 1/2, 1/4 or 1/8) at which the crop has
            enough pixels (default: `True` in [`ContrastiveCollator`], otherwise `False`). The crops are the same.
            Pixels differ by about 1 of 255 levels on average if the scale is below 1, and by a few thousandths of a
            level otherwise.
    """

    training: bool
    seed: int
    on_error: Literal["raise", "substitute"]
    fast_decode: bool


class _RowCollator:
    """Base class that reads, crops and substitutes rows."""

    target_columns: tuple[str, ...]
    name_column = "name"

    def __init__(
        self,
        image_processor: Any,
        *,
        training: bool = False,
        seed: int = 0,
        on_error: Literal["raise", "substitute"] = "raise",
        fast_decode: bool = False,
    ):
        if on_error not in ("raise", "substitute"):
            raise ValueError(f"on_error must be 'raise' or 'substitute', not {on_error!r}.")
        self.image_processor = image_processor
        self.training = training
        self.seed = seed
        self.on_error = on_error
        self.fast_decode = fast_decode
        self.epoch = 0
        # Shared memory with one slot per worker, so that counting needs no lock.
        self._substituted = torch.zeros(MAX_WORKERS + 1, dtype=torch.int64).share_memory_()
        self._collated = torch.zeros(MAX_WORKERS + 1, dtype=torch.int64).share_memory_()
        self._seconds = torch.zeros(MAX_WORKERS + 1, dtype=torch.float64).share_memory_()

    @property
    def substituted_rows(self) -> int:
        """Number of rows that have been replaced so far, in all workers of this process."""
        return int(self._substituted.sum())

    @property
    def rows_per_second(self) -> float | None:
        """Mean number of rows that one worker collates per second. None before the first batch."""
        seconds = float(self._seconds.sum())
        return int(self._collated.sum()) / seconds if seconds else None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that is used for rows without a column `epoch`."""
        self.epoch = epoch

    def _read_rows(self, rows: Sequence[Mapping[str, Any]], ignored: Any = None) -> tuple[torch.Tensor, list[Any]]:
        """Return the pixel values and targets of rows.

        A row that cannot be used is replaced with another row of the batch. In evaluation, this would count the other
        row twice. If `ignored` is set, the row therefore gets a blank image and the target `ignored` instead.
        """
        started = time.perf_counter()
        pairs = [self._read_or_none(row, position) for position, row in enumerate(rows)]
        usable = [pair for pair in pairs if pair is not None]
        if not usable and (self.training or ignored is None):
            raise ValueError(f"None of the {len(rows)} rows of the batch can be used.")
        images, targets = [], []
        for position, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
            if pair is None and (self.training or ignored is None):
                pair = usable[self._generator(row, position, "substitute").integers(len(usable))]
            image, target = pair or (Image.new("RGB", (1, 1)), ignored)
            images.append(image)
            targets.append(target)
        pixels = self.image_processor(images, return_tensors="pt")["pixel_values"]
        self._collated[_slot()] += len(rows)
        self._seconds[_slot()] += time.perf_counter() - started
        return pixels, targets

    def _read_or_none(self, row: Mapping[str, Any], position: int) -> tuple[Image.Image, Any] | None:
        name = repr(row[self.name_column]) if row.get(self.name_column) else f"{position} of the batch"
        for column in ("image", *self.target_columns):
            if column not in row:
                raise ValueError(f"Row {name} has no column {column!r}. Its columns are {sorted(row)}.")
        try:
            target = self._target(row)
            if not self.training:
                return read_row_image(row["image"]), target
            return self._read_crop(row["image"], self._generator(row, position, "crop")), target
        except ImageError as error:
            message = f"Row {name} cannot be used: {error}."
            if self.on_error == "raise":
                raise ValueError(f"{message} Remove it from the dataset, or pass on_error='substitute'.") from error
            logger.warning("%s It is omitted from its batch.", message)
            self._substituted[_slot()] += 1
            return None

    def _target(self, row: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def _read_crop(self, source: Any, generator: np.random.Generator) -> Image.Image:
        image, name = open_row_image(source)
        processor = self.image_processor
        sides = dict(processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size)
        size = (sides.get("height") or sides["shortest_edge"], sides.get("width") or sides["shortest_edge"])
        # `reduce_jpeg` changes the image, and the caller may still need all of a Pillow image.
        fast = self.fast_decode and image.format == "JPEG" and not isinstance(source, Image.Image)
        box = random_box(image.size, generator)
        if not fast:
            return resized_crop(decode_image(image, name), box, size)
        reduction = reduce_jpeg(image, box, size)
        return fast_resized_crop(decode_image(image, name), box, size, reduction)

    def _generator(self, row: Mapping[str, Any], position: int, purpose: str) -> np.random.Generator:
        name = row.get(self.name_column) or row.get("caption") or position
        key = f"{purpose}/{row.get('epoch', self.epoch)}/{name}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return np.random.default_rng([self.seed, int.from_bytes(digest, "little")])


class ContrastiveCollator(_RowCollator):
    r"""Collate rows with `image` and `caption` into `input_ids`, `attention_mask` and `pixel_values`.

    In training, images are cropped as in open_clip (RandomResizedCrop with 90 to 100 % of the area, no flips). With
    `fast_decode=False`, their pixels are those of open_clip, too.

    Args:
        processor: A processor with `image_processor` and `tokenizer`, such as [`BiomedCLIPProcessor`].
        max_length (`int`, *optional*): Number of tokens to keep (default: the limit of the tokenizer).
        options: See [`CollatorOptions`].

    Example:
    ```python
    >>> from biomedclip.processing import BiomedCLIPProcessor, ContrastiveCollator, load_pmc15m

    >>> collator = ContrastiveCollator(BiomedCLIPProcessor.from_pretrained("out/model"), training=True)
    >>> batch = collator(list(load_pmc15m("out", split="train").take(8)))
    ```
    """

    target_columns = ("caption",)
    name_column = "pair_id"

    def __init__(self, processor: Any, *, max_length: int | None = None, **options: Unpack[CollatorOptions]):
        options.setdefault("fast_decode", True)
        super().__init__(processor.image_processor, **options)
        self.processor = processor
        self.max_length = max_length

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows.

        Args:
            rows: Rows with `image` (a source of [`read_row_image`]) and `caption`, and optionally `pair_id` and
                `epoch`.

        Returns:
            `input_ids` and `attention_mask` of shape `(rows, longest caption)`, `pixel_values` of shape
            `(rows, 3, height, width)`.

        Raises:
            ValueError: If a row cannot be used and `on_error="raise"`, or if no row can be used.
        """
        pixels, captions = self._read_rows(rows)
        return {**_tokens(self.processor, captions, self.max_length), "pixel_values": pixels}

    def _target(self, row: Mapping[str, Any]) -> str:
        return _text(row, "caption")


class LabelCollator(_RowCollator):
    r"""Collate rows with `image` and `label` into `pixel_values` and `labels`.

    In evaluation with `on_error="substitute"`, the label of an image that cannot be decoded is `IGNORED_LABEL`. For the
    options, see [`CollatorOptions`].

    Example:
    ```python
    >>> from biomedclip.processing import BiomedCLIPImageProcessor, LabelCollator, read_labeled_images

    >>> images = read_labeled_images("folder_of_classes")["train"]
    >>> label2id = {label: number for number, label in enumerate(sorted(set(images.labels)))}
    >>> collator = LabelCollator(BiomedCLIPImageProcessor.from_pretrained("out/model"), label2id, training=True)
    >>> batch = collator([images[number] for number in range(8)])
    ```
    """

    target_columns = ("label",)

    def __init__(self, image_processor: Any, label2id: Mapping[str, int], **options: Unpack[CollatorOptions]):
        super().__init__(image_processor, **options)
        self.label2id = label2id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` of shape `(rows, 3, height, width)` and `labels` of shape `(rows,)`.

        The name of a row is in its optional column `name`. If no row can be used, training raises a `ValueError`.
        """
        pixels, labels = self._read_rows(rows, ignored=IGNORED_LABEL)
        return {"pixel_values": pixels, "labels": torch.tensor(labels)}

    def _target(self, row: Mapping[str, Any]) -> int:
        return self.label2id[_text(row, "label")]


class FindingCollator(_RowCollator):
    r"""Collate rows with `image` and `label`, the targets of all findings, into `pixel_values` and `labels`.

    Targets are 1 or 0, or NaN if they are ignored. In evaluation with `on_error="substitute"`, all targets of an image
    that cannot be decoded are NaN. For the options, see [`CollatorOptions`].

    Example:
    ```python
    >>> from biomedclip.processing import BiomedCLIPImageProcessor, FindingCollator
    >>> from biomedclip.processing.images.finding_tables import read_finding_splits

    >>> images = read_finding_splits("findings.csv", label_columns=["effusion", "nodule"])["train"]
    >>> collator = FindingCollator(BiomedCLIPImageProcessor.from_pretrained("out/model"), training=True)
    >>> collator([images[number] for number in range(8)])["labels"].shape
    torch.Size([8, 2])
    ```
    """

    target_columns = ("label",)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `pixel_values` of shape `(rows, 3, height, width)` and `labels` of shape `(rows, findings)`."""
        pixels, targets = self._read_rows(rows, ignored=np.full(len(rows[0]["label"]), np.nan))
        return {"pixel_values": pixels, "labels": torch.tensor(np.stack(targets), dtype=torch.float32)}

    def _target(self, row: Mapping[str, Any]) -> np.ndarray:
        return row["label"]


class VisualQuestionCollator(_RowCollator):
    r"""Collate rows with `image`, `question` and `answer` into the tensors of a batch.

    Answers are normalized with [`normalize_answer`], and `label2id` maps each normalized answer to its index. In
    evaluation with `on_error="substitute"`, the label of a row that cannot be used is `IGNORED_LABEL`. The other
    arguments are those of [`ContrastiveCollator`].

    Example:
    ```python
    >>> from pathlib import Path

    >>> from biomedclip.processing import BiomedCLIPProcessor, VisualQuestionCollator

    >>> collator = VisualQuestionCollator(BiomedCLIPProcessor.from_pretrained("out/model"), {"yes": 0, "no": 1})
    >>> batch = collator([{"image": Path("scan.png"), "question": "Is there a fracture?", "answer": "No"}])
    ```
    """

    target_columns = ("question", "answer")

    def __init__(
        self,
        processor: Any,
        label2id: Mapping[str, int],
        *,
        max_length: int | None = None,
        **options: Unpack[CollatorOptions],
    ):
        super().__init__(processor.image_processor, **options)
        self.processor = processor
        self.label2id = label2id
        self.max_length = max_length

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the tensors of [`ContrastiveCollator`] for the questions, and `labels` of shape `(rows,)`.

        The label of an answer that is not in `label2id` is `UNKNOWN_ANSWER`. If no row can be used, training raises a
        `ValueError`.
        """
        pixels, targets = self._read_rows(rows, ignored=("", IGNORED_LABEL))
        questions, labels = zip(*targets, strict=True)
        texts = _tokens(self.processor, list(questions), self.max_length)
        return {**texts, "pixel_values": pixels, "labels": torch.tensor(labels)}

    def _target(self, row: Mapping[str, Any]) -> tuple[str, int]:
        return _text(row, "question"), self.label2id.get(normalize_answer(row["answer"]), UNKNOWN_ANSWER)


def _text(row: Mapping[str, Any], column: str) -> str:
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise ImageError(f"its {column} is empty")
    return text


def _tokens(processor: Any, texts: list[str], max_length: int | None) -> dict[str, torch.Tensor]:
    tokenizer = getattr(processor, "tokenizer", processor)
    limit = max_length or getattr(tokenizer, "model_max_length", None)
    if limit and getattr(tokenizer, "truncation_side", "right") == "right":
        texts = [cut_text(text, limit) for text in texts]
    tokens = processor(
        text=texts,
        # SigLIP pools the last position, so its texts are always padded to the same length.
        padding="max_length" if "siglip" in type(processor).__name__.lower() else True,
        truncation=True,
        max_length=max_length,
        return_token_type_ids=False,
        return_tensors="pt",
    )
    return {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}


def _slot() -> int:
    """Return the index of this worker in the shared counters. The main process has index 0."""
    worker = get_worker_info()
    return 0 if worker is None else worker.id % MAX_WORKERS + 1
