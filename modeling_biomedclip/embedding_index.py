"""Search stored embeddings. The results are exact and do not depend on rounding of matrix products.

1. A matrix product in float32 finds all embeddings that can be among the best, given the largest possible rounding
   error.
2. The similarities of these are computed again in float64, and rounded to float32.
3. They are sorted by similarity, and equal similarities by id.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import torch
from tqdm.auto import tqdm

from .embedding_shards import MODALITIES, EmbeddingShards, modalities_in, open_matrix


TOP_K = 10
METHODS = ("exact", "hnsw")
_TAKEN = ("rank", "similarity", "group")  # columns of results
_BLOCK = 4096  # rows of a matrix product: in float32, they fit the cache of a processor
_PAIR_BLOCK = 2048  # rows and columns of a block of similarities between embeddings
_MOST_PAIRS = 4_000_000  # pairs of near-duplicates in memory


class EmbeddingIndex:
    """Search the embeddings in a folder that `biomedclip embed` wrote.

    The first use writes a memory-mapped copy of the embeddings to the folder `.index`. It is written again when the
    shards change.

    Args:
        folder: Folder that `biomedclip embed` wrote.
        modality: `image` or `text`. The default is `image` if the folder has embeddings of images.
        method: `exact`, or `hnsw` for an approximate index of FAISS.

    Attributes:
        modality: The modality of the embeddings.
        model: Name of the model that computed the embeddings.
        weights: Fingerprint of its weights.
        processing: Fingerprint of its processor.
        dimension: Number of values of an embedding.
        columns: Names of the columns of the input in the results.
        schema: Names and types of the columns of the shards.
        checksum: Checksum of the embeddings.

    Raises:
        FileNotFoundError: If the folder has no embeddings.
        ImportError: If `method` is `hnsw`, and FAISS is not installed.
        ValueError: If a shard is damaged, or shards were written with different models.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPModel, BiomedCLIPProcessor, EmbeddingIndex, embed_texts

    >>> index = EmbeddingIndex("vectors")
    >>> model = BiomedCLIPModel.from_pretrained(index.model)
    >>> processor = BiomedCLIPProcessor.from_pretrained(index.model)
    >>> (hits,) = index.search(embed_texts(model, processor, ["a bar chart"]), top_k=3)
    >>> [hit["rank"] for hit in hits]
    [1, 2, 3]
    ```
    """

    def __init__(self, folder: str | os.PathLike[str], *, modality: str | None = None, method: str = "exact"):
        self.folder = Path(folder)
        if method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}, not {method!r}.")
        self.modality = _choose_modality(self.folder, modality)
        self._shards = EmbeddingShards(self.folder, self.modality)
        self._matrix = open_matrix(self._shards)
        self.model: str = self._shards.metadata.get("model", "")
        self.weights: str = self._shards.metadata["weights"]
        self.processing: str = self._shards.metadata.get("processing", "")
        self.dimension: int = self._shards.metadata["dimension"]
        self._names = {name: f"input_{name}" if name in _TAKEN else name for name in self._shards.own_columns}
        self.columns = list(self._names.values())
        self.schema = self._shards.schema
        self.checksum = self._matrix.checksum
        self._hnsw: Any = None
        if method == "hnsw":
            from .hnsw import open_hnsw  # FAISS is optional

            self._hnsw = open_hnsw(self._matrix, MODALITIES[self.modality])

    def __len__(self) -> int:
        """Return the number of embeddings."""
        return len(self._matrix.rows)

    def search(
        self,
        queries: Any,
        *,
        top_k: int = TOP_K,
        where: ds.Expression | None = None,
        exclude: Collection[str] = (),
    ) -> list[list[dict[str, Any]]]:
        """Find the embeddings with the largest dot products with each query.

        Args:
            queries: Array or tensor of shape `(queries, dimension)`, or one query of shape `(dimension,)`.
            top_k: Number of results of each query.
            where: Only rows for which this expression is true, such as `pyarrow.dataset.field("year") > 2020`. An index
                with the method `hnsw` does not support it.
            exclude: Ids to exclude.

        Returns:
            The results of each query, best first: `rank` (from 1), `id`, `path`, `similarity` and the own columns of
            the row. Equal similarities (in float32) are sorted by id. An own column that is called `rank`,
            `similarity` or `group` has the prefix `input_`.

        Raises:
            ValueError: If the queries have another dimension or are not finite, or `top_k < 1`.
        """
        if top_k < 1:
            raise ValueError(f"`top_k` must be at least 1, not {top_k}.")
        queries = self._checked(queries)
        left_out = np.concatenate([np.empty(0, dtype=int), *(self._shards.rows_of(name) for name in exclude)])
        found = self.find(queries, top_k + len(left_out), where=where)
        kept = []
        for positions, similarities in found:
            others = ~np.isin(self._matrix.rows[positions], left_out)
            kept.append((positions[others][:top_k], similarities[others][:top_k]))
        rows = self.read([position for positions, _ in kept for position in positions])
        results, start = [], 0
        for positions, similarities in kept:
            own = rows[start : start + len(positions)]
            start += len(positions)
            results.append(
                [
                    {"rank": rank, "id": row.pop("id"), "path": row.pop("path"), "similarity": float(similarity), **row}
                    for rank, (row, similarity) in enumerate(zip(own, similarities, strict=True), start=1)
                ]
            )
        return results

    def embedding(self, name: str) -> np.ndarray:
        """Return the embedding of an id in float32. If several rows have the id, the first one is used.

        Raises:
            KeyError: If no row has the id, or the row has no embedding.
        """
        rows = self._shards.rows_of(name)
        positions = np.flatnonzero(np.isin(self._matrix.rows, rows)) if len(rows) else rows
        if not len(positions):
            reason = "has no embedding, because its image could not be read" if len(rows) else "is not in the shards"
            raise KeyError(f"The id {name!r} {reason}.")
        return self._matrix.embeds[positions[0]].astype(np.float32)

    def near_duplicates(self, threshold: float, *, where: ds.Expression | None = None) -> list[list[dict[str, Any]]]:
        """Find groups of embeddings that are connected by dot products of at least a threshold.

        All pairs are compared, so the time grows with the square of the number of embeddings.

        Args:
            threshold: Smallest similarity of two near-duplicates.
            where: Only rows for which this expression is true.

        Returns:
            The groups, largest first, then by the first id. Each row has `id`, `path`, `similarity` (to the most
            similar other row of the group) and the own columns. The rows of a group are sorted by id.
        """
        chosen = self._chosen(where)
        groups = _connected(self._matrix.embeds, chosen, threshold, self._matrix.largest_norm)
        rows = self.read([position for group in groups for position, _ in group])
        results, start = [], 0
        for group in groups:
            own = rows[start : start + len(group)]
            start += len(group)
            members = [
                {"id": row.pop("id"), "path": row.pop("path"), "similarity": float(similarity), **row}
                for row, (_, similarity) in zip(own, group, strict=True)
            ]
            results.append(sorted(members, key=lambda member: member["id"]))
        return sorted(results, key=lambda group: (-len(group), group[0]["id"]))

    def find(
        self, queries: np.ndarray, top_k: int, *, where: ds.Expression | None = None, exact: bool = False
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the positions in the matrix and the similarities of the results of each query, best first.

        With `exact`, the approximate index is not used.
        """
        if self._hnsw is not None and not exact:
            if where is not None:
                raise ValueError("The index hnsw does not support `where`. Use the exact search.")
            candidates = self._hnsw.candidates(queries, min(top_k, len(self)))
        else:
            candidates = _candidates(
                self._matrix.embeds, queries, top_k, self._chosen(where), self._matrix.largest_norm
            )
        return [self._ranked(query, found, top_k) for query, found in zip(queries, candidates, strict=True)]

    def read(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return `id`, `path` and the own columns of positions in the matrix."""
        rows = self._shards.read_rows(self._matrix.rows[np.asarray(positions, dtype=np.int64)].tolist())
        return [{self._names.get(name, name): value for name, value in row.items()} for row in rows]

    def sample(self, count: int) -> np.ndarray:
        """Return evenly spaced embeddings of the index, in float32."""
        positions = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))
        return self._matrix.embeds[positions].astype(np.float32)

    def _checked(self, queries: Any) -> np.ndarray:
        array = queries.detach().cpu().float().numpy() if isinstance(queries, torch.Tensor) else np.asarray(queries)
        array = np.atleast_2d(array).astype(np.float32)
        if array.ndim != 2 or array.shape[1] != self.dimension:
            raise ValueError(f"`queries` have shape {array.shape}, and must have shape (queries, {self.dimension}).")
        if not np.isfinite(array).all():
            raise ValueError("`queries` contain NaN or infinity.")
        return array

    def _chosen(self, where: ds.Expression | None) -> np.ndarray | None:
        """Return the positions in the matrix for which an expression is true, or None for all."""
        return None if where is None else np.flatnonzero(self._shards.matching(where)[self._matrix.rows])

    def _ranked(self, query: np.ndarray, positions: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """Sort candidates by similarity in float32, then by id, then by position."""
        similarities = _similarities(self._matrix.embeds, positions, query)
        if len(positions) > top_k:
            smallest = np.partition(similarities, -top_k)[-top_k]
            positions, similarities = positions[similarities >= smallest], similarities[similarities >= smallest]
        ids = self._shards.ids_of(self._matrix.rows[positions])
        order = sorted(range(len(positions)), key=lambda at: (-similarities[at], ids[at], positions[at]))[:top_k]
        return positions[order], similarities[order]


def _choose_modality(folder: Path, modality: str | None) -> str:
    if modality is not None and modality not in MODALITIES:
        raise ValueError(f"`modality` must be one of {', '.join(MODALITIES)}, not {modality!r}.")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the folder does not exist.")
    found = modalities_in(folder)
    if not found:
        raise FileNotFoundError(f"{folder}: no shards data/images-*.parquet. Write them with biomedclip embed.")
    if modality is not None and modality not in found:
        raise FileNotFoundError(f"{folder}: no embeddings of {MODALITIES[modality]}, only of {MODALITIES[found[0]]}.")
    return modality or found[0]


def _margin(queries: np.ndarray, largest_norm: float) -> np.ndarray:
    """Return the largest difference that rounding can make between the similarities of two embeddings to a query.

    A dot product of d values in float32, summed in any order, has an error of at most about d u |a| |b|, where u is
    2^-24. Similarities that round to the same float32 differ by less than 2 u |a| |b|.
    """
    norms = np.linalg.norm(queries.astype(np.float64), axis=1)
    return 2.1 * (queries.shape[1] + 2) * 2.0**-24 * norms * largest_norm


def _candidates(
    embeds: np.ndarray, queries: np.ndarray, top_k: int, chosen: np.ndarray | None, largest_norm: float
) -> list[np.ndarray]:
    """Return the positions of all embeddings that can be among the best `top_k` of each query."""
    count = len(embeds) if chosen is None else len(chosen)
    margin = torch.from_numpy(_margin(queries, largest_norm)).float()[:, None]
    on_cpu: Any = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults of the caller are
    best = torch.full((len(queries), 1), -torch.inf, **on_cpu)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    # New memory for each block would not be reused, because the results that are kept lie between the blocks.
    memory, vectors = torch.empty(min(_BLOCK, count), embeds.shape[1], **on_cpu), torch.from_numpy(queries)
    # The threads of NumPy would compete with those of PyTorch. NumPy is used only if a setting lets PyTorch round to
    # bfloat16.
    is_exact = torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled("cpu")
    for start in range(0, count, _BLOCK):
        block = embeds[start : start + _BLOCK] if chosen is None else embeds[chosen[start : start + _BLOCK]]
        values = memory[: len(block)].copy_(torch.from_numpy(block))
        similarities = vectors @ values.T if is_exact else torch.from_numpy(queries @ values.numpy().T)
        floor = best[:, -1:] - margin if best.shape[1] >= top_k else torch.full_like(margin, -torch.inf)
        if not bool((similarities.amax(dim=1, keepdim=True) >= floor).any()):
            continue
        best = torch.cat([best, similarities.topk(min(top_k, similarities.shape[1])).values], dim=1)
        best = best.topk(min(top_k, best.shape[1])).values
        if best.shape[1] >= top_k:
            floor = best[:, -1:] - margin
        query, place = (similarities >= floor).nonzero(as_tuple=True)
        found.append((query.numpy(), start + place.numpy(), similarities[query, place].numpy()))
    if not found:
        return [np.empty(0, dtype=np.int64) for _ in queries]
    query, place, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    floor = best[:, -1] - margin[:, 0] if best.shape[1] >= top_k else torch.full((len(queries),), -torch.inf)
    keep = values >= floor.numpy()[query]
    query, place = query[keep], place[keep]
    position = place if chosen is None else chosen[place]
    return [position[query == number] for number in range(len(queries))]


def _similarities(embeds: np.ndarray, positions: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return dot products in float64, rounded to float32. Equal embeddings have equal similarities."""
    result = np.empty(len(positions), dtype=np.float32)
    exact = query.astype(np.float64)
    for start in range(0, len(positions), _BLOCK):
        rows = embeds[positions[start : start + _BLOCK]].astype(np.float64)
        result[start : start + _BLOCK] = (rows * exact).sum(axis=1)
    return result


def _connected(
    embeds: np.ndarray, chosen: np.ndarray | None, threshold: float, largest_norm: float
) -> list[list[tuple[int, float]]]:
    """Return the groups of connected positions, each with its largest similarity to another one."""
    positions = np.arange(len(embeds)) if chosen is None else chosen
    closest = np.full(len(positions), -np.inf, dtype=np.float32)
    pairs: list[np.ndarray] = [np.empty((2, 0), dtype=np.int64)]
    waiting = 0

    def block(start: int) -> np.ndarray:
        return embeds[positions[start : start + _PAIR_BLOCK]].astype(np.float32)

    starts = range(0, len(positions), _PAIR_BLOCK)
    for first in tqdm(starts, desc="Comparing", unit="block", disable=None, leave=False):
        left = block(first)
        margin = float(_margin(left, largest_norm).max())
        for second in range(first, len(positions), _PAIR_BLOCK):
            similarities = left @ (left if first == second else block(second)).T
            a, b = np.nonzero(similarities >= threshold - margin)
            a, b = a + first, b + second
            a, b = a[a < b], b[a < b]
            if not len(a):
                continue
            values = _pair_similarities(embeds, positions[a], positions[b])
            near = values >= np.float32(threshold)
            a, b, values = a[near], b[near], values[near]
            np.maximum.at(closest, a, values)
            np.maximum.at(closest, b, values)
            pairs.append(np.stack([a, b]))
            waiting += len(a)
            if waiting > _MOST_PAIRS:  # one pair of each member with the first of its group says the same
                labels = _labels(pairs, len(positions))
                _, firsts = np.unique(labels, return_index=True)
                pairs = [np.stack([firsts[labels], np.arange(len(positions))])]
                waiting = 0
    labels = _labels(pairs, len(positions))
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return [[(int(positions[at]), float(closest[at])) for at in group] for group in groups if len(group) > 1]


def _pair_similarities(embeds: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    result = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), _BLOCK):
        a, b = (embeds[side[start : start + _BLOCK]].astype(np.float64) for side in (left, right))
        result[start : start + _BLOCK] = (a * b).sum(axis=1)
    return result


def _labels(pairs: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return the number of the connected component of each node."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = np.concatenate(pairs, axis=1)
    edges = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(count, count))
    return connected_components(edges, directed=False)[1]
