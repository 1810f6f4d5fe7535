"""Contrastive training of any dual encoder through transformers' `Trainer`."""

import logging
import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput

from .contrastive_loss import contrastive_loss
from .retrieval_metrics import retrieval_metrics


logger = logging.getLogger(__name__)

MAX_LOGIT_SCALE = math.log(100)  # CLIP's and open_clip's bound of the temperature


@dataclass
class ContrastiveTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with the defaults that contrastive training needs.

    The published recipe's: AdamW with betas (0.9, 0.98) and epsilon 1e-6, weight decay 0.2, peak learning rate 5e-4, a
    cosine to zero. Its warm-up of 2,000 steps is left to the recipe file, as no short run could bear it. The batch of
    the loss is `per_device_train_batch_size` times the number of processes.
    """

    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second beta."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "AdamW's epsilon."})
    weight_decay: float = field(
        default=0.2, metadata={"help": "Weight decay; spares biases, norms and logit_scale, as open_clip does."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "true for the last checkpoint of the output folder, or one checkpoint's folder."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs the raw columns."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "A smaller last batch would have fewer negatives."}
    )

    def __post_init__(self):
        if are_processes_on_cpu():
            self.use_cpu = True
        super().__post_init__()
        if self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"gradient_accumulation_steps={self.gradient_accumulation_steps} would change the loss: each piece of "
                "the batch would see its own pairs as the only negatives. Lower --per-device-train-batch-size, or use "
                "--gradient-checkpointing or more processes for a large batch on little memory."
            )


def are_processes_on_cpu() -> bool:
    """
    Whether torchrun has started several processes on a machine without an accelerator.

    transformers takes them for strangers unless it is told to use the CPU: each would train on its own, on the same
    samples.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


