"""Run open_clip's training program and our trainer on the same batches, each in a process.

python tests/helpers/open_clip_training.py FOLDER '{"side": "open_clip", ...}'

FOLDER contains a model in the format of open_clip and `batches.pt`, see [`prepare`]. The fields of the JSON are those
of [`Run`]. open_clip's side is `open_clip_train.main` with the options of the paper. Only its data loader is replaced.
Our side is the recipe `biomedclip` except for sizes, steps, precision and the fields of [`Run`].
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from biomedclip import (
    BiomedCLIPModel,
    ContrastiveTrainer,
    ContrastiveTrainingArguments,
    from_open_clip,
    to_open_clip,
)
from biomedclip.conversion.files import OPEN_CLIP_CONFIG
from biomedclip.conversion.vision_text import bert_config_of
from biomedclip.run_scripts.cli.options import parse_options
from biomedclip.run_scripts.training import contrastive
from biomedclip.run_scripts.training.adapters import AdapterOptions, add_adapter


ROOT = Path(__file__).resolve().parents[2]
BATCHES, WEIGHTS = "batches.pt", "trained.safetensors"
Batch = Mapping[str, torch.Tensor]


@dataclass
class Run:
    """Options of a side."""

    side: str  # `open_clip` or `biomedclip`
    learning_rate: float | None = None  # the peak of a cosine schedule to zero
    weight_decay: float | None = None
    warmup_steps: int = 0  # the 2,000 of the paper are more than a test has
    bf16: bool = False
    gradient_checkpointing: bool = False  # of both encoders
    pairs: list[list[int]] | None = None  # batches to take, and the number of pairs of each (default: all)
    device: str = "cpu"
    processor_time: bool = False  # of all threads, instead of the wall time
    options: dict[str, Any] = field(default_factory=dict)  # further options of `biomedclip train` for our side
    save_as: str | None = None  # file for the trained weights


def prepare(model: BiomedCLIPModel, processor: Any, batches: Sequence[Batch], folder: Path) -> None:
    """Write a model that open_clip loads without a network, and batches of `input_ids` and `pixel_values`."""
    to_open_clip(model, processor, folder)
    path = folder / OPEN_CLIP_CONFIG
    content = json.loads(path.read_text())
    bert_config_of(model.config.text_config).save_pretrained(folder / "bert")
    content["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder / "bert")
    path.write_text(json.dumps(content))
    torch.save(list(batches), folder / BATCHES)


def run_in_a_process(folder: Path, run: Run, **environment: str) -> dict[str, Any]:
    """Train one side, and return `losses` and `seconds` of each step, and the names of `undecayed` parameters.

    `mib` is the peak of the resident memory, or of the tensors on an accelerator. Our side also returns the
    `grad_norms` before clipping.
    """
    with tempfile.TemporaryDirectory() as scratch:
        result = subprocess.run(
            [sys.executable, __file__, str(folder), json.dumps(asdict(run))],
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
            capture_output=True,
            text=True,
            cwd=scratch,
        )
    if result.returncode:
        raise RuntimeError(result.stderr[-3000:])
    return json.loads(result.stdout.splitlines()[-1])


class Watch:
    """Measure the time of each step, and the peak memory."""

    def __init__(self, device: str, *, processor_time: bool = False) -> None:
        self.device = device
        self.clock = time.process_time if processor_time else time.perf_counter
        self.begun: list[float] = []
        self.ended: list[float] = []

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.clock()

    def summary(self) -> dict[str, Any]:
        on_device = torch.cuda.max_memory_allocated() // 2**20 if self.device == "cuda" else peak_mib()
        return {"seconds": [end - begin for begin, end in zip(self.begun, self.ended, strict=True)], "mib": on_device}


def peak_mib() -> int:
    """Return the peak resident memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


class TheirBatches:
    """Dataset and loader for open_clip."""

    def __init__(self, batches: Sequence[Batch], context_length: int, watch: Watch) -> None:
        self.dataloader = self
        self.num_batches = len(batches)
        self.num_samples = sum(len(batch["input_ids"]) for batch in batches)
        self.watch = watch
        padding = [(0, context_length - batch["input_ids"].shape[1]) for batch in batches]
        self.rows = [
            (batch["pixel_values"], torch.nn.functional.pad(batch["input_ids"], pad))
            for batch, pad in zip(batches, padding, strict=True)
        ]

    def set_epoch(self, epoch: int) -> None:
        pass

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for row in self.rows:
            self.watch.begun.append(self.watch.now())
            yield row
            # open_clip asks for the next batch after the step.
            self.watch.ended.append(self.watch.now())


