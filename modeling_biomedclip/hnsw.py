"""An approximate index of FAISS (HNSW, not quantized) over the embeddings of one modality."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .embedding_shards import EmbeddingMatrix


_NEIGHBORS, _BUILD_WIDTH, _SEARCH_WIDTH = 32, 200, 128  # M, efConstruction and efSearch
_ROWS_AT_A_TIME = 8192


class HnswIndex:
    """Find candidates with FAISS. Similarities are computed again from the embeddings."""

    def __init__(self, index: Any):
        self._index = index

    def candidates(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """Return the positions that the index finds for each query."""
        self._index.hnsw.efSearch = max(_SEARCH_WIDTH, count)
        _, positions = self._index.search(np.ascontiguousarray(queries), count)
        return [found[found >= 0] for found in positions]


def open_hnsw(matrix: EmbeddingMatrix, name: str) -> HnswIndex:
    """Read the index from the folder of the matrix. It is built if it is missing or the embeddings have changed."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("The index hnsw requires FAISS. Install it: pip install 'biomedclip[search]'") from error
    path, description = matrix.folder / f"{name}.hnsw", matrix.folder / f"{name}_hnsw.json"
    settings = [matrix.checksum, _NEIGHBORS, _BUILD_WIDTH, faiss.__version__]
    if _read_json(description) == settings and path.is_file():
        return HnswIndex(faiss.read_index(str(path)))
    index = faiss.IndexHNSWFlat(matrix.embeds.shape[1], _NEIGHBORS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD_WIDTH
    with tqdm(total=len(matrix.embeds), desc="Building the HNSW index", disable=None, leave=False) as progress:
        for start in range(0, len(matrix.embeds), _ROWS_AT_A_TIME):
            rows = matrix.embeds[start : start + _ROWS_AT_A_TIME].astype(np.float32)
            index.add(rows)
            progress.update(len(rows))
    if matrix.folder.is_dir():  # not if the cache is temporary
        partial = matrix.folder / f"{name}.hnsw.{os.getpid()}.partial"
        description.unlink(missing_ok=True)
        faiss.write_index(index, str(partial))
        os.replace(partial, path)
        description.write_text(json.dumps(settings), encoding="utf-8")
    return HnswIndex(index)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
