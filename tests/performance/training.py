"""Training compared with open_clip's own program: losses, samples per second and memory.

python tests/performance/training.py --output training.json

curve: fifty steps from the same weights on the same batches, in float32 without dropout and clipping, with ViT-Ti/16
    and a BERT of two layers. open_clip runs a second time with the pairs of each batch in another order. This changes
    only the order of its sums, and shows by how much two equal runs can differ.
speed: the published size with random weights and the published dropout, `--batch-size` real captions and images, in
    float32 and bfloat16 autocast. Each way runs in a process of its own, in turns. Every round has its own batch, and
    times its third step: in the first two, the process gets its memory, and the optimizer its moments. Seconds are wall
    time on an idle machine or, with --shared-machine, processor time with one thread. open_clip pads texts to 256
    tokens, biomedclip computes real tokens only. The bound is the matrix products of the model without padding. LoRA is
    compared with open_clip's training of all weights.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch


sys.path.insert(0, str(Path(__file__).parents[1]))  # for `helpers`, wherever the script is started from

from helpers.open_clip_training import Run, prepare, run_in_a_process
from safetensors.torch import load_file
from timing import machine, median_ratio, parser_of
from tqdm.auto import tqdm
from transformers import BertTokenizer

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel
from biomedclip.conversion.tensors import from_open_clip_tensors
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor, read_image
from biomedclip.run_scripts.cli.reporting import say, show_table, versions, write_json


STEPS, DIFFERENT_BATCHES, PAIRS = 50, 3, 8  # of the curve
SPREAD = {"initializer_range": 0.07}  # 1 / sqrt(192); with 0.02, such a narrow model learns nothing in 50 steps
TINY = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3} | SPREAD
CONTEXT = 256
SIDES = ("open_clip", "biomedclip")


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("--parts", nargs="+", choices=["curve", "speed"], default=["curve", "speed"])
    parser.add_argument("--without", nargs="+", default=[], help="leave out ways that have this in their names")
    parser.add_argument("--shared-machine", action="store_true", help="in speed: one thread, processor seconds")
    parser.add_argument("--batch-size", type=int, default=16, help="of speed")
    parser.add_argument("--mini-batch-size", type=int, default=4, help="of cached gradients in speed")
    parser.add_argument("--small", action="store_true", help="speed with the small model of the curve")
    options = parser.parse_args()
    measures = {"curve": measure_curve, "speed": measure_speed}
    results: dict[str, Any] = {"machine": machine(), "versions": versions()}
    for part in options.parts:
        results[part] = measures[part](options)
        if options.output:
            write_json(options.output, results)


def make_model(*, small: bool, dropout: bool = True) -> BiomedCLIPModel:
    torch.manual_seed(0)
    text: dict[str, Any] = {} if dropout else {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    if not small:
        return BiomedCLIPModel(BiomedCLIPConfig(text_config=text))
    text |= TINY | {"num_hidden_layers": 2}
    return BiomedCLIPModel(BiomedCLIPConfig(vision_config=TINY, text_config=text, projection_dim=128, **SPREAD))


def real_batches(options: argparse.Namespace, batches: int, pairs: int) -> tuple[BiomedCLIPProcessor, list[Any]]:
    """Return batches of real captions and images, chosen with seed 0 and processed as in evaluation."""
    tokenizer = BertTokenizer.from_pretrained(options.data / "biomedclip_tokenizer", model_max_length=CONTEXT)
    processor = BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer)
    captions = real_captions(options.data, batches * pairs)
    files = sorted(path for path in (options.data / "pmc_mirror").rglob("*.jpg"))
    files = [files[number] for number in np.random.default_rng(0).permutation(len(files))]
    found = []
    for number in range(batches):
        chosen = range(number * pairs, (number + 1) * pairs)
        images = [read_image(files[place % len(files)]) for place in chosen]
        texts = [captions[place] for place in chosen]
        found.append(dict(processor(text=texts, images=images, padding=True, truncation=True, return_tensors="pt")))
        found[-1].pop("token_type_ids", None)
    return processor, found


def real_captions(data: Path, count: int) -> list[str]:
    lines = (data / "captions" / "captions.jsonl").read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(lines))
    return [json.loads(lines[order[number % len(lines)]])["caption"] for number in range(count)]


def measure_curve(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the losses of each step and the weights after the last one with open_clip."""
    model = make_model(small=True, dropout=False)
    processor, batches = real_batches(options, DIFFERENT_BATCHES, PAIRS)
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(0))
    shuffled = [{name: value[order] for name, value in batch.items()} for batch in batches]
    learning = {"learning_rate": 1e-4}
    ways = {
        "open_clip": Run("open_clip", **learning),
        "open_clip, pairs in another order": Run("open_clip", **learning),
        "biomedclip": Run("biomedclip", **learning),
        "biomedclip, mini-batches of 4": Run("biomedclip", options={"mini_batch_size": 4}, **learning),
    }
    results: dict[str, Any] = {"steps": STEPS, "losses": {}, "largest_difference": {}}
    weights = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, run in tqdm(ways.items(), desc="curve"):
            given = shuffled if "order" in name else batches
            prepare(model, processor, given, folder)
            run.pairs = [[step % DIFFERENT_BATCHES, PAIRS] for step in range(STEPS)]
            run.save_as = str(folder / "trained.safetensors")
            results["losses"][name] = run_in_a_process(folder, run)["losses"]
            trained = load_file(run.save_as)
            names = list(model.state_dict())
            weights[name] = from_open_clip_tensors(trained, names) if run.side == "open_clip" else trained
    reference, *others = ways
    for name in others:
        pairs = zip(results["losses"][name], results["losses"][reference], strict=True)
        by_step = [abs(ours - theirs) / theirs for ours, theirs in pairs]
        by_weight = {key: (value - weights[reference][key]).abs().max().item() for key, value in weights[name].items()}
        worst = max(by_weight, key=by_weight.__getitem__)
        results["largest_difference"][name] = {
            "of_loss_by_step": by_step,
            "of_loss": max(by_step),
            "of_weights": by_weight[worst],
            "weight": worst,
        }
    rows = [
        (name, f"{found['of_loss']:.1e}", f"{found['of_weights']:.1e}", found["weight"])
        for name, found in results["largest_difference"].items()
    ]
    first, *_, last = results["losses"][reference]
    say(f"{STEPS} steps, loss {first:.3f} to {last:.3f}: largest differences from open_clip")
    show_table("", rows, ["way", "of a loss, relative", "of a weight", "which"])
    return results


