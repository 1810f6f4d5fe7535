"""Images per second of the training loader, compared with the JPEG decoder and webdataset.

python tests/performance/loading.py --output loading.json

One dataset is built from a mirror of PMC's bucket. Every way reads its images at 224 pixels, and all ways take turns.
Pillow: decoding of the same files, at full size and in draft mode. No loader that uses Pillow can be faster.
biomedclip: `PairStream` and `ContrastiveCollator`, by default and exact (`fast_decode=False`).
webdataset: the same pairs in tar files, with the same collator, and with the transform and tokenization of open_clip.
Without workers, seconds are processor time. With workers they are wall time, measured after the queue has filled, on an
otherwise idle machine.
"""

import io
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
import webdataset
from PIL import Image
from timing import median_ratio, parser_of, report
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor, ContrastiveCollator, PairStream
from biomedclip.processing.images.cropping import CROP_SCALE
from biomedclip.processing.pmc.build import BuildOptions, build_dataset
from biomedclip.processing.pmc.executors import Engine


SIDE, BATCH, CONTEXT, TARS = 224, 16, 256, 4
PREFETCHED = 2  # batches per worker, the default of torch
DECODE, DRAFT = "Pillow, decoding", "Pillow, decoding in draft mode"
EXACT, FAST = "biomedclip, exact", "biomedclip"
TAR, OPEN_CLIP = "webdataset, our transform", "webdataset, open_clip's transform"
Batches = Iterator[Any]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = BuildOptions(str(options.data / "pmc_mirror"), license="all", split_fractions=[1, 0, 0])
        build_dataset(source, folder / "set", engine=Engine(connections=1))
        rates = measure(folder, options)
    rows = []
    for name, own in rates.items():
        way, _, workers = name.partition(" | ")
        bound, other = rates[DRAFT if way == FAST else DECODE], rates.get(f"{TAR} | {workers}")
        cores = max(1, int(workers or 0))
        compared = other if other and way in (EXACT, FAST) else None
        ratios = (median_ratio(own, bound) / cores, compared and median_ratio(own, compared))
        rows.append((name, statistics.median(own), statistics.median(own) / cores, *ratios))
    columns = ["way | workers", "images/s", "images/s per core", "of the decoder's bound", "times webdataset"]
    report({"images_per_second": rates}, [("Loading of images", rows, columns)], options.output)


def measure(folder: Path, options: Any) -> dict[str, list[float]]:
    """Return the images per second of each way in each round."""
    stream = PairStream(folder / "set", columns=["image", "caption", "pair_id"])
    pairs = stream.rows(0, 0, len(stream))
    tokenizer = AutoTokenizer.from_pretrained(options.data / "biomedclip_tokenizer")
    loaders = ways_to_load(stream, write_tars(pairs, folder), tokenizer)
    batches = len(stream) // BATCH
    rates: dict[str, list[float]] = {}
    for turn in tqdm(range(options.rounds + 1), desc="rounds"):
        found = {}
        for name, size in ((DECODE, None), (DRAFT, (SIDE, SIDE))):
            started = time.process_time()
            for pair in pairs:
                decode(pair["image"]["bytes"], size)
            found[name] = len(pairs) / (time.process_time() - started)
        for name, load in loaders.items():
            for count in options.workers:
                found[f"{name} | {count}"] = batches * BATCH / seconds_of(load(count), batches, count)
        if turn:  # the first round warms up
            for name, rate in found.items():
                rates.setdefault(name, []).append(rate)
    return rates


def decode(content: bytes, size: tuple[int, int] | None) -> None:
    image = Image.open(io.BytesIO(content))
    if size:
        image.draft(None, size)
    image.load()


def seconds_of(loader: Batches, batches: int, workers: int) -> float:
    """Return the seconds for a number of batches of an endless loader, after the queue has filled."""
    for _ in range(1 + PREFETCHED * workers):
        next(loader)
    clock = time.perf_counter if workers else time.process_time
    started = clock()
    for _ in range(batches):
        next(loader)
    return clock() - started


def write_tars(pairs: list[dict[str, Any]], folder: Path) -> list[str]:
    """Write the pairs as tar files for webdataset."""
    paths = [str(folder / f"{number:02d}.tar") for number in range(TARS)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for position, pair in enumerate(pairs[number::TARS]):
                for suffix, content in (("jpg", pair["image"]["bytes"]), ("txt", pair["caption"].encode())):
                    member = tarfile.TarInfo(f"{number:02d}{position:06d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return paths


def ways_to_load(stream: PairStream, tars: list[str], tokenizer: Any) -> dict[str, Callable[[int], Batches]]:
    """Return functions that take a number of workers and return an endless iterator of batches."""
    image_processor = BiomedCLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = BiomedCLIPProcessor(image_processor, tokenizer)
    exact, fast = (
        ContrastiveCollator(processor, training=True, max_length=CONTEXT, fast_decode=fast) for fast in (False, True)
    )

    def ours(collator: ContrastiveCollator) -> Callable[[int], Batches]:
        options: dict[str, Any] = {"batch_size": None, "collate_fn": collator}
        return lambda workers: iter(DataLoader(stream.batches(BATCH), num_workers=workers, **options))

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

    transform = open_clip.image_transform(SIDE, is_train=True, aug_cfg={"scale": CROP_SCALE})
    padded = {"max_length": CONTEXT, "padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return {
        EXACT: ours(exact),
        FAST: ours(fast),
        TAR: theirs(webdataset.batched(BATCH, collation_fn=exact)),
        OPEN_CLIP: theirs(
            webdataset.map_dict(image=transform, caption=lambda text: tokenizer(text, **padded)["input_ids"][0]),
            webdataset.to_tuple("image", "caption"),
            webdataset.batched(BATCH),
        ),
    }


if __name__ == "__main__":
    main()
