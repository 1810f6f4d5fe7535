"""Retrieval measured exactly: recall at k and median rank, with ties counted as chance would break them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn


# Rows and columns of a tile of the similarity matrix. On a CPU 4 MB, which stay in the cache while they are compared;
# on an accelerator, large enough to keep it busy. All tiles have this shape: each is worked out in the same way.
TILE = (512, 2048)
TILE_ON_ACCELERATOR = (8192, 8192)
_ADDABLE = 128  # of at most 255 ones, which a byte can hold; tiles have multiples of 128 rows and 1,024 columns
DIRECTIONS = ("image_to_text", "text_to_image")


def retrieval_metrics(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> dict[str, dict[str, float]]:
    """Recall at 1, 5 and 10 and median rank, image to text and text to image, pair i being right for query i.

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
    """For each query the number of candidates that score higher than the right one, and the number that score the same.

    Args:
        image_embeds: L2-normalised, of shape `(pairs, dimension)`.
        text_embeds: L2-normalised, of shape `(pairs, dimension)`.

    Returns:
        Two dictionaries by direction, of int64 tensors of shape `(pairs,)`; the right one counts among its equals.

    Raises:
        ValueError: See [`RankCounter`].
    """
    counts = RankCounter(image_embeds, text_embeds).count()
    return {name: counts[f"{name}_better"] for name in DIRECTIONS}, {
        name: counts[f"{name}_equal"] for name in DIRECTIONS
    }


