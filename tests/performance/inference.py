"""Images and texts a second and the error of each way to run BiomedCLIP at its published size, beside open_clip.

python tests/performance/inference.py --output inference.json

All ways take turns, so that what else the machine does falls on all of them; medians are shown. Weights are random
unless --model names a folder: the speed is the same, the error of lower precision may not be. Captions are real ones
where ../shared/data lies, and it says so where they are not.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cosine_similarity, normalize
from tqdm.auto import tqdm
from transformers import BertConfig, BertTokenizer, pipeline

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPModel,
    ExportedModel,
    ZeroShotClassifier,
    embed_texts,
    export_model,
)
from biomedclip.conversion.tensors import to_open_clip_tensors
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor
from biomedclip.run_scripts.cli.reporting import versions


SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
EXPORTS = (
    ("onnx", "float32"),
    ("onnx", "int8"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
)
IMAGES, BATCH, CHUNK, LABELS = 200, 32, 25, 50
# Multiplications and additions of one image, twice their number, in the products of the image tower: patches, and for
# each of twelve layers q, k, v, output (4 x 768^2), the two feed-forward matrices (8 x 768^2) and attention.
TOKENS, WIDTH = 197, 768
IMAGE_OPERATIONS = 2 * (196 * WIDTH * WIDTH + 12 * (TOKENS * 12 * WIDTH**2 + 2 * TOKENS**2 * WIDTH))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", help="folder of a full-size BiomedCLIP; random weights if left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--parts", nargs="+", default=["images", "texts", "zero_shot"], help="what to measure")
    parser.add_argument("--output", help="JSON file for the figures")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    model, processor = load(options.model)
    captions, source = real_captions(options.captions)
    with tempfile.TemporaryDirectory() as scratch:
        theirs = open_clip_twin(model, Path(scratch))
        exported = {}
        for format, precision in tqdm(EXPORTS, desc="Exporting"):
            folder = Path(scratch) / f"{format}_{precision}"
            export_model(model, folder, format=format, precision=precision)
            exported[f"{format} {precision}"] = ExportedModel(folder)
        half = BiomedCLIPModel(model.config)
        half.load_state_dict(model.state_dict())
        half = half.bfloat16().eval()
        measure: dict[str, Callable[[], dict[str, Any]]] = {
            "images": lambda: time_images(model, half, theirs, exported, options.rounds),
            "texts": lambda: time_texts(model, half, theirs, exported, processor, captions, options.rounds),
            "zero_shot": lambda: time_zero_shot(model, half, exported, processor),
        }
        results = {
            **{part: measure[part]() for part in options.parts},
            "captions": {
                "source": source,
                "count": len(captions),
                "mean_tokens": statistics.mean(map(len, processor(text=captions, padding=False)["input_ids"])),
            },
            "machine": machine(),
            "versions": versions(),
        }
    show(results)
    if options.output:
        Path(options.output).write_text(json.dumps(results, indent=2) + "\n")


def load(folder: str | None) -> tuple[BiomedCLIPModel, BiomedCLIPProcessor]:
    if folder:
        return BiomedCLIPModel.from_pretrained(folder).eval(), BiomedCLIPProcessor.from_pretrained(folder)
    torch.manual_seed(0)
    model = BiomedCLIPModel(BiomedCLIPConfig()).eval()
    if (SHARED / "biomedclip_tokenizer").is_dir():
        tokenizer = BertTokenizer.from_pretrained(SHARED / "biomedclip_tokenizer")
    else:
        sys.stderr.write(f"No tokenizer at {SHARED}: one is learned from the captions, whose lengths will differ.\n")
        tokenizer = BertTokenizer().train_new_from_iterator(real_captions(64)[0], vocab_size=2000, show_progress=False)
    return model, BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer)


def real_captions(count: int) -> tuple[list[str], str]:
    path = SHARED / "captions" / "captions.jsonl"
    if not path.is_file():
        sys.stderr.write(f"No real captions at {path}: words are repeated to lengths of 20 to 180 instead.\n")
        lengths = np.random.default_rng(0).integers(20, 180, count)
        return ["chest radiograph of the left lung " * (length // 6) for length in lengths], "made up"
    lines = path.read_text().splitlines()
    chosen = np.random.default_rng(0).choice(len(lines), count, replace=False)
    return [json.loads(lines[number])["caption"] for number in chosen], "real figure captions, drawn with seed 0"


def open_clip_twin(model: BiomedCLIPModel, scratch: Path) -> Any:
    """open_clip's model with the same weights."""
    import open_clip

    BertConfig().save_pretrained(scratch / "bert")
    theirs = open_clip.CustomTextCLIP(
        embed_dim=512,
        vision_cfg={"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear"},
        text_cfg={
            "hf_model_name": str(scratch / "bert"),
            "hf_model_pretrained": False,
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
        },
    )
    theirs.load_state_dict(to_open_clip_tensors(model.state_dict()))
    return theirs.eval()


