"""Time, memory and bound of the evaluation at full size: ranks among 725,739 pairs, and PCam's 32,768 test images.

python tests/performance/evaluating.py ranks --rows 4096
python tests/performance/evaluating.py retrieval --folder DIR
python tests/performance/evaluating.py images --images 32768

Ranks are counted for some images against all 725,739 texts, as the command does it, and the time of all is worked out
from that; the bound is the products alone, in the same tiles, measured in turns with it. Features are drawn.

Retrieval is the whole of it: all blocks, kept in the folder so that a run that was cut off goes on, and the metrics
with their intervals. Ranks of a few queries in each direction are compared with those of a plain product.

Images are drawn patches of 96 pixels in an array, as PCam's HDF5 gives them, through a small model with 224-pixel
images. Reading, resizing and a model on the CPU share its cores: the bound is what the cores do when none is ever idle,
worked out from each part alone.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel
from biomedclip.processing import BiomedCLIPImageProcessor
from biomedclip.retrieval_metrics import RankCounter, RankCounts
from biomedclip.run_scripts.cli.reporting import peak_memory_mib, versions
from biomedclip.run_scripts.evaluation.dual_encoders import DualEncoder
from biomedclip.run_scripts.evaluation.features import FeatureStore
from biomedclip.run_scripts.evaluation.retrieval import EmbeddedPairs, count_ranks, retrieval_of


PAIRS, DIMENSION = 725_739, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["ranks", "retrieval", "images"])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--rows", type=int, default=4096, help="images whose ranks are counted")
    parser.add_argument("--folder", type=Path, help="where the blocks of retrieval lie")
    parser.add_argument("--images", type=int, default=32_768)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", help="JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.what == "ranks":
        measured = measure_ranks(options.pairs, options.rows)
    elif options.what == "retrieval":
        measured = measure_retrieval(options.pairs, options.folder)
    else:
        measured = measure_images(options.images)
    measured |= {"threads": options.threads, "peak_memory_mib": peak_memory_mib(), "versions": versions()}
    text = json.dumps(measured, indent=2)
    sys.stdout.write(f"{text}\n")
    if options.output:
        Path(options.output).write_text(f"{text}\n")


def measure_ranks(pairs: int, rows: int) -> dict[str, Any]:
    """Counting and the products alone take turns, a row of tiles each."""
    images, texts = draw_features(pairs)
    started = time.perf_counter()
    counter = RankCounter(images, texts)
    prepared = time.perf_counter() - started
    del images, texts
    counting, products = [], []
    block = counter.rows
    for row in range(0, rows, block):
        started = time.perf_counter()
        counter.count(row, row + block)
        counting.append(time.perf_counter() - started)
        started = time.perf_counter()
        for column in range(0, counter.texts, counter.columns):
            counter._tile(row, column)
        products.append(time.perf_counter() - started)
    whole = pairs / block
    operations = 2 * block * pairs * DIMENSION
    return {
        "pairs": pairs,
        "rows": rows,
        "preparation_seconds": round(prepared, 1),
        "counting_gflops": round(operations / statistics.median(counting) / 1e9, 1),
        "products_gflops": round(operations / statistics.median(products) / 1e9, 1),
        "times_the_bound": round(statistics.median(counting) / statistics.median(products), 3),
        "counting_seconds": round(sum(counting), 1),
        "products_seconds": round(sum(products), 1),
        "whole_hours": round(statistics.median(counting) * whole / 3600, 2),
        "whole_hours_at_the_bound": round(statistics.median(products) * whole / 3600, 2),
    }


def draw_features(pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised features of images and texts that have nothing to do with each other: recall is that of chance."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(pairs, DIMENSION, generator=generator)
    texts = torch.randn(pairs, DIMENSION, generator=generator)
    for embeds in (images, texts):
        normalize(embeds, dim=-1, out=embeds)
    return images, texts


def measure_retrieval(pairs: int, folder: Path) -> dict[str, Any]:
    """All ranks and the metrics, by the functions of the command; seconds are those of the blocks of this run."""
    images, texts = draw_features(pairs)
    embedded = EmbeddedPairs(images, texts, None, torch.arange(pairs), [], "drawn")
    done = len(list(folder.glob("*/part-*.safetensors")))
    started, processor = time.perf_counter(), time.process_time()
    counts = count_ranks(embedded, folder, {"benchmark": "drawn features"})
    seconds, processor_seconds = time.perf_counter() - started, time.process_time() - processor
    blocks = len(list(folder.glob("*/part-*.safetensors")))
    started = time.perf_counter()
    metrics = retrieval_of(counts, [str(number // 4) for number in range(pairs)], seed=0)
    return {
        "pairs": pairs,
        "blocks": blocks,
        "blocks_of_this_run": blocks - done,
        "counting_seconds": round(seconds, 1),
        "counting_processor_seconds": round(processor_seconds, 1),
        "metrics_seconds": round(time.perf_counter() - started, 1),
        "largest_difference_of_a_rank": largest_difference(images, texts, counts),
        "metrics": metrics,
    }


def largest_difference(images: torch.Tensor, texts: torch.Tensor, counts: Mapping[str, RankCounts]) -> int:
    """Between the candidates above the right one as they were counted, and by a product in float64, of 32 queries."""
    queries = torch.linspace(0, len(images) - 1, 32).long()
    largest = 0
    for direction, asked, candidates in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        for query in queries.tolist():
            scores = torch.cat([rows.double() @ asked[query].double() for rows in candidates.split(2**16)])
            better = int((scores > scores[query]).sum())
            largest = max(largest, abs(better - int(counts[direction].better[query])))
    return largest


class Patches(Sequence[Any]):
    """PCam's shape: drawn patches of 96 pixels as Pillow images, made when they are asked for."""

    def __init__(self, count: int):
        self.patches = np.random.default_rng(0).integers(256, size=(min(count, 2048), 96, 96, 3), dtype=np.uint8)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: Any) -> Image.Image:
        return Image.fromarray(self.patches[number % len(self.patches)])


