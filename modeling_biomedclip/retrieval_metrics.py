"""Retrieval measured exactly: recall at k and median rank, with ties counted as chance would break them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


TILE = 4096  # queries and candidates of one tile: 64 MB of similarities in float32


def retrieval_metrics(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> dict[str, dict[str, float]]:
    """
    Recall at 1, 5 and 10 and median rank, image to text and text to image, pair i being right for query i.

    Where m candidates share the score of the right one (itself included) and g score higher, chance puts the right one
    on each of the ranks g + 1 ... g + m with the same probability. Recall counts that probability and rank its mean, so
    that a model which maps everything to one point scores chance.

    Args:
        image_embeds: L2-normalised, of shape `(pairs, dimension)`.
        text_embeds: L2-normalised, of shape `(pairs, dimension)`.

    Returns:
        `image_to_text` and `text_to_image`, each with `recall_at_1`, `recall_at_5`, `recall_at_10` and `median_rank`.

    Raises:
        ValueError: No pairs, or unequal numbers of images and texts.
    """
    better, equal = rank_counts(image_embeds, text_embeds)
    return {direction: summarize_ranks(better[direction], equal[direction]) for direction in better}


def rank_counts(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    For each query the number of candidates that score higher than the right one, and the number that score the same.

    One pass over tiles of the similarity matrix gives both directions; the matrix itself is never held.

    Args:
        image_embeds: L2-normalised, of shape `(pairs, dimension)`.
        text_embeds: L2-normalised, of shape `(pairs, dimension)`.

    Returns:
        Two dictionaries by direction, of int64 tensors of shape `(pairs,)`; the right one counts among its equals.
    """
    pairs = len(image_embeds)
    if pairs == 0 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"Images {tuple(image_embeds.shape)} and texts {tuple(text_embeds.shape)} are not pairs to retrieve."
        )
    if not (torch.isfinite(image_embeds).all() and torch.isfinite(text_embeds).all()):
        raise ValueError("The embeddings hold NaN or infinity: the model has diverged, there is nothing to rank.")
    starts = range(0, pairs, TILE)
    # From the tiles on the diagonal, with the products that are compared with them below: a dot product worked out in
    # another way differs in its last bit, and a tie would be none.
    right = torch.cat([_tile(image_embeds, text_embeds, start, start).diagonal() for start in starts])

    better = {name: torch.zeros(pairs, dtype=torch.int64) for name in ("image_to_text", "text_to_image")}
    equal = {name: torch.zeros(pairs, dtype=torch.int64) for name in ("image_to_text", "text_to_image")}
    for row in starts:
        for column in starts:
            tile = _tile(image_embeds, text_embeds, row, column)
            images, texts = slice(row, row + TILE), slice(column, column + TILE)
            right_of_image, right_of_text = right[images, None], right[None, texts]
            better["image_to_text"][images] += (tile > right_of_image).sum(dim=1).cpu()
            better["text_to_image"][texts] += (tile > right_of_text).sum(dim=0).cpu()
            equal["image_to_text"][images] += (tile == right_of_image).sum(dim=1).cpu()
            equal["text_to_image"][texts] += (tile == right_of_text).sum(dim=0).cpu()
    return better, equal


def recall_at(k: int, better: torch.Tensor, equal: torch.Tensor) -> torch.Tensor:
    """Probability of each query, of shape `(pairs,)`, that its right candidate is among the first k."""
    return ((k - better) / equal).clamp(0, 1)


def bootstrap_interval(
    values: np.ndarray, groups: Sequence[Any], *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of a mean, resampling whole groups.

    Figures of one article resemble each other, so an interval over single figures would be too narrow.

    Args:
        values: One number for each query, of shape `(queries,)`.
        groups: The group (article) of each query.
        seed: Seed of the resampling.
        resamples: Number of resampled sets.
        level: Share of the resampled means that the interval holds.
    """
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    sums, sizes = np.bincount(group_of, weights=values), np.bincount(group_of)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarize_ranks(better: torch.Tensor, equal: torch.Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10 and median rank from the counts of [`rank_counts`]."""
    ranks = better + (equal + 1) / 2
    return {
        **{f"recall_at_{k}": recall_at(k, better, equal).mean().item() for k in (1, 5, 10)},
        "median_rank": ranks.quantile(0.5).item() if len(ranks) < 2**24 else ranks.median().item(),
    }


def _tile(images: torch.Tensor, texts: torch.Tensor, row: int, column: int) -> torch.Tensor:
    return images[row : row + TILE].float() @ texts[column : column + TILE].float().t()


__all__ = ["bootstrap_interval", "rank_counts", "recall_at", "retrieval_metrics", "summarize_ranks"]
