"""`biomedclip train --dry-run`: what a run would be, without weights, data or a GPU."""

import math
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from torch import nn

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.processing import PairStream

from ..cli.errors import UsageError
from ..cli.reporting import say, show_table, versions
from .memory import estimate_memory, mib
from .towers import PARTS, REST, part_of


PUBLISHED_PAIRS = 13_900_000  # training pairs of PMC-15M (arXiv 2303.00915)


@dataclass
class DryRunOptions:
    """A plan of the run instead of the run."""

    dry_run: bool = field(
        default=False,
        metadata={"help": "Only tell what the run would be: parameters, steps, memory, who reads what. Loads nothing."},
    )
    pairs: int = field(
        default=PUBLISHED_PAIRS,
        metadata={"help": "Training pairs of a dry run without --train-data. The paper's if left out."},
    )
    processes: int | None = field(
        default=None, metadata={"help": "GPUs of the run that a dry run plans. Those that run it if left out."}
    )

    def __post_init__(self):
        for name, value in (("--pairs", self.pairs), ("--processes", self.processes)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}.")
        if not self.dry_run and (self.pairs != PUBLISHED_PAIRS or self.processes is not None):
            raise ValueError("--pairs and --processes have no effect without --dry-run. Leave them out.")


def plan_run(
    model: Any,
    args: ContrastiveTrainingArguments,
    *,
    pairs: PairStream | int,
    processes: int,
    text_length: int,
    notes: list[str],
) -> dict[str, Any]:
    """What a run would be.

    Args:
        model: The model, with weights or without.
        args: The options of its trainer.
        pairs: The training pairs, or how many there are.
        processes: Number of processes.
        text_length: Tokens of the longest texts.
        notes: What was taken for granted.

    Returns:
        The plan, as `dry_run.json` holds it; sizes in MiB.

    Raises:
        ValueError: Fewer pairs than a batch, or an epoch count that gives no step.
    """
    number = pairs if isinstance(pairs, int) else len(pairs)
    share = args.per_device_train_batch_size
    batch_size = share * processes
    mini_batch_size = min(args.mini_batch_size or share, share)
    batches = number // batch_size
    if batches == 0:
        raise UsageError(f"A batch of {batch_size:,} pairs does not fit: there are {number:,}. Lower --batch-size.")
    # As the trainer counts: whole batches of each epoch.
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * batches)
    if steps == 0:
        raise UsageError(f"--num-train-epochs {args.num_train_epochs} gives no step. Raise it, or set --max-steps.")
    memory = {
        checkpointing: estimate_memory(
            model,
            batch_size=batch_size,
            processes=processes,
            mini_batch_size=mini_batch_size,
            text_length=text_length,
            bf16=args.bf16,
            checkpointing=checkpointing,
        )
        for checkpointing in (False, True)
    }
    return {
        "model": {"class": type(model).__name__, **_counts(model), "parts": _parts(model)},
        "weight_decay": {"value": args.weight_decay, **_decay_groups(model)},
        "schedule": {
            "pairs": number,
            "batch_size": batch_size,
            "processes": processes,
            "per_device_batch_size": share,
            "mini_batch_size": mini_batch_size,
            "mini_batches": math.ceil(share / mini_batch_size),
            "batches_per_epoch": batches,
            "left_out_of_each_epoch": number - batches * batch_size,
            "steps": steps,
            "warmup_steps": args.get_warmup_steps(steps),
            "samples": steps * batch_size,
            "epochs": steps * batch_size / number,
            "learning_rate": args.learning_rate,
            "text_length": text_length,
            "image_size": model.config.vision_config.image_size,
        },
        "memory_mib": {
            "gradient_checkpointing": bool(args.gradient_checkpointing),
            "bf16": bool(args.bf16),
            "without_checkpointing": {name: mib(size) for name, size in memory[False].items()},
            "with_checkpointing": {name: mib(size) for name, size in memory[True].items()},
        },
        "data": None if isinstance(pairs, int) else _data(pairs),
        "ranks": [_rank(rank, share, None if isinstance(pairs, int) else pairs) for rank in range(processes)],
        "notes": notes if not isinstance(pairs, int) else [*notes, f"No --train-data: {number:,} pairs are assumed."],
        "versions": versions(),
    }


