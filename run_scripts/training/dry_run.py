"""`biomedclip train --dry-run`: print the plan of a run, without weights, data or a GPU."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from biomedclip import ContrastiveTrainingArguments
from biomedclip.contrastive_trainer import decay_parameter_names

from ..cli.errors import UsageError
from ..cli.fields import option
from ..cli.reporting import say, show_table, versions
from .memory import estimate_memory


PUBLISHED_PAIRS = 13_900_000  # training pairs of PMC-15M (arXiv 2303.00915)
# Parts of BiomedCLIPModel and CLIPModel by the prefix of their parameters.
PARTS = {
    "vision_model.": "image encoder",
    "visual_projection.": "image projection",
    "text_model.": "text encoder",
    "text_projection.": "text projection",
}
REST = "logit scale"  # and logit bias


@dataclass
class DryRunOptions:
    """Options of a dry run."""

    dry_run: bool = option(False, "Print the parameters, steps and memory of the run, without loading data or weights.")
    pairs: int = option(
        PUBLISHED_PAIRS, "Number of training pairs for --dry-run without --train-data (default: that of PMC-15M)."
    )
    processes: int | None = option(None, "Number of GPUs for --dry-run (default: the current number of processes).")

    def __post_init__(self):
        for name, value in (("--pairs", self.pairs), ("--processes", self.processes)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        if not self.dry_run and (self.pairs != PUBLISHED_PAIRS or self.processes is not None):
            raise ValueError("--pairs and --processes have no effect without --dry-run. Omit them.")


def plan_run(
    model: Any, args: ContrastiveTrainingArguments, *, pairs: int, processes: int, text_length: int, notes: list[str]
) -> dict[str, Any]:
    """Return the plan of a run, which is the content of `dry_run.json`."""
    per_device = args.per_device_train_batch_size
    batch_size = per_device * processes
    mini_batch_size = min(args.mini_batch_size or per_device, per_device)
    batches = pairs // batch_size
    if batches == 0:
        raise UsageError(f"There are {pairs:,} pairs, fewer than a batch of {batch_size:,}. Lower --batch-size.")
    args.count_steps(batches)
    steps = args.max_steps
    if steps == 0:
        raise UsageError(
            f"--num-train-epochs {args.num_train_epochs} results in no step. Raise it, or set --max-steps."
        )
    memory = {
        name: estimate_memory(
            model,
            batch_size=batch_size,
            processes=processes,
            mini_batch_size=mini_batch_size,
            text_length=text_length,
            bf16=args.bf16,
            checkpointing=checkpointing,
        )
        for name, checkpointing in (("without_checkpointing", False), ("with_checkpointing", True))
    }
    decayed = set(decay_parameter_names(model))
    return {
        "model": {"class": type(model).__name__, **_count(model, lambda name: "all")["all"]},
        "parts": _count(model, part_of),
        "weight_decay": {
            "value": args.weight_decay,
            **_count(model, lambda name: "decayed" if name in decayed else "not_decayed"),
        },
        "schedule": {
            "pairs": pairs,
            "batch_size": batch_size,
            "processes": processes,
            "per_device_batch_size": per_device,
            "mini_batch_size": mini_batch_size,
            "batches_per_epoch": batches,
            "unused_pairs_per_epoch": pairs - batches * batch_size,
            "steps": steps,
            "warmup_steps": args.get_warmup_steps(steps),
            "samples": steps * batch_size,
            "epochs": steps * batch_size / pairs,
            "learning_rate": args.learning_rate,
            "text_length": text_length,
            "image_size": model.config.vision_config.image_size,
        },
        "memory_mib": {
            "gradient_checkpointing": bool(args.gradient_checkpointing),
            "bf16": bool(args.bf16),
            **{name: {part: math.ceil(size / 2**20) for part, size in sizes.items()} for name, sizes in memory.items()},
        },
        "notes": notes,
        "versions": versions(),
    }


def part_of(name: str) -> str:
    """Return the part of a dual encoder that a parameter belongs to. The model may be wrapped."""
    found = (part for prefix, part in PARTS.items() if f".{prefix}" in f".{name}")
    return next(found, REST)


def _count(model: nn.Module, group_of: Any) -> dict[str, dict[str, int]]:
    """Count parameters by group."""
    groups: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        counts = groups.setdefault(group_of(name), {"parameters": 0, "trainable_parameters": 0})
        counts["parameters"] += parameter.numel()
        counts["trainable_parameters"] += parameter.numel() if parameter.requires_grad else 0
    return groups


def show_plan(plan: dict[str, Any]) -> None:
    """Print a plan as tables."""
    memory, decay = plan["memory_mib"], plan["weight_decay"]
    groups = {f"weight decay {decay['value']}": decay["decayed"], "no weight decay": decay.get("not_decayed")}
    parts = {**plan["parts"], **groups, plan["model"]["class"]: plan["model"]}
    rows = [(name, counts["parameters"], counts["trainable_parameters"]) for name, counts in parts.items() if counts]
    show_table("Parameters", rows, ["", "all", "trained"])
    show_table("Schedule", [(name.replace("_", " "), value) for name, value in plan["schedule"].items()], ["", "value"])
    columns = (memory["without_checkpointing"], memory["with_checkpointing"])
    show_table(
        f"Memory of a process, MiB, {'bf16' if memory['bf16'] else 'float32'}; gradient checkpointing is "
        f"{'on' if memory['gradient_checkpointing'] else 'off'}",
        [(name, *(column[name] for column in columns)) for name in columns[0]],
        ["", "without checkpointing", "with checkpointing"],
    )
    for note in plan["notes"]:
        say(note)
