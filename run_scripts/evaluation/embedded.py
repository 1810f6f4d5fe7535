"""The images of the splits of a classification benchmark with their features, also those of corrupted test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .features import FeatureStore
from .robustness import CorruptedFeatures, Score
from .run import Run


@dataclass(frozen=True)
class EmbeddedSplit:
    """The images of a split that could be read, and their features `(images, dimension)`.

    `rows` are the numbers of these images in the split, and `damaged` has the name and reason of each other image.
    """

    images: Any
    embeds: torch.Tensor
    rows: list[int]
    damaged: list[dict[str, str]]


@dataclass(frozen=True)
class EmbeddedSplits:
    """The measured split, also with all of its images, other splits by their names, and the corrupted images."""

    test: EmbeddedSplit
    all_images: Any
    others: dict[str, EmbeddedSplit]
    corrupted: CorruptedFeatures

    @property
    def validation(self) -> EmbeddedSplit | None:
        """Return the validation split, if it was embedded beside the measured one."""
        return self.others.get("validation")

    @property
    def damaged(self) -> list[dict[str, str]]:
        """Return the images of all splits that could not be read."""
        return [entry for split in (self.test, *self.others.values()) for entry in split.damaged]

    def robustness(self, run: Run, classes: Sequence[str], scores: np.ndarray, score: Score) -> dict[str, Any]:
        """Measure the corrupted images, see [`CorruptedFeatures.measure`]. `scores` are those of the test images."""
        return self.corrupted.measure(run, self.all_images, classes, (scores, self.test.rows), score)


def embed_splits(
    store: FeatureStore, test: Any, others: Mapping[str, Any], options: Any, *, features: str = "embeds"
) -> EmbeddedSplits:
    """Embed the images of splits, and the corrupted images of the measured one. All processes must call this.

    Args:
        store: Features of the model.
        test: The measured benchmark.
        others: Other benchmarks by the names of their splits. None stands for a split that is not needed.
        options: Options of the run.
        features: Kind of features, see [`FeatureStore.images`].
    """

    def embed(benchmark: Any) -> EmbeddedSplit:
        images = benchmark.images
        read = store.images(images.images, images.names, benchmark.fingerprint, features=features)
        rows = read.rows.tolist()
        return EmbeddedSplit(images.select(rows), read.embeds, rows, read.damaged)

    return EmbeddedSplits(
        embed(test),
        test.images,
        {name: embed(benchmark) for name, benchmark in others.items() if benchmark is not None},
        CorruptedFeatures.of(store, test.images, test.fingerprint, options, features=features),
    )
