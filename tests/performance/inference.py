"""Embedding and zero-shot classification at the published size, compared with open_clip and the stock pipeline.

python tests/performance/inference.py --output inference.json

Weights are random unless --model is given. All ways take turns. The bound is the feed-forward products of the image
tower alone, which are two thirds of its work, in the same precision. Texts are real captions: open_clip pads them to
256 tokens, and `embed_texts` computes real tokens only.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from timing import median_ratio, parser_of, report, take_turns
from torch.nn.functional import cosine_similarity, normalize
from training import CONTEXT, real_captions
from transformers import BertConfig, BertTokenizer, pipeline

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPImageProcessor,
    BiomedCLIPModel,
    BiomedCLIPProcessor,
    ExportedModel,
    ZeroShotClassifier,
    embed_texts,
    export_model,
)
from biomedclip.conversion.tensors import to_open_clip_tensors


EXPORTS = ("onnx float32", "onnx int8", "openvino float32", "openvino bfloat16", "openvino int8")
BATCH, CAPTIONS, CHUNK, LABELS = 32, 64, 25, 50
# Operations of one image in the products of the image tower: patches, and in each of twelve layers q, k, v and output
# (4 x 768^2), two feed-forward matrices (8 x 768^2) and attention.
TOKENS, WIDTH = 197, 768
IMAGE_OPERATIONS = 2 * (196 * WIDTH * WIDTH + 12 * (TOKENS * 12 * WIDTH**2 + 2 * TOKENS**2 * WIDTH))
OPEN_CLIP, STOCK, TOWER = "open_clip float32", "stock pipeline", "image tower alone"


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--model", help="folder of a BiomedCLIP of the published size")
    parser.add_argument("--parts", nargs="+", default=["images", "texts", "zero_shot"])
    options = parser.parse_args()
    model, processor = load(options)
    half = BiomedCLIPModel(model.config)
    half.load_state_dict(model.state_dict())
    encoders: dict[str, Any] = {"biomedclip float32": model, "biomedclip bfloat16": half.bfloat16().eval()}
    with tempfile.TemporaryDirectory() as scratch:
        theirs = open_clip_twin(model, Path(scratch))
        for name in EXPORTS:
            export_model(model, Path(scratch, name), format=name.split()[0], precision=name.split()[1])
            encoders[name] = ExportedModel(Path(scratch, name))
        results, tables = {}, []
        if "images" in options.parts:
            results["images"] = time_images(encoders, theirs, options.rounds)
            tables.append((f"Images, batches of {BATCH}", *rows_of(results["images"])))
        if "texts" in options.parts:
            captions = real_captions(options.data, CAPTIONS)
            results["texts"] = time_texts(encoders, theirs, processor, captions, options.rounds)
            tables.append((f"Texts, {CAPTIONS} real captions", *rows_of(results["texts"])))
        if "zero_shot" in options.parts:
            results["zero_shot"] = time_zero_shot(encoders, processor, options.rounds)
            tables.append((f"Zero-shot, {CHUNK} images and {LABELS} labels", *rows_of(results["zero_shot"])))
        report(results, tables, options.output)


def rows_of(results: dict[str, dict[str, Any]]) -> tuple[list[list[Any]], list[str]]:
    columns = list(dict.fromkeys(key for found in results.values() for key in found))
    rows = [[name, *(found.get(column) for column in columns)] for name, found in results.items()]
    return rows, ["", *(column.replace("_", " ") for column in columns)]


def load(options: Any) -> tuple[BiomedCLIPModel, BiomedCLIPProcessor]:
    if options.model:
        processor = BiomedCLIPProcessor.from_pretrained(options.model)
        return BiomedCLIPModel.from_pretrained(options.model).eval(), processor
    torch.manual_seed(0)
    tokenizer = BertTokenizer.from_pretrained(options.data / "biomedclip_tokenizer", model_max_length=CONTEXT)
    return BiomedCLIPModel(BiomedCLIPConfig()).eval(), BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer)


def open_clip_twin(model: BiomedCLIPModel, scratch: Path) -> Any:
    """Return a model of open_clip with the same weights."""
    BertConfig().save_pretrained(scratch / "bert")
    text_cfg = {"hf_model_name": str(scratch / "bert"), "hf_model_pretrained": False, "hf_proj_type": "mlp"}
    theirs = open_clip.CustomTextCLIP(
        embed_dim=512,
        vision_cfg={"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear"},
        text_cfg=text_cfg | {"hf_pooler_type": "cls_last_hidden_state_pooler"},
    )
    theirs.load_state_dict(to_open_clip_tensors(model.state_dict()))
    return theirs.eval()


def autocast(encode: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return normalize(encode().float(), dim=-1)


def compare(ways: dict[str, Callable[[], Any]], count: int, rounds: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return items per second of each way, its ratio to open_clip, and its smallest cosine to open_clip's result."""
    seconds, embeds = take_turns(ways, rounds)
    results = {
        name: {
            "per_second": count / statistics.median(seconds[name]),
            "times_open_clip": median_ratio(seconds[OPEN_CLIP], seconds[name]),
            "smallest_cosine": cosine_similarity(embeds[name].double(), embeds[OPEN_CLIP].double()).min().item(),
        }
        for name in ways
        if isinstance(embeds[name], torch.Tensor)
    }
    return results, seconds


