"""Images a second of the training loader for each core, beside the JPEG decoder's own bound and webdataset.

python tests/performance/loading.py --output loading.json

One set is built from a mirror of PMC's bucket; every way reads its images, at 224 pixels, and all take turns.
Pillow: decoding the same files, whole and in draft mode to 224 pixels: no loader that uses it can be faster.
biomedclip: `PairStream` and `ContrastiveCollator`, exact and with `fast_decode`, captions tokenised.
webdataset: the same images and captions in a tar, decoded by Pillow, collated by the same collator; and as open_clip
    arranges it, with torchvision's transform and each caption tokenised by itself to 256 tokens.
Without workers seconds are those of the processor. With workers they are of the clock, from the batch on at which the
queue is full; the machine must have nothing else to do. Medians over the rounds are shown, and ratios round by round.
"""

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, features
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor, ContrastiveCollator, PairStream
from biomedclip.processing.images.cropping import CROP_SCALE
from biomedclip.processing.pmc.build import BuildOptions, build_dataset


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SIDE, BATCH, CONTEXT = 224, 16, 256
PREFETCHED = 2  # batches of each worker, torch's default
TARS = 4
DECODE, DRAFT = "Pillow, decoding", "Pillow, decoding in draft mode"
EXACT, FAST = "biomedclip", "biomedclip, --fast-decode"
TAR, OPEN_CLIP = "webdataset, our transform", "webdataset, open_clip's transform"
Batches = Iterator[Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of pmc_mirror and biomedclip_tokenizer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", help="JSON file for the figures")
    options = parser.parse_args()
    for name in ("pmc_mirror", "biomedclip_tokenizer"):
        if not (options.data / name).is_dir():
            parser.error(f"{options.data / name} is not there: --data names the folder that holds it")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        build_dataset(
            BuildOptions(str(options.data / "pmc_mirror"), license="all", split_fractions=[1, 0, 0]),
            Path(folder) / "set",
            concurrency=1,
        )
        results = measure(Path(folder), options.data / "biomedclip_tokenizer", options.workers, options.rounds)
    show(results)
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n")


def measure(folder: Path, tokenizer: Path, workers: list[int], rounds: int) -> dict[str, Any]:
    """Images a second of each way in each round."""
    stream = PairStream(folder / "set", columns=["image", "caption", "pair_id"])
    rows = stream.rows(0, 0, len(stream))
    pictures = [row["image"]["bytes"] for row in rows]
    loaders = ways_to_load(stream, write_tars(rows, folder), AutoTokenizer.from_pretrained(tokenizer))
    decoders = {DECODE: None, DRAFT: (SIDE, SIDE)}
    rates: dict[str, list[float]] = {name: [] for name in decoders}
    rates |= {f"{name}, {count} workers": [] for name in loaders for count in workers}
    batches = len(stream) // BATCH
    for turn in tqdm(range(rounds + 1), desc="rounds"):
        found: dict[str, float] = {}
        for name, size in decoders.items():
            started = time.process_time()
            for content in pictures:
                decode(content, size)
            found[name] = len(pictures) / (time.process_time() - started)
        for name, load in loaders.items():
            for count in workers:
                found[f"{name}, {count} workers"] = batches * BATCH / seconds_of(load(count), batches, count)
        if turn:  # the first round warms up
            for name, rate in found.items():
                rates[name].append(rate)
    sizes = [Image.open(io.BytesIO(content)).size for content in pictures]
    return {
        "machine": machine(),
        "versions": versions(),
        "images": len(pictures),
        "image_bytes": statistics.mean(map(len, pictures)),
        "image_pixels": statistics.mean(width * height for width, height in sizes),
        "images_per_second": rates,
    }


def decode(content: bytes, size: tuple[int, int] | None) -> None:
    image = Image.open(io.BytesIO(content))
    if size:
        image.draft(None, size)
    image.load()


def seconds_of(loader: Batches, batches: int, workers: int) -> float:
    """What a number of batches of an endless loader takes, once it runs evenly."""
    for _ in range(1 + PREFETCHED * workers):
        next(loader)
    clock = time.perf_counter if workers else time.process_time
    started = clock()
    for _ in range(batches):
        next(loader)
    return clock() - started


def write_tars(rows: list[dict[str, Any]], folder: Path) -> list[str]:
    """The pairs as webdataset's users store them."""
    paths = [str(folder / f"{number:02d}.tar") for number in range(TARS)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for position, row in enumerate(rows[number::TARS]):
                for suffix, content in (("jpg", row["image"]["bytes"]), ("txt", row["caption"].encode())):
                    member = tarfile.TarInfo(f"{number:02d}{position:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths


def ways_to_load(stream: PairStream, tars: list[str], tokenizer: Any) -> dict[str, Callable[[int], Batches]]:
    """Each takes a number of workers and gives batches without end."""
    image_processor = BiomedCLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = BiomedCLIPProcessor(image_processor, tokenizer)
    exact, fast = (
        ContrastiveCollator(processor, training=True, max_length=CONTEXT, fast_decode=fast) for fast in (False, True)
    )

    def ours(collator: ContrastiveCollator) -> Callable[[int], Batches]:
        return lambda workers: iter(
            DataLoader(stream.batches(BATCH), batch_size=None, collate_fn=collator, num_workers=workers)
        )

    ways = {EXACT: ours(exact), FAST: ours(fast)}
    try:
        import webdataset
    except ImportError:
        sys.stderr.write("webdataset is not installed (pip install webdataset): it is left out.\n")
        return ways

    def theirs(*stages: Any) -> Callable[[int], Batches]:
        def load(workers: int) -> Batches:
            data = webdataset.DataPipeline(
                webdataset.ResampledShards(tars),
                webdataset.split_by_worker,
                webdataset.tarfile_to_samples(),
                webdataset.decode("pilrgb"),
                webdataset.rename(image="jpg", caption="txt", pair_id="__key__"),
                *stages,
            )
            return iter(webdataset.WebLoader(data, batch_size=None, num_workers=workers))

        return load

    ways[TAR] = theirs(webdataset.batched(BATCH, collation_fn=exact))
    try:
        import open_clip
    except ImportError:
        sys.stderr.write("open_clip is not installed (pip install open_clip_torch): its transform is left out.\n")
        return ways
    transform = open_clip.image_transform(SIDE, is_train=True, aug_cfg={"scale": CROP_SCALE})
    padded = {"max_length": CONTEXT, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ways[OPEN_CLIP] = theirs(
        webdataset.map_dict(image=transform, caption=lambda text: tokenizer(text, **padded)["input_ids"][0]),
        webdataset.to_tuple("image", "caption"),
        webdataset.batched(BATCH),
    )
    return ways


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "libjpeg-turbo": features.version("libjpeg_turbo") or "none"}
    for name in ("pillow", "torch", "torchvision", "transformers", "webdataset", "open_clip_torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def show(results: dict[str, Any]) -> None:
    rates = results["images_per_second"]
    lines = [
        results["machine"],
        ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        f"{results['images']} JPEGs of {results['image_pixels']:,.0f} pixels and {results['image_bytes']:,.0f} bytes",
        "",
        "| way | images/s | images/s a core | of the decoder's bound | times webdataset |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, own in rates.items():
        way, _, workers = name.rpartition(", ")
        bound = rates[DRAFT if way == FAST else DECODE]
        cores = max(1, int(workers.split()[0])) if workers.endswith("workers") else 1
        other = rates.get(f"{TAR}, {workers}")
        cells = [f"{statistics.median(own):.0f}", f"{statistics.median(own) / cores:.0f}"]
        cells.append(f"{median_ratio(own, bound) / cores:.2f}" if way in (EXACT, FAST, TAR, OPEN_CLIP) else "")
        cells.append(f"{median_ratio(own, other):.2f}" if other and way in (EXACT, FAST) else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sys.stdout.write("\n".join(lines) + "\n")


def median_ratio(own: list[float], other: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(own, other, strict=True))


if __name__ == "__main__":
    main()
