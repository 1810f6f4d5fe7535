"""Retrieval from image to caption and from caption to image, among all pairs of a split or in pools."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from biomedclip.contrastive_trainer import LOSS_IN_BATCHES, VALIDATION_BATCH, loss_in_batches
from biomedclip.retrieval_metrics import (
    DIRECTIONS,
    RECALLS,
    RankCounter,
    RankCounts,
    all_finite,
    recall_at,
    summarize_ranks,
)

from ..cli.reporting import UNDEFINED, format_value, say, say_undefined, show_table
from .bootstrap import bootstrap_means, percentile_interval
from .dual_encoders import BIOVIL, DualEncoder
from .features import FeatureStore
from .parts import Part, Parts
from .results import with_interval


# Images in a block. Each of the 45 blocks of 725,739 pairs takes 6 MB on disk.
BLOCK = 16_384


@dataclass(frozen=True)
class EmbeddedPairs:
    """The embeddings of the pairs whose images could be read.

    `images` and `texts` are normalized, of shape `(number, dimension)`. `image_of_text` is None if text i belongs to
    image i. `rows` has the row of the dataset for each text, and `damaged` the `name` and `reason` of each row that was
    left out.
    """

    images: torch.Tensor
    texts: torch.Tensor
    image_of_text: torch.Tensor | None
    rows: torch.Tensor
    damaged: list[dict[str, str]]
    fingerprint: str

    def select(self, numbers: Sequence[int]) -> "EmbeddedPairs":
        """Return some of the pairs with their images. Selecting all pairs makes no copy."""
        if len(numbers) == len(self.texts):
            return self
        chosen = torch.tensor(numbers)
        images, image_of_text = chosen, None
        if self.image_of_text is not None:
            images, image_of_text = self.image_of_text[chosen].unique(return_inverse=True)
        return replace(
            self,
            images=self.images[images],
            texts=self.texts[chosen],
            image_of_text=image_of_text,
            rows=self.rows[chosen],
        )


def embed_pairs(pairs: Any, store: FeatureStore, *, image_id: str | None = None) -> EmbeddedPairs:
    """Embed a dataset with the columns `pair_id`, `image` (not decoded) and `caption`.

    Rows with the same value of the column `image_id` share one image with several captions.
    """
    names, captions = list(pairs["pair_id"]), list(pairs["caption"])
    check_captions(names, captions)
    fingerprint = pairs_fingerprint(pairs, names, captions)
    identities = range(len(names)) if image_id is None else pairs[image_id]
    first_row: dict[Any, int] = {}
    for row, identity in enumerate(identities):
        first_row.setdefault(identity, row)
    image_rows = list(first_row.values())
    distinct = pairs if image_id is None else pairs.select(image_rows)
    images = store.images(distinct["image"], [names[row] for row in image_rows], f"{fingerprint}/{image_id}")
    texts = store.texts(captions, fingerprint)

    # Images that could not be read have no number.
    numbers = dict(zip(images.rows.tolist(), range(len(images.rows)), strict=True))
    of_identity = {identity: numbers.get(place, -1) for place, identity in enumerate(first_row)}
    of_row = torch.tensor([of_identity[identity] for identity in identities])
    rows = torch.nonzero(of_row >= 0).flatten()
    embeds = texts.embeds if len(rows) == len(captions) else texts.embeds[rows]  # a copy takes 1.5 GB at full size
    return EmbeddedPairs(
        images.embeds, embeds, None if image_id is None else of_row[rows], rows, images.damaged, fingerprint
    )


def check_captions(names: Sequence[str], captions: Sequence[str]) -> None:
    """Raise `ValueError` if a caption is empty, or if there are fewer than two pairs."""
    empty = next((name for name, caption in zip(names, captions, strict=True) if not (caption or "").strip()), None)
    if empty is not None:
        raise ValueError(f"{empty} has an empty caption. Remove it from the dataset.")
    if len(names) < 2:
        raise ValueError(f"The split has {len(names)} pairs. Retrieval needs at least two to choose from.")


def pairs_fingerprint(pairs: Any, names: Sequence[str], captions: Sequence[str]) -> str:
    """Return a hash of the ids and captions, in order, and of the content of 64 evenly spaced images."""
    digest = hashlib.blake2b(digest_size=8)
    for name, caption in zip(names, captions, strict=True):
        digest.update(f"{name}\0{caption}\0".encode())
    for row in range(0, len(names), max(1, len(names) // 64)):
        image = pairs[row]["image"]
        digest.update(image["bytes"] or str(image["path"]).encode() if isinstance(image, dict) else str(image).encode())
    return digest.hexdigest()


def count_ranks(embedded: EmbeddedPairs, folder: Path, key: Mapping[str, Any]) -> dict[str, RankCounts] | None:
    """Count ranks in blocks of images. Processes share the blocks, and finished blocks are kept on disk.

    Args:
        embedded: The pairs. Each process has all of them.
        folder: Folder for the blocks.
        key: Everything that identifies the embeddings.

    Returns:
        The counts by direction, or None if an embedding contains NaN or infinity.
    """
    if not all_finite(embedded.images, embedded.texts):
        return None
    device = PartialState().device
    counter = RankCounter(embedded.images.to(device), embedded.texts.to(device), embedded.image_of_text)
    block = max(counter.rows, BLOCK // counter.rows * counter.rows)
    key = {**key, "what": "rank counts", "images": counter.images, "texts": counter.texts, "block": block}
    parts = Parts(folder, key, math.ceil(counter.images / block))

    def work(number: int) -> Part:
        counts = counter.count(number * block, (number + 1) * block)
        return {direction: values.int() for direction, values in counts.items()}, None

    parts.complete(work, "Ranks")
    return counter.combine(parts.read(number)[0] for number in range(parts.count))


def retrieval_of_pools(
    counts: Sequence[Mapping[str, RankCounts] | None],
    articles: Sequence[Sequence[Any]],
    seed: int,
    images_of_texts: Sequence[torch.Tensor | None],
) -> dict[str, Any]:
    """Measure retrieval in both directions, as the mean over pools.

    Args:
        counts: The counts of each pool, as [`count_ranks`] returns them.
        articles: The article of each text, for each pool. The bootstrap draws whole articles.
        seed: Seed of the bootstrap.
        images_of_texts: The image of each text, for each pool. None if text i belongs to image i.

    Returns:
        Recall at 1, 5 and 10 with 95 % intervals and the median rank, by direction, the recall at chance level, and the
        numbers of pairs and articles (of the smallest pool). If an embedding was not finite, the metrics are None, and
        `undefined` gives the reason. `recall_at_K_of_draws` lists the recall of several pools. Then the ends of an
        interval are percentiles of the bootstrap samples of all pools together, as for a single pool.
    """
    texts = len(articles[0])
    images = [texts if image_of_text is None else int(image_of_text.max()) + 1 for image_of_text in images_of_texts]
    metrics: dict[str, Any] = {
        "pairs": texts,
        "articles": min(len(set(of_pool)) for of_pool in articles),
        "chance_at_1": _mean([1 / number for number in images]),
    }
    if images_of_texts[0] is not None:
        metrics |= {"images": _mean(images), "captions_of_an_image": _mean([texts / number for number in images])}
    finite = [counted for counted in counts if counted is not None]
    if len(finite) < len(counts):
        names = [name for k in RECALLS for name in (f"recall_at_{k}", f"recall_at_{k}_interval")]
        metrics |= {direction: dict.fromkeys([*names, "median_rank"]) for direction in DIRECTIONS}
        return metrics | {"undefined": dict.fromkeys(DIRECTIONS, "the embeddings contain NaN or infinity")}
    groups = [_articles_of_queries(*pool) for pool in zip(articles, images_of_texts, strict=True)]
    for direction in DIRECTIONS:
        of_pools = [summarize_ranks(counted[direction]) for counted in finite]
        summary: dict[str, Any] = {name: _mean([pool[name] for pool in of_pools]) for name in of_pools[0]}
        for k in RECALLS:
            resampled = [
                bootstrap_means(
                    recall_at(k, counted[direction]).numpy(),
                    of_pool[direction],
                    seed=seed if len(finite) == 1 else [seed, draw],
                )
                for draw, (counted, of_pool) in enumerate(zip(finite, groups, strict=True))
            ]
            summary[f"recall_at_{k}_interval"] = percentile_interval(np.concatenate(resampled))
            if len(finite) > 1:
                summary[f"recall_at_{k}_of_draws"] = [pool[f"recall_at_{k}"] for pool in of_pools]
        metrics[direction] = summary
    return metrics


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean. A single value keeps its type."""
    return values[0] if len(values) == 1 else float(np.mean(values))