def measure_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Measure samples per second and memory of each way in each round."""
    model = make_model(small=options.small)
    processor, batches = real_batches(options, options.rounds, options.batch_size)
    config, mini = model.config, options.mini_batch_size
    ways: dict[str, Run] = {}
    for bf16 in (False, True):
        precision = "bfloat16" if bf16 else "float32"
        for side in SIDES:
            ways[f"{side}, {precision}"] = Run(side, bf16=bf16)
        cached = Run("biomedclip", bf16=bf16, options={"mini_batch_size": mini})
        ways[f"biomedclip, {precision}, cached mini-batches of {mini}"] = cached
        ways[f"biomedclip, {precision}, LoRA"] = Run("biomedclip", bf16=bf16, options={"lora_rank": 16})
        for side in SIDES:
            name = f"{side}, {precision}, gradient checkpointing"
            ways[name] = Run(side, bf16=bf16, gradient_checkpointing=True)
    ways = {name: run for name, run in ways.items() if not any(word in name for word in options.without)}
    threads = {"OMP_NUM_THREADS": "1"} if options.shared_machine else {}
    if options.shared_machine:
        torch.set_num_threads(1)
    lengths = [batch["attention_mask"].sum(dim=1).tolist() for batch in batches]
    results: dict[str, Any] = {
        "batch_size": options.batch_size,
        "lengths": lengths,
        "seconds": "of the processor, one thread" if options.shared_machine else "of the clock",
        "ways": {name: {"samples_per_second": [], "mib": []} for name in ways},
        "bounds": {"float32": [], "bfloat16": []},
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(model, processor, batches, folder)
        del model
        for turn in tqdm(range(options.rounds), desc="rounds"):
            for name, run in ways.items():
                run.pairs = [[turn, options.batch_size]] * 3
                run.processor_time = options.shared_machine
                found = run_in_a_process(folder, run, **threads)
                results["ways"][name]["samples_per_second"].append(options.batch_size / found["seconds"][-1])
                results["ways"][name]["mib"].append(found["mib"])
                if options.output:
                    write_json(options.output.with_suffix(".partial.json"), results)
            operations = statistics.mean(operations_of_pair(config, length) for length in lengths[turn])
            for dtype in (torch.float32, torch.bfloat16):
                rate = product_rate(
                    config.vision_config, options.batch_size, dtype, "cpu", processor_time=options.shared_machine
                )
                results["bounds"][str(dtype).removeprefix("torch.")].append(rate / operations)
            show_speed(results)
    return results


def show_speed(results: dict[str, Any]) -> None:
    rows = []
    for name, found in results["ways"].items():
        rates, precision = found["samples_per_second"], name.split(", ")[1]
        reference = results["ways"][f"open_clip, {precision}" + (", gradient checkpointing" * ("checkp" in name))]
        bounds = results["bounds"][precision]
        ratios = median_ratio(rates, reference["samples_per_second"]), median_ratio(rates, bounds)
        rows.append((name, statistics.median(rates), *ratios, statistics.median(found["mib"])))
    for name, rates in results["bounds"].items():
        rows.append((f"products alone, {name}", statistics.median(rates), None, None, None))
    tokens = [length for batch in results["lengths"] for length in batch]
    longest = [max(batch) for batch in results["lengths"]]
    say(f"Captions of {statistics.mean(tokens):.0f} tokens in the mean, the longest of a batch {longest}")
    columns = ["way", "samples/s", "× open_clip", "of the bound", "MiB at the peak"]
    show_table(f"Steps of {results['batch_size']} pairs, medians", rows, columns)


def operations_of_pair(config: Any, tokens: int) -> float:
    """Return the floating-point operations of a pair in the matrix products of both towers, forward and backward."""

    def tower(config: Any, length: int) -> float:
        width = config.hidden_size
        weights = 4 * width**2 + 2 * width * config.intermediate_size
        return config.num_hidden_layers * 2 * (weights * length + 2 * length**2 * width)

    vision = config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    embedding = 2 * patches * vision.hidden_size * vision.num_channels * vision.patch_size**2
    # The backward pass has two products for each: with respect to input and weight.
    return 3 * (tower(vision, patches + 1) + embedding + tower(config.text_config, tokens))


def product_rate(config: Any, images: int, dtype: torch.dtype, device: str, *, processor_time: bool = False) -> float:
    """Return the operations per second of the feed-forward products of a batch of images, the best of five."""
    rows = images * ((config.image_size // config.patch_size) ** 2 + 1)
    options: Any = {"dtype": dtype, "device": device}
    short = torch.randn(rows, config.hidden_size, **options)
    long = torch.randn(rows, config.intermediate_size, **options)
    weight = torch.randn(config.intermediate_size, config.hidden_size, **options)
    clock = time.process_time if processor_time else time.perf_counter

    def products() -> float:
        synchronize(device)
        started = clock()
        for _ in range(3):
            short @ weight.t(), long @ weight, long.t() @ short
        synchronize(device)
        return 3 * 3 * 2 * rows * config.hidden_size * config.intermediate_size / (clock() - started)

    return max(products() for _ in range(5))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
