"""Retrieval: captions by images and images by captions, among all pairs of a split or among pools drawn out of it."""

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
from biomedclip.retrieval_metrics import DIRECTIONS, RankCounter, bootstrap_means, recall_at

from ..cli.reporting import UNDEFINED, format_value, say, say_undefined, show_table
from .dual_encoders import BIOVIL, DualEncoder
from .features import FeatureStore
from .metrics import load_metric
from .parts import Part, Parts


# Images of a block: of 725,739 pairs there are 45 blocks, each with two 4-byte counts for each text (6 MB).
BLOCK = 16_384
RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class EmbeddedPairs:
    """Pairs whose images could be read, embedded.

    Args:
        images: Normalised image embeddings, of shape `(images, dimension)`.
        texts: Normalised text embeddings, of shape `(texts, dimension)`.
        image_of_text: The image of each text; none where text i belongs to image i.
        rows: The row of the data that each text stands in.
        damaged: `name` and `reason` of each row that was left out.
        fingerprint: Of the data.
    """

    images: torch.Tensor
    texts: torch.Tensor
    image_of_text: torch.Tensor | None
    rows: torch.Tensor
    damaged: list[dict[str, str]]
    fingerprint: str

    def select(self, numbers: Sequence[int]) -> "EmbeddedPairs":
        """Return some of the pairs, with the images that they show. Without a copy if these are all pairs."""
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
    """Embeds pairs, as far as that has not been done.

    Args:
        pairs: A data set with columns `pair_id`, `image` (not decoded) and `caption`.
        store: The model, and where its features are kept.
        image_id: Column that tells which rows show the same image, which then has several captions.

    Raises:
        ValueError: A caption that is empty.
    """
    names, captions = list(pairs["pair_id"]), list(pairs["caption"])
    check_captions(names, captions)
    first_rows, image_of_row = _distinct_images(pairs, image_id)
    fingerprint = pairs_fingerprint(pairs, names, captions)
    images = store.images(
        _Column(pairs, "image", first_rows), [names[row] for row in first_rows], f"{fingerprint}/{image_id}"
    )
    texts = store.texts(captions, fingerprint)

    new_number = torch.full((len(first_rows),), -1)
    new_number[images.rows] = torch.arange(len(images.rows))
    of_row = new_number[image_of_row]
    rows = torch.nonzero(of_row >= 0).flatten()
    # No copy where all can be used: of 725,739 texts that would be 1.5 GB.
    embeds = texts.embeds if len(rows) == len(captions) else texts.embeds[rows]
    image_of_text = None if image_id is None else of_row[rows]
    return EmbeddedPairs(images.embeds, embeds, image_of_text, rows, images.damaged, fingerprint)


def check_captions(names: Sequence[str], captions: Sequence[str]) -> None:
    """Check that each pair has a caption.

    Raises:
        ValueError: If a caption is empty, or if there are fewer than two pairs to choose from.
    """
    empty = next((name for name, caption in zip(names, captions, strict=True) if not (caption or "").strip()), None)
    if empty is not None:
        raise ValueError(f"{empty} has an empty caption: nothing could be found by it. Remove it from the dataset.")
    if len(names) < 2:
        raise ValueError(f"The split has {len(names)} pairs. Retrieval needs at least two to choose from.")


