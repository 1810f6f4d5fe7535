"""Each option of transformers' trainer works, or is not supported by name."""

import dataclasses
import inspect
import logging
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import Trainer, TrainingArguments

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments, training_arguments, training_options
from biomedclip.processing import ContrastiveCollator, PairStream
from biomedclip.run_scripts.training.supervised import SupervisedArguments
from biomedclip.training_arguments import are_processes_on_cpu
from biomedclip.training_options import ARGUMENTS, CONTRASTIVE, FIELDS, LABELS, markdown, rule_of


# Fields of releases other than the lowest, which need not be there.
OF_NEWER_RELEASES = {"activation_checkpointing", "activation_checkpointing_kwargs"}
DOCUMENT = Path(__file__).parents[2] / "docs" / "training_arguments.md"


def test_every_field_of_the_installed_transformers_is_in_the_table():
    installed = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert installed - set(FIELDS) == set(), "say in training_options.py whether they work"
    assert set(FIELDS) - installed <= OF_NEWER_RELEASES


def test_every_argument_of_the_trainer_is_in_the_table():
    assert set(inspect.signature(Trainer.__init__).parameters) - {"self"} == set(ARGUMENTS)


def test_the_page_of_the_documentation_is_the_table():
    assert DOCUMENT.read_text(encoding="utf-8") == markdown()