def take_turns(
    ways: dict[str, Callable[[], torch.Tensor]], count: int, rounds: int, reference: str, title: str
) -> dict[str, Any]:
    """Median items a second of each way, its ratio to the reference round by round, and its cosine to it."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    outputs = {}
    for turn in tqdm(range(rounds + 1), desc=title):
        for name, way in ways.items():
            started = time.perf_counter()
            outputs[name] = way()
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    figures = {}
    for name in ways:
        ratios = [theirs / ours for theirs, ours in zip(seconds[reference], seconds[name], strict=True)]
        cosines = cosine_similarity(outputs[name].double(), outputs[reference].double())
        figures[name] = {
            "per_second": count / statistics.median(seconds[name]),
            "times_open_clip": statistics.median(ratios),
            "smallest_cosine": cosines.min().item(),
            "largest_difference": (outputs[name].double() - outputs[reference].double()).abs().max().item(),
        }
    return figures


@torch.inference_mode()
def time_images(model: Any, half: Any, theirs: Any, exported: dict[str, Any], rounds: int) -> dict[str, Any]:
    pixels = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    products = {dtype: image_product(dtype) for dtype in (torch.float32, torch.bfloat16)}

    def features(encoder: Any, values: torch.Tensor) -> torch.Tensor:
        return normalize(encoder.get_image_features(values).pooler_output.float(), dim=-1)

    ways = {
        "open_clip float32": lambda: normalize(theirs.encode_image(pixels), dim=-1),
        "open_clip bfloat16 autocast": lambda: autocast(lambda: theirs.encode_image(pixels)),
        "biomedclip float32": lambda: features(model, pixels),
        "biomedclip bfloat16": lambda: features(half, pixels.bfloat16()),
        **{name: lambda each=each: features(each, pixels) for name, each in exported.items()},
    }
    # The products of the image tower alone take their turns too: the bound of what a machine can do in a precision.
    bounds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in products}

    def reference() -> torch.Tensor:
        for dtype, product in products.items():
            started = time.perf_counter()
            operations = product()
            bounds[dtype].append(operations / (time.perf_counter() - started))
        return embeds

    embeds = ways["biomedclip float32"]()
    figures = take_turns(ways | {"products": reference}, BATCH, rounds, "open_clip float32", "Images")
    del figures["products"]
    for dtype, rates in bounds.items():
        rate = statistics.median(rates[1:])
        name = str(dtype).removeprefix("torch.")
        figures[f"bound: products alone, {name}"] = {
            "per_second": rate / IMAGE_OPERATIONS,
            "gigaflops": rate / 1e9,
        }
    return figures


def image_product(dtype: torch.dtype) -> Callable[[], float]:
    """The two feed-forward products of one layer and one batch, which are two thirds of the tower's work."""
    rows = torch.randn(BATCH * TOKENS, WIDTH).to(dtype)
    wide = torch.nn.Linear(WIDTH, 4 * WIDTH).to(dtype)
    narrow = torch.nn.Linear(4 * WIDTH, WIDTH).to(dtype)

    def run() -> float:
        for _ in range(3):
            narrow(wide(rows))
        return 3 * 2 * 2 * len(rows) * WIDTH * 4 * WIDTH

    return run


