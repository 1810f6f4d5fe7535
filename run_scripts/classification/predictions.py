"""Classify the images of an input batch by batch, and make the rows of the result."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from biomedclip.processing.images.inputs import ImageInputs, InputImage
from biomedclip.processing.images.reading import ImageError, read_row_image

from ..evaluation.threads import prepared_batches
from .classifiers import Classifier


LONG = pa.schema(
    [
        ("file", pa.string()),
        ("rank", pa.int32()),
        ("label", pa.string()),
        ("probability", pa.float32()),
        ("similarity", pa.float32()),
        ("error", pa.string()),
    ]
)


@dataclass(frozen=True)
class Prediction:
    """The prediction of an image, or the error if it cannot be read.

    Args:
        image: The image. Its id is the name in the rows.
        probabilities: Probability of each label.
        similarities: Cosine similarity to each label, or None for a classifier without a text tower.
        error: The error, or None.
    """

    image: InputImage
    probabilities: torch.Tensor | None = None
    similarities: torch.Tensor | None = None
    error: str | None = None

    def best(self, top_k: int) -> list[int]:
        """Return the numbers of the most probable labels, or none for an unreadable image."""
        if self.probabilities is None:
            return []
        return self.probabilities.argsort(descending=True, stable=True)[:top_k].tolist()


# The images of a batch, the error or None of each, and the pixels of those without an error.
_Batch = tuple[Sequence[InputImage], list[str | None], torch.Tensor | None]


def predict(classifier: Classifier, inputs: ImageInputs, *, batch_size: int, workers: int) -> Iterator[Prediction]:
    """Yield the prediction of each image in order. Threads decode and resize images ahead of the model."""
    prepare = partial(_prepare, classifier.image_processor)
    batches = prepared_batches(prepare, inputs.rows(0, len(inputs)), batch_size, workers)
    for images, errors, pixels in batches:
        probabilities, similarities = (None, None) if pixels is None else classifier.predict(pixels)
        row = 0
        for image, error in zip(images, errors, strict=True):
            if error is not None or probabilities is None:
                yield Prediction(image, error=error)
                continue
            yield Prediction(image, probabilities[row], None if similarities is None else similarities[row])
            row += 1


def _prepare(image_processor: Any, batch: Sequence[InputImage]) -> _Batch:
    pixels: list[torch.Tensor] = []
    errors: list[str | None] = []
    for image in batch:
        try:
            picture = read_row_image(image.image)
            pixels.append(image_processor([picture], return_tensors="pt")["pixel_values"])
            errors.append(None)
        except (ImageError, ImportError) as error:  # DICOM without pydicom
            errors.append(str(error).removeprefix(f"{image.id}: "))
        except Exception as error:  # the processors of other models refuse some modes and sizes with many types
            errors.append(f"cannot be processed ({type(error).__name__}: {error})")
    return batch, errors, torch.cat(pixels) if pixels else None


def long_rows(predictions: Iterable[Prediction], labels: Sequence[str], top_k: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each of the `top_k` most probable labels of an image, and one row for an unreadable image."""
    for prediction in predictions:
        if prediction.probabilities is None:
            yield {"file": prediction.image.id, "error": prediction.error}
            continue
        probabilities, similarities = _floats(prediction.probabilities), _floats(prediction.similarities)
        for rank, number in enumerate(prediction.best(top_k), 1):
            yield {
                "file": prediction.image.id,
                "rank": rank,
                "label": labels[number],
                "probability": probabilities[number],
                "similarity": similarities[number] if similarities else None,
            }


def _floats(values: torch.Tensor | None) -> list[float]:
    """Return numbers with the fewest digits that give the same number in float32."""
    return [] if values is None else [float(str(value)) for value in values.numpy()]


def wide_schema(labels: Sequence[str]) -> pa.Schema:
    """Return the columns of [`wide_rows`]."""
    return pa.schema([("file", pa.string()), *((label, pa.float32()) for label in labels), ("error", pa.string())])


def wide_rows(predictions: Iterable[Prediction], labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each image, with the probability of each label."""
    for prediction in predictions:
        values = dict(zip(labels, _floats(prediction.probabilities), strict=False))
        yield {"file": prediction.image.id, **values, "error": prediction.error}


__all__ = ["LONG", "Prediction", "long_rows", "predict", "wide_rows", "wide_schema"]
