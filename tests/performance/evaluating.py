"""Time, memory and bound of the evaluation at full size: ranks among 725,739 pairs, and 32,768 test images of PCam.

python tests/performance/evaluating.py ranks --rows 4096
python tests/performance/evaluating.py retrieval --folder DIR
python tests/performance/evaluating.py images --images 32768

ranks: counts ranks of some images among all texts and extrapolates. The bound is the matrix products of the same
    tiles.
retrieval: counts all ranks in blocks, which are kept in the folder so that an interrupted run continues, and computes
    the metrics with intervals. Ranks of 32 queries are compared with a product in float64.
images: extracts features of random patches of 96 pixels with a small model. The bound assumes that no core is ever
    idle.
Features and images are random.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import median_ratio, parser_of, report
from torch.nn.functional import normalize

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel
from biomedclip.processing import BiomedCLIPImageProcessor
from biomedclip.retrieval_metrics import RankCounter, RankCounts
from biomedclip.run_scripts.cli.reporting import peak_memory_mib
from biomedclip.run_scripts.evaluation.dual_encoders import DualEncoder
from biomedclip.run_scripts.evaluation.features import FeatureStore
from biomedclip.run_scripts.evaluation.pairs import EmbeddedPairs
from biomedclip.run_scripts.evaluation.retrieval import Pool, count_ranks, retrieval_of_pools


PAIRS, DIMENSION = 725_739, 512


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("part", choices=["ranks", "retrieval", "images"])
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--rows", type=int, default=4096, help="images whose ranks are counted")
    parser.add_argument("--folder", type=Path, help="folder for the blocks of retrieval")
    parser.add_argument("--images", type=int, default=32_768)
    options = parser.parse_args()
    measures: dict[str, Callable[[Any], dict[str, Any]]] = {
        "ranks": measure_ranks,
        "retrieval": measure_retrieval,
        "images": measure_images,
    }
    results = measures[options.part](options) | {"peak_memory_mib": peak_memory_mib()}
    rows = [(name.replace("_", " "), value) for name, value in results.items() if not isinstance(value, dict)]
    report({options.part: results}, [(options.part, rows, ["", "value"])], options.output)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def measure_ranks(options: Any) -> dict[str, Any]:
    """Count rows of tiles in turns with the products alone."""
    preparation, counter = timed(lambda: RankCounter(*random_features(options.pairs)))
    counting, products, columns = [], [], range(0, counter.texts, counter.columns)
    for row in range(0, options.rows, counter.rows):
        counting.append(timed(lambda row=row: counter.count(row, row + counter.rows))[0])
        products.append(timed(lambda row=row: [counter._tile(row, column) for column in columns])[0])
    hours = options.pairs / counter.rows / len(counting) / 3600
    return {
        "pairs": options.pairs,
        "preparation_seconds": preparation,
        "times_the_bound": median_ratio(counting, products),
        "hours_for_all": sum(counting) * hours,
        "hours_for_all_at_the_bound": sum(products) * hours,
    }


def random_features(pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(pairs, DIMENSION, generator=generator) for _ in range(2))
    for embeds in (images, texts):
        normalize(embeds, dim=-1, out=embeds)
    return images, texts


def measure_retrieval(options: Any) -> dict[str, Any]:
    """Count all ranks and compute the metrics with the functions of the command."""
    images, texts = random_features(options.pairs)
    embedded = EmbeddedPairs(images, texts, None, torch.arange(options.pairs), [], "random")
    seconds, counts = timed(lambda: count_ranks(embedded, options.folder, {"benchmark": "random features"}))
    articles = [str(number // 4) for number in range(options.pairs)]
    metric_seconds, metrics = timed(lambda: retrieval_of_pools([Pool(counts, articles)], 0))
    return {
        "pairs": options.pairs,
        "counting_seconds_of_this_run": seconds,
        "metrics_seconds": metric_seconds,
        "largest_difference_of_a_rank": largest_difference(images, texts, counts),
        "metrics": metrics,
    }


def largest_difference(images: torch.Tensor, texts: torch.Tensor, counts: Mapping[str, RankCounts]) -> int:
    """Compare the ranks of 32 queries with a product in float64."""
    largest = 0
    for direction, asked, candidates in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        for query in torch.linspace(0, len(images) - 1, 32).long().tolist():
            scores = torch.cat([rows.double() @ asked[query].double() for rows in candidates.split(2**16)])
            better = int((scores > scores[query]).sum())
            largest = max(largest, abs(better - int(counts[direction].better[query])))
    return largest


class Patches(Sequence[Any]):
    """Random patches of 96 pixels, like those of PCam, as Pillow images."""

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


def measure_images(options: Any) -> dict[str, Any]:
    """Extract features as the command does, and measure preparation and model alone on the first thousand."""
    tower = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = BiomedCLIPModel(BiomedCLIPConfig(vision_config=tower, text_config=tower | {"vocab_size": 100})).eval()
    encoder = DualEncoder("random", "biomedclip", model, _Processor())
    images, ids = Patches(options.images), [str(number) for number in range(options.images)]
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(encoder, Path(folder), batch_size=64)
        whole, again = (timed(lambda: store.images(images, ids, "random"))[0] for _ in range(2))
    batches = [[images[number] for number in range(start, start + 64)] for start in range(0, 1024, 64)]
    prepare = _Processor.image_processor
    preparing, pixels = timed(lambda: [prepare(batch, return_tensors="pt")["pixel_values"] for batch in batches])
    embedding, _ = timed(lambda: [encoder.embed_pixels(batch) for batch in pixels])
    bound = 1024 / (preparing / torch.get_num_threads() + embedding)
    return {
        "images": options.images,
        "images_per_second": options.images / whole,
        "seconds_from_disk": again,
        "bound_images_per_second": bound,
        "fraction_of_the_bound": options.images / whole / bound,
        "workers": store.workers,
    }


if __name__ == "__main__":
    main()