@torch.inference_mode()
def time_images(encoders: dict[str, Any], theirs: Any, rounds: int) -> dict[str, Any]:
    pixels = torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def features(encoder: Any) -> torch.Tensor:
        return normalize(encoder.get_image_features(pixels.to(encoder.logit_scale.dtype)).pooler_output.float(), dim=-1)

    products = {f"bound: products alone, {dtype}": dtype for dtype in (torch.float32, torch.bfloat16)}
    ways: dict[str, Callable[[], Any]] = {
        OPEN_CLIP: lambda: normalize(theirs.encode_image(pixels), dim=-1),
        "open_clip bfloat16 autocast": lambda: autocast(lambda: theirs.encode_image(pixels)),
        **{name: lambda each=each: features(each) for name, each in encoders.items()},
        **{name: image_product(dtype) for name, dtype in products.items()},
    }
    results, seconds = compare(ways, BATCH, rounds)
    operations = 3 * 2 * 2 * BATCH * TOKENS * WIDTH * 4 * WIDTH
    for name in products:
        results[name] = {"per_second": operations / statistics.median(seconds[name]) / IMAGE_OPERATIONS}
    return results


def image_product(dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that runs the two feed-forward products of one layer for a batch, three times."""
    rows = torch.randn(BATCH * TOKENS, WIDTH).to(dtype)
    wide, narrow = torch.nn.Linear(WIDTH, 4 * WIDTH).to(dtype), torch.nn.Linear(4 * WIDTH, WIDTH).to(dtype)

    def run() -> None:
        for _ in range(3):
            narrow(wide(rows))

    return run


@torch.inference_mode()
def time_texts(
    encoders: dict[str, Any], theirs: Any, processor: Any, captions: list[str], rounds: int
) -> dict[str, Any]:
    padded = processor(text=captions, padding="max_length", return_tensors="pt")["input_ids"].split(BATCH)

    def encode() -> torch.Tensor:
        return torch.cat([theirs.encode_text(batch) for batch in padded])

    ways: dict[str, Callable[[], Any]] = {
        OPEN_CLIP: lambda: normalize(encode(), dim=-1),
        "open_clip bfloat16 autocast": lambda: autocast(encode),
        **{name: lambda each=each: embed_texts(each, processor, captions) for name, each in encoders.items()},
    }
    return compare(ways, len(captions), rounds)[0]


def time_zero_shot(encoders: dict[str, Any], processor: Any, rounds: int) -> dict[str, Any]:
    """Classify images of 300 to 600 pixels, including their preparation."""
    generator, model = np.random.default_rng(0), encoders["biomedclip float32"]
    sizes = generator.integers(300, 600, (CHUNK, 2))
    images = [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    labels = [f"{kind} of finding {number}" for kind in ("chest X-ray", "brain MRI") for number in range(LABELS // 2)]
    template = "this is a photo of {}"
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    stock = pipeline("zero-shot-image-classification", model=model, device="cpu", **parts)
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    chosen = ("biomedclip float32", "biomedclip bfloat16", "openvino bfloat16", "openvino int8")
    classifiers = {name: ZeroShotClassifier(encoders[name], processor, labels, template) for name in chosen}

    def run_stock() -> None:
        for image in images:
            stock(image, candidate_labels=labels, hypothesis_template=template)

    ways: dict[str, Callable[[], Any]] = {
        STOCK: run_stock,
        TOWER: torch.no_grad()(lambda: model.get_image_features(pixels)),
        **{name: lambda each=each: each(images, batch_size=CHUNK) for name, each in classifiers.items()},
    }
    seconds, _ = take_turns(ways, rounds, time.perf_counter)
    return {
        name: {
            "per_second": CHUNK / statistics.median(seconds[name]),
            "times_stock": median_ratio(seconds[STOCK], seconds[name]),
            "times_tower": median_ratio(seconds[TOWER], seconds[name]),
        }
        for name in ways
    }


if __name__ == "__main__":
    main()