# Refused: a value, and words of the error. Where a value depends on others, these are given too.
REFUSED = {
    "num_train_epochs": {"num_train_epochs": 2, "max_steps": 5},
    "optim": {"optim": "galore_adamw"},
    "optim_args": {"optim_args": "amsgrad=True"},
    "optim_target_modules": {"optim_target_modules": "all-linear"},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "average_tokens_across_devices": {"average_tokens_across_devices": False},
    "label_smoothing_factor": {"label_smoothing_factor": 0.1},
    "fp16": {"fp16": True},
    "bf16_full_eval": {"bf16_full_eval": True},
    "fp16_full_eval": {"fp16_full_eval": True},
    "activation_checkpointing_kwargs": {"activation_checkpointing_kwargs": {"use_reentrant": False}},
    "gradient_checkpointing_kwargs": {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
    "use_liger_kernel": {"use_liger_kernel": True},
    "liger_kernel_config": {"liger_kernel_config": {"rope": True}},
    "use_cache": {"use_cache": True},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "auto_find_batch_size": {"auto_find_batch_size": True},
    "logging_steps": {"logging_steps": 3, "logging_strategy": "epoch"},
    "include_num_input_tokens_seen": {"include_num_input_tokens_seen": "all"},
    "run_name": {"run_name": "mine"},
    "project": {"project": "mine", "report_to": ["tensorboard"]},
    "trackio_space_id": {"trackio_space_id": "lab/space"},
    "trackio_bucket_id": {"trackio_bucket_id": "lab/bucket"},
    "trackio_static_space_id": {"trackio_static_space_id": "lab/space"},
    "eval_steps": {"eval_steps": 5},
    "eval_delay": {"eval_delay": 5},
    "prediction_loss_only": {"prediction_loss_only": True},
    "eval_do_concat_batches": {"eval_do_concat_batches": False},
    "eval_use_gather_object": {"eval_use_gather_object": True},
    "eval_accumulation_steps": {"eval_accumulation_steps": 2},
    "include_for_metrics": {"include_for_metrics": ["loss"]},
    "batch_eval_metrics": {"batch_eval_metrics": True},
    "save_strategy": {"save_strategy": "best", "metric_for_best_model": "loss"},
    "save_steps": {"save_steps": 3, "save_strategy": "epoch"},
    "save_total_limit": {"save_total_limit": 3, "save_strategy": "no"},
    "enable_jit_checkpoint": {"enable_jit_checkpoint": True},
    "push_to_hub": {"push_to_hub": True},
    "hub_token": {"hub_token": "secret"},
    "hub_private_repo": {"hub_private_repo": True},
    "hub_model_id": {"hub_model_id": "lab/model"},
    "hub_strategy": {"hub_strategy": "end"},
    "hub_always_push": {"hub_always_push": True},
    "hub_revision": {"hub_revision": "main"},
    "load_best_model_at_end": {"load_best_model_at_end": True, "save_strategy": "no"},
    "metric_for_best_model": {"metric_for_best_model": "loss"},
    "greater_is_better": {"greater_is_better": True},
    "data_seed": {"data_seed": 3},
    "accelerator_config": {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
    "parallelism_config": {"parallelism_config": object()},
    "dataloader_drop_last": {"dataloader_drop_last": False},
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "dataloader_in_order": {"dataloader_in_order": False},
    "remove_unused_columns": {"remove_unused_columns": True},
    "label_names": {"label_names": ["labels"]},
    "train_sampling_strategy": {"train_sampling_strategy": "group_by_length"},
    "length_column_name": {"length_column_name": "size"},
    "ddp_static_graph": {"ddp_static_graph": True, "mini_batch_size": 2},
    "fsdp": {"fsdp": True},
    "fsdp_config": {"fsdp_config": {"version": 2}},
    "deepspeed": {"deepspeed": {}} | {"deepspeed": {"zero_optimization": {"stage": 2}}},
    "debug": {"debug": "underflow_overflow"},
    "do_eval": {"do_eval": True},
    "do_predict": {"do_predict": True},
    "local_rank": {"local_rank": 1},
}
OF_A_STREAM = {"data_seed", "dataloader_drop_last"}  # refused for a stream alone
OF_CONTRASTIVE = {
    *("gradient_accumulation_steps", "label_smoothing_factor", "eval_accumulation_steps", "ddp_static_graph"),
    "data_seed",
}
OF_LABELS = {"neftune_noise_alpha", "fsdp"}
OTHER_SETTINGS_OF_ACCELERATE = [
    {"gradient_accumulation_kwargs": {"num_steps": 1, "sync_each_batch": True}},
    {"split_batches": True},
    {"dispatch_batches": True},
    {"even_batches": False},
    {"non_blocking": True},
]


def test_every_refused_setting_of_the_table_is_tested():
    limited = {name for name in FIELDS for rule in FIELDS[name] if rule.accepts is not None}
    assert limited == set(REFUSED)


def restricts(name: str, training: str) -> bool:
    installed = {field.name for field in dataclasses.fields(TrainingArguments)}
    return name in installed and rule_of(name, training).accepts is not None


@pytest.mark.parametrize("name", [name for name in REFUSED if restricts(name, CONTRASTIVE) and name not in OF_A_STREAM])
def test_a_field_that_would_be_ignored_is_refused_by_name(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}=.* is not supported: .*") as error:
        ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **REFUSED[name])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", [name for name in REFUSED if restricts(name, LABELS) and name != "ddp_static_graph"])
def test_a_field_that_training_with_labels_would_ignore_is_refused_by_name(name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}=.* is not supported: .*"):
        SupervisedArguments(output_dir=str(tmp_path), use_cpu=True, **REFUSED[name])


@pytest.mark.parametrize("arguments_class", [ContrastiveTrainingArguments, SupervisedArguments])
@pytest.mark.parametrize("settings", OTHER_SETTINGS_OF_ACCELERATE)
def test_settings_of_accelerate_that_change_the_batch_are_refused(arguments_class, settings, tmp_path):
    with pytest.raises(ValueError, match="accelerator_config=.* is not supported"):
        arguments_class(output_dir=str(tmp_path), use_cpu=True, accelerator_config=settings)


def test_report_to_all_selects_no_tracker_if_none_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(training_options, "get_available_reporting_integrations", lambda: [])
    with pytest.raises(ValueError, match="none is installed"):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="all")


@pytest.fixture
def trainer(built, small_model, small_processor, tmp_path):
    """Make a trainer of the small model, on a stream or on a list of pairs."""

    def make(*, stream: bool = True, eval_dataset=None, further=None, **options) -> ContrastiveTrainer:
        defaults = {"max_steps": 2, "per_device_train_batch_size": 8, "save_strategy": "no", "use_cpu": True}
        pairs = PairStream(built)
        args = ContrastiveTrainingArguments(output_dir=str(tmp_path / "run"), disable_tqdm=True, **(defaults | options))
        return ContrastiveTrainer(
            small_model,
            args,
            train_dataset=pairs if stream else [row for row in pairs.rows(0, 0, 32) if row.pop("epoch") is not None],
            eval_dataset=eval_dataset,
            data_collator=ContrastiveCollator(small_processor, training=True),
            **(further or {}),
        )

    return make