class ContrastiveTrainer(Trainer):
    """
    Trains a dual encoder with symmetric InfoNCE over the batch of all processes.

    The model is anything whose `forward` returns `image_embeds` and `text_embeds` and that has a `logit_scale`:
    [`BiomedCLIPModel`], `CLIPModel`, a PEFT model of either. `logit_scale` is kept in [0, ln 100], unless it is frozen.

    `train_dataset` is either a stream with exact batches ([`processing.PairStream`]: anything with a method
    `batches(batch_size, rank, world_size, samples_seen)` and a length), which makes resuming exact, or whatever
    `Trainer` takes. `eval_dataset` needs random access. Evaluation embeds it whole and reports recall at 1, 5 and 10,
    median rank, and the loss of the whole set as one batch, a number that does not depend on the batch size.

    Raises:
        ValueError: A model without `logit_scale`, or an epoch count that gives no step.

    Example:

    ```python
    >>> trainer = ContrastiveTrainer(
    ...     model, args, train_dataset=PairStream("out"), data_collator=ContrastiveCollator(processor, training=True)
    ... )
    >>> trainer.train()
    ```"""

    def __init__(
        self,
        model: nn.Module,
        args: ContrastiveTrainingArguments,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: Any = None,
        eval_data_collator: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        find_logit_scale(model)
        self.pair_stream = train_dataset if hasattr(train_dataset, "batches") else None
        # Batches without augmentation for evaluation; the training collator where none is given.
        self.eval_data_collator = eval_data_collator or data_collator
        # For an iterable set accelerate would let rank 0 read and decode everything and send it around.
        args.accelerator_config.dispatch_batches = False
        if self.pair_stream is not None:
            batch_size = args.train_batch_size * args.world_size
            if args.max_steps <= 0:
                args.max_steps = math.ceil(args.num_train_epochs * (len(self.pair_stream) // batch_size))
                if args.max_steps == 0:
                    raise ValueError(
                        f"num_train_epochs={args.num_train_epochs} gives no step: {len(self.pair_stream)} pairs, "
                        f"{batch_size} in a batch. Lower --per-device-train-batch-size or set --max-steps."
                    )
            # The stream goes to its position by arithmetic; Trainer would read again all that was read.
            args.ignore_data_skip = True
            train_dataset = self.pair_stream.batches(batch_size, rank=args.process_index, world_size=args.world_size)
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            callbacks=[_ContrastiveCallback(), *(callbacks or [])],
            **kwargs,
        )
        # The loss is that of the whole batch already; Trainer must not divide it.
        self.loss_is_scaled_for_ga = True

    def get_train_dataloader(self) -> DataLoader:
        """The stream's own loader, kept out of accelerate's hands: it would split each rank's slice once more."""
        if self.pair_stream is None:
            return super().get_train_dataloader()
        workers = self.args.dataloader_num_workers
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            collate_fn=self.data_collator,
            num_workers=workers,
            # Its own: drawn from torch's, the workers' seeds would shift the dropout of a resumed run, whose state
            # Trainer restores before the loader starts.
            generator=torch.Generator().manual_seed(self.args.seed),
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """open_clip's rule: everything of two or more dimensions decays; biases, norms and `logit_scale` do not."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        outputs = model(**inputs)
        loss = contrastive_loss(outputs.image_embeds, outputs.text_embeds, find_logit_scale(model).exp())
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Embeds the whole set, then measures: a contrastive loss or rank makes no sense batch by batch."""
        model = self._wrap_model(self.model, training=False)
        if len(self.accelerator._models) == 0 and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        images, texts = [], []
        with torch.no_grad():
            for inputs in dataloader:
                outputs = model(**self._prepare_inputs(inputs))
                gathered = self.accelerator.gather_for_metrics((outputs.image_embeds, outputs.text_embeds))
                images.append(gathered[0].float().cpu())
                texts.append(gathered[1].float().cpu())
                self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        image_embeds, text_embeds = torch.cat(images), torch.cat(texts)
        scale = find_logit_scale(model).detach().exp().float().cpu()
        metrics = {f"{metric_key_prefix}_loss": whole_set_loss(image_embeds, text_embeds, scale)}
        for direction, values in retrieval_metrics(image_embeds, text_embeds).items():
            metrics.update({f"{metric_key_prefix}_{direction}_{name}": value for name, value in values.items()})
        return EvalLoopOutput(
            predictions=(image_embeds.numpy(), text_embeds.numpy()),
            label_ids=None,
            metrics=metrics,
            num_samples=len(image_embeds),
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Trainer's own would drop the last batch along with the training set's, and augment."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset] if eval_dataset else self.eval_dataset
        if eval_dataset is None:
            raise ValueError("Evaluation needs an eval_dataset.")
        loader = DataLoader(
            eval_dataset,
            batch_size=self.args.eval_batch_size,
            collate_fn=self.eval_data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )
        return self.accelerator.prepare(loader)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)


class _ContrastiveCallback(TrainerCallback, ExportableState):
    """What has to happen at certain moments: the stream's position, epochs, the temperature's bound."""

    def __init__(self) -> None:
        self.samples_seen = 0

    def state(self) -> dict[str, Any]:
        """Goes into each checkpoint's `trainer_state.json`."""
        return {"args": {}, "attributes": {"samples_seen": self.samples_seen}}

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        batches = _stream_batches(train_dataloader)
        if batches is None:
            return
        self.samples_seen = 0
        if state.global_step > 0:
            saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
            self.samples_seen = saved.get("samples_seen", state.global_step * batches.batch_size)
            if self.samples_seen != state.global_step * batches.batch_size:
                logger.warning(
                    "The checkpoint was written with another batch size: training goes on near pair %s of its stream, "
                    "but batches are not those of an undisturbed run.",
                    f"{self.samples_seen:,}",
                )
        batches.samples_seen = self.samples_seen

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        collator: Any = getattr(train_dataloader, "collate_fn", None)
        if hasattr(collator, "set_epoch"):
            collator.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, train_dataloader=None, **kwargs):
        batches = _stream_batches(train_dataloader)
        if batches is None:
            return
        # Trainer takes an endless stream for one epoch of `max_steps`; epochs are counted in pairs here.
        epochs_before = self.samples_seen // len(batches.stream)
        self.samples_seen += batches.batch_size
        state.epoch = self.samples_seen / len(batches.stream)
        if self.samples_seen // len(batches.stream) > epochs_before:
            control.should_evaluate |= args.eval_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"
            control.should_log |= args.logging_strategy == "epoch"

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        scale = find_logit_scale(model)
        # A frozen one belongs to the base of an adapter, which would not fit any other copy of it once it is changed.
        if scale.requires_grad:
            with torch.no_grad():
                scale.clamp_(0, MAX_LOGIT_SCALE)


def _stream_batches(loader: DataLoader | None) -> Any:
    """The batches of a stream that a loader reads, or none where it reads something else."""
    data_set = getattr(loader, "dataset", None)
    return data_set if hasattr(data_set, "samples_seen") else None


def find_logit_scale(model: nn.Module) -> nn.Parameter:
    """
    The log inverse temperature of a dual encoder, inside whatever wraps it (DDP, PEFT, compile).

    Raises:
        ValueError: The model has none.
    """
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1] == "logit_scale":
            return parameter
    raise ValueError(
        f"{type(model).__name__} has no parameter `logit_scale`: contrastive training needs a dual encoder such as "
        "BiomedCLIPModel or CLIPModel."
    )


@torch.no_grad()
def whole_set_loss(image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor) -> float:
    """
    Symmetric InfoNCE of a set as one batch, a slice of rows at a time.

    Args:
        image_embeds: L2-normalised, of shape `(pairs, dimension)`.
        text_embeds: L2-normalised, of shape `(pairs, dimension)`.
        logit_scale: Inverse temperature, of shape `()`.
    """
    total = 0.0
    for queries, candidates in ((image_embeds, text_embeds), (text_embeds, image_embeds)):
        for start in range(0, len(queries), 1024):
            rows = queries[start : start + 1024]
            labels = torch.arange(start, start + len(rows))
            logits = logit_scale * rows @ candidates.t()
            total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
    return total / (2 * len(image_embeds))


__all__ = [
    "ContrastiveTrainer",
    "ContrastiveTrainingArguments",
    "are_processes_on_cpu",
    "find_logit_scale",
    "whole_set_loss",
]
