"""Rules for the options of transformers' `Trainer`: which ones the trainers of this package support.

The trainers check their options against these rules. `python -m biomedclip.argument_rules` generates the page
`docs/training_arguments.md` from them.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations


CONTRASTIVE, LABELS = "contrastive", "labels"


class Rule(NamedTuple):
    """Rule for the values of an option.

    `accepts` receives a value, the training arguments, and whether the training set is a stream (None if not known
    yet). It returns whether the value is supported. If `accepts` is None, all values are supported. `text` is a note on
    a supported option, or the reason and the alternative for an unsupported option. If `unsupported`, only the default
    is accepted.
    """

    accepts: Callable[[Any, Any, bool | None], bool] | None
    text: str = ""
    unsupported: bool = False


def _unsupported(text: str, default: Any = None) -> Rule:
    """Accept only the default, or any empty value if the default is None."""

    def accepts(value: Any, args: Any, stream: bool | None) -> bool:
        return value == default if default is not None else not value or value == "no"

    return Rule(accepts, text, unsupported=True)


def _requires(condition: Callable[[Any], bool], text: str, default: Any = None) -> Rule:
    """Accept only the default and empty values unless the training arguments meet a condition."""
    return Rule(lambda value, args, stream: value == default or not value or condition(args), text)


def _accepts_accelerator_config(value: Any, args: Any, stream: bool | None) -> bool:
    settings = value if isinstance(value, Mapping) else getattr(value, "to_dict", dict)()
    accumulation = settings.get("gradient_accumulation_kwargs") or {}
    return (
        not any(settings.get(name) for name in ("dispatch_batches", "split_batches", "non_blocking"))
        and settings.get("even_batches", True) is True
        and (settings.get("use_seedable_sampler", True) is True or not stream)
        and set(accumulation) <= {"num_steps"}
        and accumulation.get("num_steps", 1) == 1
    )


def _evaluates(args: Any) -> bool:
    return args.eval_strategy != "no"


def _tracks(args: Any) -> bool:
    return "trackio" in (args.report_to or [])


def _name(option: Any) -> str:
    return getattr(option, "value", option)


WORKS = Rule(None)
_NEEDS_TRACKIO = "it requires trackio in report_to"
_WHOLE_SET = "metrics are computed on the whole evaluation set at once"
_HUB = "the folder is not checked before the upload. Use `biomedclip push` after training"
_NO_LENGTHS = "batches cannot be grouped by length"

# Fields of TrainingArguments that work as in transformers.
_UNRESTRICTED = """
    output_dir per_device_train_batch_size max_steps learning_rate lr_scheduler_kwargs warmup_steps weight_decay
    adam_beta1 adam_beta2 adam_epsilon bf16 tf32 activation_checkpointing gradient_checkpointing torch_compile
    torch_compile_backend torch_compile_mode torch_empty_cache_steps logging_strategy logging_first_step
    log_on_each_node log_level log_level_replica disable_tqdm report_to eval_strategy
    per_device_eval_batch_size eval_on_start save_only_model save_on_each_node restore_callback_states_from_checkpoint
    full_determinism seed use_cpu dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor
    dataloader_multiprocessing_context ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_backend
    ddp_timeout skip_memory_metrics fsdp
