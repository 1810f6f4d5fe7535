"""Measure `biomedclip embed`: its rate beside that of the image encoder alone, and its memory.

python tests/performance/embedding.py --images 20000
python tests/performance/embedding.py --model out/model --images 512 --precision bfloat16

rate: the command and the encoder alone, on pixels that are already prepared, take turns.
memory: peak of a process for N and for 4N images.
The images are synthetic JPEG files of 512 pixels. Without --model, the model has the published size and random weights.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timing import median_ratio, parser_of, report, take_turns
from tqdm.auto import tqdm

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, BiomedCLIPProcessor
from biomedclip.processing import BiomedCLIPImageProcessor, read_image
from biomedclip.run_scripts.embed import EmbedOptions, embed
from biomedclip.run_scripts.embedding.encoders import check_encoder, load_encoder


SIDE = 512
MEMORY = """
import json, sys
from biomedclip.run_scripts.cli.reporting import peak_memory_mib
from biomedclip.run_scripts.embed import EmbedOptions, embed
embed(EmbedOptions(**json.loads(sys.argv[1])))
print(peak_memory_mib())
"""


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--model", type=Path, help="folder of a model, also an exported one")
    parser.add_argument("--images", type=int, default=256, help="images of a round, and N for the memory")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=["float32", "bfloat16"])
    parser.add_argument("--part", choices=["rate", "memory"], help="default: both")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options.model = options.model or save_random_model(folder / "model", options.data)
        if options.part != "memory":
            results |= measure_rate(options, folder)
        if options.part != "rate":
            results |= measure_memory(options, folder)
    rows = [(name.replace("_", " "), value) for name, value in results.items()]
    report({"embedding": results}, [("embed", rows, ["", "value"])], options.output)


def save_random_model(folder: Path, data: Path) -> Path:
    from transformers import AutoTokenizer

    BiomedCLIPModel(BiomedCLIPConfig()).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(data / "biomedclip_tokenizer")
    BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer).save_pretrained(folder)
    return folder


def write_images(folder: Path, number: int) -> Path:
    """Write JPEG files with smooth random content, whose size is that of photographs."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for image in tqdm(range(number), desc="images"):
        coarse = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{image:06}.jpg")
    return folder


def embed_options(options: Any, images: Path, output: Path) -> dict[str, Any]:
    return {
        "model": str(options.model),
        "output": str(output),
        "images": [str(images)],
        "precision": options.precision,
        "batch_size": options.batch_size,
        "shard_size": options.batch_size * 16,
    }


def measure_rate(options: Any, folder: Path) -> dict[str, Any]:
    """Embed all images with the command, and the same number of prepared pixels with the encoder, in turns.

    Loading the model, which the command does once, is measured with an empty run and subtracted.
    """
    images = write_images(folder / "rate", options.images)
    one = write_images(folder / "one", 1)
    encoder = load_encoder(str(options.model), check_encoder(str(options.model), options.precision))
    first = [read_image(path) for path in sorted(images.iterdir())[: options.batch_size]]
    pixels = encoder.processor.image_processor(first, return_tensors="pt")["pixel_values"]
    outputs = count()

    def command(source: Path) -> None:
        embed(EmbedOptions(**embed_options(options, source, folder / f"out-{next(outputs)}")))

    def alone() -> None:
        for _ in range(options.images // len(pixels)):
            encoder.embed_pixels(pixels)

    ways = {"command": lambda: command(images), "loading": lambda: command(one), "encoder": alone}
    seconds, _ = take_turns(ways, options.rounds)
    working = [whole - loading for whole, loading in zip(seconds["command"], seconds["loading"], strict=True)]
    embedded = options.images // len(pixels) * len(pixels)
    return {
        "images": options.images,
        "images_per_second_of_the_command": options.images / statistics.median(working),
        "images_per_second_of_the_encoder": embedded / statistics.median(seconds["encoder"]),
        "fraction_of_the_encoder": median_ratio(seconds["encoder"], working) * options.images / embedded,
    }


def measure_memory(options: Any, folder: Path) -> dict[str, Any]:
    """Return the peak memory of processes that embed N and 4N images."""
    peaks = {}
    for times in (1, 4):
        images = write_images(folder / f"memory-{times}", options.images * times)
        arguments = json.dumps(embed_options(options, images, folder / f"memory-out-{times}"))
        result = subprocess.run(
            [sys.executable, "-c", MEMORY, arguments], stdout=subprocess.PIPE, text=True, check=True
        )
        peaks[f"peak_mib_for_{options.images * times}_images"] = int(result.stdout.splitlines()[-1])
    return peaks


if __name__ == "__main__":
    main()
