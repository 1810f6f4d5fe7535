"""Draw training and validation images for few-shot learning."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from biomedclip.processing.images.labeled import LabeledImages
from biomedclip.processing.images.sets import LazyImages
from biomedclip.processing.stratified import draw_count, hold_out, hold_out_groups


@dataclass(frozen=True)
class Draw:
    """Rows of the training and validation images of one draw."""

    train: list[int]
    validation: list[int]


def halves(labels: np.ndarray, groups: Sequence[str] | None, seed: int, where: str) -> tuple[list[int], list[int]]:
    """Split rows for data without a validation split: half of each class, or half of the groups, for each purpose.

    `where` names the data in messages.
    """
    return hold_out(labels, 0.5, seed) if groups is None else hold_out_groups(groups, 0.5, seed, where=where)


def draw_shots(labels: np.ndarray, shots: int, seed: int, rows: Sequence[int]) -> list[int]:
    """Draw `shots` images of each class from the given rows.

    A class with fewer images is drawn as a whole. With the same seed, a draw of more shots contains one of fewer.
    """
    places = np.asarray(rows, dtype=int)
    return places[draw_count(labels[places], shots, seed)].tolist() if len(places) else []


def selected_images(sources: Sequence[tuple[LabeledImages, Sequence[int]]]) -> LabeledImages:
    """Return the given rows of several sets of images. They are read on access."""
    parts = [images.select(list(rows)) for images, rows in sources if len(rows)]
    places = [(part, row) for part in parts for row in range(len(part))]
    have_groups = all(part.groups is not None for part in parts)
    return LabeledImages(
        LazyImages(range(len(places)), lambda row: places[row][0].images[places[row][1]]),
        [label for part in parts for label in part.labels],
        [name for part in parts for name in part.names],
        [group for part in parts for group in part.groups or []] if have_groups else None,
    )
