"""Measure `biomedclip embed`: its rate beside that of the image encoder alone, and its memory.

OMP_WAIT_POLICY=PASSIVE python tests/performance/embedding.py --part rate --encoders "torch bfloat16" "onnx int8"
python tests/performance/embedding.py --part memory

rate: three ways take turns for each of --encoders: the encoder alone on prepared pixels, the preparation alone
(reading, decoding, resizing), and both with writing, as the command does. Without --model, the model has the published
size and random weights. The commands set OMP_WAIT_POLICY themselves.
memory: peak of a process for each number of --memory-images, with a model of 2 narrow layers.
The images are synthetic JPEG files of 512 pixels.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import median_ratio, parser_of, report, take_turns
from tqdm.auto import tqdm

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, BiomedCLIPProcessor, export_model
from biomedclip.processing import BiomedCLIPImageProcessor
from biomedclip.processing.images.inputs import find_inputs
from biomedclip.run_scripts.cli.fields import WORKERS
from biomedclip.run_scripts.embedding.embedding import _prepared, embed_image_shards
from biomedclip.run_scripts.embedding.encoders import load_encoder
from biomedclip.run_scripts.embedding.plan import Shard
from biomedclip.run_scripts.embedding.shards import DATA, ShardWriter


SIDE, DISTINCT = 512, 512
TORCH = ("torch float32", "torch bfloat16")
EXPORTS = ("onnx float32", "onnx int8", "openvino float32", "openvino bfloat16", "openvino int8")
_TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
NARROW = {"vision_config": _TOWER | {"patch_size": 32}, "text_config": _TOWER}
MEMORY = """
import json, sys
from biomedclip.run_scripts.cli.reporting import peak_memory_mib
from biomedclip.run_scripts.embed import EmbedOptions, embed
embed(EmbedOptions(**json.loads(sys.argv[1])))
print(peak_memory_mib())
"""


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--model", type=Path, help="folder of a BiomedCLIP model")
    parser.add_argument("--encoders", nargs="+", choices=[*TORCH, *EXPORTS], default=[*TORCH, *EXPORTS])
    parser.add_argument("--images", type=int, default=256, help="images of a round")
    parser.add_argument("--memory-images", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--part", choices=["rate", "memory"], help="default: both")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    tables: list[Any] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.part in ("rate", None):
            options.model = options.model or save_random_model(folder / "model", options.data)
            results["rate"] = measure_rate(options, folder)
            columns = list(next(iter(results["rate"].values())))
            rates = [[name, *map(found.get, columns)] for name, found in results["rate"].items()]
            title = f"{options.images} images, batches of {options.batch_size}"
            tables.append((title, rates, ["", *(column.replace("_", " ") for column in columns)]))
        if options.part in ("memory", None):
            options.model = save_random_model(folder / "narrow", options.data, NARROW)
            results |= measure_memory(options, folder)
    if rows := [(name.replace("_", " "), value) for name, value in results.items() if name != "rate"]:
        tables.append(("embed", rows, ["", "value"]))
    report({"embedding": results}, tables, options.output)


def save_random_model(folder: Path, data: Path, size: dict[str, Any] | None = None) -> Path:
    from transformers import AutoTokenizer

    BiomedCLIPModel(BiomedCLIPConfig(**(size or {}))).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(data / "biomedclip_tokenizer")
    BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer).save_pretrained(folder)
    return folder


def write_images(folder: Path, number: int) -> Path:
    """Write JPEG files with smooth random content, whose size is that of photographs. At most 512 are different."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for image in range(DISTINCT, number):
        os.symlink(folder / f"{image % DISTINCT:06}.jpg", folder / f"{image:06}.jpg")
    for image in tqdm(range(min(number, DISTINCT)), desc="images"):
        coarse = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{image:06}.jpg")
    return folder


def embed_options(options: Any, images: Path, output: Path) -> dict[str, Any]:
    return {
        "model": str(options.model),
        "output": str(output),
        "images": [str(images)],
        "batch_size": options.batch_size,
        "shard_size": options.batch_size * 16,
    }


def measure_rate(options: Any, folder: Path) -> dict[str, Any]:
    """Return the images per second of each encoder alone, of the preparation alone, and of both."""
    images = find_inputs([str(write_images(folder / "rate", options.images))])
    shard = Shard(0, range(len(images)))
    work: Any = {"batch_size": options.batch_size, "workers": options.workers}
    results: dict[str, Any] = {}
    for name in options.encoders:
        encoder = load_encoder(*export(options.model, folder / "exported" / name, *name.split()))
        writer = ShardWriter(
            folder / name, "image", images.schema, "float32", {"dimension": encoder.model.config.projection_dim}
        )
        (folder / name / DATA).mkdir(parents=True)

        def prepare(encoder: Any = encoder) -> list[torch.Tensor]:
            batches = shard.batches(options.batch_size)
            return [batch.pixels for batch in _prepared(encoder, images, batches, options.workers)]

        def both(encoder: Any = encoder, writer: Any = writer) -> None:
            embed_image_shards(encoder, images, [shard], writer, advance=lambda number: None, **work)

        prepared = prepare()
        ways = {
            "encoder": lambda encoder=encoder, prepared=prepared: [encoder.embed_pixels(batch) for batch in prepared],
            "prepare": prepare,
            "embed": both,
        }
        # Wall time, and processor time of all threads.
        seconds, _ = take_turns(ways, options.rounds, lambda: np.array([time.perf_counter(), time.process_time()]))
        wall, processor = ({way: [pair[clock] for pair in seconds[way]] for way in ways} for clock in (0, 1))
        results[name] = {f"{way}_per_second": options.images / statistics.median(wall[way]) for way in ways} | {
            "fraction_of_the_encoder": median_ratio(wall["encoder"], wall["embed"]),
            "fraction_of_the_processor_time": median_ratio(processor["encoder"], processor["embed"]),
        }
        shutil.rmtree(folder / "exported" / name, ignore_errors=True)
    return results


def export(model: Path, folder: Path, kind: str, precision: str) -> tuple[str, str]:
    """Export the graphs of a model, unless the kind is torch. Return the folder to load and the precision."""
    if kind == "torch":
        return str(model), precision
    export_model(BiomedCLIPModel.from_pretrained(model), folder, format=kind, precision=precision)
    BiomedCLIPProcessor.from_pretrained(model).save_pretrained(folder)
    return str(folder), precision


def measure_memory(options: Any, folder: Path) -> dict[str, Any]:
    """Return the peak memory of processes that embed different numbers of images, and their rate."""
    results: dict[str, Any] = {}
    images = write_images(folder / "memory", max(options.memory_images))
    for number in options.memory_images:
        first = folder / f"memory-{number}"
        first.mkdir()
        for path in sorted(images.iterdir())[:number]:
            os.symlink(path, first / path.name)
        arguments = json.dumps(embed_options(options, first, folder / f"memory-out-{number}"))
        started = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-c", MEMORY, arguments], stdout=subprocess.PIPE, text=True, check=True
        )
        results[f"seconds_for_{number}_images"] = round(time.perf_counter() - started, 1)
        results[f"peak_mib_for_{number}_images"] = int(result.stdout.splitlines()[-1])
    return results


if __name__ == "__main__":
    main()
