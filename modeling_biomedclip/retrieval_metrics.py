"""Exact retrieval metrics: recall at k and median rank. Ties are scored by their expected value in random order."""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import nn


# Rows and columns of a tile of the similarity matrix. On the CPU, a tile (4 MB) fits into the cache.
TILE = (512, 2048)
TILE_ON_ACCELERATOR = (8192, 8192)
DIRECTIONS = ("image_to_text", "text_to_image")
RECALLS = (1, 5, 10)


class RankCounts(NamedTuple):
    """Number of candidates that score at least as high as the best correct candidate, int64 of shape `(queries,)`."""

    better: torch.Tensor  # candidates with a higher score
    equal: torch.Tensor  # candidates with the same score, including the correct ones
    right: torch.Tensor  # correct candidates among `equal`


class RankCounter:
    """Rank the correct candidates in both directions without storing the whole similarity matrix.

    The embeddings are L2-normalized, of shape `(number, dimension)`. `image_of_text` of shape `(texts,)` contains the
    index of the image that each text describes. If it is None, text i describes image i.
    """

    def __init__(
        self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, image_of_text: torch.Tensor | None = None
    ):
        self.images, self.texts, self.device = len(image_embeds), len(text_embeds), image_embeds.device
        image_of = torch.arange(self.images) if image_of_text is None else image_of_text.cpu()
        if not self.images or len(image_of) != self.texts or image_embeds.shape[1:] != text_embeds.shape[1:]:
            shapes = f"{tuple(image_embeds.shape)} and {tuple(text_embeds.shape)}"
            raise ValueError(f"Image and text embeddings of the shapes {shapes} do not form pairs.")
        if not torch.equal(image_of.unique(), torch.arange(self.images)):
            raise ValueError("`image_of_text` must contain the index of each image at least once.")
        if not all_finite(image_embeds, text_embeds):
            raise ValueError("The embeddings contain NaN or infinity. They cannot be ranked.")
        self.rows, self.columns = TILE if self.device.type == "cpu" else TILE_ON_ACCELERATOR
        self._order = None
        if image_of_text is not None:  # sorted by image, so that few tiles contain correct pairs
            self._order = image_of.argsort(stable=True)
            image_of, text_embeds = image_of[self._order], text_embeds[self._order.to(self.device)]
        self._image_embeds, self._text_embeds = image_embeds.float(), text_embeds.float()
        scores = self._score_right_pairs(image_of)
        best = torch.full((self.images,), -torch.inf).scatter_reduce(0, image_of, scores, "amax")
        ties = (scores == best[image_of]).long()
        self._right = torch.zeros(self.images, dtype=torch.int64).index_add(0, image_of, ties)
        # The padding of the last tiles is compared with infinity, so it is never counted.
        self._best = _padded(best.to(self.device), self.rows, torch.inf)
        self._right_scores = _padded(scores.to(self.device), self.columns, torch.inf)

    def count(self, first: int = 0, last: int | None = None) -> dict[str, torch.Tensor]:
        """Return the numbers of better and of equal candidates for the images `first` to `last` (exclusive).

        A block starts and ends at a multiple of `rows`, or at the last image. The numbers are int64 of shape
        `(2, queries)` on the CPU for each direction. `image_to_text` covers the images of the block. `text_to_image`
        covers all texts, but counts only the images of the block. [`RankCounter.combine`] merges the blocks.
        """
        last = self.images if last is None else min(last, self.images)
        if first % self.rows or (last % self.rows and last != self.images):
            raise ValueError(f"A block starts and ends at a multiple of {self.rows} images, not at {first} and {last}.")
        of_images = torch.zeros(2, len(self._best), dtype=torch.int64, device=self.device)
        of_texts = torch.zeros(2, len(self._right_scores), dtype=torch.int64, device=self.device)
        for row in range(first, last, self.rows):
            rows = slice(row, row + self.rows)
            for column in range(0, self.texts, self.columns):
                columns = slice(column, column + self.columns)
                tile = self._tile(row, column)
                for number, compare in enumerate((torch.gt, torch.eq)):
                    of_images[number, rows] += compare(tile, self._best[rows, None]).sum(1, dtype=torch.int32)
                    of_texts[number, columns] += compare(tile, self._right_scores[columns]).sum(0, dtype=torch.int32)
        text_counts = of_texts[:, : self.texts].cpu()
        if self._order is not None:
            text_counts = text_counts[:, self._order.argsort()]
        return dict(zip(DIRECTIONS, (of_images[:, first:last].cpu(), text_counts), strict=True))

    def combine(self, blocks: Iterable[dict[str, torch.Tensor]]) -> dict[str, RankCounts]:
        """Return the counts of all queries from the results of [`RankCounter.count`] for all images, in order."""
        of_images, of_texts = [], torch.zeros(2, self.texts, dtype=torch.int64)
        for block in blocks:
            of_images.append(block["image_to_text"].long())
            of_texts += block["text_to_image"]
        image_counts = torch.cat(of_images, dim=1)
        return {
            "image_to_text": RankCounts(image_counts[0], image_counts[1], self._right),
            "text_to_image": RankCounts(of_texts[0], of_texts[1], torch.ones(self.texts, dtype=torch.int64)),
        }

    def _score_right_pairs(self, image_of: torch.Tensor) -> torch.Tensor:
        """Return the score of each text with its image.

        The scores are read from the same tiles that they are later compared with. A separate product may differ in the
        last bit, which would break ties.
        """
        scores = torch.empty(self.texts)
        bounds = torch.searchsorted(image_of, torch.arange(0, self.images + self.rows, self.rows)).tolist()
        for number, (low, high) in enumerate(pairwise(bounds)):
            for column in range(low // self.columns * self.columns, high, self.columns):
                texts = torch.arange(max(low, column), min(high, column + self.columns))
                tile = self._tile(number * self.rows, column)
                scores[texts] = tile[image_of[texts] - number * self.rows, texts - column].cpu()
        return scores

    def _tile(self, row: int, column: int) -> torch.Tensor:
        """Return a tile of the similarity matrix. All tiles have the same shape, so equal pairs get equal scores."""
        images = _padded(self._image_embeds[row : row + self.rows], self.rows, 0)
        texts = _padded(self._text_embeds[column : column + self.columns], self.columns, 0)
        tile = images @ texts.t()
        tile[self.images - row :] = -torch.inf
        tile[:, self.texts - column :] = -torch.inf
        return tile


def rank_counts(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, image_of_text: torch.Tensor | None = None
) -> dict[str, RankCounts]:
    """Return the counts of all queries for each direction. See [`RankCounter`] for the arguments and errors."""
    counter = RankCounter(image_embeds, text_embeds, image_of_text)
    return counter.combine([counter.count()])


def retrieval_metrics(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return recall at 1, 5 and 10 and the median rank in both directions, where text i belongs to image i.

    If the correct candidate is tied with others, each of their ranks is equally likely. Recall is then the probability
    of a hit, and the rank is the mean rank. A model that maps all inputs to one point therefore scores at chance level.
    See [`RankCounter`] for the arguments and errors.
    """
    return {name: summarize_ranks(counts) for name, counts in rank_counts(image_embeds, text_embeds).items()}


def recall_at(k: int, counts: RankCounts) -> torch.Tensor:
    """Return the probability that a correct candidate is among the first k, as float64 of shape `(queries,)`."""
    better, equal, right = counts
    if (right == 1).all():
        return ((k - better) / equal.double()).clamp(0, 1)
    missed = torch.ones(len(better), dtype=torch.float64)
    for drawn in range(k):
        of_wrong = (equal - right - drawn).clamp(min=0).double() / (equal - drawn).clamp(min=1)
        missed = torch.where(drawn < k - better, missed * of_wrong, missed)
    return 1 - missed


def expected_ranks(counts: RankCounts) -> torch.Tensor:
    """Return the expected rank of the first correct candidate, from 1, of shape `(queries,)`."""
    # The mean position of the first of r correct candidates among m candidates in random order is (m + 1) / (r + 1).
    return counts.better + (counts.equal + 1) / (counts.right + 1)


def summarize_ranks(counts: RankCounts) -> dict[str, float]:
    """Return the mean recall at 1, 5 and 10, and the median of the expected ranks of the first correct candidates."""
    recalls = {f"recall_at_{k}": recall_at(k, counts).mean().item() for k in RECALLS}
    return {**recalls, "median_rank": float(np.median(expected_ranks(counts).numpy()))}


def all_finite(*embeds: torch.Tensor) -> bool:
    """Return whether no embedding contains NaN or infinity."""
    # Check piece by piece, because isfinite needs as much memory as its input.
    return all(bool(rows.isfinite().all()) for part in embeds for rows in part.split(2**16))


def _padded(rows: torch.Tensor, multiple: int, value: float) -> torch.Tensor:
    """Pad the first dimension with `value` to a multiple of `multiple`."""
    missing = -len(rows) % multiple
    return nn.functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, missing), value=value) if missing else rows
