"""List which options of transformers' `Trainer` work in the trainings of this package, and which are refused.

The tables here are the single source of this information. The trainers check their options against them, and the page
`docs/training_arguments.md` is the output of `python -m biomedclip.training_options`.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations


CONTRASTIVE, LABELS = "contrastive", "labels"


class Rule(NamedTuple):
    """Whether an option works.

    Args:
        accepts: Called with the value, the training arguments, and whether the training set is a stream (None if that
            is not known yet). None if every value works.
        text: Notes on an option that works. For a refused option: the reason and the alternative.
        refused: Whether the default is the only value that works.
    """

    accepts: Callable[[Any, Any, bool | None], bool] | None
    text: str = ""
    refused: bool = False


def _is_unset(value: Any, args: Any, stream: bool | None) -> bool:
    return not value or value == "no"


def _refused(text: str, default: Any = None) -> Rule:
    """Return a rule that accepts only the default: nothing, or a value."""
    return Rule(_is_unset if default is None else lambda value, args, stream: value == default, text, refused=True)


def _with(condition: Callable[[Any], bool], text: str, default: Any = None) -> Rule:
    """Return a rule that accepts only the default unless certain other options are set."""
    return Rule(lambda value, args, stream: value == default or not value or condition(args), text)


def _without_stream(text: str, default: Any = None) -> Rule:
    return Rule(lambda value, args, stream: not stream or value == default, text)


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


WORKS = Rule(None)
_EVALUATES = "it needs eval_strategy, without which nothing is evaluated"
_NOT_OURS = "it has no effect on image-text models. Leave it out"
_WHOLE_SET = "evaluation embeds the whole set and measures it at once. Leave it out"
_NEEDS_HUB = "the folder is not checked before the upload. Use biomedclip push after training"
_BY_LENGTH = "it groups examples by length, and these batches have no lengths. Leave it out"
_TRACKERS = "it needs a tracker in report_to"
_TRACKIO = "it needs trackio in report_to"
_PRECISION = "evaluation runs in the precision of training. Use bf16"
_NO_EPOCH_FOR_WORKERS = "workers that outlive an epoch would repeat the crops of the first one. Leave it out"


def _evaluates(args: Any) -> bool:
    return args.eval_strategy != "no"


def _reports(args: Any) -> bool:
    return bool(args.report_to) and args.report_to != ["none"]


def _reports_to_trackio(args: Any) -> bool:
    return "trackio" in (args.report_to or [])


def _counts_epochs(args: Any) -> bool:
    # The trainers set max_steps themselves when they turn epochs into steps.
    return args.max_steps <= 0 or getattr(args, "steps_from_epochs", False)


def _is_checkpointing(args: Any) -> bool:
    return bool(args.gradient_checkpointing or getattr(args, "activation_checkpointing", None))


# For each field of TrainingArguments: the rule of contrastive training and, if it differs, the rule of training with
# labels (classification, visual question answering).
FIELDS: dict[str, tuple[Rule, ...]] = {
    "output_dir": (WORKS,),
    "per_device_train_batch_size": (WORKS,),
    "num_train_epochs": (_with(_counts_epochs, "it is ignored if max_steps is set. Leave one of the two out", 3.0),),
    "max_steps": (WORKS,),
    "learning_rate": (WORKS,),
    "lr_scheduler_type": (
        Rule(
            None,
            "The default is `cosine`. Its warm-up counts steps from one, as in open_clip: step `i` (from 0) has the "
            "rate `learning_rate * (i + 1) / warmup_steps`. The other schedules are those of transformers.",
        ),
        WORKS,
    ),
    "lr_scheduler_kwargs": (WORKS,),
    "warmup_steps": (WORKS,),
    "optim": (
        Rule(
            lambda value, args, stream: (
                not any(part in getattr(value, "value", value) for part in ("lomo", "galore", "apollo"))
            ),
            "LOMO, GaLore and APOLLO are not tested with this trainer. Use an optimizer such as adamw_torch",
        ),
    ),
    "optim_args": (
        _with(
            lambda args: getattr(args.optim, "value", args.optim) in ("sgd", "adagrad", "rmsprop"),
            "it needs optim=sgd, adagrad or rmsprop: the others that are tested here do not read it",
        ),
    ),
    "weight_decay": (WORKS,),
    "adam_beta1": (WORKS,),
    "adam_beta2": (WORKS,),
    "adam_epsilon": (WORKS,),
    "optim_target_modules": (
        _refused("it is for GaLore and APOLLO, which are not tested with this trainer. Leave it out"),
    ),
    "gradient_accumulation_steps": (
        _refused(
            "it would change the loss: each piece of the batch would see its own pairs as the only negatives. Use "
            "--mini-batch-size for a large batch on little memory: it gives the loss and the gradients of the whole "
            "batch",
            1,
        ),
        WORKS,
    ),
    "average_tokens_across_devices": (_refused("no tokens are counted for the loss. Leave it out", True),),
    "max_grad_norm": (
        Rule(None, "The default is 0: gradients are not clipped, as in the paper and in open_clip."),
        Rule(None, "The default is 0 (no clipping) for visual questions, as in METER, and 1 for classification."),
    ),
    "label_smoothing_factor": (_refused("a contrastive batch has no labels. Leave it out"), WORKS),
    "bf16": (WORKS,),
    "fp16": (_refused("it is not tested: it needs a loss scale. Use bf16"),),
    "bf16_full_eval": (_refused(_PRECISION),),
    "fp16_full_eval": (_refused(_PRECISION),),
    "tf32": (WORKS,),
    "activation_checkpointing": (WORKS,),
    "activation_checkpointing_kwargs": (_with(_is_checkpointing, "it needs activation_checkpointing"),),
    "gradient_checkpointing": (WORKS,),
    "gradient_checkpointing_kwargs": (_with(_is_checkpointing, "it needs gradient_checkpointing"),),
    "torch_compile": (WORKS,),
    "torch_compile_backend": (WORKS,),
    "torch_compile_mode": (WORKS,),
    "use_liger_kernel": (_refused("Liger has no kernels for these models. Leave it out"),),
    "liger_kernel_config": (_refused("Liger has no kernels for these models. Leave it out"),),
    "use_cache": (_refused("the models generate nothing. Leave it out"),),
    "neftune_noise_alpha": (WORKS, _refused(_NOT_OURS)),
    "torch_empty_cache_steps": (WORKS,),
    "auto_find_batch_size": (
        _refused(
            "it would silently reduce the number of in-batch negatives. Choose --per-device-train-batch-size, and "
            "--mini-batch-size for a large batch on little memory"
        ),
        _refused("it would change the number of steps. Choose --per-device-train-batch-size"),
    ),
    "logging_strategy": (WORKS,),
    "logging_steps": (_with(lambda args: args.logging_strategy == "steps", "needs logging_strategy=steps", 500),),
    "logging_first_step": (WORKS,),
    "log_on_each_node": (WORKS,),
    "logging_nan_inf_filter": (WORKS,),
    "include_num_input_tokens_seen": (
        _refused("it would count pixels. The number of pairs seen is the steps times the batch"),
    ),
    "log_level": (WORKS,),
    "log_level_replica": (WORKS,),
    "disable_tqdm": (WORKS,),
    "report_to": (WORKS,),
    "run_name": (_with(_reports, _TRACKERS),),
    "project": (_with(_reports_to_trackio, _TRACKIO, "huggingface"),),
    "trackio_space_id": (_with(_reports_to_trackio, _TRACKIO),),
    "trackio_bucket_id": (_with(_reports_to_trackio, _TRACKIO),),
    "trackio_static_space_id": (_with(_reports_to_trackio, _TRACKIO),),
    "eval_strategy": (WORKS,),
    "eval_steps": (_with(lambda args: args.eval_strategy == "steps", "needs eval_strategy=steps"),),
    "eval_delay": (_with(_evaluates, _EVALUATES),),
    "per_device_eval_batch_size": (WORKS,),
    "prediction_loss_only": (
        _refused("the metrics need the embeddings. Leave it out"),
        _refused("the metrics need the predictions. Leave it out"),
    ),
    "eval_on_start": (WORKS,),
    "eval_do_concat_batches": (
        _refused(_WHOLE_SET, True),
        _refused("the metrics need the whole set. Leave it out", True),
    ),
    "eval_use_gather_object": (_refused("all batches hold tensors. Leave it out"),),
    "eval_accumulation_steps": (_refused("embeddings leave the device after each batch. Leave it out"), WORKS),
    "include_for_metrics": (_refused("the metrics read nothing else. Leave it out"),),
    "batch_eval_metrics": (_refused("the metrics need the whole set. Leave it out"),),
    "save_only_model": (WORKS,),
    "save_strategy": (
        Rule(
            lambda value, args, stream: value != "best" or _evaluates(args),
            "best needs eval_strategy, without which nothing is saved",
        ),
    ),
    "save_steps": (_with(lambda args: args.save_strategy == "steps", "needs save_strategy=steps", 500),),
    "save_on_each_node": (WORKS,),
    "save_total_limit": (_with(lambda args: args.save_strategy != "no", "needs save_strategy"),),
    "enable_jit_checkpoint": (
        _refused("it saves in the middle of a step, from which a run does not go on exactly. Lower save_steps"),
    ),
    "push_to_hub": (_refused(_NEEDS_HUB),),
    "hub_token": (_refused(_NEEDS_HUB),),
    "hub_private_repo": (Rule(lambda value, args, stream: value is None, _NEEDS_HUB, refused=True),),
    "hub_model_id": (_refused(_NEEDS_HUB),),
    "hub_strategy": (_refused(_NEEDS_HUB, "every_save"),),
    "hub_always_push": (_refused(_NEEDS_HUB),),
    "hub_revision": (_refused(_NEEDS_HUB),),
    "load_best_model_at_end": (_with(_evaluates, _EVALUATES),),
    "metric_for_best_model": (_with(_evaluates, _EVALUATES),),
    "greater_is_better": (
        Rule(
            lambda value, args, stream: value is None or args.metric_for_best_model is not None,
            "it needs metric_for_best_model",
        ),
    ),
    "ignore_data_skip": (Rule(None, "A stream is never read again: its position is computed."), WORKS),
    "restore_callback_states_from_checkpoint": (WORKS,),
    "full_determinism": (WORKS,),
    "seed": (WORKS,),
    "data_seed": (
        _without_stream("a stream has a seed of its own: PairStream(seed=...), and --seed for the command"),
        WORKS,
    ),
    "use_cpu": (WORKS,),
    "accelerator_config": (
        Rule(
            _accepts_accelerator_config,
            "only use_configured_state and, without a stream, use_seedable_sampler may be changed. The others would "
            "accumulate gradients (gradient_accumulation_kwargs), change the batch (split_batches, even_batches), "
            "read all data in one process (dispatch_batches), or have no effect (non_blocking)",
        ),
    ),
    "parallelism_config": (_refused("tensor, context and sequence parallelism are not tested. Use DDP or fsdp"),),
    "dataloader_drop_last": (
        Rule(
            lambda value, args, stream: bool(value) or not stream,
            "a stream has whole batches only. False is for a training set with random access",
        ),
        _refused("steps are counted in whole batches. Leave it out", True),
    ),
    "dataloader_num_workers": (WORKS,),
    "dataloader_pin_memory": (WORKS,),
    "dataloader_persistent_workers": (_refused(_NO_EPOCH_FOR_WORKERS),),
    "dataloader_prefetch_factor": (WORKS,),
    "dataloader_multiprocessing_context": (WORKS,),
    "dataloader_in_order": (_refused("batches must come in their order for a run to be repeated. Leave it out", True),),
    "remove_unused_columns": (_refused("the collator needs the raw columns. Leave it out"),),
    "label_names": (_refused("the collator names the labels. Leave it out"),),
    "train_sampling_strategy": (
        Rule(
            lambda value, args, stream: value == "random" or (value == "sequential" and not stream),
            "sequential is for a training set with random access, and the other strategies need lengths, which pairs "
            "do not have. Leave it out",
        ),
        Rule(lambda value, args, stream: value in ("random", "sequential"), _BY_LENGTH),
    ),
    "length_column_name": (_refused(_BY_LENGTH, "length"),),
    "ddp_find_unused_parameters": (WORKS,),
    "ddp_bucket_cap_mb": (WORKS,),
    "ddp_broadcast_buffers": (WORKS,),
    "ddp_static_graph": (
        _with(
            lambda args: not getattr(args, "mini_batch_size", None),
            "mini_batch_size runs the model several times in a step. Leave one of the two out",
        ),
        WORKS,
    ),
    "ddp_backend": (WORKS,),
    "ddp_timeout": (WORKS,),
    "fsdp": (WORKS, _refused("it is not tested with labels. Use DDP")),
    "fsdp_config": (
        _with(lambda args: bool(args.fsdp), "it needs fsdp"),
        _refused("fsdp is not tested with labels. Use DDP"),
    ),
    "deepspeed": (_refused("it is not tested. Use DDP or fsdp"),),
    "debug": (_refused("it fails on boolean masks, or is for TPUs, which are not tested. Leave it out"),),
    "skip_memory_metrics": (WORKS,),
    "do_train": (Rule(None, "Says what is done anyway: `train()` trains."),),
    "do_eval": (_with(_evaluates, _EVALUATES),),
    "do_predict": (_refused("nothing is predicted after training. Use biomedclip evaluate"),),
    "resume_from_checkpoint": (
        Rule(
            None,
            "An option of the command. In Python pass it to `train(resume_from_checkpoint=...)`; it is refused here.",
        ),
    ),
    "local_rank": (_refused("torchrun and accelerate set it in the environment. Leave it out", -1),),
}
# For each argument of Trainer.__init__, the rule of ContrastiveTrainer. The other tasks are only run by the command.
ARGUMENTS: dict[str, Rule] = {
    "model": WORKS,
    "args": Rule(None, "Must be `ContrastiveTrainingArguments`."),
    "data_collator": WORKS,
    "train_dataset": WORKS,
    "eval_dataset": Rule(None, "Needs random access and a length; also a dictionary of such sets."),
    "processing_class": WORKS,
    "model_init": _refused("the loss is prepared for one model. Pass model"),
    "compute_loss_func": _refused(
        "the loss is the contrastive one. Choose it by ContrastiveTrainingArguments(loss=...)"
    ),
    "compute_metrics": _refused("evaluation measures retrieval. Pass other metrics as evaluators=[...]"),
    "callbacks": WORKS,
    "optimizers": WORKS,
    "optimizer_cls_and_kwargs": WORKS,
    "preprocess_logits_for_metrics": _refused("evaluation measures retrieval, without logits. Leave it out"),
}


def rule_of(name: str, training: str) -> Rule:
    """Return the rule of a field of `TrainingArguments`.

    Args:
        name: Name of the field.
        training: `contrastive` or `labels`.
    """
    rules = FIELDS[name]
    return rules[-1] if training == LABELS else rules[0]


def check_training_arguments(args: TrainingArguments, training: str, *, stream: bool | None = None) -> None:
    """Refuse fields that would be ignored or would change the training method.

    Args:
        args: The arguments, possibly changed after they were created.
        training: `contrastive` or `labels`.
        stream: Whether the training set is a stream. None if this is not known yet.

    Raises:
        ValueError: If a field has a value that does not work. The message names all such fields.
    """
    own = {field.name for field in dataclasses.fields(TrainingArguments)}
    faults = []
    for name in (field.name for field in dataclasses.fields(args) if field.name in own & set(FIELDS)):
        rule, value = rule_of(name, training), getattr(args, name)
        if rule.accepts is not None and not rule.accepts(value, args, stream):
            shown = "..." if name == "hub_token" else value.value if isinstance(value, Enum) else value
            faults.append(f"{name}={shown!r} is refused: {rule.text}.")
    if faults:
        raise ValueError("\n".join(faults))


def check_before_processing(args: TrainingArguments) -> None:
    """Refuse arguments that transformers would replace or load while it processes them.

    Args:
        args: The arguments as the user passed them.

    Raises:
        ValueError: If `deepspeed` is set, or `report_to` is `all` and no tracker is installed.
    """
    if args.deepspeed:
        raise ValueError(f"deepspeed={args.deepspeed!r} is refused: {rule_of('deepspeed', CONTRASTIVE).text}.")
    if args.report_to in ("all", ["all"]) and not get_available_reporting_integrations():
        raise ValueError("report_to='all': no tracker is installed. Install one, or leave report_to out.")


def check_trainer_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of `Trainer` that a contrastive training would ignore.

    Args:
        arguments: Arguments by name.

    Raises:
        ValueError: If one of them is refused.
    """
    for name, value in arguments.items():
        rule = ARGUMENTS.get(name, WORKS)
        if rule.accepts is not None and value is not None:
            raise ValueError(f"{name} is refused: {rule.text}.")


