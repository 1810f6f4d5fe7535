"""Contrastive training of any dual encoder through transformers' `Trainer`."""

import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, TrainOutput, sort_checkpoints

from .cached_gradients import RandomState, cached_backward, copy_to_device, mini_batch_rows, take_rows
from .contrastive_loss import LOSSES, contrastive_loss, summed_loss
from .retrieval_metrics import retrieval_metrics
from .training_options import (
    CONTRASTIVE,
    check_accelerator,
    check_before_processing,
    check_trainer_arguments,
    check_training_arguments,
)


logger = logging.getLogger(__name__)

# The batch of open_clip's validation loss, of which the paper's is one, and the name of the metric.
VALIDATION_BATCH = 4096
LOSS_IN_BATCHES = f"loss_in_batches_of_{VALIDATION_BATCH}"
MAX_LOGIT_SCALE = math.log(100)  # CLIP's and open_clip's bound of the temperature


@dataclass
class ContrastiveTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults that contrastive training needs.

    They are those of the published recipe: AdamW with betas (0.9, 0.98) and epsilon 1e-6, weight decay 0.2, peak
    learning rate 5e-4, a cosine schedule to zero, and no gradient clipping. The warm-up of 2,000 steps is set by the
    recipe file, because short runs have fewer steps. The batch of the loss is `per_device_train_batch_size` times the
    number of processes.

    Fields that contrastive training would ignore are refused: see `docs/training_arguments.md`.

    Raises:
        ValueError: If a field is refused, `loss` is unknown, `mini_batch_size < 1`, or `keep_activations` is set
            without `mini_batch_size`.
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
        metadata={
            "help": "Pairs that a process embeds at a time; the loss is that of the whole batch (default: all pairs)."
        },
    )
    keep_activations: bool = field(
        default=False,
        metadata={
            "help": "Embed the mini-batches once, with memory for the whole batch: all that they do then is to save "
            "padding, as texts of like length share one."
        },
    )
    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    adam_beta2: float = field(default=0.98, metadata={"help": "AdamW's second beta."})
    adam_epsilon: float = field(default=1e-6, metadata={"help": "AdamW's epsilon."})
    weight_decay: float = field(
        default=0.2, metadata={"help": "Weight decay; spares biases, norms and logit_scale, as open_clip does."}
    )
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Norm at which gradients are clipped (default: 0, no clipping)."}
    )
    lr_scheduler_type: str = field(
        default="cosine",
        metadata={
            "help": "Schedule of the learning rate (default: cosine, whose warm-up counts steps as open_clip does)."
        },
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "true for the last checkpoint of the output folder, or one checkpoint's folder."},
    )
    fsdp: bool = field(
        default=False, metadata={"help": "Share the model out among the processes (FSDP2), on accelerators."}
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "Where figures go besides the output folder: tensorboard, trackio, wandb, or several."},
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs the raw columns."})
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "A smaller last batch would have fewer negatives."}
    )

    def __post_init__(self):
        if are_processes_on_cpu():
            self.use_cpu = True
        check_before_processing(self)
        super().__post_init__()
        check_training_arguments(self, CONTRASTIVE)
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r}: the loss is one of {', '.join(LOSSES)}.")
        if self.mini_batch_size is not None and self.mini_batch_size < 1:
            raise ValueError(f"mini_batch_size={self.mini_batch_size} must be 1 or more. Leave it out for no limit.")
        if self.keep_activations and self.mini_batch_size is None:
            raise ValueError("keep_activations=True needs mini_batch_size: without it there are no mini-batches.")