def _articles_of_queries(articles: Sequence[Any], image_of_text: torch.Tensor | None) -> dict[str, Sequence[Any]]:
    """Return the article of each query, by direction."""
    of_images = articles
    if image_of_text is not None:
        article_of = dict(zip(image_of_text.tolist(), articles, strict=True))
        of_images = [article_of[image] for image in range(len(article_of))]
    return dict(zip(DIRECTIONS, (of_images, articles), strict=True))


def validation_loss(embedded: EmbeddedPairs, encoder: DualEncoder) -> float | None:
    """Return the loss in batches of 4,096 pairs, or None if it is not finite or the temperature is unknown."""
    if encoder.type in BIOVIL:
        return None
    device = PartialState().device
    images = embedded.images if embedded.image_of_text is None else embedded.images[embedded.image_of_text]
    loss = loss_in_batches(
        images.to(device), embedded.texts.to(device), torch.tensor(encoder.logit_scale, device=device)
    )
    return loss if math.isfinite(loss) else None


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None if a value is None or there are no values."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def show_retrieval(metrics: dict[str, Any], paper: Mapping[str, Any] | None = None, split: str = "test") -> None:
    """Print retrieval metrics with the chance level and the paper's values."""
    rows: list[tuple[Any, ...]] = []
    paper = paper or {}
    for k in RECALLS:
        cells = [with_interval(metrics[direction], f"recall_at_{k}") for direction in DIRECTIONS]
        rows.append((f"recall at {k}", *cells, min(1.0, k * metrics["chance_at_1"])))
        if paper:
            rows.append(
                ("  paper", *(paper.get(direction, {}).get(f"recall_at_{k}") for direction in DIRECTIONS), None)
            )
    ranks = [metrics[direction]["median_rank"] for direction in DIRECTIONS]
    shown = [UNDEFINED if rank is None else rank for rank in ranks]
    rows.append(("median rank", *shown, (metrics["pairs"] + 1) / 2))
    title = f"Retrieval, {metrics['pairs']:,} pairs of {metrics['articles']:,} articles, {split} split [95 % interval]"
    show_table(title, rows, ["", "image to text", "text to image", "chance"])
    if pool := metrics.get("pool"):
        drawn = f"Mean of {pool['draws']} draws" if pool["draws"] > 1 else "One draw"
        say(f"{drawn} of {pool['size']:,} of {pool['pairs']:,} pairs, seed {pool['seed']}.")
    if metrics.get(LOSS_IN_BATCHES) is not None:
        published = f" (paper: {format_value(paper[LOSS_IN_BATCHES])})" if LOSS_IN_BATCHES in paper else ""
        say(f"Loss in batches of {VALIDATION_BATCH:,} pairs: {format_value(metrics[LOSS_IN_BATCHES])}{published}.")
    say_undefined(metrics)
