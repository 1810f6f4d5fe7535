"""State the splits of a training in its results: images of each class, groups, and the choice of validation images."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from biomedclip.processing.images.findings import FindingImages
from biomedclip.processing.images.labeled import LabeledImages


HELD_OUT, GIVEN = "held out from the training images", "given with the data"


def split_facts(splits: Mapping[str, LabeledImages | FindingImages]) -> dict[str, Any]:
    """Return the numbers of images and groups of each split, and the labels of the training images.

    The result has `split_images`, `groups` (if the images have groups), `validation_split`, and `images`: the number of
    training images of each class. For images with several findings, `labels` has the numbers of positive, negative and
    ignored labels of each finding instead.
    """
    groups = {split: len(set(images.groups)) for split, images in splits.items() if images.groups is not None}
    facts: dict[str, Any] = {
        "split_images": {split: len(images) for split, images in splits.items()},
        "validation_split": HELD_OUT if splits["validation"].drawn else GIVEN,
    }
    facts |= {"groups": groups} if groups else {}
    train = splits["train"]
    if isinstance(train, LabeledImages):
        return facts | {"images": dict(sorted(Counter(train.labels).items()))}
    counts = {
        name: {
            "positive": int((column == 1).sum()),
            "negative": int((column == 0).sum()),
            "ignored": int(np.isnan(column).sum()),
        }
        for name, column in zip(train.findings, train.targets.T, strict=True)
    }
    return facts | {"labels": counts}
