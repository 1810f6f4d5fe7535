"""Embed the pairs of a split for retrieval."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .features import FeatureStore


@dataclass(frozen=True)
class EmbeddedPairs:
    """The embeddings of the pairs whose images could be read.

    `images` and `texts` are normalized, of shape `(number, dimension)`. `image_of_text` is None if text i belongs to
    image i. `rows` contains the row of the dataset for each text, and `damaged` the `name` and `reason` of each
    excluded row.
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
        if isinstance(image, Path):
            image = {"bytes": image.read_bytes()}
        digest.update(image["bytes"] or str(image["path"]).encode() if isinstance(image, dict) else str(image).encode())
    return digest.hexdigest()