def pairs_fingerprint(pairs: Any, names: Sequence[str], captions: Sequence[str]) -> str:
    """16 hex digits of the ids and captions in their order, and the content of 64 images, evenly spread."""
    digest = hashlib.blake2b(digest_size=8)
    for name, caption in zip(names, captions, strict=True):
        digest.update(f"{name}\0{caption}\0".encode())
    for row in range(0, len(names), max(1, len(names) // 64)):
        image = pairs[row]["image"]
        digest.update(image["bytes"] or str(image["path"]).encode() if isinstance(image, dict) else str(image).encode())
    return digest.hexdigest()


def count_ranks(
    embedded: EmbeddedPairs, folder: Path, key: Mapping[str, Any]
) -> dict[str, dict[str, torch.Tensor]] | None:
    """Counts the candidates above the right ones in blocks of images, which processes share and which are kept on disk.

    Args:
        embedded: The pairs; each process holds all of them.
        folder: Where the blocks lie.
        key: What tells these embeddings from others.

    Returns:
        By direction `better`, `equal` and `right`, as the metric `retrieval` takes them; `None` if an embedding holds
        NaN or infinity, for there is no rank then.
    """
    # Some rows at a time: isfinite takes as much memory again.
    if not all(rows.isfinite().all() for part in (embedded.images, embedded.texts) for rows in part.split(2**16)):
        return None
    device = PartialState().device
    image_of_text = embedded.image_of_text
    counter = RankCounter(
        embedded.images.to(device),
        embedded.texts.to(device),
        None if image_of_text is None else image_of_text.to(device),
    )
    block = max(counter.rows, BLOCK // counter.rows * counter.rows)
    key = {**key, "what": "ranks", "images": counter.images, "texts": counter.texts, "block": block}
    parts = Parts(folder, key, -(-counter.images // block))

    def work(number: int) -> Part:
        counts = counter.count(number * block, (number + 1) * block)
        return {name: values.int() for name, values in counts.items()}, None

    parts.complete(work, "Ranks")
    of_images: dict[str, list[torch.Tensor]] = {"better": [], "equal": []}
    of_texts = {kind: torch.zeros(counter.texts, dtype=torch.int64) for kind in of_images}
    for number in range(parts.count):
        counts, _ = parts.read(number)
        for kind in of_images:
            of_images[kind].append(counts[f"image_to_text_{kind}"].long())
            of_texts[kind] += counts[f"text_to_image_{kind}"]
    return {
        "image_to_text": {kind: torch.cat(found) for kind, found in of_images.items()} | {"right": counter.right},
        "text_to_image": {**of_texts, "right": torch.ones(counter.texts, dtype=torch.int64)},
    }


def retrieval_of(
    counts: Mapping[str, Mapping[str, torch.Tensor]] | None,
    articles: Sequence[str],
    seed: int,
    image_of_text: torch.Tensor | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Retrieval in both directions.

    Args:
        counts: As of [`count_ranks`].
        articles: The article of each text, of which the bootstrap draws whole ones.
        seed: Seed of the bootstrap.
        image_of_text: The image of each text; none where text i belongs to image i.
        resamples: Resamples of the bootstrap. 0 for no intervals.

    Returns:
        Metrics by direction with 95 % bootstrap intervals over articles, chance, and the numbers of pairs and articles.
        Without counts the metrics are None, and `undefined` gives the reason.
    """
    metric = load_metric("retrieval", "ranks")
    texts = len(articles)
    images = texts if image_of_text is None else int(image_of_text.max()) + 1
    groups_of = _groups(articles, image_of_text)
    metrics: dict[str, Any] = {"pairs": texts, "articles": len(set(articles)), "chance_at_1": 1 / images}
    if image_of_text is not None:
        metrics |= {"images": images, "captions_of_an_image": texts / images}
    if counts is None:
        names = [name for k in RECALLS for name in (f"recall_at_{k}", f"recall_at_{k}_interval")]
        metrics |= {direction: dict.fromkeys([*names, "median_rank"]) for direction in DIRECTIONS}
        return metrics | {"undefined": dict.fromkeys(DIRECTIONS, "the embeddings hold NaN or infinity")}
    for direction in DIRECTIONS:
        metrics[direction] = metric.compute(
            **counts[direction], groups=groups_of[direction], seed=seed, resamples=resamples
        )
    return metrics


def retrieval_of_pools(
    counts: Sequence[Mapping[str, Mapping[str, torch.Tensor]] | None],
    articles: Sequence[Sequence[str]],
    seed: int,
    images_of_texts: Sequence[torch.Tensor | None],
) -> dict[str, Any]:
    """Retrieval in both directions, as the mean over pools.

    Args:
        counts: Of each pool, as of [`count_ranks`].
        articles: Of each pool, the article of each text.
        seed: Seed of the bootstrap.
        images_of_texts: Of each pool, the image of each text.

    Returns:
        The metrics of [`retrieval_of`], each the mean over the pools. `articles` is the smallest number of articles
        in a pool. `recall_at_K_of_draws` lists the recall of each pool. An interval covers the draws: its ends are
        percentiles of the bootstrap resamples of all pools together, so that it is that of one pool of this size.
    """
    if len(counts) == 1:
        return retrieval_of(counts[0], articles[0], seed, images_of_texts[0])
    draws = [
        retrieval_of(*pool, resamples=0)
        for pool in zip(counts, articles, [seed] * len(counts), images_of_texts, strict=True)
    ]
    undefined = next((metrics for metrics in draws if "undefined" in metrics), None)
    metrics = dict(undefined or draws[0])
    metrics["articles"] = min(draw["articles"] for draw in draws)
    for name in ("chance_at_1", "images", "captions_of_an_image"):
        if name in metrics:
            metrics[name] = float(np.mean([draw[name] for draw in draws]))
    if undefined:
        return metrics
    groups_of = [_groups(*pool) for pool in zip(articles, images_of_texts, strict=True)]
    for direction in DIRECTIONS:
        summary: dict[str, Any] = {
            name: float(np.mean([draw[direction][name] for draw in draws])) for name in draws[0][direction]
        }
        for k in RECALLS:
            resampled = [
                bootstrap_means(recall_at(k, *_ranks(counted, direction)).numpy(), groups[direction], seed=[seed, draw])
                for draw, (counted, groups) in enumerate(zip(counts, groups_of, strict=True))
            ]
            low, high = np.quantile(np.concatenate(resampled), [0.025, 0.975])
            summary[f"recall_at_{k}_interval"] = [float(low), float(high)]
            summary[f"recall_at_{k}_of_draws"] = [draw[direction][f"recall_at_{k}"] for draw in draws]
        metrics[direction] = summary
    return metrics


def validation_loss(embedded: EmbeddedPairs, encoder: DualEncoder) -> float | None:
    """The loss in batches of 4,096 pairs, see [`loss_in_batches`].

    Returns:
        The loss, or None if the temperature of the model is not known or an embedding holds NaN or infinity.
    """
    if encoder.type in BIOVIL:
        return None
    device = PartialState().device
    images = embedded.images if embedded.image_of_text is None else embedded.images[embedded.image_of_text]
    loss = loss_in_batches(
        images.to(device), embedded.texts.to(device), torch.tensor(encoder.logit_scale, device=device)
    )
    return loss if math.isfinite(loss) else None


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None if a value is None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _ranks(counts: Any, direction: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Counts of a direction as [`recall_at`] takes them."""
    better, equal, right = (counts[direction][kind] for kind in ("better", "equal", "right"))
    return better, equal, None if (right == 1).all() else right


def _groups(articles: Sequence[str], image_of_text: torch.Tensor | None) -> dict[str, Sequence[str]]:
    """The article of each query, by direction."""
    of_images = articles
    if image_of_text is not None:
        article_of = dict(zip(image_of_text.tolist(), articles, strict=True))
        of_images = [article_of[image] for image in range(len(article_of))]
    return dict(zip(DIRECTIONS, (of_images, articles), strict=True))


def show_retrieval(
    metrics: dict[str, Any],
    oracle: float | None = None,
    paper: Mapping[str, Any] | None = None,
    split: str = "test",
) -> None:
    """Prints retrieval beside chance, the paper's values, and an oracle, where these are given."""
    rows: list[tuple[Any, ...]] = []
    pool = metrics.get("pool")
    for k in RECALLS:
        cells = [recall_as_text(metrics[direction], k) for direction in DIRECTIONS]
        rows.append((f"recall at {k}", *cells, min(1.0, k * metrics["chance_at_1"])))
        if paper:
            values = [paper.get(direction, {}).get(f"recall_at_{k}") for direction in DIRECTIONS]
            rows.append(("  paper", *values, None))
    ranks = [rank_as_text(metrics[direction]) for direction in DIRECTIONS]
    rows.append(("median rank", *ranks, (metrics["pairs"] + 1) / 2))
    if oracle is not None:
        rows.append(("oracle of kind", oracle, oracle, None))
    title = f"Retrieval, {metrics['pairs']:,} pairs of {metrics['articles']:,} articles, {split} split [95 % interval]"
    show_table(title, rows, ["", "image to text", "text to image", "chance"])
    if pool:
        drawn = f"Mean of {pool['draws']} draws" if pool["draws"] > 1 else "One draw"
        say(f"{drawn} of {pool['size']:,} of {pool['pairs']:,} pairs, seed {pool['seed']}.")
    if metrics.get(LOSS_IN_BATCHES) is not None:
        published = (paper or {}).get(LOSS_IN_BATCHES)
        beside = "" if published is None else f" (paper: {format_value(published)})"
        say(f"Loss in batches of {VALIDATION_BATCH:,} pairs: {format_value(metrics[LOSS_IN_BATCHES])}{beside}.")
    say_undefined(metrics)


def recall_as_text(metrics: Mapping[str, Any], k: int) -> str:
    """Return recall at k of one direction with its interval, as a table shows it."""
    if metrics[f"recall_at_{k}"] is None:
        return UNDEFINED
    low, high = metrics[f"recall_at_{k}_interval"]
    return f"{metrics[f'recall_at_{k}']:.3f} [{low:.3f}, {high:.3f}]"


def rank_as_text(metrics: Mapping[str, Any]) -> str:
    """Return the median rank of one direction, as a table shows it."""
    return UNDEFINED if metrics["median_rank"] is None else format_value(metrics["median_rank"])


def _distinct_images(pairs: Any, image_id: str | None) -> tuple[list[int], torch.Tensor]:
    """The first row of each image, and the number of the image of each row."""
    if image_id is None:
        return list(range(len(pairs))), torch.arange(len(pairs))
    number_of: dict[Any, int] = {}
    first_rows, image_of_row = [], []
    for row, value in enumerate(pairs[image_id]):
        if value not in number_of:
            number_of[value] = len(number_of)
            first_rows.append(row)
        image_of_row.append(number_of[value])
    return first_rows, torch.tensor(image_of_row)


class _Column(Sequence[Any]):
    """Some rows of a column, each read when it is asked for."""

    def __init__(self, rows: Any, name: str, numbers: Sequence[int]):
        self.rows = rows
        self.name = name
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: Any) -> Any:
        return self.rows[self.numbers[position]][self.name]
