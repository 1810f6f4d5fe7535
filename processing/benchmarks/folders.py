"""Any labeled images: class folders, a folder with a metadata file, or a `datasets` set."""

import os
from collections.abc import Mapping

from ..images.labeled import LabeledImages, hold_out, read_splits


def read_any_images(
    path: str | os.PathLike[str],
    split: str,
    held_out: float | None,
    seed: int,
    image_column: str,
    label_column: str,
) -> tuple[LabeledImages, list[str]]:
    """Read a split of any labeled images, and notes.

    Raises:
        FileNotFoundError, ValueError: See [`read_labeled_images`]; or if the split does not exist.
    """
    splits = read_splits(path, image_column=image_column, label_column=label_column)
    return choose_split(splits, path, split, held_out, seed)


def choose_split(
    splits: Mapping[str, LabeledImages],
    path: str | os.PathLike[str],
    split: str,
    held_out: float | None,
    seed: int,
) -> tuple[LabeledImages, list[str]]:
    """A split of images that may have come without splits.

    Args:
        splits: Those that are there; `train` alone where there are none.
        path: What errors call it.
        split: The one that is asked for.
        held_out: Share of each class of the training images to hold out for each of the other splits that is not there.
            Without it, images without splits are all test images.
        seed: Of the draw.

    Returns:
        The images, and notes on how they were split.

    Raises:
        ValueError: No such split, or a share that leaves nothing to train on.
    """
    if held_out is not None and not 0 < held_out < 0.5:
        raise ValueError(f"The share held out for each of two splits must lie between 0 and 0.5, not {held_out}.")
    if held_out is None and list(splits) == ["train"]:
        if split != "test":
            # Not all of them once more: they would be learned from and judged by.
            raise ValueError(
                f"{path}: the images come without splits: all of them are the test split, and there is no {split} "
                "split. Put them into folders train, validation and test, or have a share held out (held_out=0.2)."
            )
        return splits["train"], ["The images come without splits: all of them are the test split."]
    splits, notes = dict(splits), []
    if held_out is not None and "train" in splits:
        all_images = len(splits["train"])
        for wanted in ("test", "validation"):
            if wanted not in splits:
                rest = splits["train"]
                # As many images whether or not some of them have gone to the other split.
                kept, taken = hold_out(rest.labels, held_out * all_images / len(rest), seed)
                splits["train"], splits[wanted] = rest.select(kept), rest.select(taken)
                notes.append(
                    f"The {wanted} split was drawn from the training images: {len(taken)} of {all_images}, "
                    f"{held_out:.0%} of each class, seed {seed}. Images of one patient may be in both."
                )
    if split not in splits:
        raise ValueError(
            f"{path}: there is no {split} split, only {', '.join(splits)}. Add it, or have a share of the training "
            "images held out (held_out=0.2)."
        )
    return splits[split], notes


__all__ = ["choose_split", "read_any_images"]