def _counts(model: nn.Module) -> dict[str, int]:
    parameters = list(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }


def _parts(model: nn.Module) -> dict[str, dict[str, int]]:
    """Parameters of each tower, each projection, and what is left."""
    parts = {part: {"parameters": 0, "trainable_parameters": 0} for part in [*PARTS.values(), REST]}
    for name, parameter in model.named_parameters():
        counts = parts[part_of(name)]
        counts["parameters"] += parameter.numel()
        counts["trainable_parameters"] += parameter.numel() if parameter.requires_grad else 0
    return parts


def _decay_groups(model: nn.Module) -> dict[str, dict[str, int]]:
    """How many of the trained tensors and parameters decay, by the trainer's own rule."""
    decayed = set(ContrastiveTrainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]
    groups = {"decayed": {"tensors": 0, "parameters": 0}, "spared": {"tensors": 0, "parameters": 0}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups["decayed" if name in decayed else "spared"]
            group["tensors"] += 1
            group["parameters"] += parameter.numel()
    return groups


def _data(stream: PairStream) -> dict[str, Any]:
    rows = [count for _, count in stream.shards(0)]
    return {"path": stream.path, "shards": len(rows), "smallest_shard": min(rows), "largest_shard": max(rows)}


def _rank(rank: int, share: int, stream: PairStream | None) -> dict[str, Any]:
    """What a rank reads first: rows of the first epoch, and the rows of shards that these are."""
    low, high = rank * share, (rank + 1) * share
    plan: dict[str, Any] = {"rank": rank, "first_rows": [low, high]}
    if stream is not None:
        plan["shards"] = []
        start = 0
        for url, count in stream.shards(0):
            first, last = max(low - start, 0), min(high - start, count)
            if first < last:
                plan["shards"].append({"file": PurePath(url).name, "rows": [first, last]})
            start += count
    return plan


def show_plan(plan: dict[str, Any]) -> None:
    """Prints a plan as tables."""
    model, decay, schedule, memory = (plan[name] for name in ("model", "weight_decay", "schedule", "memory_mib"))
    parts = [*model["parts"].items(), (model["class"], model)]
    show_table(
        "Parameters",
        [(name, counts["parameters"], counts["trainable_parameters"]) for name, counts in parts],
        ["", "all", "trained"],
    )
    show_table(
        f"Weight decay {decay['value']}",
        [(name, decay[name]["tensors"], decay[name]["parameters"]) for name in ("decayed", "spared")],
        ["", "tensors", "parameters"],
    )
    show_table("Schedule", [(name.replace("_", " "), value) for name, value in schedule.items()], ["", "value"])
    columns = (memory["without_checkpointing"], memory["with_checkpointing"])
    show_table(
        f"Memory of a process, MiB, {'bf16' if memory['bf16'] else 'float32'}; gradient checkpointing is "
        f"{'on' if memory['gradient_checkpointing'] else 'off'}",
        [(name, *(column[name] for column in columns)) for name in columns[0]],
        ["", "without checkpointing", "with it"],
    )
    if plan["data"] is not None:
        show_table("Shards", [(name.replace("_", " "), value) for name, value in plan["data"].items()], ["", "value"])
    ranks = plan["ranks"]
    shown = ranks if len(ranks) <= 8 else [*ranks[:7], ranks[-1]]
    show_table(
        "First rows of each rank in epoch 0" + (", of some ranks" if len(shown) < len(ranks) else ""),
        [(f"rank {rank['rank']}", _span(rank["first_rows"]), _files(rank)) for rank in shown],
        ["", "rows", "of shards"],
    )
    for note in plan["notes"]:
        say(note)


def _span(rows: list[int]) -> str:
    return f"{rows[0]:,} to {rows[1] - 1:,}"


def _files(rank: dict[str, Any]) -> str | None:
    files = [f"{shard['file'].removesuffix('.parquet')}: {_span(shard['rows'])}" for shard in rank.get("shards", [])]
    return "\n".join(files) or None
