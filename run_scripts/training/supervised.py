"""What the tasks with labels share: training on images with a right answer each, and measuring it on held-out ones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import TrainOutput

from biomedclip import ContrastiveTrainer
from biomedclip.contrastive_trainer import are_processes_on_cpu, check_resume
from biomedclip.training_options import (
    LABELS,
    check_accelerator,
    check_before_processing,
    check_training_arguments,
    rule_of,
)

from ..cli.reporting import write_json
from .adapters import MERGED, AdapterOptions, refuse_adapter, save_merged


CONFIG = "config"  # folder of the model's configuration, in an adapter's


@dataclass
class SupervisedArguments(TrainingArguments):
    """`TrainingArguments` with the defaults that a set of images needs.

    Raises:
        ValueError: If a field would be ignored: see `docs/training_arguments.md`.
    """

    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "true for the last checkpoint of the output folder, or one checkpoint's folder."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs the raw columns."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "A last batch of one damaged image would have no substitute for it."}
    )

    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Trackers of the metrics: tensorboard, trackio, wandb, or several."},
    )

    def __post_init__(self):
        if are_processes_on_cpu():
            self.use_cpu = True
        if self.load_best_model_at_end or self.save_strategy == "best":
            self.metric_for_best_model: str | None = self.metric_for_best_model or "accuracy"  # not the loss
        check_before_processing(self)
        super().__post_init__()
        check_training_arguments(self, LABELS)


class SupervisedTrainer(Trainer):
    """`Trainer` for collators that crop at random and find substitutes: augments in training alone, and evaluates every
    row.

    Args:
        model: The model; its loss is the mean of its batch.
        args: How it is trained.
        eval_data_collator: Collates the rows that are evaluated.
        kwargs: Further arguments of `Trainer`, `train_dataset` and `data_collator` among them.

    Raises:
        ValueError: Fewer training rows than a batch.
    """

    rows = "images"  # what a row of the training set is

    def __init__(self, model: Any, args: SupervisedArguments, *, eval_data_collator: Any, **kwargs: Any):
        rows = len(kwargs["train_dataset"])
        batch_size = args.train_batch_size * args.world_size
        if rows < batch_size:
            raise ValueError(
                f"A batch of {batch_size} {self.rows} does not fit: there are {rows} to train on. "
                "Lower --per-device-train-batch-size."
            )
        if args.max_steps <= 0:
            args.steps_from_epochs = True  # type: ignore[attr-defined]
            steps_per_epoch = math.ceil(rows // batch_size / args.gradient_accumulation_steps)
            args.max_steps = math.ceil(args.num_train_epochs * steps_per_epoch)
        self.eval_data_collator = eval_data_collator
        args.dataloader_pin_memory &= args.device.type != "cpu"
        super().__init__(model, args, callbacks=[_EpochOfCrops()], **kwargs)
        self._check_options()
        # The model's loss is the mean of its batch: Trainer has to divide it by the number of accumulated ones.
        self.model_accepts_loss_kwargs = False

    def _check_options(self) -> None:
        check_training_arguments(self.args, LABELS, stream=False)
        check_accelerator(self.accelerator)
        if self.is_fsdp_enabled:
            raise ValueError(f"accelerate is configured for FSDP, which is refused: {rule_of('fsdp', LABELS).text}.")

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train, after a check of the options, some of which may have been changed since the trainer was created."""
        self._check_options()
        check_resume(self.args, resume_from_checkpoint)
        return super().train(resume_from_checkpoint, **kwargs)

    # Trainer's own would use the training collator, and drop the last batch along with the training set's.
    get_eval_dataloader = ContrastiveTrainer.get_eval_dataloader
    get_test_dataloader = ContrastiveTrainer.get_test_dataloader


def load_with_head(
    auto_class: Any, name: str, labels: Sequence[str], *, trust_remote_code: bool = False, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The towers of a checkpoint with a head for some labels, drawn afresh where it has none that fits.

    Args:
        auto_class: The Auto class of models with such a head.
        name: Folder or Hub id.
        labels: What the model can answer, in the order of their numbers.
        trust_remote_code: Whether the code of the checkpoint may be run.
        options: Further arguments of `from_pretrained`.

    Returns:
        The model in float32, and what transformers says of the tensors that were missing or did not fit.

    Raises:
        ValueError: The checkpoint is an adapter.
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


def save_results(trainer: SupervisedTrainer, results: Mapping[str, Any], adapter: AdapterOptions, config: Any) -> None:
    """Leaves what a run has measured, and beside an adapter the configuration and the merged model.

    Args:
        trainer: The trainer, its model trained and saved.
        results: What `train_results.json` will hold.
        adapter: LoRA, or none.
        config: Configuration of the model without the adapter.
    """
    if not trainer.is_world_process_zero():
        return
    output_dir = Path(trainer.args.output_dir)
    write_json(output_dir / "train_results.json", results)
    if adapter.lora_rank is not None:
        # Not beside the adapter: where a configuration lies, transformers looks for a whole model.
        config.save_pretrained(output_dir / CONFIG)
    if adapter.merge_adapter:
        save_merged(trainer.model, trainer.processing_class, output_dir / MERGED)


class _EpochOfCrops(TrainerCallback):
    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        train_dataloader.collate_fn.set_epoch(int(state.epoch or 0))