def are_processes_on_cpu() -> bool:
    """Whether torchrun has started several processes on a machine without an accelerator.

    transformers takes them for strangers unless it is told to use the CPU: each would train on its own, on the same
    samples.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


class ContrastiveTrainer(Trainer):
    """Trains a dual encoder with a contrastive loss over the batch of all processes.

    The model is anything whose `forward` returns `image_embeds` and `text_embeds` and that has a `logit_scale`, and for
    SigLIP's loss a `logit_bias`: [`BiomedCLIPModel`], `CLIPModel`, `SiglipModel`, a PEFT model of any. `logit_scale` is
    kept in [0, ln 100], unless it is frozen.

    With `mini_batch_size` no more pairs than that are in memory at a time: [`cached_backward`] gives the gradients of
    the whole batch. Mini-batches are of texts of like length, so that little padding is embedded; with
    `keep_activations` that is all they do, and each pair is embedded once.

    `train_dataset` is either a stream with exact batches ([`biomedclip.processing.PairStream`]: anything with a method
    `batches(batch_size, rank, world_size, samples_seen)` and a length), which makes resuming exact, or whatever
    `Trainer` takes. A checkpoint is whole once it has its `trainer_state.json`, and older ones are removed only then: a
    run may be killed at any moment. Another number of processes may go on from it.

    `eval_dataset` needs random access. Evaluation embeds all of it and reports recall at 1, 5 and 10, the median rank,
    and two losses. `eval_loss` is the loss of the whole set as one batch. `eval_loss_in_batches_of_4096` is the
    validation loss of open_clip ([`loss_in_batches`]). None of these depends on the batch size or on the number of
    processes. Each of `evaluators` is called with the model in evaluation mode, on all processes, and returns metrics
    by name, which are reported with the prefix `eval_`. Evaluation restores all random states, so that it does not
    change the training.

    Options that contrastive training would ignore are refused, in `args` and among the arguments: see
    `docs/training_arguments.md`. They are checked again when training starts.

    Raises:
        ValueError: If an option is refused, the model lacks the parameters of the loss, `eval_dataset` has no random
            access, or `num_train_epochs` gives no step.

    Example:
    ```python
    >>> trainer = ContrastiveTrainer(
    ...     model, args, train_dataset=PairStream("out"), data_collator=ContrastiveCollator(processor, training=True)
    ... )
    >>> trainer.train()
    ```
    """

    lr_scheduler: Any  # Trainer does not declare it

    def __init__(
        self,
        model: nn.Module | None = None,
        args: ContrastiveTrainingArguments | None = None,
        *,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        data_collator: Any = None,
        eval_data_collator: Any = None,
        evaluators: Sequence[Callable[[Any], Mapping[str, float]]] = (),
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ):
        check_trainer_arguments(kwargs)
        if not isinstance(args, ContrastiveTrainingArguments) or model is None:
            raise ValueError("ContrastiveTrainer needs model, and ContrastiveTrainingArguments as args.")
        find_logit_scale(model)
        if args.loss == "siglip" and find_logit_bias(model) is None:
            raise ValueError(
                f"{type(model).__name__} has no parameter `logit_bias`, which the SigLIP loss needs. A BiomedCLIPModel "
                "has one when its configuration sets logit_bias_init_value, -10 as a rule."
            )
        for name, dataset in (eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}).items():
            if dataset is not None and not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
                raise ValueError(
                    f"eval_dataset {name}: a {type(dataset).__name__} has no random access, which evaluation needs. "
                    "Pass a list of rows, or load_pmc15m(..., streaming=False)."
                )
        self.pair_stream = train_dataset if hasattr(train_dataset, "batches") else None
        check_training_arguments(args, CONTRASTIVE, stream=self.pair_stream is not None)
        # Batches without augmentation for evaluation; the training collator where none is given.
        self.eval_data_collator = eval_data_collator or data_collator
        self.evaluators = evaluators
        # For an iterable set accelerate would let rank 0 read and decode everything and send it around.
        args.accelerator_config.dispatch_batches = False
        if self.pair_stream is not None:
            batch_size = args.train_batch_size * args.world_size
            if args.max_steps <= 0:
                args.steps_from_epochs = True  # type: ignore[attr-defined]
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
        self._check_options()
        # The loss is that of the whole batch already; Trainer must not divide it.
        self.loss_is_scaled_for_ga = True
        if args.fsdp or self.is_fsdp_enabled:
            self._prepare_sharding()

    def _check_options(self) -> None:
        check_training_arguments(self.args, CONTRASTIVE, stream=self.pair_stream is not None)
        if self.train_dataset is not None:
            check_mini_batch_size(self.args)
        check_accelerator(self.accelerator)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """Train, after a check of the options, some of which may have been changed since the trainer was created.

        Args:
            resume_from_checkpoint: Folder of a checkpoint, or True for the last one in the output folder.
            kwargs: Further arguments of `Trainer.train`.

        Raises:
            ValueError: If an option is refused.
        """
        self._check_options()
        check_resume(self.args, resume_from_checkpoint)
        output = super().train(resume_from_checkpoint, **kwargs)
        # A run that was killed after its last checkpoint, before older ones were removed, resumes without a step.
        self._remove_old_checkpoints(self._get_output_dir(kwargs.get("trial")))
        return output

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
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        if isinstance(self.model, FSDPModule):
            # FSDP2 gives a model a class of its own; transformers would save the file of that one as the model's code.
            type(self.model).__module__ = type(self.model).__bases__[-1].__module__
        super()._save(output_dir, state_dict=state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes `trainer_state.json` last, and removes older checkpoints once it is on the disk.

        A kill on the way leaves a checkpoint without that file, or with a part of it, and the ones before.
        """
        run_folder = self._get_output_dir(trial)
        folder = Path(run_folder) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            # One that was abandoned for an earlier one: its files must not mix with the new ones.
            _remove_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        limit = self.args.save_total_limit
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            _flush(folder)
        self._remove_old_checkpoints(run_folder)

    def _remove_old_checkpoints(self, run_folder: str) -> None:
        """Keep `save_total_limit` checkpoints, the newest and the best one among them."""
        limit = self.args.save_total_limit
        if not self.args.should_save or not limit or limit < 0:
            return
        best = self.state.best_model_checkpoint
        checkpoints = sort_checkpoints(run_folder, use_mtime=True, best_model_checkpoint=best)
        newest = Path(run_folder) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        for path in map(Path, checkpoints[:-limit]):
            if path not in (newest, best and Path(best)):
                _remove_checkpoint(path)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # What Trainer writes next, on the first process alone, says that the files of all processes are there.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            _flush(Path(output_dir))
        # It would then remove older checkpoints, before that last file is on the disk.
        self.args.save_total_limit = None

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        processes = len(list(Path(checkpoint).glob("rng_state*.pth")))
        if processes == self.args.world_size:
            return super()._load_rng_state(checkpoint)
        if self.is_world_process_zero() and processes == 0:
            logger.warning("%s has weights alone: optimizer and learning rate start anew.", checkpoint)
        elif self.is_world_process_zero():
            logger.warning(
                "%s has the random states of %d processes, and there are %d now. Weights, optimizer, learning rate and "
                "the pairs of each batch go on as they were; dropout draws anew, so that with dropout the run is not "
                "that of an undisturbed one.",
                checkpoint,
                processes,
                self.args.world_size,
            )
        # Otherwise dropout would draw the masks of the first steps again.
        set_seed(self.args.seed + self.state.global_step)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """open_clip's rule: everything of two or more dimensions decays; biases, norms and `logit_scale` do not."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the schedule. `lr_scheduler_type="cosine"` is open_clip's: its warm-up starts above zero.

        Args:
            num_training_steps: Number of steps of the training.
            optimizer: The optimizer (default: that of the trainer).

        Returns:
            The schedule of the learning rate.
        """
        if self.lr_scheduler is None and self.args.lr_scheduler_type == "cosine":
            factor = partial(
                cosine_factor,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                steps=num_training_steps,
                **(self.args.lr_scheduler_kwargs or {}),
            )
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        size = self.args.mini_batch_size
        if model.training and size is not None and size < len(inputs["pixel_values"]) and not return_outputs:
            # In a context around them all autocast casts the weights once, not for each.
            with self.accelerator.autocast():
                parts = [model(**self._take_rows(inputs, rows)) for rows in mini_batch_rows(inputs, size)]
            embeds = (torch.cat([part[name] for part in parts]) for name in ("image_embeds", "text_embeds"))
            return self._loss_of(model, *embeds)
        outputs = model(**inputs)
        loss = self._loss_of(model, outputs.image_embeds, outputs.text_embeds)
        return (loss, outputs) if return_outputs else loss

    def _take_rows(self, inputs: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        # SigLIP's text tower pools the last position, padding or not.
        return take_rows(inputs, rows, cut_text="siglip" not in self.model.config.model_type)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One backward pass of the whole batch, or of one mini-batch after the other."""
        size = self.args.mini_batch_size
        if size is None or size >= len(inputs["pixel_values"]) or self.args.keep_activations:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            loss = self._cached_step(model, inputs, size)
        if self.is_fsdp_enabled:
            for scalar in loss_parameters(model):
                if scalar.grad is not None:
                    dist.all_reduce(scalar.grad)
                    scalar.grad /= self.args.world_size
        return loss

    def _cached_step(self, model: nn.Module, inputs: dict[str, torch.Tensor], size: int) -> torch.Tensor:
        model.train()
        _set_mode(self.optimizer, "train")
        pinned = self.args.dataloader_pin_memory and self.args.device.type == "cuda"

        def embed(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            # The batch stays where the loader has put it; the device gets one mini-batch at a time.
            mini_batch = self._take_rows(inputs, rows)
            if pinned:
                mini_batch = copy_to_device(mini_batch, self.args.device)
            outputs = model(**self._prepare_inputs(mini_batch))
            return outputs.image_embeds, outputs.text_embeds

        loss = cached_backward(
            embed,
            mini_batch_rows(inputs, size),
            lambda image_embeds, text_embeds: self._loss_of(model, image_embeds, text_embeds),
            [scalar for scalar in loss_parameters(model) if scalar.requires_grad],
            backward=self.accelerator.backward,
            # FSDP would hold the gradients of the whole model in each process until the last mini-batch.
            no_sync=nullcontext if self.is_fsdp_enabled else lambda: self.accelerator.no_sync(model),
            device=self.args.device,
        )
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return loss

    def _prepare_sharding(self) -> None:
        """What FSDP2 cannot shard: a parameter without dimensions, and a table inside a layer that it has sharded."""
        if not self.is_fsdp_enabled:
            raise ValueError(
                "fsdp: accelerate shards models on accelerators alone, and would run plain DDP here. Leave --fsdp out."
            )
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:
            raise ValueError(
                "fsdp_config: logit_scale needs version 2 and cpu_ram_efficient_loading false, as both are by default."
            )
        # Each process keeps them whole, as with DDP.
        plugin.ignored_modules = [nn.ParameterList(loss_parameters(self.model)).to(self.args.device)]
        # accelerate shards the words' table by itself, after all layers that it is told to.
        if plugin.transformer_cls_names_to_wrap is None:
            table, layers = self.model.get_input_embeddings(), self.model._no_split_modules or []
            plugin.transformer_cls_names_to_wrap = sorted(
                {
                    type(module).__name__
                    for module in self.model.modules()
                    if type(module).__name__ in layers and table not in module.modules()
                }
            )

    def _loss_of(self, model: nn.Module, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        scale, bias = find_logit_scale(model).exp(), find_logit_bias(model)
        return contrastive_loss(image_embeds, text_embeds, scale, bias, loss=self.args.loss)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Embeds the whole set, then measures: a contrastive loss or rank makes no sense batch by batch."""
        random_state = RandomState(self.args.device)  # a loader draws a seed for its workers
        model = self._wrap_model(self.model, training=False)
        if len(self.accelerator._models) == 0 and model is self.model:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        model.eval()
        _set_mode(self.optimizer, "eval")
        images, texts = [], []
        with torch.no_grad():
            for inputs in dataloader:
                outputs = model(**self._prepare_inputs(inputs))
                gathered = self.accelerator.gather_for_metrics((outputs.image_embeds, outputs.text_embeds))
                images.append(gathered[0].float().cpu())
                texts.append(gathered[1].float().cpu())
                self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        image_embeds, text_embeds = torch.cat(images), torch.cat(texts)
        scale, bias = find_logit_scale(model).exp().float().cpu(), find_logit_bias(model)
        bias = None if bias is None else bias.float().cpu()
        loss = whole_set_loss(image_embeds, text_embeds, scale, bias, loss=self.args.loss)
        metrics = {
            f"{metric_key_prefix}_loss": loss,
            f"{metric_key_prefix}_{LOSS_IN_BATCHES}": loss_in_batches(image_embeds, text_embeds, scale),
        }
        for direction, values in retrieval_metrics(image_embeds, text_embeds).items():
            metrics.update({f"{metric_key_prefix}_{direction}_{name}": value for name, value in values.items()})
        for name, value in self._figures_of_evaluators(model).items():
            metrics[f"{metric_key_prefix}_{name}"] = value
        random_state.restore()
        return EvalLoopOutput(
            predictions=(image_embeds.numpy(), text_embeds.numpy()),
            label_ids=None,
            metrics=metrics,
            num_samples=len(image_embeds),
        )

    def _figures_of_evaluators(self, model: nn.Module) -> dict[str, float]:
        model = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if isinstance(model, FSDPModule):
            # It puts a sharded model together for `forward` alone unless it is told of other ways in.
            for method in ("get_image_features", "get_text_features"):
                register_fsdp_forward_method(model, method)
        with self.accelerator.autocast():
            figures = [evaluator(model) for evaluator in self.evaluators]
        return {name: value for values in figures for name, value in values.items()}

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Trainer's own would drop the last batch along with the training set's, and augment."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset] if eval_dataset else self.eval_dataset
        if eval_dataset is None:
            raise ValueError("Evaluation needs an eval_dataset.")
        workers = self.args.dataloader_num_workers
        loader = DataLoader(
            eval_dataset,
            batch_size=self.args.eval_batch_size,
            collate_fn=self.eval_data_collator,
            num_workers=workers,
            prefetch_factor=self.args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=self.args.dataloader_multiprocessing_context if workers else None,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )
        return self.accelerator.prepare(loader)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        return self.get_eval_dataloader(test_dataset)


def cosine_factor(step: int, *, warmup_steps: int, steps: int, num_cycles: float = 0.5) -> float:
    """Return the factor of the peak learning rate at a step: open_clip's `cosine_lr`.

    transformers' schedule counts the steps of the warm-up from zero, so that its first step changes nothing.

    Args:
        step: Number of the step, from 0.
        warmup_steps: Steps of the linear warm-up.
        steps: Steps of the training.
        num_cycles: Waves of the cosine, as in transformers. The default falls from the peak to zero once.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return max(0.0, 0.5 * (1 + math.cos(2 * math.pi * num_cycles * progress)))


def check_mini_batch_size(args: ContrastiveTrainingArguments) -> None:
    """Refuse mini-batches that are larger than the batch.

    Args:
        args: The training arguments, with the batch size of the run.

    Raises:
        ValueError: If `mini_batch_size` is larger than the batch of a process.
    """
    if args.mini_batch_size is not None and args.mini_batch_size > args.train_batch_size:
        raise ValueError(
            f"mini_batch_size={args.mini_batch_size} is larger than the batch of a process, {args.train_batch_size} "
            "pairs, and would have no effect. Leave it out, or choose a smaller one."
        )


def check_resume(args: TrainingArguments, resume_from_checkpoint: str | bool | None) -> None:
    """Refuse a checkpoint that is named where `train()` does not look for it.

    Args:
        args: The training arguments.
        resume_from_checkpoint: The argument of `train()`.

    Raises:
        ValueError: If the argument is None and the training arguments name a checkpoint.
    """
    named = str(args.resume_from_checkpoint or "false")
    if resume_from_checkpoint is None and named.lower() != "false":
        raise ValueError(
            f"resume_from_checkpoint={named!r} of the training arguments is read by the command alone. Pass it to "
            "trainer.train(resume_from_checkpoint=...)."
        )


def _set_mode(optimizer: Any, mode: str) -> None:
    """Call `train()` or `eval()` of an optimizer that has them, such as a schedule-free one."""
    if callable(method := getattr(optimizer, mode, None)):
        method()


class _ContrastiveCallback(TrainerCallback, ExportableState):
    """What has to happen at certain moments: the stream's position, epochs, the temperature's bound."""

    def __init__(self) -> None:
        self.samples_seen = 0
        self.saved_step: int | None = None
        self.evaluated_step: int | None = None

    def state(self) -> dict[str, Any]:
        """Goes into each checkpoint's `trainer_state.json`."""
        return {"args": {}, "attributes": {"samples_seen": self.samples_seen}}

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.saved_step = self.evaluated_step = None
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
        # Trainer fails to save where a checkpoint of another trainer has left it out.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        collator: Any = getattr(train_dataloader, "collate_fn", None)
        if hasattr(collator, "set_epoch"):
            collator.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, train_dataloader=None, **kwargs):
        batches = _stream_batches(train_dataloader)
        if batches is None:
            return
        # Trainer treats an endless stream as one epoch of `max_steps`. An epoch of the stream ends with its last whole
        # batch, as in open_clip; `state.epoch` counts pairs.
        self.samples_seen += batches.batch_size
        state.epoch = self.samples_seen / len(batches.stream)
        epochs, rest = divmod(self.samples_seen // batches.batch_size, len(batches.stream) // batches.batch_size)
        if rest == 0:
            control.should_evaluate |= args.eval_strategy == "epoch" and args.eval_delay <= epochs
            control.should_save |= args.save_strategy == "epoch"
            control.should_log |= args.logging_strategy == "epoch"

    def on_save(self, args, state, control, **kwargs):
        self.saved_step = state.global_step

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated_step = state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        # Trainer ends its own epoch where one of the stream may have ended too: the same evaluation and checkpoint.
        control.should_save &= self.saved_step != state.global_step
        control.should_evaluate &= self.evaluated_step != state.global_step

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        scale = find_logit_scale(model)
        # A frozen one belongs to the base of an adapter, which would not fit any other copy of it once it is changed.
        if scale.requires_grad:
            with torch.no_grad():
                scale.clamp_(0, MAX_LOGIT_SCALE)


def _remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint; after a kill on the way it is not taken for whole."""
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Has the files of a folder, and their names, written to the disk itself."""
    for path in [*folder.rglob("*"), folder, folder.parent]:
        # Some file systems cannot flush a folder.
        with suppress(OSError) if path.is_dir() else nullcontext():
            descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _stream_batches(loader: DataLoader | None) -> Any:
    """The batches of a stream that a loader reads, or none where it reads something else."""
    data_set = getattr(loader, "dataset", None)
    return data_set if hasattr(data_set, "samples_seen") else None


def find_logit_scale(model: nn.Module) -> nn.Parameter:
    """The log inverse temperature of a dual encoder, inside whatever wraps it (DDP, PEFT, compile).

    Raises:
        ValueError: The model has none.
    """
    scale = _find_parameter(model, "logit_scale")
    if scale is None:
        raise ValueError(
            f"{type(model).__name__} has no parameter `logit_scale`: contrastive training needs a dual encoder such as "
            "BiomedCLIPModel or CLIPModel."
        )
    return scale


def find_logit_bias(model: nn.Module) -> nn.Parameter | None:
    """What a dual encoder adds to its logits, if anything, inside whatever wraps it."""
    return _find_parameter(model, "logit_bias")


def loss_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a dual encoder that belong to no tower: `logit_scale`, and `logit_bias` if there is one."""
    bias = find_logit_bias(model)
    return [find_logit_scale(model), *([] if bias is None else [bias])]


def _find_parameter(model: nn.Module, wanted: str) -> nn.Parameter | None:
    found = (parameter for name, parameter in model.named_parameters() if name.rsplit(".", 1)[-1] == wanted)
    return next(found, None)


@torch.no_grad()
def whole_set_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    *,
    loss: str = LOSSES[0],
) -> float:
    """The loss of a set as one batch, whatever other processes do.

    Args:
        image_embeds: L2-normalised, of shape `(pairs, dimension)`.
        text_embeds: L2-normalised, of shape `(pairs, dimension)`.
        logit_scale: Inverse temperature, of shape `()` or `(1,)`.
        logit_bias: What is added to each logit, of shape `()` or `(1,)`.
        loss: `infonce` or `siglip`.
    """
    directions = [(image_embeds, text_embeds), (text_embeds, image_embeds)]
    totals = [summed_loss(*direction, logit_scale, logit_bias, loss=loss).item() for direction in directions]
    return sum(totals) / (len(totals) * len(image_embeds))


@torch.no_grad()
def loss_in_batches(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    *,
    batch_size: int = VALIDATION_BATCH,
) -> float:
    """The validation loss of open_clip: the mean InfoNCE loss of consecutive batches, weighted by their sizes.

    open_clip reports InfoNCE for a model of any loss. The last batch holds the pairs that are left, which may be fewer.
    With one batch the result equals [`whole_set_loss`].

    Args:
        image_embeds: L2-normalized, of shape `(pairs, dimension)`.
        text_embeds: L2-normalized, of shape `(pairs, dimension)`.
        logit_scale: Inverse temperature, of shape `()` or `(1,)`.
        batch_size: Pairs of a batch.

    Returns:
        The mean over all pairs.
    """
    batches = zip(image_embeds.split(batch_size), text_embeds.split(batch_size), strict=True)
    total = sum(whole_set_loss(images, texts, logit_scale) * len(images) for images, texts in batches)
    return total / len(image_embeds)


__all__ = [
    "LOSS_IN_BATCHES",
    "ContrastiveTrainer",
    "ContrastiveTrainingArguments",
    "are_processes_on_cpu",
    "check_mini_batch_size",
    "check_resume",
    "cosine_factor",
    "find_logit_bias",
    "find_logit_scale",
    "loss_in_batches",
    "loss_parameters",
    "whole_set_loss",
]