def autocast(encode: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return normalize(encode().float(), dim=-1)


@torch.inference_mode()
def time_texts(
    model: Any, half: Any, theirs: Any, exported: dict[str, Any], processor: Any, captions: list[str], rounds: int
) -> dict[str, Any]:
    # open_clip's tokenizer always pads to 256; token ids are equal (tests hold that), so ours serves both.
    padded = processor(text=captions, padding="max_length", return_tensors="pt")["input_ids"].split(BATCH)

    def encode() -> torch.Tensor:
        return torch.cat([theirs.encode_text(batch) for batch in padded])

    ways = {
        "open_clip float32": lambda: normalize(encode(), dim=-1),
        "open_clip bfloat16 autocast": lambda: autocast(encode),
        "biomedclip float32": lambda: embed_texts(model, processor, captions),
        "biomedclip bfloat16": lambda: embed_texts(half, processor, captions),
        **{name: lambda each=each: embed_texts(each, processor, captions) for name, each in exported.items()},
    }
    return take_turns(ways, len(captions), rounds, "open_clip float32", "Texts")


def time_zero_shot(model: Any, half: Any, exported: dict[str, Any], processor: Any) -> dict[str, Any]:
    """200 pictures of 300 to 600 pixels and 50 labels, in turns of 25 pictures."""
    generator = np.random.default_rng(0)
    pictures = [
        Image.fromarray(generator.integers(0, 256, (*generator.integers(300, 600, 2), 3), dtype=np.uint8))
        for _ in range(IMAGES)
    ]
    labels = [f"{kind} of finding {number}" for kind in ("chest X-ray", "brain MRI") for number in range(LABELS // 2)]
    template = "this is a photo of {}"
    stock = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        device="cpu",
    )
    encoders = {"ZeroShotClassifier, float32": model, "ZeroShotClassifier, bfloat16": half}
    encoders |= {f"ZeroShotClassifier, openvino {name}": exported[f"openvino {name}"] for name in ("bfloat16", "int8")}
    classifiers = {name: ZeroShotClassifier(each, processor, labels, template) for name, each in encoders.items()}
    pixels = processor.image_processor(pictures[:CHUNK], return_tensors="pt")["pixel_values"]

    def run_stock(chunk: list[Image.Image]) -> torch.Tensor:
        rows = []
        for picture in chunk:
            answers = stock(picture, candidate_labels=labels, hypothesis_template=template)
            scores = {answer["label"]: answer["score"] for answer in answers}
            rows.append([scores[label] for label in labels])
        return torch.tensor(rows)

    def run_tower(chunk: list[Image.Image]) -> torch.Tensor:
        with torch.no_grad():
            model.get_image_features(pixels)
        return torch.zeros(0)

    ways: dict[str, Callable[[list[Image.Image]], torch.Tensor]] = {
        "stock pipeline, float32": run_stock,
        "image tower alone, float32": run_tower,
        **{name: lambda chunk, each=each: each(chunk, batch_size=CHUNK) for name, each in classifiers.items()},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, list[torch.Tensor]] = {name: [] for name in ways}
    for start in tqdm(range(0, IMAGES, CHUNK), desc="Zero-shot"):
        for name, way in ways.items():
            started = time.perf_counter()
            scores[name].append(way(pictures[start : start + CHUNK]))
            seconds[name].append(time.perf_counter() - started)
    exact = torch.cat(scores["stock pipeline, float32"]).double().log()
    figures = {}
    for name in ways:
        figures[name] = {
            "per_second": CHUNK / statistics.median(seconds[name]),
            "times_stock": statistics.median(
                theirs / ours for theirs, ours in zip(seconds["stock pipeline, float32"], seconds[name], strict=True)
            ),
            "times_tower": statistics.median(
                tower / ours for tower, ours in zip(seconds["image tower alone, float32"], seconds[name], strict=True)
            ),
        }
        if len(scores[name][0]):
            # Logarithms of probabilities are logits less one number for each image, which the mean takes away.
            ours = torch.cat(scores[name]).double().log()
            difference = (ours - ours.mean(dim=1, keepdim=True)) - (exact - exact.mean(dim=1, keepdim=True))
            figures[name]["largest_difference_of_a_logit"] = difference.abs().max().item()
    return figures


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        fields = dict(
            line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if line.split(":", 1)[1:]
        )
        named = {key.strip(): value.strip() for key, value in fields.items()}
        useful = ("avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
        flags = " ".join(flag for flag in useful if flag in named.get("flags", "").split())
        cpu = f"{named.get('model name', cpu)} (family {named.get('cpu family')}, model {named.get('model')}), {flags}"
    return f"{cpu}, {torch.get_num_threads()} threads"


def show(results: dict[str, Any]) -> None:
    captions = results["captions"]
    lines = [results["machine"], ""]
    for title, key in (
        (f"images/s, batch {BATCH}", "images"),
        (f"texts/s, {captions['count']} captions of {captions['mean_tokens']:.0f} tokens", "texts"),
    ):
        if key not in results:
            continue
        lines += [f"| | {title} | times open_clip float32 | smallest cosine |", "|---|---:|---:|---:|"]
        for name, row in results[key].items():
            ratio, cosine = row.get("times_open_clip"), row.get("smallest_cosine")
            cells = [f"{row['per_second']:.2f}", f"{ratio:.2f}" if ratio else "", f"{cosine:.6f}" if cosine else ""]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    if "zero_shot" not in results:
        sys.stdout.write("\n".join(lines) + "\n")
        return
    lines += [f"| {IMAGES} images, {LABELS} labels | images/s | times stock | share of tower | largest difference |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for name, row in results["zero_shot"].items():
        difference = row.get("largest_difference_of_a_logit")
        cells = [f"{row['per_second']:.2f}", f"{row['times_stock']:.1f}", f"{row['times_tower']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if difference is None else f'{difference:.2g}'} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
