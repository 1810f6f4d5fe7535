"""Write embeddings in the format of `biomedclip embed`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


NAMES = {"image": "images", "text": "texts"}


def random_embeddings(count: int, dimension: int = 16, *, seed: int = 0, dtype: Any = np.float16) -> np.ndarray:
    """Return random L2-normalized embeddings."""
    embeds = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    return (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(dtype)


def write_embedding_shards(
    folder: Path,
    embeds: np.ndarray,
    ids: Sequence[str],
    *,
    modality: str = "image",
    paths: Sequence[str | None] | None = None,
    columns: Mapping[str, Any] | None = None,
    unreadable: Sequence[int] = (),
    rows_per_shard: int = 1000,
    rows_per_group: int = 300,
    first_shard: int = 0,
    model: str = "out/model",
    weights: str = "0123456789abcdef",
    processing: str = "fedcba9876543210",
) -> Path:
    """Write embeddings of shape `(rows, dimension)` to `folder/data`. Rows in `unreadable` have an error instead."""
    count, dimension = embeds.shape
    (folder / "data").mkdir(parents=True, exist_ok=True)
    missing = np.isin(np.arange(count), unreadable)
    values = pa.array(np.where(missing[:, None], 0, embeds).astype(embeds.dtype).reshape(-1))
    table = pa.table(
        {
            "id": pa.array(ids, pa.string()),
            "path": pa.array(paths or [None] * count, pa.string()),
            "modality": [modality] * count,
            "embedding": pa.FixedSizeListArray.from_arrays(values, dimension, mask=pa.array(missing)),
            "image_md5": pa.array([None] * count, pa.string()),
            "error": pa.array(["damaged" if bad else None for bad in missing], pa.string()),
            **(columns or {}),
        }
    ).replace_schema_metadata(
        {
            "biomedclip.model": model,
            "biomedclip.weights": weights,
            "biomedclip.processing": processing,
            "biomedclip.dimension": str(dimension),
            "biomedclip.precision": "float32",
        }
    )
    for shard, start in enumerate(range(0, count, rows_per_shard), start=first_shard):
        path = folder / "data" / f"{NAMES[modality]}-{shard:05}.parquet"
        pq.write_table(table.slice(start, rows_per_shard), path, row_group_size=rows_per_group)
    return folder