@pytest.mark.parametrize(
    ("processes", "accelerator", "expected"), [("2", False, True), ("2", True, False), ("1", False, False)]
)
def test_processes_without_an_accelerator_train_on_the_cpu(monkeypatch, tmp_path, processes, accelerator, expected):
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    assert are_processes_on_cpu() == expected
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(training_arguments, "are_processes_on_cpu", lambda: expected)
    assert ContrastiveTrainingArguments(output_dir=str(tmp_path)).use_cpu == expected


def test_evaluators_of_a_compiled_model_get_the_model_itself(trainer, small_model):
    evaluator = trainer(further={"evaluators": [lambda model: {"itself": model is small_model}]})
    assert evaluator.run_evaluators(torch.compile(small_model, backend="eager")) == {"itself": True}


@pytest.mark.parametrize("options", [{"data_seed": 3}, {"dataloader_drop_last": False}])
def test_a_field_that_a_stream_would_ignore_is_refused_by_name(trainer, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is not supported"):
        trainer(**options)
    trainer(stream=False, **options)


@pytest.mark.parametrize("strategy", ["sequential", "random"])
def test_options_that_change_the_order_of_a_stream_are_refused(trainer, strategy):
    if strategy == "sequential":
        with pytest.raises(ValueError, match="train_sampling_strategy='sequential' is not supported"):
            trainer(train_sampling_strategy=strategy)
    loader = trainer(stream=False, train_sampling_strategy=strategy).get_train_dataloader()
    assert ("Sequential" in type(loader.batch_sampler.sampler).__name__) == (strategy == "sequential")


@pytest.mark.parametrize("name", [name for name, rule in ARGUMENTS.items() if rule.accepts is not None])
def test_an_argument_that_would_be_ignored_is_refused_by_name(trainer, name):
    with pytest.raises(ValueError, match=f"{name} is not supported"):
        trainer(further={name: lambda *values, **named: {}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda args: setattr(args, "gradient_accumulation_steps", 2),
            "gradient_accumulation_steps=2 is",
        ),
        (lambda args: setattr(args, "auto_find_batch_size", True), "auto_find_batch_size=True is not supported"),
        (lambda args: setattr(args, "label_smoothing_factor", 0.1), "label_smoothing_factor=0.1 is not supported"),
        (lambda args: setattr(args, "mini_batch_size", 9), "mini_batch_size=9 is larger than the batch"),
        (
            lambda args: setattr(args.accelerator_config, "gradient_accumulation_kwargs", {"num_steps": 4}),
            "accelerator_config=.* is not supported",
        ),
    ],
)
def test_a_field_that_is_changed_after_the_check_is_refused_when_training_starts(trainer, change, message):
    made = trainer()
    change(made.args)
    with pytest.raises(ValueError, match=message):
        made.train()
    with pytest.raises(ValueError, match=message):
        ContrastiveTrainer(made.model, made.args, train_dataset=made.pair_stream)


