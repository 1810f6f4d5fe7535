"""Seconds and memory of exact search among many embeddings, with the cache present.

python tests/performance/searching.py --output searching.json

The embeddings are random and normalized, in float16. The results are compared with a product of all embeddings in
float64, in blocks. Each round runs all queries at once. The memory is the peak of a process that only searches.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from timing import parser_of, report

from biomedclip import EmbeddingIndex
from biomedclip.run_scripts.cli.reporting import peak_memory_mib


SHARD = 2048 * 16


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of embeddings")
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--folder", type=Path, help="folder for the embeddings (default: a temporary one)")
    parser.add_argument("--search-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.search_only:
        print(json.dumps(search(options)))  # noqa: T201
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if not (folder / "data").is_dir():
            write_embeddings(folder, options.rows, options.dimension)
        started = time.perf_counter()
        EmbeddingIndex(folder)
        building = time.perf_counter() - started
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--search-only"]
        results = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        wrong = count_wrong(folder, results.pop("ids"), options)
    rows = [
        ("open the index", results["opening"]),
        (f"{options.queries} queries, first", results["seconds"][0]),
        (f"{options.queries} queries, median", statistics.median(results["seconds"][1:])),
        ("write the cache", building),
    ]
    title = f"{options.rows:,} embeddings: {results['peak_mib']:,} MiB, {wrong} wrong results"
    report(results | {"writing": building, "wrong": wrong}, [(title, rows, ["", "seconds"])], options.output)


def write_embeddings(folder: Path, rows: int, dimension: int) -> None:
    """Write random embeddings in the format of `biomedclip embed`."""
    (folder / "data").mkdir(parents=True)
    metadata = {"biomedclip.model": "random", "biomedclip.weights": "0" * 16, "biomedclip.dimension": str(dimension)}
    generator = np.random.default_rng(0)
    for shard, start in enumerate(range(0, rows, SHARD)):
        count = min(SHARD, rows - start)
        embeds = generator.standard_normal((count, dimension), dtype=np.float32)
        embeds = (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(np.float16)
        names = [f"image-{number:08}" for number in range(start, start + count)]
        columns = {
            "id": names,
            "path": names,
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embeds.reshape(-1)), dimension),
            "year": [2000 + number % 25 for number in range(start, start + count)],
        }
        table = pa.table(columns).replace_schema_metadata(metadata)
        pq.write_table(table, folder / "data" / f"images-{shard:05}.parquet", use_dictionary=["year"])


def queries_of(options: argparse.Namespace) -> np.ndarray:
    queries = np.random.default_rng(1).standard_normal((options.queries, options.dimension), dtype=np.float32)
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def search(options: argparse.Namespace) -> dict:
    """Return the seconds of each round, the results and the memory of this process."""
    started = time.perf_counter()
    index = EmbeddingIndex(options.folder)
    opening, seconds, queries = time.perf_counter() - started, [], queries_of(options)
    for _ in range(options.rounds + 1):
        started = time.perf_counter()
        results = index.search(queries, top_k=options.top_k)
        seconds.append(time.perf_counter() - started)
    ids = [[hit["id"] for hit in hits] for hits in results]
    return {"opening": opening, "seconds": seconds, "peak_mib": peak_memory_mib(), "ids": ids}


def count_wrong(folder: Path, found: list[list[str]], options: argparse.Namespace) -> int:
    """Return the number of results that differ from those of a product in float64."""
    best: list[list[tuple[np.float32, str]]] = [[] for _ in found]
    queries = queries_of(options).astype(np.float64)
    for path in sorted((folder / "data").iterdir()):
        table = pq.read_table(path, columns=["id", "embedding"])
        names = table["id"].to_pylist()
        embeds = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(names), -1).astype(np.float64)
        for number, similarities in enumerate(np.float32(queries @ embeds.T)):
            chosen = np.argpartition(-similarities, options.top_k)[: options.top_k]
            best[number] += [(-similarities[row], names[row]) for row in chosen]
            best[number] = sorted(best[number])[: options.top_k]
    pairs = zip(found, best, strict=True)
    return sum(name != expected for ids, rows in pairs for name, (_, expected) in zip(ids, rows, strict=True))


if __name__ == "__main__":
    main()
