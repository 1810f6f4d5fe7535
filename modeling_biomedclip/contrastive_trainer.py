"""Contrastive training of any dual encoder with transformers' `Trainer`."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import send_to_device
from accelerate.utils.memory import clear_device_cache
from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalLoopOutput

from .argument_rules import CONTRASTIVE, check_accelerator, check_trainer_arguments, check_training_arguments
from .cached_gradients import RandomState, cached_backward, copy_to_device, mini_batch_rows, take_rows
from .contrastive_loss import LOSSES, contrastive_loss, summed_loss
from .packed_texts import PackingCollator, packs_texts
from .retrieval_metrics import retrieval_metrics
from .trainer_adaptations import AdaptedTrainer
from .training_arguments import ContrastiveTrainingArguments


logger = logging.getLogger(__name__)

VALIDATION_BATCH = 4096  # batch size of the validation loss in open_clip and in the paper
LOSS_IN_BATCHES = f"loss_in_batches_of_{VALIDATION_BATCH}"
MAX_LOGIT_SCALE = math.log(100)  # upper bound in CLIP and open_clip


class ContrastiveTrainer(AdaptedTrainer):
    """Trainer for dual encoders with a contrastive loss over the batch of all processes.

    The `forward` method of the model must return `image_embeds` and `text_embeds`. The model must have a parameter
    `logit_scale` and, for the SigLIP loss, a parameter `logit_bias`. Examples are [`BiomedCLIPModel`], `CLIPModel`,
    `SiglipModel` and PEFT models of them. `logit_scale` is clamped to [0, ln 100] unless it is frozen.

    The texts of a [`BiomedCLIPModel`] with a BERT tower are packed ([`pack_texts`]): no padding is computed. Other dual
    encoders get the batches of the collator.

    With `mini_batch_size`, each process embeds at most that many pairs at a time, and [`cached_backward`] computes the
    gradients of the whole batch. Padded texts of similar length share a mini-batch, which reduces padding.

    `train_dataset` is a stream with exact batches ([`biomedclip.processing.PairStream`], or an object that has a
    length and a method `batches(batch_size, rank, world_size)`), or any dataset that `Trainer` accepts. Training on a
    stream resumes exactly. A checkpoint is complete if it contains a `trainer_state.json`. Older checkpoints are
    removed only when a new one is complete, so a run can be killed at any time. The number of processes can change
    between runs.

    `eval_dataset` needs random access. Evaluation embeds the whole dataset and reports recall at 1, 5 and 10, the
    median rank, `eval_loss` (the whole dataset as one batch) and `eval_loss_in_batches_of_4096` (open_clip's validation
    loss, see [`loss_in_batches`]). These metrics do not depend on the batch size or the number of processes.
    Evaluation restores the random state, so it does not change the training.

    Args:
        model: Dual encoder.
        args: Training arguments. Unsupported fields raise an error (see `docs/training_arguments.md`).
        train_dataset: Stream or dataset of pairs.
        eval_dataset: Dataset of pairs with random access, or a dictionary of such datasets.
        data_collator: Collator of the training batches.
        eval_data_collator: Collator of the evaluation batches (default: `data_collator`).
        evaluators: Functions that take the model in evaluation mode and return metrics by name. All processes call
            them. The metrics are reported with the prefix `eval_`.
        callbacks: Additional callbacks.
        kwargs: Additional arguments of `Trainer`.

    Raises:
        ValueError: If an option is not supported, the model lacks a parameter of the loss, `eval_dataset` has no
            random access, or `num_train_epochs` is too small for one step.

    Example:
    ```python
    >>> from biomedclip import ContrastiveCollator, ContrastiveTrainer, ContrastiveTrainingArguments
    >>> from biomedclip.processing import PairStream
    >>> from transformers import AutoModel, AutoProcessor

    >>> model, processor = AutoModel.from_pretrained("out/model"), AutoProcessor.from_pretrained("out/model")
    >>> args = ContrastiveTrainingArguments("run", max_steps=10, per_device_train_batch_size=16)
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
            raise ValueError("ContrastiveTrainer requires `model`, and ContrastiveTrainingArguments as `args`.")
        find_logit_scale(model)
        if args.loss == "siglip" and find_logit_bias(model) is None:
            raise ValueError(
                f"{type(model).__name__} has no parameter `logit_bias`, which the SigLIP loss requires. For a "
                "BiomedCLIPModel, set logit_bias_init_value (usually -10) in the configuration."
            )
        for name, dataset in (eval_dataset if isinstance(eval_dataset, dict) else {"": eval_dataset}).items():
            if dataset is not None and not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
                raise ValueError(
                    f"eval_dataset {name}: a {type(dataset).__name__} has no random access, which evaluation requires. "
                    "Pass a list of rows, or load_pmc15m(..., streaming=False)."
                )
        self.pair_stream = train_dataset if hasattr(train_dataset, "batches") else None
        self.evaluators = evaluators
        check_training_arguments(args, CONTRASTIVE, stream=self.pair_stream is not None)
        # For an iterable dataset, accelerate would read all data in the first process and broadcast it.
        args.accelerator_config.dispatch_batches = False
        if self.pair_stream is not None:
            batch_size = args.train_batch_size * args.world_size
            if args.max_steps <= 0:  # otherwise the stream needs no length
                args.count_steps(len(self.pair_stream) // batch_size)
            if args.max_steps == 0:
                raise ValueError(
                    f"`num_train_epochs={args.num_train_epochs}` results in no step with {len(self.pair_stream)} pairs "
                    f"and a batch size of {batch_size}. Lower `per_device_train_batch_size` or set `max_steps`."
                )
            # The stream computes its position. Trainer would read all previous batches again.
            args.ignore_data_skip = True
            train_dataset = self.pair_stream.batches(batch_size, rank=args.process_index, world_size=args.world_size)
        if args.n_gpu > 1:
            logger.warning(
                "One process uses %d GPUs, which is slow, and texts are padded. Start one process for each with "
                "torchrun.",
                args.n_gpu,
            )
        elif data_collator is not None and packs_texts(model, args.device):
            data_collator = PackingCollator(data_collator)
            eval_data_collator = eval_data_collator and PackingCollator(eval_data_collator)
        super().__init__(
            model,
            args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            data_collator=data_collator,
            eval_data_collator=eval_data_collator,
            callbacks=[_ContrastiveCallback(), *(callbacks or [])],
            **kwargs,
        )
        # The loss is already that of the whole batch. Trainer must not divide it.
        self.loss_is_scaled_for_ga = True
        if args.fsdp or self.is_fsdp_enabled:
            self._prepare_sharding()

    def check_options(self) -> None:
        """Raise `ValueError` if an option is not supported. Some may have changed since the trainer was created."""
        check_training_arguments(self.args, CONTRASTIVE, stream=self.pair_stream is not None)
        if self.train_dataset is not None:
            self.args.check_mini_batch_size()
        check_accelerator(self.accelerator)

    def get_train_dataloader(self) -> Any:
        """Return the training batches of this process. accelerate would split the batches of a stream again."""
        if self.pair_stream is None or self.is_finished:
            return super().get_train_dataloader()
        loader = DataLoader(
            self.train_dataset,
            batch_size=None,
            collate_fn=self.data_collator,
            # Drawing the seeds of the workers from torch's global generator would change the dropout of a resumed run,
            # because Trainer restores the random state before it creates the loader.
            generator=torch.Generator().manual_seed(self.args.seed),
            **self.loader_options(),
        )
        # In mini-batches, the batch stays in the memory of the host.
        in_mini_batches = (self.args.mini_batch_size or math.inf) < self.args.train_batch_size
        return loader if in_mini_batches else copied_ahead(loader, self.args.device)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters with weight decay (see [`decay_parameter_names`])."""
        return decay_parameter_names(model)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the learning rate schedule. `lr_scheduler_type="cosine"` selects that of open_clip."""
        is_new = self.lr_scheduler is None
        super().create_scheduler(num_training_steps, optimizer)
        if is_new and self.args.lr_scheduler_type == "cosine":
            factor = partial(
                cosine_factor,
                warmup_steps=self.args.get_warmup_steps(num_training_steps),
                steps=num_training_steps,
                **(self.args.lr_scheduler_kwargs or {}),
            )
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Return the loss of a batch that is embedded at once."""
        outputs = model(**inputs)
        loss = self._contrastive_loss(model, outputs.image_embeds, outputs.text_embeds)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Compute the gradients of a batch, in mini-batches if `mini_batch_size` is set."""
        size = self.args.mini_batch_size
        if size is None or size >= len(inputs["pixel_values"]):
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
            # The batch stays in memory. The device receives one mini-batch at a time.
            mini_batch = self._select_rows(inputs, rows)
            if pinned:
                mini_batch = copy_to_device(mini_batch, self.args.device)
            outputs = model(**send_to_device(mini_batch, self.args.device))
            return outputs.image_embeds, outputs.text_embeds

        loss = cached_backward(
            embed,
            mini_batch_rows(inputs, size),
            partial(self._contrastive_loss, model),
            [scalar for scalar in loss_parameters(model) if scalar.requires_grad],
            backward=self.accelerator.backward,
            # With no_sync, FSDP would keep the gradients of the whole model in each process.
            no_sync=nullcontext if self.is_fsdp_enabled else lambda: self.accelerator.no_sync(model),
            device=self.args.device,
        )
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return loss

    def _select_rows(self, inputs: dict[str, torch.Tensor], rows: torch.Tensor) -> dict[str, torch.Tensor]:
        # The text encoder of SigLIP pools the last position, even if it is padding.
        return take_rows(inputs, rows, cut_text="siglip" not in self.model.config.model_type)

    def _contrastive_loss(
        self, model: nn.Module, image_embeds: torch.Tensor, text_embeds: torch.Tensor
    ) -> torch.Tensor:
        scale, bias = find_logit_scale(model).exp(), find_logit_bias(model)
        return contrastive_loss(image_embeds, text_embeds, scale, bias, loss=self.args.loss)

    def _prepare_sharding(self) -> None:
        """Exclude from FSDP2 what it cannot shard: scalar parameters, and layers that contain the token embeddings."""
        if not self.is_fsdp_enabled:
            raise ValueError(
                "`fsdp=True` requires accelerators. On the CPU, accelerate would silently use plain DDP. Omit `fsdp`."
            )
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:
            raise ValueError(
                "fsdp_config: logit_scale requires version 2 and cpu_ram_efficient_loading=False (the defaults)."
            )
        # Each process keeps the scalars, as with DDP.
        plugin.ignored_modules = [nn.ParameterList(loss_parameters(self.model)).to(self.args.device)]
        # accelerate shards the token embeddings separately, after all other layers.
        if plugin.transformer_cls_names_to_wrap is None:
            table, layers = self.model.get_input_embeddings(), self.model._no_split_modules or []
            plugin.transformer_cls_names_to_wrap = sorted(
                {
                    type(module).__name__
                    for module in self.model.modules()
                    if type(module).__name__ in layers and table not in module.modules()
                }
            )

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Embed the whole dataset, then compute losses and ranks, which are not defined per batch."""
        random_state = RandomState(self.args.device)  # a loader draws a seed for its workers
        model = self.model_for_evaluation()
        _set_mode(self.optimizer, "eval")
        images, texts = [], []
        with torch.no_grad():
            for inputs in dataloader:
                outputs = model(**send_to_device(inputs, self.args.device))
                gathered = self.accelerator.gather_for_metrics((outputs.image_embeds, outputs.text_embeds))
                images.append(gathered[0].float())
                texts.append(gathered[1].float())
                self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        image_embeds, text_embeds = torch.cat(images), torch.cat(texts)
        scale, bias = find_logit_scale(model).exp().float(), find_logit_bias(model)
        bias = None if bias is None else bias.float()
        with _full_float32():
            metrics = {
                "loss": whole_set_loss(image_embeds, text_embeds, scale, bias, loss=self.args.loss),
                LOSS_IN_BATCHES: loss_in_batches(image_embeds, text_embeds, scale),
            }
            for direction, values in retrieval_metrics(image_embeds, text_embeds).items():
                metrics |= {f"{direction}_{name}": value for name, value in values.items()}
        metrics |= self.run_evaluators(model)
        random_state.restore()
        return EvalLoopOutput(
            predictions=(image_embeds.cpu().numpy(), text_embeds.cpu().numpy()),
            label_ids=None,
            metrics={f"{metric_key_prefix}_{name}": value for name, value in metrics.items()},
            num_samples=len(image_embeds),
        )

    def run_evaluators(self, model: nn.Module) -> dict[str, float]:
        """Call all evaluators with the unwrapped model, and return their metrics."""
        model = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        if isinstance(model, FSDPModule):
            # By default, FSDP gathers the parameters only for `forward`.
            for method in ("get_image_features", "get_text_features"):
                register_fsdp_forward_method(model, method)
        metrics: dict[str, float] = {}
        with self.accelerator.autocast():
            for evaluator in self.evaluators:
                metrics |= evaluator(model)
        return metrics


class _ContrastiveCallback(TrainerCallback, ExportableState):
    """Set the position and the epoch of the stream, and clamp `logit_scale`."""

    def __init__(self) -> None:
        self.samples_seen = 0
        self.saved_step: int | None = None
        self.evaluated_step: int | None = None

    def state(self) -> dict[str, Any]:  # each checkpoint stores it in `trainer_state.json`
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
                    "The checkpoint was written with another batch size. Training continues near pair %s of its "
                    "stream, but with different batches than in an uninterrupted run.",
                    f"{self.samples_seen:,}",
                )
        batches.samples_seen = self.samples_seen
        # Trainer cannot save if the checkpoint of another trainer lacks this entry.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        collator: Any = getattr(train_dataloader, "collate_fn", None)
        if hasattr(collator, "set_epoch"):
            collator.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, train_dataloader=None, **kwargs):
        batches = _stream_batches(train_dataloader)
        if batches is None:
            return
        # Trainer treats an endless stream as one epoch of `max_steps`. An epoch of the stream ends with its last full
        # batch, as in open_clip. `state.epoch` counts pairs.
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
        # The epoch of Trainer may end together with one of the stream: evaluate and save only once.
        control.should_save &= self.saved_step != state.global_step
        control.should_evaluate &= self.evaluated_step != state.global_step

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        scale = find_logit_scale(model)
        # A frozen `logit_scale` belongs to the base model of an adapter, which must not change.
        if scale.requires_grad:
            with torch.no_grad():
                scale.clamp_(0, MAX_LOGIT_SCALE)


@contextmanager
def _full_float32() -> Iterator[None]:
    """Multiply in full float32, even if training uses TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def copied_ahead(loader: DataLoader, device: torch.device) -> DataLoader:
    """Return a loader whose batches are on an accelerator. The host does not wait for the copies.

    `Trainer` would wait for each copy, which starts when the accelerator has finished the last step. On the CPU, the
    loader is unchanged.
    """
    if device.type == "cpu":
        return loader
    return prepare_data_loader(
        loader, device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False, non_blocking=True
    )


def cosine_factor(step: int, *, warmup_steps: int, steps: int, num_cycles: float = 0.5) -> float:
    """Return the learning rate at a step as a fraction of the peak, as in open_clip's `cosine_lr`.

    In transformers, the warmup steps are counted from zero, so the first step has a learning rate of zero. `num_cycles`
    is the number of cosine cycles, as in transformers.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return max(0.0, 0.5 * (1 + math.cos(2 * math.pi * num_cycles * progress)))


def decay_parameter_names(model: nn.Module) -> list[str]:
    """Return the names of the parameters with weight decay.

    As in open_clip, these are all parameters with two or more dimensions. Biases, norms and `logit_scale` have fewer.
    """
    return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]


def find_logit_scale(model: nn.Module) -> nn.Parameter:
    """Return the log inverse temperature of a dual encoder, which may be wrapped (DDP, PEFT, compile)."""
    scale = _find_parameter(model, "logit_scale")
    if scale is None:
        raise ValueError(
            f"{type(model).__name__} has no parameter `logit_scale`. Contrastive training requires a dual encoder such "
            "as BiomedCLIPModel or CLIPModel."
        )
    return scale


def find_logit_bias(model: nn.Module) -> nn.Parameter | None:
    """Return the logit bias of a dual encoder, which may be wrapped, or None if it has no bias."""
    return _find_parameter(model, "logit_bias")


def loss_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a dual encoder outside of the towers: `logit_scale`, and `logit_bias` if it exists."""
    return [scalar for scalar in (find_logit_scale(model), find_logit_bias(model)) if scalar is not None]


def _find_parameter(model: nn.Module, wanted: str) -> nn.Parameter | None:
    found = (parameter for name, parameter in model.named_parameters() if name.rsplit(".", 1)[-1] == wanted)
    return next(found, None)


def _set_mode(optimizer: Any, mode: str) -> None:
    """Call `train()` or `eval()` of an optimizer that has these methods, such as a schedule-free one."""
    if callable(method := getattr(optimizer, mode, None)):
        method()


def _stream_batches(loader: DataLoader | None) -> Any:
    """Return the batches of the stream that a loader reads, or None if it reads another dataset."""
    dataset = getattr(loader, "dataset", None)
    return dataset if hasattr(dataset, "samples_seen") else None


@torch.no_grad()
def whole_set_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor | None = None,
    *,
    loss: str = LOSSES[0],
) -> float:
    """Return the loss of a whole dataset as one batch, computed in this process only (see [`contrastive_loss`])."""
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
    """Return open_clip's validation loss: the mean InfoNCE loss of consecutive batches, weighted by their sizes.

    open_clip reports InfoNCE for models trained with any loss. The last batch contains the remaining pairs. If there is
    only one batch, the result equals [`whole_set_loss`].
    """
    batches = zip(image_embeds.split(batch_size), text_embeds.split(batch_size), strict=True)
    total = sum(whole_set_loss(images, texts, logit_scale) * len(images) for images, texts in batches)
    return total / len(image_embeds)
