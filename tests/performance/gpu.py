"""Measure training, embedding and correctness of the published model on one GPU, with one command.

python tests/performance/gpu.py results
python tests/performance/gpu.py results --small --device cpu

Every measurement is written to results/results.json as soon as it is made, and is not repeated by a second run, which
makes those that are missing. No measurement begins after eight minutes. results/table.md contains the tables. --small
measures a small model for a moment. On a CPU, everything is in float32.

products: operations per second of the matrix products of the model's shapes in bfloat16, the bound of all others.
training: samples per second and utilization (operations of real tokens and patches, of the measured bound) of training
    steps on one batch that is on the device: packed and padded texts, attention, compilation, gradient checkpointing.
open_clip: the training program of open_clip on the same batch, padded to 256 tokens, in the same process.
global_batches: cached gradients of 4,096 and 65,536 pairs.
loader: training for two minutes on real figures that worker processes decode: how long steps wait for them.
embedding: images and texts per second, and the exact ranks of 725,739 pairs.
correctness: losses of 50 steps beside the CPU and in bfloat16, a resumed run, and FSDP2 with one process.
communication: bytes that 8 and 64 GPUs would move in a step, computed, beside the measured step.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch


sys.path.insert(0, str(Path(__file__).parents[1]))  # for `helpers`, wherever the script is started from

from helpers.open_clip_training import OurBatches, Run, prepare, recipe_options, train_biomedclip, train_open_clip
from timing import machine, parser_of
from training import (
    CONTEXT,
    PAIRS,
    STEPS,
    make_model,
    operations_of_pair,
    product_rate,
    real_batches,
    real_captions,
    synchronize,
)
from transformers import BertTokenizer

from biomedclip import (
    BiomedCLIPConfig,
    BiomedCLIPModel,
    BiomedCLIPProcessor,
    ContrastiveTrainer,
    embed_texts,
    pack_texts,
)
from biomedclip.processing import BiomedCLIPImageProcessor, ContrastiveCollator, PairStream
from biomedclip.processing.pmc.build import BuildOptions, build_dataset
from biomedclip.processing.pmc.executors import Engine
from biomedclip.retrieval_metrics import rank_counts, summarize_ranks
from biomedclip.run_scripts.cli.reporting import say, versions, write_json


MEASURED = "training of 512 pairs"  # the variant that others are compared with
OUT_OF_MEMORY = "out of memory"
SAMPLES = 445e6  # of the published run: 32 epochs of 13.9 million pairs
# Bytes per second of one GPU in one direction: NVLink 4 within a node, InfiniBand NDR between nodes.
LINKS = {8: ("NVLink", 450e9), 64: ("InfiniBand", 50e9)}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1}
Measurements = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("folder", type=Path, help="folder for the results")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="a small model and little data")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no measurement after this time")
    options = parser.parse_args()
    started = time.monotonic()
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    facts = device_facts(options.device)
    if results and results["device"]["name"] != facts["name"]:
        raise SystemExit(
            f"{path} is from {results['device']['name']}, and this is {facts['name']}. Use another folder."
        )
    results |= {"machine": machine(), "device": facts, "versions": versions()}
    setup = Setup(options)
    for part in options.parts:
        entries = results.setdefault(part, {})
        for name, measure in PARTS[part](setup, results):
            if part != "communication" and entries.get(name, {"error": ""}).get("error") in (None, OUT_OF_MEMORY):
                continue
            if time.monotonic() - started > 60 * options.minutes:
                say(f"{options.minutes:g} minutes are over. Run the command again for what is missing.")
                write_tables(results, options.folder)
                return
            say(f"{part}: {name}")
            entries[name] = measured(measure)
            write_json(path, results)
    write_tables(results, options.folder)


def measured(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the numbers of a measurement, or why there are none."""
    started = time.perf_counter()
    torch.set_float32_matmul_precision("highest")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            found = measure()
    except torch.OutOfMemoryError:
        found = {"error": OUT_OF_MEMORY}
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        found = {"error": f"{type(error).__name__}: {error}"[:300]}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.compiler.reset()
    return found | {"took": round(time.perf_counter() - started, 1)}


def device_facts(device: str) -> dict[str, str]:
    """Return the name, driver, clocks and power limit of the GPU."""
    if device == "cpu":
        return {"name": "CPU"}
    fields = ["name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit"]
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", "0"]
    values = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().split(", ")
    return dict(zip(fields, values, strict=True)) | {"cuda": str(torch.version.cuda)}