def test_gradient_accumulation_of_the_environment_is_refused(trainer, monkeypatch):
    made = trainer()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is not supported"):
        made.train()
    with pytest.raises(ValueError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is not supported"):
        trainer()


def test_gradient_accumulation_that_accelerate_has_changed_is_refused(trainer):
    made = trainer()
    made.accelerator.gradient_accumulation_steps = 2
    try:
        with pytest.raises(ValueError, match="gradient_accumulation"):
            made.train()
    finally:
        made.accelerator.gradient_accumulation_steps = 1


def test_a_checkpoint_that_is_named_where_nothing_reads_it_is_refused(trainer):
    with pytest.raises(ValueError, match="trainer.train"):
        trainer(resume_from_checkpoint="true").train()


def test_an_evaluation_set_without_random_access_is_refused(trainer, built):
    with pytest.raises(ValueError, match="eval_dataset .*no random access"):
        trainer(eval_dataset=PairStream(built, "test"))
    with pytest.raises(ValueError, match="eval_dataset second.*no random access"):
        trainer(eval_dataset={"first": [{}], "second": iter([])})


def test_arguments_of_another_kind_are_refused(small_model, tmp_path):
    for args in (None, TrainingArguments(output_dir=str(tmp_path), use_cpu=True)):
        with pytest.raises(ValueError, match="requires model, and ContrastiveTrainingArguments"):
            ContrastiveTrainer(small_model, args)


# Works: many options in one trainer each, as a run of each would take long.


def test_options_of_optimizer_and_schedule_reach_them(trainer):
    made = trainer(
        learning_rate=1e-3,
        weight_decay=0.1,
        adam_beta1=0.8,
        adam_beta2=0.9,
        adam_epsilon=1e-5,
        optim="adamw_torch",
        lr_scheduler_type="cosine_with_restarts",
        lr_scheduler_kwargs={"num_cycles": 2},
        warmup_steps=4,
        max_steps=20,
    )
    made.create_optimizer_and_scheduler(20)
    group = made.optimizer.param_groups[0]
    assert type(made.optimizer) is torch.optim.AdamW
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-5, 0.1)
    rates = []
    for _ in range(20):
        rates.append(made.lr_scheduler.get_last_lr()[0])
        made.optimizer.step()
        made.lr_scheduler.step()
    assert rates[:5] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3])
    assert rates[12] == pytest.approx(1e-3), "the second cycle"


def test_arguments_of_an_optimizer_reach_it(trainer):
    made = trainer(optim="sgd", optim_args="momentum=0.5")
    assert made.create_optimizer().defaults["momentum"] == 0.5


def test_options_of_the_loaders_reach_them(trainer, built):
    rows = PairStream(built, "test").rows(0, 0, 8)
    options = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3, "per_device_eval_batch_size": 5}
    options |= {"dataloader_multiprocessing_context": "spawn"}
    for stream in (True, False):
        made = trainer(stream=stream, eval_dataset=rows, **options)
        for loader in (made.get_train_dataloader(), made.get_eval_dataloader()):
            assert (loader.num_workers, loader.prefetch_factor) == (2, 3)
            assert loader.multiprocessing_context.get_start_method() == "spawn"
        assert made.get_eval_dataloader().batch_sampler.batch_size == 5


