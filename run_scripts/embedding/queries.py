"""Embed the query of a search with the model that computed the embeddings."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from biomedclip import EmbeddingIndex, embed_images, read_image
from biomedclip.embedding_shards import modalities_in

from ..evaluation.dual_encoders import DualEncoder
from .encoders import check_encoder, load_encoder, text_embeds


def check_query_model(name: str, given: bool, **options: Any) -> None:
    """Check that the model of a search can be loaded. `given` is whether the user named it.

    `options` are `precision`, `device` and `trust_remote_code`, as for [`check_encoder`].

    Raises:
        FileNotFoundError: If the model does not exist.
        ValueError: If it cannot embed.
    """
    if not given and not Path(name).is_dir() and (name.startswith((".", "/")) or name.count("/") != 1):
        raise FileNotFoundError(
            f"The embeddings were computed with {name}, which is not a folder here. Pass --model with its new place."
        )
    check_encoder(name, **{"precision": None, **options})


def load_query_model(
    name: str, index: EmbeddingIndex, *, precision: str | None = None, trust_remote_code: bool = False
) -> DualEncoder:
    """Load a model, and check that it is the one that computed the embeddings.

    Raises:
        ValueError: If its weights or the settings of its processor have another fingerprint.
    """
    precision = check_encoder(name, precision, trust_remote_code=trust_remote_code)
    encoder = load_encoder(name, precision, trust_remote_code=trust_remote_code)
    check_same_model(encoder, index)
    return encoder


def check_same_model(encoder: DualEncoder, index: EmbeddingIndex) -> None:
    """Check that a model is the one that computed the embeddings.

    Raises:
        ValueError: If its weights or the settings of its processor have another fingerprint.
    """
    for kind in ("weights", "processing"):
        found, expected = getattr(encoder, kind), getattr(index, kind)
        if expected and found != expected:
            what = "weights" if kind == "weights" else "settings of the processor"
            raise ValueError(
                f"--model {encoder.name}: not the model that computed the embeddings ({index.model}). The fingerprint "
                f"of its {what} is {found}, and that of the embeddings is {expected}. Pass that model, or embed again."
            )


def text_query(encoder: DualEncoder, text: str) -> torch.Tensor:
    """Return the embedding of a text."""
    return text_embeds(encoder, [text], 1)[0]


def image_query(encoder: DualEncoder, path: str) -> torch.Tensor:
    """Return the embedding of an image file. Raise `ImageError` if it cannot be read."""
    with encoder.precise():
        return embed_images(encoder.model, encoder.processor, [read_image(path)])[0]


def known_query(index: EmbeddingIndex, name: str) -> np.ndarray:
    """Return the embedding of an id, which may be that of the other modality.

    Raises:
        ValueError: If no shard has the id, or the row has no embedding.
    """
    others = [modality for modality in modalities_in(index.folder) if modality != index.modality]
    for part in [index, *(EmbeddingIndex(index.folder, modality=modality) for modality in others)]:
        try:
            return part.embedding(name)
        except KeyError as error:
            reason = str(error.args[0])
            if "could not be read" in reason:
                break
    raise ValueError(f"--like: {reason}")
