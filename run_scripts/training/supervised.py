"""Training with labels, for image classification and visual question answering."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from biomedclip.argument_rules import FIELDS, LABELS
from biomedclip.trainer_adaptations import AdaptedTrainer
from biomedclip.training_arguments import CheckedTrainingArguments

from ..cli.fields import option, trust_option
from .adapters import LORA_OPTIONS, refuse_adapter


HEAD = "classifier"  # name of the head in classifiers of transformers
# Options that `--help` lists after those of the data and the model, by group.
GROUPS = {
    "LoRA": LORA_OPTIONS,
    "optimization": "max_steps num_train_epochs per_device_train_batch_size gradient_accumulation_steps learning_rate "
    "warmup_steps weight_decay bf16 seed",
    "run": "output_dir resume_from_checkpoint use_cpu eval_strategy per_device_eval_batch_size save_steps "
    "save_total_limit logging_steps report_to",
}


@dataclass(kw_only=True)
class SupervisedData:
    """Options of the training data that all tasks with labels share."""

    train_data: str
    model_name_or_path: str
    on_bad_row: str = option(
        "substitute",
        "How to handle images that cannot be decoded: raise an error, or substitute another row (counted).",
        ["raise", "substitute"],
    )
    trust_remote_code: bool = trust_option()


@dataclass
class SupervisedArguments(CheckedTrainingArguments):
    """`TrainingArguments` for training with labels. `docs/training_arguments.md` lists the fields it supports."""

    training = LABELS

    def __post_init__(self):
        if self.load_best_model_at_end or self.save_strategy == "best":
            self.metric_for_best_model: str | None = self.metric_for_best_model or "accuracy"  # instead of the loss
        super().__post_init__()


class SupervisedTrainer(AdaptedTrainer):
    """Trainer for datasets with random access, with random crops only in training.

    The loss of the model must be the mean over its batch.
    """

    rows = "images"  # name of the rows of the training set in errors

    def __init__(self, model: Any, args: SupervisedArguments, **kwargs: Any):
        rows = len(kwargs["train_dataset"])
        batch_size = args.train_batch_size * args.world_size
        if rows < batch_size:
            raise ValueError(
                f"The training set has {rows} {self.rows}, fewer than a batch of {batch_size}. Lower "
                "`per_device_train_batch_size`."
            )
        args.count_steps(math.ceil(rows // batch_size / args.gradient_accumulation_steps))
        args.dataloader_pin_memory &= args.device.type != "cpu"
        super().__init__(model, args, callbacks=[_EpochOfCrops()], **kwargs)
        # The loss is the mean over its batch. Trainer must divide it by the number of accumulated batches.
        self.model_accepts_loss_kwargs = False

    def check_options(self) -> None:
        """Check the options. Some may have been changed after the trainer was created."""
        super().check_options()
        if self.is_fsdp_enabled:
            raise ValueError(f"accelerate is configured for FSDP, but {FIELDS[LABELS]['fsdp'].text}.")


def load_with_head(
    auto_class: Any, name: str, labels: Sequence[str], *, trust_remote_code: bool = False, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the encoders of a checkpoint in float32 with a head for the given labels.

    A missing head is initialized randomly. The second result is the loading info of transformers.
    """
    model, info = auto_class.from_pretrained(
        name,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        num_labels=len(labels),
        ignore_mismatched_sizes=True,
        dtype=torch.float32,
        output_loading_info=True,
        trust_remote_code=trust_remote_code,
        **options,
    )
    refuse_adapter(model)
    return model, info


class _EpochOfCrops(TrainerCallback):
    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(train_dataloader, "collate_fn"):
            train_dataloader.collate_fn.set_epoch(int(state.epoch or 0))