def check_accelerator(accelerator: Any) -> None:
    """Refuse settings of accelerate's environment that conflict with the training arguments.

    Args:
        accelerator: The accelerator of a trainer.

    Raises:
        ValueError: If it accumulates gradients, or uses DeepSpeed, Megatron-LM or another parallelism.
    """
    variable = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    if os.environ.get(variable, "1") != "1" or accelerator.gradient_accumulation_steps != 1:
        steps = os.environ.get(variable, accelerator.gradient_accumulation_steps)
        raise ValueError(
            f"{variable}={steps} is refused: accelerate must not accumulate gradients. Leave "
            "gradient_accumulation_steps out of its configuration and of `accelerate launch`."
        )
    kind = getattr(accelerator.distributed_type, "value", accelerator.distributed_type)
    if kind in ("DEEPSPEED", "MEGATRON_LM"):
        raise ValueError(f"accelerate is configured for {kind}, which is refused: it is not tested. Use DDP or fsdp.")
    if getattr(accelerator, "parallelism_config", None) is not None:
        raise ValueError(f"parallelism_config is refused: {rule_of('parallelism_config', CONTRASTIVE).text}.")


def markdown() -> str:
    """Return the tables as a page of the documentation."""

    def cell(rule: Rule) -> str:
        if rule.refused:
            return f"**refused**: {rule.text}"
        return f"works; {rule.text}" if rule.text else "works"

    lines = [
        "# Options of training",
        "",
        "Every field of `transformers.TrainingArguments` and every argument of `transformers.Trainer` either works or",
        "is refused by an error that names it. Nothing is ignored. The check runs when the arguments are created, when",
        "the trainer is created, and when training starts, so fields that are changed in between are checked too.",
        "",
        "This page is generated: `python -m biomedclip.training_options > docs/training_arguments.md`. A test",
        "compares the tables with the installed transformers, so a new release cannot add a field unnoticed.",
        "",
        "## Fields of `TrainingArguments`",
        "",
        "| field | contrastive training | classification and visual questions |",
        "|---|---|---|",
    ]
    for name in FIELDS:
        lines.append(f"| `{name}` | {cell(rule_of(name, CONTRASTIVE))} | {cell(rule_of(name, LABELS))} |")
    lines += ["", "## Arguments of `ContrastiveTrainer`", "", "| argument | contrastive training |", "|---|---|"]
    lines += [f"| `{name}` | {cell(rule)} |" for name, rule in ARGUMENTS.items()]
    return "\n".join([*lines, ""])


__all__ = [
    "ARGUMENTS",
    "CONTRASTIVE",
    "FIELDS",
    "LABELS",
    "Rule",
    "check_accelerator",
    "check_before_processing",
    "check_trainer_arguments",
    "check_training_arguments",
    "markdown",
    "rule_of",
]


if __name__ == "__main__":
    import sys

    sys.stdout.write(markdown())
