"""Write saliency maps of the predicted labels over the images."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from biomedclip import saliency_map
from biomedclip.model_cards.escaping import one_line
from biomedclip.processing.bit_depth_biomedclip import to_8_bit
from biomedclip.processing.images.reading import ImageError, read_row_image

from ..cli.errors import UsageError
from ..cli.overlays import save_overlay
from ..evaluation.dual_encoders import DualEncoder
from .predictions import Prediction


LARGEST = 2048  # width and height of an overlay. Maps of larger images would need gigabytes.
_LABEL_CHARACTERS = 40
logger = logging.getLogger(__name__)


class OverlayWriter:
    """Write one PNG file for each listed label of an image.

    The files are named after the position of the image in the input, its file name, the rank and the label, such as
    `000012_chest_1_brain_MRI.png`. The maps of an image have the same scale.

    Args:
        folder: Folder for the files.
        encoder: A dual encoder.
        prompts: Prompts of each label. The map of a label is the mean over its prompts.

    Raises:
        UsageError: If saliency cannot be computed for the model.
    """

    def __init__(self, folder: Path, encoder: DualEncoder, prompts: Mapping[str, Sequence[str]]):
        self._folder, self._encoder, self._prompts = folder, encoder, prompts
        try:
            self._maps(Image.new("L", (32, 32)), list(prompts)[:1])
        except (AttributeError, TypeError, ValueError) as error:
            raise UsageError(f"--saliency: {error} Omit --saliency.") from error

    def write_all(self, predictions: Iterator[Prediction], labels: Sequence[str], top_k: int) -> Iterator[Prediction]:
        """Yield the predictions, and write the overlays of the `top_k` most probable labels of each image."""
        for number, prediction in enumerate(predictions):
            if best := prediction.best(top_k):
                try:
                    self._write(number, prediction, [labels[place] for place in best])
                except (ImageError, OSError) as error:  # the file was changed after it was classified
                    logger.warning("%s: no saliency map: %s", one_line(prediction.image.id), error)
            yield prediction

    def _write(self, number: int, prediction: Prediction, labels: Sequence[str]) -> None:
        image = read_row_image(prediction.image.image)
        if max(image.size) > LARGEST:
            image = to_8_bit(image).convert("RGB")
            image.thumbnail((LARGEST, LARGEST))
        maps = self._maps(image, labels)
        scale = float(maps.nan_to_num(0.0).max())
        stem = _safe(Path(prediction.image.id).stem)
        for rank, (label, saliency) in enumerate(zip(labels, maps, strict=True), 1):
            save_overlay(image, saliency, self._folder / f"{number:06}_{stem}_{rank}_{_safe(label)}.png", scale=scale)

    def _maps(self, image: Image.Image, labels: Sequence[str]) -> torch.Tensor:
        """Return the maps of the labels, of shape `(labels, height, width)`."""
        prompts = [prompt for label in labels for prompt in self._prompts[label]]
        maps = saliency_map(self._encoder.model, self._encoder.processor, image, prompts)
        return torch.stack([of_label.mean(dim=0) for of_label in maps.split([len(self._prompts[x]) for x in labels])])


def _safe(text: str) -> str:
    """Return a text as part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", text)[:_LABEL_CHARACTERS].strip("_.") or "image"


__all__ = ["LARGEST", "OverlayWriter"]