class Setup:
    """What several measurements share."""

    def __init__(self, options: Any):
        self.data, self.device, self.small = options.data, options.device, options.small
        self.rounds = 1 if options.small else options.rounds
        self.folder = options.folder
        self.config = self.model().config
        self.tokenizer = BertTokenizer.from_pretrained(options.data / "biomedclip_tokenizer", model_max_length=CONTEXT)
        self.processor = BiomedCLIPProcessor(BiomedCLIPImageProcessor(), self.tokenizer)

    def model(self) -> BiomedCLIPModel:
        """Return a model of the published size, or one of three narrow layers, with random weights."""
        if not self.small:
            return make_model(small=False)
        return self.small_model()

    def small_model(self, *, dropout: bool = True) -> BiomedCLIPModel:
        """Return the small model whose training is compared, or one of three narrow layers."""
        if not self.small:
            return make_model(small=True, dropout=dropout)
        torch.manual_seed(0)
        text = SMALL | ({} if dropout else {"hidden_dropout": 0.0, "attention_dropout": 0.0})
        return BiomedCLIPModel(BiomedCLIPConfig(vision_config=SMALL | {"num_hidden_layers": 2}, text_config=text))

    def size(self, pairs: int) -> int:
        """Return a number of pairs, or a small one."""
        return max(2, min(16, pairs // 512)) if self.small else pairs

    def batch(self, pairs: int, *, packed: bool = True) -> dict[str, Any]:
        """Return real captions, with one random image for all of them, which is on the device."""
        texts = dict(
            self.tokenizer(real_captions(self.data, pairs), padding=True, truncation=True, return_tensors="pt")
        )
        texts.pop("token_type_ids", None)
        side = self.config.vision_config.image_size
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(self.device)
        return (pack_texts(texts) if packed else texts) | {"pixel_values": pixels.expand(pairs, -1, -1, -1)}

    def operations(self, batch: dict[str, Any]) -> float:
        """Return the operations of a step on a batch, without those of padding."""
        lengths = batch["cu_seq_lens_q"].diff() if "cu_seq_lens_q" in batch else batch["attention_mask"].sum(1)
        return sum(operations_of_pair(self.config, length) for length in lengths.tolist())


def measure_products(setup: Setup, results: dict[str, Any]) -> Measurements:
    """Measure the products of the feed-forward layers of both towers."""
    for images in (128, 512, 2048):
        pairs = setup.size(images)

        def measure(pairs: int = pairs) -> dict[str, Any]:
            dtype = torch.float32 if setup.device == "cpu" else torch.bfloat16
            return {"teraflops": product_rate(setup.config.vision_config, pairs, dtype, setup.device) / 1e12}

        yield f"{pairs} images", measure


def bound_of(results: dict[str, Any]) -> float | None:
    """Return the largest measured operations per second of the products."""
    rates = [entry["teraflops"] * 1e12 for entry in results.get("products", {}).values() if "teraflops" in entry]
    return max(rates, default=None)


def measure_training(setup: Setup, results: dict[str, Any]) -> Measurements:
    """Measure steps of several batches, and variants of the step of 512 pairs."""
    variants: dict[str, dict[str, Any]] = {
        f"training of {pairs} pairs": {"pairs": pairs} for pairs in (128, 512, 1024, 2048)
    }
    others = {
        "padded texts": {"packed": False},
        "gradient checkpointing": {"checkpointing": True},
        "compiled": {"torch_compile": True},
        "flash_attention_2": {"attention": "flash_attention_2"},
        "float32 (TF32)": {"bf16": False},
    }
    variants |= {f"{MEASURED}, {name}": {"pairs": 512, **options} for name, options in others.items()}
    for name, options in variants.items():
        yield name, lambda options=options: time_steps(setup, results, **options)


def time_steps(
    setup: Setup,
    results: dict[str, Any],
    pairs: int,
    *,
    packed: bool = True,
    checkpointing: bool = False,
    torch_compile: bool = False,
    attention: str | None = None,
    bf16: bool = True,
    mini_batch_size: int | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Measure training steps of our trainer on a batch that is on the device."""
    model = setup.model()
    if attention:
        model.set_attn_implementation(attention)
    batch = setup.batch(setup.size(pairs), packed=packed)
    operations = setup.operations(batch)
    if mini_batch_size is None:  # otherwise, mini-batches of texts are taken on the host
        batch = {name: value.to(setup.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    options: dict[str, Any] = {"torch_compile": torch_compile, "dataloader_pin_memory": False}
    if torch_compile and setup.small:
        options["torch_compile_backend"] = "eager"  # a minute less
    if mini_batch_size is not None:
        options["mini_batch_size"] = min(setup.size(mini_batch_size), setup.size(pairs) // 2)
    steps = steps or setup.rounds
    torch.set_float32_matmul_precision("high")  # of what autocast leaves in float32
    bf16 = bf16 and setup.device != "cpu"  # not every CPU has instructions for it
    run = Run("biomedclip", bf16=bf16, gradient_checkpointing=checkpointing, device=setup.device, options=options)
    with tempfile.TemporaryDirectory() as scratch, packing(packed):
        run.options["output_dir"] = scratch
        found = train_biomedclip(model, [batch] * (2 + steps), run)
    seconds = statistics.median(found["seconds"][2:])
    bound, rate = bound_of(results), setup.size(pairs) / seconds
    return {
        "pairs": setup.size(pairs),
        "samples_per_second": rate,
        "teraflops": operations / seconds / 1e12,
        "utilization": None if bound is None else operations / seconds / bound,
        "peak_mib": found["mib"],
        "seconds_of_first_step": found["seconds"][0],
        "hours_of_445_million": SAMPLES / rate / 3600,
    }


def packing(packed: bool) -> Any:
    """Return a context in which the trainer packs texts or not."""
    if packed:
        return contextlib.nullcontext()
    return mock.patch.object(BiomedCLIPModel, "supports_packed_texts", False)


def measure_open_clip(setup: Setup, results: dict[str, Any]) -> Measurements:
    """Measure open_clip's program on the batch of the variants."""
    for checkpointing in (False, True):
        name = "open_clip" + ", gradient checkpointing" * checkpointing
        yield name, lambda checkpointing=checkpointing: time_open_clip(setup, 512, checkpointing)


def time_open_clip(setup: Setup, pairs: int, checkpointing: bool) -> dict[str, Any]:
    pairs = setup.size(pairs)
    batch = setup.batch(pairs, packed=False)
    run = Run("open_clip", bf16=setup.device != "cpu", gradient_checkpointing=checkpointing, device=setup.device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(make_model(small=setup.small), setup.processor, [], folder)  # open_clip has a name for its shape
        batches = [{name: batch[name].to(setup.device) for name in ("input_ids", "pixel_values")}] * (2 + setup.rounds)
        with contextlib.chdir(scratch):
            found = train_open_clip(folder, batches, run)
    rate = pairs / statistics.median(found["seconds"][2:])
    return {"pairs": pairs, "samples_per_second": rate, "peak_mib": found["mib"]}


def measure_global_batches(setup: Setup, results: dict[str, Any]) -> Measurements:
    """Measure one step of large batches on one device."""
    for pairs in (4096, 65536):
        options: dict[str, Any] = {"pairs": pairs, "mini_batch_size": 512, "steps": 1}
        yield f"{setup.size(pairs)} pairs", lambda options=options: time_steps(setup, results, **options)


def measure_loader(setup: Setup, results: dict[str, Any]) -> Measurements:
    """Train on real figures with worker processes."""
    yield "real figures", lambda: time_loader(setup, results)


def time_loader(setup: Setup, results: dict[str, Any]) -> dict[str, Any]:
    seconds, pairs = (2 if setup.small else 120), setup.size(512)
    workers = 1 if setup.small else max(1, (os.cpu_count() or 2) - 1)
    with tempfile.TemporaryDirectory() as scratch:
        source = BuildOptions(str(setup.data / "pmc_mirror"), license="all", split_fractions=[1, 0, 0])
        build_dataset(source, Path(scratch) / "set", engine=Engine(connections=1))
        stream = PairStream(Path(scratch) / "set", columns=["image", "caption", "pair_id"])
        options = {"dataloader_num_workers": workers, "output_dir": scratch, "max_steps": 10**6, "batch_size": pairs}
        run = Run("biomedclip", bf16=setup.device != "cpu", device=setup.device, options=options)
        _, args = recipe_options([setup.batch(2)], run)
        args.per_device_train_batch_size = pairs
        trainer = ContrastiveTrainer(
            setup.model(),
            args,
            train_dataset=stream,
            data_collator=ContrastiveCollator(setup.processor, training=True, max_length=CONTEXT),
        )
        loader = iter(trainer.get_train_dataloader())
        trainer.create_optimizer_and_scheduler(args.max_steps)
        model = trainer.model.to(setup.device)
        waited = stepped = 0.0
        steps, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds or steps < 2:
            before = time.perf_counter()
            inputs = next(loader)
            between = time.perf_counter()
            trainer.training_step(model, inputs)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad()
            synchronize(setup.device)
            if steps:  # workers start in the first
                waited, stepped = waited + between - before, stepped + time.perf_counter() - between
            steps += 1
        del loader
    rate = (steps - 1) * pairs / (waited + stepped)
    return {"pairs": pairs, "workers": workers, "samples_per_second": rate, "waiting": waited / (waited + stepped)}


def measure_embedding(setup: Setup, results: dict[str, Any]) -> Measurements:
    """Measure both towers without gradients, and the ranks of a large pool."""
    for dtype in (torch.float32, torch.bfloat16)[: 1 if setup.device == "cpu" else 2]:
        name = str(dtype).removeprefix("torch.")
        yield f"images, {name}", lambda dtype=dtype: time_images(setup, dtype)
        yield f"texts, {name}", lambda dtype=dtype: time_texts(setup, dtype)
    yield "exact ranks", lambda: time_ranks(setup)


@torch.inference_mode()
def time_images(setup: Setup, dtype: torch.dtype) -> dict[str, Any]:
    model = setup.model().to(setup.device, dtype).eval()
    pixels = setup.batch(setup.size(512))["pixel_values"].to(dtype).contiguous()
    seconds = timed(lambda: model.get_image_features(pixel_values=pixels), setup)
    return {"per_second": len(pixels) / seconds}


def time_texts(setup: Setup, dtype: torch.dtype) -> dict[str, Any]:
    model = setup.model().to(setup.device, dtype).eval()
    captions = real_captions(setup.data, setup.size(4096))
    seconds = timed(lambda: embed_texts(model, setup.processor, captions, batch_size=512, max_length=CONTEXT), setup)
    return {"per_second": len(captions) / seconds}


def time_ranks(setup: Setup) -> dict[str, Any]:
    pairs = setup.size(725_739)
    torch.manual_seed(0)
    embeds = (torch.nn.functional.normalize(torch.randn(pairs, 512, device=setup.device), dim=-1) for _ in range(2))
    started = time.perf_counter()
    counts = rank_counts(*embeds)
    synchronize(setup.device)
    seconds = time.perf_counter() - started
    return {"pairs": pairs, "seconds": seconds, **summarize_ranks(counts["image_to_text"])}


def timed(work: Callable[[], Any], setup: Setup) -> float:
    """Return the median seconds of some work, which runs once before."""
    seconds = []
    for _ in range(1 + setup.rounds):
        synchronize(setup.device)
        started = time.perf_counter()
        work()
        synchronize(setup.device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def measure_correctness(setup: Setup, results: dict[str, Any]) -> Measurements:
    """Compare losses with the CPU, with bfloat16, after resuming, and with FSDP2."""
    yield "50 steps", lambda: compare_losses(setup)
    yield "resumed run", lambda: resume(setup)
    yield "FSDP2 with one process", lambda: shard(setup)


def compare_losses(setup: Setup) -> dict[str, Any]:
    """Train the small model, with products in full float32, and return the largest relative differences."""
    steps = 2 if setup.small else STEPS
    _, batches = real_batches(setup, 3, PAIRS)
    losses = {}
    for name, device, bf16 in (
        ("cpu", "cpu", False),
        ("float32", setup.device, False),
        ("bfloat16", setup.device, True),
    ):
        run = Run("biomedclip", learning_rate=1e-4, bf16=bf16, device=device)
        with tempfile.TemporaryDirectory() as scratch:
            run.options["output_dir"] = scratch
            given = [batches[step % 3] for step in range(steps)]
            losses[name] = train_biomedclip(setup.small_model(dropout=False), given, run)["losses"]
    reference = losses["cpu"]

    def difference(name: str) -> float:
        return max(abs(ours - theirs) / theirs for ours, theirs in zip(losses[name], reference, strict=True))

    return {
        "steps": steps,
        "first_loss": reference[0],
        "last_loss": reference[-1],
        "float32_to_cpu": difference("float32"),
        "bfloat16_to_cpu": difference("bfloat16"),
    }


def resume(setup: Setup) -> dict[str, Any]:
    """Compare the weights of a run with those of a run that was resumed from a checkpoint on the same device."""
    _, batches = real_batches(setup, 4, PAIRS)
    weights = []
    with tempfile.TemporaryDirectory() as scratch:
        for given, checkpoint in ((batches, None), (batches[2:], f"{scratch}/checkpoint-2")):
            options = {"output_dir": scratch, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
            options |= {"max_steps": 4}
            run = Run("biomedclip", bf16=setup.device != "cpu", device=setup.device, options=options)
            trainer = ContrastiveTrainer(
                setup.small_model(),
                recipe_options(batches, run)[1],
                train_dataset=OurBatches(given),
                data_collator=dict,
            )
            trainer.train(resume_from_checkpoint=checkpoint)
            weights.append([weight.detach().cpu().clone() for weight in trainer.model.parameters()])
    equal = [torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True)]
    return {"bitwise_equal": all(equal), "weights": len(equal)}


def shard(setup: Setup) -> dict[str, Any]:
    """Compare the losses of FSDP2 in one process with those without."""
    if setup.device == "cpu":
        return {"error": "FSDP2 needs an accelerator"}
    _, batches = real_batches(setup, 3, PAIRS)
    losses = []
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}
    for fsdp in (False, True):
        with tempfile.TemporaryDirectory() as scratch, mock.patch.dict(os.environ, alone if fsdp else {}):
            run = Run("biomedclip", learning_rate=1e-4, device=setup.device)
            run.options |= {"output_dir": scratch, **({"fsdp": True} if fsdp else {})}
            losses.append(train_biomedclip(setup.small_model(dropout=False), batches, run)["losses"])
    difference = max(abs(ours - theirs) / theirs for ours, theirs in zip(*losses, strict=True))
    return {"largest_relative_difference": difference}


def measure_communication(setup: Setup, results: dict[str, Any]) -> Measurements:
    """Compute what GPUs would send and receive in a step, with gradients and weights in float32."""
    parameters = sum(weight.numel() for weight in setup.model().parameters())
    width, pairs = setup.config.projection_dim, 512
    step = results.get("training", {}).get(MEASURED, {})
    seconds = pairs / step["samples_per_second"] if "samples_per_second" in step else None
    for gpus, (link, rate) in LINKS.items():
        share = (gpus - 1) / gpus
        moved = {
            # Ring algorithms: each GPU sends this much.
            "DDP: gradients": 2 * share * parameters * 4,
            "FSDP2: weights twice, gradients": 3 * share * parameters * 4,
            # All-gather of both embeddings, and all-reduce of their gradients.
            "embeddings": 2 * (share * gpus * pairs * width * 4) + 2 * (2 * share * gpus * pairs * width * 4),
        }
        for name, sent in moved.items():
            entry = {"gigabytes": sent / 1e9, "milliseconds": 1e3 * sent / rate, "of_the_step": None}
            if seconds is not None:
                entry["of_the_step"] = sent / rate / seconds
            yield f"{gpus} GPUs over {link}, {name}", lambda entry=entry: entry


PARTS: dict[str, Callable[[Setup, dict[str, Any]], Measurements]] = {
    "products": measure_products,
    "training": measure_training,
    "open_clip": measure_open_clip,
    "global_batches": measure_global_batches,
    "embedding": measure_embedding,
    "correctness": measure_correctness,
    "loader": measure_loader,
    "communication": measure_communication,
}


def write_tables(results: dict[str, Any], folder: Path) -> None:
    """Write one Markdown table for each part."""
    facts = ", ".join(str(value) for value in results["device"].values())
    packages = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    lines = [f"{facts}; {results['machine']}; {packages}."]
    for part in PARTS:
        if entries := results.get(part):
            columns = list(dict.fromkeys(name for entry in entries.values() for name in entry if name != "took"))
            lines += ["", f"**{part.replace('_', ' ')}**", ""]
            lines.append("| | " + " | ".join(name.replace("_", " ") for name in columns) + " |")
            lines.append("|---" * (1 + len(columns)) + "|")
            for name, entry in entries.items():
                lines.append(f"| {name} | " + " | ".join(_cell(entry.get(column)) for column in columns) + " |")
    (folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    say(f"Tables in {folder / 'table.md'}")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return "" if value is None else str(value).replace("|", "/")


if __name__ == "__main__":
    main()