class _Processor:
    image_processor = BiomedCLIPImageProcessor()
    tokenizer = "none"


def measure_images(count: int) -> dict[str, Any]:
    """Extraction as the command does it, beside its two parts alone on the first thousand."""
    tower = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = BiomedCLIPModel(BiomedCLIPConfig(vision_config=tower, text_config=tower | {"vocab_size": 100})).eval()
    encoder = DualEncoder("drawn", "biomedclip", model, _Processor())
    images = Patches(count)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(encoder, Path(folder), batch_size=64)
        started = time.perf_counter()
        store.images(images, [str(number) for number in range(count)], "drawn")
        whole = time.perf_counter() - started
        started = time.perf_counter()
        store.images(images, [str(number) for number in range(count)], "drawn")
        again = time.perf_counter() - started
    batches = [list(range(start, start + 64)) for start in range(0, min(count, 1024), 64)]
    started = time.perf_counter()
    pixels = [
        _Processor.image_processor([images[number] for number in batch], return_tensors="pt")["pixel_values"]
        for batch in batches
    ]
    preparing = (time.perf_counter() - started) / (64 * len(batches))
    started = time.perf_counter()
    for batch in pixels:
        encoder.embed_pixels(batch)
    embedding = (time.perf_counter() - started) / (64 * len(batches))
    threads = torch.get_num_threads()
    bound = threads / (preparing + threads * embedding)
    return {
        "images": count,
        "seconds": round(whole, 1),
        "images_per_second": round(count / whole, 1),
        "seconds_from_disk": round(again, 2),
        "preparing_alone_one_thread": round(1 / preparing, 1),
        "model_alone": round(1 / embedding, 1),
        "bound_images_per_second": round(bound, 1),
        "share_of_the_bound": round(count / whole / bound, 3),
        "workers": store.workers,
    }


if __name__ == "__main__":
    main()