class RankCounter:
    """Counts exactly how many candidates score as high as the right ones or higher, in blocks of images.

    One pass over tiles of the similarity matrix gives both directions; the matrix itself is never held. Beside the
    embeddings (twice 1.5 GB for 725,739 pairs of 512 numbers; the texts once more where images have several) that takes
    a tile, and a few numbers for each image and text.

    Args:
        image_embeds: Of shape `(images, dimension)`.
        text_embeds: Of shape `(texts, dimension)`.
        image_of_text: The image that each text belongs to, of shape `(texts,)`, where an image has several; text i
            belongs to image i when left out.

    Attributes:
        rows: Images of a tile: blocks begin at multiples of it.
        right: For each image the number of its texts that score as high as the best of them.

    Raises:
        ValueError: No pairs, embeddings that do not go together, an image without a text, or NaN.
    """

    def __init__(
        self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, image_of_text: torch.Tensor | None = None
    ):
        images, texts = len(image_embeds), len(text_embeds)
        pairs = images if image_of_text is None else len(image_of_text)
        if images == 0 or texts != pairs or image_embeds.shape[1:] != text_embeds.shape[1:]:
            raise ValueError(
                f"Images {tuple(image_embeds.shape)} and texts {tuple(text_embeds.shape)} are not pairs to retrieve."
            )
        # Some rows at a time: isfinite takes as much memory again.
        if not all(rows.isfinite().all() for embeds in (image_embeds, text_embeds) for rows in embeds.split(2**16)):
            raise ValueError("The embeddings hold NaN or infinity: the model has diverged, there is nothing to rank.")
        self.images, self.texts, self.device = images, texts, image_embeds.device
        self._order: torch.Tensor | None = None
        if image_of_text is None:
            image_of_text = torch.arange(images)
        else:
            if not torch.equal(image_of_text.unique().cpu(), torch.arange(images)):
                raise ValueError("Each image needs a text to be found by, and each text one of the images.")
            # Texts in the order of their images, so that the right ones lie along the diagonal.
            self._order = image_of_text.argsort(stable=True)
            image_of_text, text_embeds = image_of_text[self._order], text_embeds[self._order]
        self._image_of_text = image_of_text.to(self.device)
        largest_rows, largest_columns = TILE if self.device.type == "cpu" else TILE_ON_ACCELERATOR
        self.rows = min(largest_rows, _up_to(images, _ADDABLE))
        self._columns = min(largest_columns, _up_to(texts, 8 * _ADDABLE))
        self._image_embeds, self._text_embeds = image_embeds.float(), text_embeds.float()
        self._score_right()

    def count(self, first: int = 0, last: int | None = None) -> dict[str, torch.Tensor]:
        """Counts for the images of a block.

        Args:
            first: First image, a multiple of `rows`.
            last: Image behind the last; all that are left when left out.

        Returns:
            int64 on the CPU, `..._better` being what scores higher and `..._equal` what scores the same, the right ones
            included: `image_to_text_better` and `image_to_text_equal` of shape `(last - first,)`, and
            `text_to_image_better` and `text_to_image_equal` of shape `(texts,)`, which count the images of the block
            alone: their sums over all blocks are the counts.

        Raises:
            ValueError: A block that begins within a tile.
        """
        last = self.images if last is None else min(last, self.images)
        if first % self.rows:
            raise ValueError(f"A block begins at a multiple of {self.rows} images, not at {first}.")
        of_images = torch.zeros(2, _up_to(last - first, self.rows), dtype=torch.int64, device=self.device)

        def count_rows(starts: Sequence[int]) -> torch.Tensor:
            of_texts = torch.zeros(2, len(self._right_score), dtype=torch.int64, device=self.device)
            tile = torch.empty(self.rows, self._columns, device=self.device)
            mask = torch.empty(self.rows, self._columns, dtype=torch.bool, device=self.device)
            for row in starts:
                best = self._best[row : row + self.rows, None]
                place = slice(row - first, row - first + self.rows)
                for column in range(0, self.texts, self._columns):
                    columns = slice(column, column + self._columns)
                    self._score(row, column, last, tile)
                    for number, compare in enumerate((_greater, _equal)):
                        compare(tile, best, mask)
                        of_images[number, place] += _sum_of_rows(mask)
                        compare(tile, self._right_score[None, columns], mask)
                        of_texts[number, columns] += _sum_of_columns(mask)
            return of_texts

        of_texts = sum(self._in_threads(count_rows, range(first, last, self.rows)))
        of_images, of_texts = of_images[:, : last - first].cpu(), of_texts[:, : self.texts].cpu()
        if self._order is not None:
            of_texts = of_texts[:, self._order.argsort().cpu()]
        return {
            "image_to_text_better": of_images[0],
            "image_to_text_equal": of_images[1],
            "text_to_image_better": of_texts[0].contiguous(),
            "text_to_image_equal": of_texts[1].contiguous(),
        }

    def _score_right(self) -> None:
        """The score of each text with its image, and the best of each image; infinite where a tile is padded.

        From whole tiles, with the products that are compared with them: a dot product worked out in another way differs
        in its last bit, and a tie would be none.
        """
        right = torch.full((_up_to(self.texts, self._columns),), torch.inf, device=self.device)
        tile = torch.empty(self.rows, self._columns, device=self.device)
        bounds = torch.arange(0, self.images + self.rows, self.rows, device=self.device)
        first_texts = torch.searchsorted(self._image_of_text, bounds).tolist()
        for number, (low, high) in enumerate(zip(first_texts, first_texts[1:], strict=False)):
            for column in range(low // self._columns * self._columns, high, self._columns):
                self._score(number * self.rows, column, self.images, tile)
                texts = torch.arange(max(low, column), min(high, column + self._columns), device=self.device)
                right[texts] = tile[self._image_of_text[texts] - number * self.rows, texts - column]
        self._right_score = right
        best = torch.full((self.images,), -torch.inf, device=self.device)
        best.scatter_reduce_(0, self._image_of_text, right[: self.texts], "amax")
        ties = (right[: self.texts] == best[self._image_of_text]).long()
        self.right = torch.zeros(self.images, dtype=torch.int64, device=self.device)
        self.right = self.right.index_add_(0, self._image_of_text, ties).cpu()
        self._best = torch.full((_up_to(self.images, self.rows),), torch.inf, device=self.device)
        self._best[: self.images] = best

    def _score(self, row: int, column: int, last: int, tile: torch.Tensor) -> None:
        """Similarities of a tile; what is padding, or behind the last image, is below all others."""
        images = _rows(self._image_embeds, row, self.rows)
        texts = _rows(self._text_embeds, column, self._columns)
        torch.mm(images, texts.t(), out=tile)
        tile[max(0, last - row) :] = -torch.inf
        tile[:, self.texts - column :] = -torch.inf

    def _in_threads(self, work: Callable[[Sequence[int]], torch.Tensor], starts: Sequence[int]) -> list[torch.Tensor]:
        """What the work gives for the shares of the threads.

        Each thread has tiles of its own: threads that share each small step, as torch's do, would wait for one another
        a dozen times for each tile.
        """
        threads = min(torch.get_num_threads(), len(starts)) if self.device.type == "cpu" else 1
        if threads == 1:
            return [work(starts)]
        threads_before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                return list(pool.map(work, (starts[number::threads] for number in range(threads))))
        finally:
            torch.set_num_threads(threads_before)


def recall_at(k: int, better: torch.Tensor, equal: torch.Tensor, right: torch.Tensor | None = None) -> torch.Tensor:
    """Probability of each query, of shape `(queries,)`, that a right candidate is among the first k.

    Args:
        k: How many candidates are looked at.
        better: Candidates that score higher than the best right one.
        equal: Candidates that score the same, right ones included.
        right: How many of these are right; one when left out.
    """
    if right is None:
        return ((k - better) / equal.double()).clamp(0, 1)
    missed = torch.ones(len(better), dtype=torch.float64)
    for drawn in range(k):
        of_wrong = (equal - right - drawn).clamp(min=0).double() / (equal - drawn).clamp(min=1)
        missed = torch.where(drawn < k - better, missed * of_wrong, missed)
    return 1 - missed


def bootstrap_interval(
    values: np.ndarray, groups: Sequence[Any], *, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, resampling whole groups.

    Figures of one article resemble each other, so an interval over single figures would be too narrow.

    Args:
        values: One number for each query, of shape `(queries,)`.
        groups: The group (article) of each query.
        seed: Seed of the resampling.
        resamples: Number of resampled sets.
        level: Share of the resampled means that the interval holds.
    """
    means = bootstrap_means(values, groups, seed=seed, resamples=resamples)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_means(
    values: np.ndarray, groups: Sequence[Any], *, seed: int | Sequence[int] = 0, resamples: int = 1000
) -> np.ndarray:
    """Means of bootstrap resamples of whole groups; arguments as of [`bootstrap_interval`].

    Returns:
        The means, of shape `(resamples,)`.
    """
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    sums, sizes = np.bincount(group_of, weights=values), np.bincount(group_of)
    generator = np.random.default_rng(seed)
    means = []
    # Some at a time: a thousand draws among 725,739 queries would take 6 GB.
    at_a_time = max(1, 2**22 // len(sums))
    for start in range(0, resamples, at_a_time):
        drawn = generator.integers(len(sums), size=(min(at_a_time, resamples - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def summarize_ranks(better: torch.Tensor, equal: torch.Tensor, right: torch.Tensor | None = None) -> dict[str, float]:
    """Recall at 1, 5 and 10 and median rank of the first right candidate.

    Args:
        better: As of [`rank_counts`].
        equal: As of [`rank_counts`].
        right: How many of the equal ones are right; one when left out.
    """
    # Among m in random order, the first of r comes on average at place (m + 1) / (r + 1).
    ranks = better + (equal + 1) / (2 if right is None else right + 1)
    return {
        **{f"recall_at_{k}": recall_at(k, better, equal, right).mean().item() for k in (1, 5, 10)},
        "median_rank": ranks.quantile(0.5).item() if len(ranks) < 2**24 else ranks.median().item(),
    }


def _greater(tile: torch.Tensor, bound: torch.Tensor, mask: torch.Tensor) -> None:
    if tile.device.type == "cpu":  # numpy's comparison is vectorised, in a sixth of the time
        np.greater(tile.numpy(), bound.numpy(), out=mask.numpy())
    else:
        torch.gt(tile, bound, out=mask)


def _equal(tile: torch.Tensor, bound: torch.Tensor, mask: torch.Tensor) -> None:
    if tile.device.type == "cpu":
        np.equal(tile.numpy(), bound.numpy(), out=mask.numpy())
    else:
        torch.eq(tile, bound, out=mask)


def _sum_of_rows(mask: torch.Tensor) -> torch.Tensor:
    """Ones in each row: eight bytes are added at once, as a number of 64 bits, before any of them could overflow."""
    rows = len(mask)
    packed = mask.view(torch.int64).view(rows, -1, _ADDABLE).sum(dim=2)
    return packed.view(torch.uint8).view(rows, -1).sum(dim=1)


def _sum_of_columns(mask: torch.Tensor) -> torch.Tensor:
    """Ones in each column, likewise."""
    rows, columns = mask.shape
    packed = mask.view(torch.int64).view(-1, min(rows, _ADDABLE), columns // 8).sum(dim=1)
    return packed.view(torch.uint8).view(-1, columns).sum(dim=0)


def _rows(embeds: torch.Tensor, start: int, count: int) -> torch.Tensor:
    """So many rows from a place on; behind the last come zeros."""
    rows = embeds[start : start + count]
    return rows if len(rows) == count else nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def _up_to(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


__all__ = [
    "DIRECTIONS",
    "RankCounter",
    "bootstrap_interval",
    "bootstrap_means",
    "rank_counts",
    "recall_at",
    "retrieval_metrics",
    "summarize_ranks",
]
