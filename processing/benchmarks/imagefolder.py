"""Read any labeled images that [`read_labeled_images`] supports."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..images.labeled import LABEL_COLUMN, choose_split, read_splits, similar_classes
from ..images.sources import IMAGE_COLUMN
from .benchmark import Content


def read(
    path: Path,
    split: str,
    facts: dict[str, Any],
    *,
    held_out: float | None = None,
    seed: int = 0,
    image_column: str = IMAGE_COLUMN,
    label_column: str = LABEL_COLUMN,
    image_root: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    subgroup_column: Sequence[str] = (),
) -> Content:
    """Read a split of labeled images. Class names are the labels, with underscores replaced by spaces."""
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    of_images: dict[str, Any] = {"group_column": group_column, "split_column": split_column}
    of_images["subgroup_column"] = subgroup_column
    splits = read_splits(path, **columns, image_root=image_root, **of_images)
    images = choose_split(splits, path, split, held_out, seed)
    classes = {label: label.replace("_", " ") for label in sorted(set(images.labels))}
    return Content(images, similar_classes(list(classes)), facts={"classes": classes})
