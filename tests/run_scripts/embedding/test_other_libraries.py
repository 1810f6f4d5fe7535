"""The examples for other libraries in docs/searching.md find the images that the exact search finds."""

import numpy as np
import pytest
import torch
from helpers.commands import ROOT
from helpers.embedding_shards import random_embeddings, write_embedding_shards
from helpers.pages import blocks_of

from biomedclip import EmbeddingIndex


BLOCKS = {
    library: next(block.code for block in blocks_of(ROOT / "docs" / "searching.md") if line in block.code)
    for library, line in {
        "pyarrow": "from pyarrow import compute, dataset",
        "datasets": "from datasets import load_dataset",
        "duckdb": "import duckdb\n",
        "lancedb": "import lancedb\n",
        "qdrant_client": "from qdrant_client import QdrantClient, models",
    }.items()
}


@pytest.mark.parametrize("library", ["datasets", "duckdb", "lancedb", "qdrant_client"])
def test_a_library_finds_the_best_images(library, tmp_path, monkeypatch):
    pytest.importorskip(library, reason=f"{library} is not installed")
    names = [f"image-{number}" for number in range(50)]
    write_embedding_shards(tmp_path / "vectors", random_embeddings(50), names, unreadable=[7], rows_per_shard=20)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    queries = torch.from_numpy(random_embeddings(1, seed=1, dtype=np.float32))
    namespace = {"queries": queries}
    for name in ("pyarrow", library):
        exec(compile(BLOCKS[name], f"searching.md, {name}", "exec"), namespace)
    (hits,) = EmbeddingIndex("vectors").search(queries, top_k=3)
    expected = [hit["id"] for hit in hits]
    if library == "datasets":
        # FAISS computes distances. All embeddings have the same norm but for rounding.
        assert namespace["found"]["id"] == expected
    elif library == "duckdb":
        assert [name for name, _ in namespace["best"]] == expected
    elif library == "lancedb":
        assert [row["id"] for row in namespace["best"]] == expected
    else:
        assert [point.payload["id"] for point in namespace["best"]] == expected