def test_options_of_ddp_reach_accelerate(trainer):
    options = {"ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 7, "ddp_broadcast_buffers": False}
    handler = trainer(**options, ddp_static_graph=True).accelerator.ddp_handler
    assert (handler.find_unused_parameters, handler.bucket_cap_mb, handler.broadcast_buffers) == (True, 7, False)
    assert handler.static_graph


def test_the_data_seed_only_changes_the_order_of_a_list(trainer):
    orders = [list(trainer(stream=False, data_seed=seed).get_train_dataloader().batch_sampler) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_the_last_batch_of_a_list_is_kept_on_request(trainer):
    assert [
        len(trainer(stream=False, per_device_train_batch_size=12, dataloader_drop_last=drop).get_train_dataloader())
        for drop in (True, False)
    ] == [2, 3]


class Modes(torch.optim.SGD):
    """An optimizer with modes, as schedule-free ones have."""

    calls: Counter = Counter()

    def train(self):
        self.calls["train"] += 1

    def eval(self):
        self.calls["eval"] += 1


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_an_optimizer_is_told_of_training_and_evaluation(trainer, built, mini_batch_size):
    Modes.calls.clear()
    made = trainer(
        mini_batch_size=mini_batch_size,
        eval_dataset=PairStream(built, "test").rows(0, 0, 8),
        eval_strategy="steps",
        eval_steps=2,
        further={"optimizer_cls_and_kwargs": (Modes, {"lr": 1e-3})},
    )
    made.train()
    assert Modes.calls["train"] >= 2 and Modes.calls["eval"] == 1


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_the_cache_of_the_device_is_emptied_on_request(trainer, monkeypatch, mini_batch_size):
    emptied = []
    for module in ("transformers.trainer", "biomedclip.contrastive_trainer"):
        monkeypatch.setattr(f"{module}.clear_device_cache", lambda: emptied.append(1))
    trainer(mini_batch_size=mini_batch_size, torch_empty_cache_steps=2, max_steps=4).train()
    assert len(emptied) == 2


def test_a_custom_optimizer_trains(trainer, small_model):
    optimizer = torch.optim.SGD(small_model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = small_model.visual_projection.weight.detach().clone()
    made = trainer(further={"optimizers": (optimizer, schedule)}, logging_steps=1)
    made.train()
    assert not torch.equal(small_model.visual_projection.weight, before)
    rates = [entry["learning_rate"] for entry in made.state.log_history if "learning_rate" in entry]
    assert rates in ([0.5, 0.25], [0.25, 0.125]), "before or after the step, as versions have it"


def test_several_evaluation_sets_are_measured_one_by_one(trainer, built):
    rows = PairStream(built, "test").rows(0, 0, 8)
    metrics = trainer(eval_dataset={"some": rows, "few": rows[:4]}).evaluate()
    assert metrics["eval_some_loss"] > metrics["eval_few_loss"] > 0


def test_the_best_checkpoint_is_kept_and_loaded(trainer, built, tmp_path):
    made = trainer(
        eval_dataset=PairStream(built, "test").rows(0, 0, 8),
        max_steps=4,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        eval_delay=2,
        eval_on_start=True,
        save_strategy="best",
        save_total_limit=1,
        metric_for_best_model="loss",
        greater_is_better=True,
        load_best_model_at_end=True,
        logging_first_step=True,
        skip_memory_metrics=False,
        max_grad_norm=1e-3,
        restore_callback_states_from_checkpoint=True,
    )
    output = made.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in made.state.log_history if "eval_loss" in entry}
    best = max((step for step in losses if step), key=losses.get)
    assert set(losses) == {0, 2, 3, 4} or set(losses) == {2, 3, 4, 0}
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == [f"checkpoint-{best}"]
    assert made.evaluate()["eval_loss"] == pytest.approx(losses[best], abs=1e-5)
    assert any("mem" in name for name in output.metrics)
    assert made.state.log_history[1]["step"] in (0, 1)
    made.args.load_best_model_at_end = False
    assert made.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{best}")).global_step == 4


@pytest.mark.parametrize(
    "options",
    [
        {"neftune_noise_alpha": 5.0},
        {"full_determinism": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ],
)
def test_options_of_the_forward_pass_train(trainer, small_model, options):
    state = {name: value.clone() for name, value in small_model.state_dict().items()}
    losses = []
    try:
        for chosen in ({}, options):
            small_model.load_state_dict(state)
            forget_accelerate()
            losses.append(trainer(max_steps=1, logging_steps=1, **chosen).train().training_loss)
    finally:
        torch.use_deterministic_algorithms(False)
    assert math.isfinite(losses[1])
    same = "gradient_checkpointing" in options or "full_determinism" in options
    assert (losses[0] == pytest.approx(losses[1], abs=1e-6)) == same


def test_a_loss_that_is_not_a_number_is_left_out_of_the_log_on_request(trainer, small_model, caplog):
    caplog.set_level(logging.ERROR)
    with torch.no_grad():
        small_model.visual_projection.weight.fill_(float("nan"))
    for filtered in (True, False):
        made = trainer(logging_nan_inf_filter=filtered, logging_steps=1, max_steps=1)
        made.train()
        assert math.isnan(made.state.log_history[0]["loss"]) != filtered


def test_bf16_trains_in_bfloat16(trainer, small_model):
    seen = []
    small_model.visual_projection.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    trainer(bf16=True, max_steps=1).train()
    assert seen == [torch.bfloat16]


@pytest.fixture(autouse=True)
def accelerate_as_it_was():
    yield
    forget_accelerate()


def forget_accelerate() -> None:
    """Reset what all accelerators of a process share, such as the precision."""
    PartialState._reset_state()
    AcceleratorState._reset_state()
    GradientState._reset_state()