def train_open_clip(folder: Path, batches: Sequence[Batch], run: Run) -> dict[str, Any]:
    """Run open_clip's program in this process."""
    from open_clip_train import main as program

    stored = json.loads((folder / OPEN_CLIP_CONFIG).read_text())
    watch, losses, result = Watch(run.device, processor_time=run.processor_time), [], {}
    data = TheirBatches(batches, stored["model_cfg"]["text_cfg"]["context_length"], watch)
    train_one_epoch = program.train_one_epoch

    def watched(model: Any, data: Any, loss: Any, epoch: int, optimizer: Any, *rest: Any, **others: Any) -> None:
        def recorded(**outputs: Any) -> Any:
            found = loss(**outputs)
            losses.append(sum(found.values()).detach())
            return found

        train_one_epoch(model, data, recorded, epoch, optimizer, *rest, **others)
        spared = {id(p) for group in optimizer.param_groups if not group["weight_decay"] for p in group["params"]}
        result["undecayed"] = [name for name, parameter in model.named_parameters() if id(parameter) in spared]
        result.update(watch.summary(), losses=[value.item() for value in losses])
        if run.save_as:
            save_file({name: value.contiguous() for name, value in model.state_dict().items()}, run.save_as)

    program.get_data = lambda *arguments, **options: {"train": data}
    program.train_one_epoch = watched
    options: dict[str, Any] = {
        "model": f"local-dir:{folder}",
        "train-data": "given",
        "dataset-type": "synthetic",
        "batch-size": len(batches[0]["input_ids"]),
        "epochs": 1,
        "warmup": run.warmup_steps,
        # Supplementary Table 9 of arXiv 2303.00915.
        "lr": 5e-4 if run.learning_rate is None else run.learning_rate,
        "wd": 0.2 if run.weight_decay is None else run.weight_decay,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "precision": "amp_bf16" if run.bf16 else "fp32",
        "device": run.device,
        "workers": 0,
        "logs": "none",
    }
    flags = ["--grad-checkpointing"] if run.gradient_checkpointing else []
    program.main([f"--{name}={value}" for name, value in options.items()] + flags)
    return result


class OurBatches(IterableDataset):
    """A stream of pairs for our trainer."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.given = [dict(batch) for batch in batches]

    def batches(self, batch_size: int, **position: int) -> "OurBatches":
        return self

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.given)


class _Clock(TrainerCallback):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.begun.append(self.watch.now())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.watch.ended.append(self.watch.now())


def recipe_options(batches: Sequence[Batch], run: Run) -> tuple[AdapterOptions, ContrastiveTrainingArguments]:
    """Return the adapter and the training arguments of the recipe without those that only a full run needs."""
    size = len(batches[0]["pixel_values"])
    options: dict[str, Any] = {
        "config": "biomedclip",
        "output_dir": "run",
        "use_cpu": run.device == "cpu",
        "max_steps": len(batches),
        "batch_size": size,
        "warmup_steps": run.warmup_steps,
        "bf16": run.bf16,
        "gradient_checkpointing": run.gradient_checkpointing,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **{name: getattr(run, name) for name in ("learning_rate", "weight_decay")},
        **run.options,
    }
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
    parsed = parse_options("train", contrastive.OPTION_CLASSES, arguments, alternatives=contrastive.ALTERNATIVES)
    adapter = next(options for options in parsed if isinstance(options, AdapterOptions))
    args = parsed[-1]
    args.per_device_train_batch_size = size
    return adapter, args


def train_biomedclip(model: BiomedCLIPModel, batches: Sequence[Batch], run: Run) -> dict[str, Any]:
    """Run our trainer in this process."""
    watch = Watch(run.device, processor_time=run.processor_time)
    adapter, args = recipe_options(batches, run)
    model = add_adapter(model, adapter)
    trainer = ContrastiveTrainer(
        model, args, train_dataset=OurBatches(batches), data_collator=lambda batch: batch, callbacks=[_Clock(watch)]
    )
    with contextlib.redirect_stdout(sys.stderr):
        trainer.train()
    decayed = set(trainer.get_decay_parameter_names(model))
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    if run.save_as:
        save_file(model.state_dict(), run.save_as)
    return {
        "losses": [entry["loss"] for entry in entries],
        "grad_norms": [entry["grad_norm"] for entry in entries],
        "undecayed": [name for name, _ in model.named_parameters() if name not in decayed],
        **watch.summary(),
    }


def main() -> None:
    folder, run = Path(sys.argv[1]), Run(**json.loads(sys.argv[2]))
    batches = torch.load(folder / BATCHES, mmap=True)
    if run.pairs is not None:
        batches = [{name: value[:count] for name, value in batches[number].items()} for number, count in run.pairs]
    if run.side == "open_clip":
        result = train_open_clip(folder, batches, run)
    else:
        model, _ = from_open_clip(folder)
        result = train_biomedclip(model, batches, run)
    print(json.dumps(result))  # noqa: T201


__all__ = ["Run", "peak_mib", "prepare", "run_in_a_process"]


if __name__ == "__main__":
    main()
