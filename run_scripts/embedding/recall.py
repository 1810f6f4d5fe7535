"""Measure the recall of an approximate index."""

import json
from collections.abc import Mapping

import numpy as np

from biomedclip import EmbeddingIndex, embed_texts
from biomedclip.embedding_shards import CACHE, modalities_in

from ..cli.reporting import write_json
from ..evaluation.dual_encoders import DualEncoder
from ..evaluation.verification import LABELS, TEMPLATE


_RECALL_AT = 10
_QUERIES = 200


def measured_recall(index: EmbeddingIndex, encoder: DualEncoder) -> str:
    """Return a line with the recall@10 of an approximate index, for queries by image and by text.

    The queries are up to 200 embeddings of each modality in the folder. Without embeddings of texts, they are the
    labels of the published model card. An embedding that is itself in the index is not counted among its neighbors.
    The result is kept until the index changes.
    """
    path = index.folder / CACHE / f"{index.modality}_recall.json"
    others = {name: EmbeddingIndex(index.folder, modality=name) for name in modalities_in(index.folder)}
    key = {name: other.checksum for name, other in others.items()}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["index"] != key:
            content = None
    except (OSError, ValueError, KeyError, TypeError):
        content = None
    if content is None:
        content = {"index": key, "recall": _measure(index, others, encoder)}
        if path.parent.is_dir():
            write_json(path, content)
    return _described(content["recall"])


def _described(recall: Mapping[str, tuple[float, int]]) -> str:
    parts = [f"{value:.3f} for {count:,} {name} queries" for name, (value, count) in recall.items()]
    return f"HNSW, recall@{_RECALL_AT} against exact search: {', '.join(parts)}"


def _measure(
    index: EmbeddingIndex, others: Mapping[str, EmbeddingIndex], encoder: DualEncoder
) -> dict[str, tuple[float, int]]:
    result = {}
    for name in ("image", "text"):
        if name in others:
            queries = others[name].sample(_QUERIES)
        elif name == "text":
            queries = embed_texts(
                encoder.model, encoder.processor, [TEMPLATE.format(label) for label in LABELS]
            ).numpy()
        else:
            continue
        if len(queries):
            result[name] = (_recall(index, queries, own=name == index.modality), len(queries))
    return result


def _recall(index: EmbeddingIndex, queries: np.ndarray, *, own: bool) -> float:
    """Return the fraction of the best that the index finds. With `own`, the best one is the query itself."""
    count = _RECALL_AT + own
    pairs = zip(index.find(queries, count, exact=True), index.find(queries, count), strict=True)
    return float(np.mean([np.isin(exact[own:], found).mean() for (exact, _), (found, _) in pairs if len(exact) > own]))


__all__ = ["measured_recall"]