"""
# Rules for all other fields. A key contains one or more field names, separated by spaces.
_RESTRICTED = {
    "num_train_epochs": _requires(
        lambda args: args.max_steps <= 0 or getattr(args, "steps_from_epochs", False),
        "it is ignored if max_steps is set. Set only one of them",
        3.0,
    ),
    "lr_scheduler_type": Rule(
        None,
        "The default is `cosine`. Its warmup counts steps from one, as in open_clip: step `i` (from 0) has the rate "
        "`learning_rate * (i + 1) / warmup_steps`. The other schedules are those of transformers.",
    ),
    "optim": Rule(
        lambda value, args, stream: not any(part in _name(value) for part in ("lomo", "galore", "apollo")),
        "LOMO, GaLore and APOLLO are not tested with this trainer. Use an optimizer such as adamw_torch",
    ),
    "optim_args": _requires(
        lambda args: _name(args.optim) in ("sgd", "adagrad", "rmsprop"),
        "it requires optim=sgd, adagrad or rmsprop. The other tested optimizers do not use it",
    ),
    "optim_target_modules": _unsupported("GaLore and APOLLO, which use it, are not tested with this trainer"),
    "gradient_accumulation_steps": _unsupported(
        "each part of the batch would use only its own pairs as negatives. Use mini_batch_size for a large batch on "
        "little memory: it computes the loss and the gradients of the whole batch",
        1,
    ),
    "average_tokens_across_devices": _unsupported("the loss does not count tokens", True),
    "max_grad_norm": Rule(None, "The default is 0: gradients are not clipped, as in the paper and in open_clip."),
    "label_smoothing_factor": _unsupported("a contrastive batch has no labels"),
    "neftune_noise_alpha": _unsupported("its noise depends on the number of tokens of a row, and texts are packed"),
    "fp16": _unsupported("the loss scaling that it needs is not tested. Use bf16"),
    "bf16_full_eval fp16_full_eval": _unsupported("evaluation uses the precision of training. Use bf16"),
    "gradient_checkpointing_kwargs activation_checkpointing_kwargs": _requires(
        lambda args: bool(args.gradient_checkpointing or getattr(args, "activation_checkpointing", None)),
        "it requires gradient_checkpointing or activation_checkpointing",
    ),
    "use_liger_kernel liger_kernel_config": _unsupported("Liger has no kernels for these models"),
    "use_cache": _unsupported("the models do not generate text"),
    "auto_find_batch_size": _unsupported(
        "it would silently reduce the number of in-batch negatives. Set per_device_train_batch_size, and "
        "mini_batch_size for a large batch on little memory"
    ),
    "logging_steps": _requires(
        lambda args: args.logging_strategy == "steps", "it requires logging_strategy=steps", 500
    ),
    "logging_nan_inf_filter": Rule(
        None, "The default is false: a loss that is NaN is shown, and no step waits for its loss."
    ),
    "include_num_input_tokens_seen": _unsupported(
        "it would count pixels. The number of pairs seen is the number of steps times the batch size"
    ),
    "run_name": _requires(
        lambda args: bool(args.report_to) and args.report_to != ["none"], "it requires a tracker in report_to"
    ),
    "project": _requires(_tracks, _NEEDS_TRACKIO, "huggingface"),
    "trackio_space_id trackio_bucket_id trackio_static_space_id": _requires(_tracks, _NEEDS_TRACKIO),
    "eval_steps": _requires(lambda args: args.eval_strategy == "steps", "it requires eval_strategy=steps"),
    "prediction_loss_only": _unsupported("the metrics need the embeddings"),
    "eval_do_concat_batches": _unsupported(_WHOLE_SET, True),
    "eval_use_gather_object": _unsupported("batches contain only tensors"),
    "eval_accumulation_steps": _unsupported("the metrics need all embeddings, which are small"),
    "include_for_metrics": _unsupported("the metrics use nothing else"),
    "batch_eval_metrics": _unsupported(_WHOLE_SET),
    "save_strategy": Rule(
        lambda value, args, stream: value != "best" or _evaluates(args), "save_strategy=best requires eval_strategy"
    ),
    "save_steps": _requires(lambda args: args.save_strategy == "steps", "it requires save_strategy=steps", 500),
    "save_total_limit": _requires(lambda args: args.save_strategy != "no", "it requires save_strategy"),
    "enable_jit_checkpoint": _unsupported(
        "it saves in the middle of a step, and a run cannot be resumed exactly from there. Lower save_steps"
    ),
    "push_to_hub hub_token hub_model_id hub_always_push hub_revision": _unsupported(_HUB),
    "hub_private_repo": Rule(lambda value, args, stream: value is None, _HUB, unsupported=True),
    "hub_strategy": _unsupported(_HUB, "every_save"),
    "eval_delay load_best_model_at_end metric_for_best_model do_eval": _requires(
        _evaluates, "it requires eval_strategy"
    ),
    "greater_is_better": Rule(
        lambda value, args, stream: value is None or args.metric_for_best_model is not None,
        "it requires metric_for_best_model",
    ),
    "ignore_data_skip": Rule(None, "A stream computes its position and is never read again."),
    "data_seed": Rule(
        lambda value, args, stream: not stream or value is None,
        "a stream uses the seed of `PairStream(seed=...)`. The command passes `seed` to it",
    ),
    "accelerator_config": Rule(
        _accepts_accelerator_config,
        "only use_configured_state and, without a stream, use_seedable_sampler can be changed. The other settings "
        "would accumulate gradients (gradient_accumulation_kwargs), change the batch (split_batches, even_batches), "
        "read all data in one process (dispatch_batches), or have no effect (non_blocking)",
    ),
    "parallelism_config": _unsupported("tensor, context and sequence parallelism are not tested. Use DDP or fsdp"),
    "dataloader_drop_last": Rule(
        lambda value, args, stream: bool(value) or not stream,
        "a stream has only whole batches. False requires a training set with random access",
    ),
    "dataloader_persistent_workers": _unsupported(
        "persistent workers would repeat the random crops of the first epoch"
    ),
    "dataloader_in_order": _unsupported("a run could not be repeated exactly", True),
    "remove_unused_columns": _unsupported("the collator needs the raw columns"),
    "label_names": _unsupported("the collator sets the names of the labels"),
    "train_sampling_strategy": Rule(
        lambda value, args, stream: value == "random" or (value == "sequential" and not stream),
        f"sequential requires a training set with random access. For the other strategies {_NO_LENGTHS}",
    ),
    "length_column_name": _unsupported(_NO_LENGTHS, "length"),
    "ddp_static_graph": _requires(
        lambda args: not getattr(args, "mini_batch_size", None),
        "with mini_batch_size the model runs several times in a step. Set only one of them",
    ),
    "fsdp_config": _requires(lambda args: bool(args.fsdp), "it requires fsdp"),
    "deepspeed": _unsupported("it is not tested. Use DDP or fsdp"),
    "debug": _unsupported("it fails on boolean masks, or is for TPUs, which are not tested"),
    "do_train": Rule(None, "it has no effect, because `train()` always trains"),
    "do_predict": _unsupported("training makes no predictions. Use `biomedclip evaluate`"),
    "resume_from_checkpoint": Rule(
        None, "only the command uses it. In Python, call `train(resume_from_checkpoint=...)`"
    ),
    "local_rank": _unsupported("torchrun and accelerate set it in the environment", -1),
}
# Rules that differ in training with labels (image classification and visual question answering).
_RESTRICTED_WITH_LABELS = {
    "lr_scheduler_type gradient_accumulation_steps label_smoothing_factor eval_accumulation_steps": WORKS,
    "ignore_data_skip data_seed ddp_static_graph": WORKS,
    "max_grad_norm": Rule(
        None, "The default is 0 (no clipping) for visual question answering, as in METER, and 1 for classification."
    ),
    "neftune_noise_alpha": _unsupported("it has no effect on image-text models"),
    "auto_find_batch_size": _unsupported("it would change the number of steps. Set per_device_train_batch_size"),
    "prediction_loss_only": _unsupported("the metrics need the predictions"),
    "dataloader_drop_last": _unsupported("steps are counted in whole batches", True),
    "train_sampling_strategy": Rule(lambda value, args, stream: value in ("random", "sequential"), _NO_LENGTHS),
    "fsdp fsdp_config": _unsupported("FSDP is not tested with labels. Use DDP"),
}


def _by_name(rules: Mapping[str, Rule]) -> dict[str, Rule]:
    return dict(sorted((name, rule) for names, rule in rules.items() for name in names.split()))


# Rule of each field of `TrainingArguments`, for both kinds of training.
FIELDS = {CONTRASTIVE: _by_name({_UNRESTRICTED: WORKS, **_RESTRICTED})}
FIELDS[LABELS] = FIELDS[CONTRASTIVE] | _by_name(_RESTRICTED_WITH_LABELS)
# Rule of ContrastiveTrainer for each argument of `Trainer.__init__`.
ARGUMENTS = _by_name(
    {
        "model data_collator train_dataset processing_class callbacks optimizers optimizer_cls_and_kwargs": WORKS,
        "args": Rule(None, "Must be `ContrastiveTrainingArguments`."),
        "eval_dataset": Rule(None, "Needs random access and a length. A dictionary of such datasets is accepted too."),
        "model_init": _unsupported("the trainer prepares one model for the loss. Pass model"),
        "compute_loss_func": _unsupported("choose the loss with ContrastiveTrainingArguments(loss=...)"),
        "compute_metrics": _unsupported("evaluation measures retrieval. Pass other metrics as evaluators=[...]"),
        "preprocess_logits_for_metrics": _unsupported("evaluation measures retrieval, without logits"),
    }
)


def check_training_arguments(args: TrainingArguments, training: str, *, stream: bool | None = None) -> None:
    """Raise one `ValueError` for all fields that would be ignored or would change the training method.

    `training` selects the rules: `contrastive` or `labels`. `stream` says whether the training set is a stream, and is
    None if this is not known yet.
    """
    errors = []
    for field in dataclasses.fields(TrainingArguments):
        if field.name not in FIELDS[training]:
            continue
        rule, value = FIELDS[training][field.name], getattr(args, field.name)
        if rule.accepts is not None and not rule.accepts(value, args, stream):
            shown = "..." if field.name == "hub_token" else value.value if isinstance(value, Enum) else value
            errors.append(f"`{field.name}={shown!r}` is not supported: {rule.text}.")
    if errors:
        raise ValueError("\n".join(errors))


def check_before_processing(args: TrainingArguments) -> None:
    """Check the arguments, as the user passed them, that transformers replaces or loads in `__post_init__`."""
    if args.deepspeed:
        text = FIELDS[CONTRASTIVE]["deepspeed"].text
        raise ValueError(f"`deepspeed={args.deepspeed!r}` is not supported: {text}.")
    if args.report_to in ("all", ["all"]) and not get_available_reporting_integrations():
        raise ValueError(
            "`report_to='all'` requires a tracker, but none is installed. Install one or omit `report_to`."
        )


def check_trainer_arguments(arguments: Mapping[str, Any]) -> None:
    """Raise `ValueError` if `ContrastiveTrainer` does not support an argument that is passed to `Trainer`."""
    for name, value in arguments.items():
        rule = ARGUMENTS.get(name, WORKS)
        if rule.accepts is not None and value is not None:
            raise ValueError(f"`{name}` is not supported: {rule.text}.")


def check_accelerator(accelerator: Any) -> None:
    """Raise `ValueError` if accelerate's configuration conflicts with the training arguments."""
    variable = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    if os.environ.get(variable, "1") != "1" or accelerator.gradient_accumulation_steps != 1:
        steps = os.environ.get(variable, accelerator.gradient_accumulation_steps)
        raise ValueError(
            f"{variable}={steps} is not supported: accelerate must not accumulate gradients. Remove "
            "gradient_accumulation_steps from its configuration and from `accelerate launch`."
        )
    kind = _name(accelerator.distributed_type)
    if kind in ("DEEPSPEED", "MEGATRON_LM"):
        raise ValueError(f"accelerate is configured for {kind}, which is not tested. Use DDP or fsdp.")
    if getattr(accelerator, "parallelism_config", None) is not None:
        text = FIELDS[CONTRASTIVE]["parallelism_config"].text
        raise ValueError(f"parallelism_config is not supported: {text}.")


