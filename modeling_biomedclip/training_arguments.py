"""Training arguments that raise an error instead of ignoring an option."""

import math
import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .argument_rules import CONTRASTIVE, check_before_processing, check_training_arguments
from .contrastive_loss import LOSSES


@dataclass
class CheckedTrainingArguments(TrainingArguments):
    """`TrainingArguments` that raise `ValueError` for fields that the trainers of this package would ignore.

    The fields are listed in `docs/training_arguments.md`.
    """

    training = CONTRASTIVE  # the set of rules in `argument_rules` that applies
    steps_from_epochs = False  # whether `max_steps` was computed from `num_train_epochs`

    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Checkpoint folder to resume from, or true for the last checkpoint of the output folder."},
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers of the metrics: tensorboard, trackio, wandb, or several (default: none)."},
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Hide losses that are NaN or infinite. Each step then waits for its loss on an accelerator "
            "(default: false)."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Not supported: the collator needs the columns."}
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the last incomplete batch of an epoch (default: true)."}
    )

    def __post_init__(self):
        if are_processes_on_cpu():
            self.use_cpu = True
        check_before_processing(self)
        super().__post_init__()
        check_training_arguments(self, self.training)

    def count_steps(self, steps_per_epoch: int) -> None:
        """Compute `max_steps` from `num_train_epochs`, unless `max_steps` is set."""
        if self.max_steps <= 0:
            self.steps_from_epochs = True
            self.max_steps: int = math.ceil(self.num_train_epochs * steps_per_epoch)


@dataclass
class ContrastiveTrainingArguments(CheckedTrainingArguments):
    """`TrainingArguments` with defaults for contrastive training.

    The defaults are those of the published recipe: AdamW with betas (0.9, 0.98) and epsilon 1e-6, weight decay 0.2,
    peak learning rate 5e-4, a cosine schedule to zero, and no gradient clipping. The 2,000 warmup steps are set
    in the recipe file and are not a default, because short runs have fewer steps. The batch of the loss consists of
    `per_device_train_batch_size` pairs from each process.

    `docs/training_arguments.md` lists the fields that are not supported.

    Raises:
        ValueError: If a field is not supported, `loss` is unknown, or `mini_batch_size < 1`.
    """

    loss: str = field(
        default=LOSSES[0],
        metadata={
            "help": "Contrastive loss: InfoNCE, or the pairwise sigmoid loss of SigLIP (default: infonce).",
            "choices": list(LOSSES),
        },
    )
    mini_batch_size: int | None = field(
        default=None,
        metadata={"help": "Number of pairs to embed at a time (default: all). The loss is that of the whole batch."},
    )
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate (default: 5e-4)."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Second beta of AdamW (default: 0.98)."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "Epsilon of AdamW (default: 1e-6)."})
    weight_decay: float = field(
        default=0.2,
        metadata={
            "help": "Weight decay, not applied to biases, norms and logit_scale, as in open_clip (default: 0.2)."
        },
    )
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Maximum norm of the gradients (default: 0, no clipping)."}
    )
    lr_scheduler_type: str = field(
        default="cosine",
        metadata={"help": "Learning rate schedule (default: cosine, with the warmup of open_clip)."},
    )
    fsdp: bool = field(
        default=False, metadata={"help": "Shard the model over the processes with FSDP2, on accelerators only."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.loss not in LOSSES:
            raise ValueError(f"`loss={self.loss!r}` is unknown. Choose one of {', '.join(LOSSES)}.")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"`mini_batch_size={self.mini_batch_size}` must be at least 1.")

    def check_mini_batch_size(self) -> None:
        """Raise `ValueError` if `mini_batch_size` is larger than the batch size per process."""
        if self.mini_batch_size is not None and self.mini_batch_size > self.train_batch_size:
            raise ValueError(
                f"`mini_batch_size={self.mini_batch_size}` is larger than the batch of a process, "
                f"{self.train_batch_size} pairs, and has no effect. Omit it or choose a smaller one."
            )


def are_processes_on_cpu() -> bool:
    """Return whether torchrun started several processes on a machine without an accelerator.

    In this case, transformers would train an independent model in each process, on the same samples, unless
    `use_cpu` is set.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()