def markdown() -> str:
    """Return the documentation page with the tables, in Markdown."""

    def cell(rule: Rule) -> str:
        if rule.unsupported:
            return f"**not supported**: {rule.text}"
        return f"supported; {rule.text}" if rule.text else "supported"

    fields = [
        f"| `{name}` | {cell(rule)} | {cell(FIELDS[LABELS][name])} |" for name, rule in FIELDS[CONTRASTIVE].items()
    ]
    arguments = [f"| `{name}` | {cell(rule)} |" for name, rule in ARGUMENTS.items()]
    return "\n".join([_HEAD, *fields, _ARGUMENTS_HEAD, *arguments, ""])


_HEAD = """\
# Training arguments

Each field of `transformers.TrainingArguments` and each argument of `transformers.Trainer` is either supported or raises
an error that contains its name. No field is ignored. The fields are checked when the training arguments are created,
when the trainer is created, and when training starts.

This page is generated by `python -m biomedclip.argument_rules > docs/training_arguments.md`. A test compares the
tables with the installed version of transformers.

## Fields of `TrainingArguments`

| field | contrastive training | image classification, visual question answering |
|---|---|---|"""
_ARGUMENTS_HEAD = """
## Arguments of `ContrastiveTrainer`

| argument | contrastive training |
|---|---|"""


if __name__ == "__main__":
    sys.stdout.write(markdown())
