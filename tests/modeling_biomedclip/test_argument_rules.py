"""Each option of transformers' Trainer is supported, or raises an error that names it."""

import dataclasses
import inspect
import logging
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from helpers.pair_shards import write_shards
from transformers import Trainer, TrainingArguments

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments, argument_rules, training_arguments
from biomedclip.argument_rules import ARGUMENTS, CONTRASTIVE, FIELDS, LABELS, markdown
from biomedclip.processing import ContrastiveCollator, PairStream
from biomedclip.run_scripts.training.supervised import SupervisedArguments


# Fields of releases other than the lowest.
OF_NEWER_RELEASES = {"activation_checkpointing", "activation_checkpointing_kwargs"}
INSTALLED = {field.name for field in dataclasses.fields(TrainingArguments)}
DOCUMENT = Path(__file__).parents[2] / "docs" / "training_arguments.md"


def test_every_field_of_the_installed_transformers_is_in_the_table():
    assert INSTALLED - set(FIELDS[CONTRASTIVE]) == set(), "say in argument_rules.py whether they are supported"
    assert set(FIELDS[CONTRASTIVE]) - INSTALLED <= OF_NEWER_RELEASES
    assert set(FIELDS[LABELS]) == set(FIELDS[CONTRASTIVE])


def test_every_argument_of_the_trainer_is_in_the_table():
    assert set(inspect.signature(Trainer.__init__).parameters) - {"self"} == set(ARGUMENTS)


def test_the_page_of_the_documentation_is_the_table():
    assert DOCUMENT.read_text(encoding="utf-8") == markdown()


# An unsupported value of each restricted field.
UNSUPPORTED = {
    **dict.fromkeys(
        "average_tokens_across_devices eval_do_concat_batches dataloader_drop_last dataloader_in_order".split(), False
    ),
    **dict.fromkeys(
        """
        fp16 bf16_full_eval fp16_full_eval use_liger_kernel use_cache auto_find_batch_size prediction_loss_only
        eval_use_gather_object batch_eval_metrics enable_jit_checkpoint push_to_hub hub_private_repo hub_always_push
        greater_is_better remove_unused_columns fsdp do_eval do_predict
        """.split(),
        True,
    ),
    **dict.fromkeys(
        """
        eval_steps eval_delay data_seed gradient_accumulation_steps eval_accumulation_steps local_rank
        label_smoothing_factor neftune_noise_alpha
        """.split(),
        2,
    ),
    **dict.fromkeys(
        """
        optim_args optim_target_modules run_name trackio_space_id trackio_static_space_id trackio_bucket_id
        hub_model_id hub_revision metric_for_best_model length_column_name
        """.split(),
        "other",
    ),
    **dict.fromkeys("activation_checkpointing_kwargs gradient_checkpointing_kwargs".split(), {"use_reentrant": False}),
    "optim": "galore_adamw",
    "liger_kernel_config": {"rope": True},
    "include_num_input_tokens_seen": "all",
    "include_for_metrics": ["loss"],
    "hub_token": "secret",
    "hub_strategy": "end",
    "accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}},
    "parallelism_config": object(),
    "label_names": ["labels"],
    "train_sampling_strategy": "group_by_length",
    "fsdp_config": {"version": 2},
    "debug": "underflow_overflow",
    "deepspeed": {"zero_optimization": {"stage": 2}},
}
# Values that depend on other options.
COMBINATIONS = {
    "num_train_epochs": {"num_train_epochs": 2, "max_steps": 5},
    "logging_steps": {"logging_steps": 3, "logging_strategy": "epoch"},
    "project": {"project": "mine", "report_to": ["tensorboard"]},
    "save_strategy": {"save_strategy": "best", "metric_for_best_model": "loss"},
    "save_steps": {"save_steps": 3, "save_strategy": "epoch"},
    "save_total_limit": {"save_total_limit": 3, "save_strategy": "no"},
    "load_best_model_at_end": {"load_best_model_at_end": True, "save_strategy": "no"},
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "ddp_static_graph": {"ddp_static_graph": True, "mini_batch_size": 2},
}
REFUSED = {name: {name: value} for name, value in UNSUPPORTED.items()} | COMBINATIONS
OF_A_STREAM = {"data_seed", "dataloader_drop_last"}  # unsupported only for a stream


def restricted_fields(training: str, *excluded: str) -> list[str]:
    restricted = {name for name, rule in FIELDS[training].items() if rule.accepts is not None}
    return sorted(restricted & INSTALLED - set(excluded))


def test_every_restricted_field_is_tested():
    assert {name for rules in FIELDS.values() for name, rule in rules.items() if rule.accepts is not None} == set(
        REFUSED
    )


@pytest.mark.parametrize(
    ("arguments_class", "name"),
    [(ContrastiveTrainingArguments, name) for name in restricted_fields(CONTRASTIVE, *OF_A_STREAM)]
    + [(SupervisedArguments, name) for name in restricted_fields(LABELS, "ddp_static_graph")],
)
def test_an_unsupported_field_is_an_error_that_names_it(arguments_class, name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}=.* is not supported: .*") as error:
        arguments_class(output_dir=str(tmp_path), use_cpu=True, **REFUSED[name])
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("arguments_class", [ContrastiveTrainingArguments, SupervisedArguments])
@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_kwargs": {"num_steps": 1, "sync_each_batch": True}},
        *({name: True} for name in ("split_batches", "dispatch_batches", "non_blocking")),
        {"even_batches": False},
    ],
)
def test_settings_of_accelerate_that_change_the_batch_are_errors(arguments_class, settings, tmp_path):
    with pytest.raises(ValueError, match="accelerator_config=.* is not supported"):
        arguments_class(output_dir=str(tmp_path), use_cpu=True, accelerator_config=settings)


def test_report_to_all_requires_an_installed_tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(argument_rules, "get_available_reporting_integrations", lambda: [])
    with pytest.raises(ValueError, match="none is installed"):
        ContrastiveTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="all")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> PairStream:
    return PairStream(write_shards(tmp_path_factory.mktemp("pairs"), shards=2, image_size=(40, 30)))


@pytest.fixture
def trainer(pairs, small_model, small_processor, tmp_path):
    """Create a trainer of the small model, on a stream or on a list of pairs."""

    def make(*, stream: bool = True, eval_dataset=None, further=None, **options) -> ContrastiveTrainer:
        defaults = {"max_steps": 2, "per_device_train_batch_size": 8, "save_strategy": "no", "use_cpu": True}
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


@pytest.fixture
def rows(pairs) -> list[dict]:
    """Eight pairs to evaluate."""
    return pairs.rows(0, 40, 48)


@pytest.mark.parametrize(
    ("processes", "accelerator", "expected"), [("2", False, True), ("2", True, False), ("1", False, False)]
)
def test_processes_without_an_accelerator_train_on_the_cpu(monkeypatch, tmp_path, processes, accelerator, expected):
    monkeypatch.setenv("WORLD_SIZE", processes)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    assert training_arguments.are_processes_on_cpu() == expected
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(training_arguments, "are_processes_on_cpu", lambda: expected)
    assert ContrastiveTrainingArguments(output_dir=str(tmp_path)).use_cpu == expected


def test_evaluators_of_a_compiled_model_get_the_model_itself(trainer, small_model):
    evaluator = trainer(further={"evaluators": [lambda model: {"itself": model is small_model}]})
    assert evaluator.run_evaluators(torch.compile(small_model, backend="eager")) == {"itself": True}


@pytest.mark.parametrize("options", [{"data_seed": 3}, {"dataloader_drop_last": False}])
def test_a_field_that_a_stream_ignores_is_an_error(trainer, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is not supported"):
        trainer(**options)
    trainer(stream=False, **options)


@pytest.mark.parametrize("strategy", ["sequential", "random"])
def test_the_order_of_a_stream_cannot_be_changed(trainer, strategy):
    if strategy == "sequential":
        with pytest.raises(ValueError, match="train_sampling_strategy='sequential'. is not supported"):
            trainer(train_sampling_strategy=strategy)
    loader = trainer(stream=False, train_sampling_strategy=strategy).get_train_dataloader()
    assert ("Sequential" in type(loader.batch_sampler.sampler).__name__) == (strategy == "sequential")


@pytest.mark.parametrize("name", [name for name, rule in ARGUMENTS.items() if rule.accepts is not None])
def test_an_unsupported_argument_is_an_error_that_names_it(trainer, name):
    with pytest.raises(ValueError, match=f"`{name}` is not supported"):
        trainer(further={name: lambda *values, **named: {}})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gradient_accumulation_steps", 2, "is not supported"),
        ("auto_find_batch_size", True, "is not supported"),
        ("label_smoothing_factor", 0.1, "is not supported"),
        ("mini_batch_size", 9, "is larger than the batch"),
        ("accelerator_config", {"gradient_accumulation_kwargs": {"num_steps": 4}}, "is not supported"),
    ],
)
def test_a_field_that_is_changed_later_is_checked_when_training_starts(trainer, name, value, message):
    made = trainer()
    setattr(made.args, name, value)
    with pytest.raises(ValueError, match=f"{name}=.* {message}"):
        made.train()


def test_gradient_accumulation_in_the_environment_is_an_error(trainer, monkeypatch):
    made = trainer()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is not supported"):
        made.train()
    with pytest.raises(ValueError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is not supported"):
        trainer()


def test_gradient_accumulation_set_in_accelerate_is_an_error(trainer):
    made = trainer()
    made.accelerator.gradient_accumulation_steps = 2
    try:
        with pytest.raises(ValueError, match="gradient_accumulation"):
            made.train()
    finally:
        made.accelerator.gradient_accumulation_steps = 1


def test_resume_from_checkpoint_in_the_arguments_is_an_error(trainer):
    with pytest.raises(ValueError, match="trainer.train"):
        trainer(resume_from_checkpoint="true").train()


def test_an_evaluation_set_without_random_access_is_an_error(trainer, pairs):
    with pytest.raises(ValueError, match="eval_dataset .*no random access"):
        trainer(eval_dataset=pairs)
    with pytest.raises(ValueError, match="eval_dataset second.*no random access"):
        trainer(eval_dataset={"first": [{}], "second": iter([])})


def test_arguments_of_another_class_are_an_error(small_model, tmp_path):
    for args in (None, TrainingArguments(output_dir=str(tmp_path), use_cpu=True)):
        with pytest.raises(ValueError, match="requires `model`, and ContrastiveTrainingArguments"):
            ContrastiveTrainer(small_model, args)


# Supported options, several in each run.


def test_options_are_passed_to_optimizer_and_schedule(trainer):
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


def test_optim_args_are_passed_to_the_optimizer(trainer):
    made = trainer(optim="sgd", optim_args="momentum=0.5")
    assert made.create_optimizer().defaults["momentum"] == 0.5


def test_options_are_passed_to_the_loaders(trainer, rows):
    options = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3, "per_device_eval_batch_size": 5}
    options |= {"dataloader_multiprocessing_context": "spawn"}
    for stream in (True, False):
        made = trainer(stream=stream, eval_dataset=rows, **options)
        for loader in (made.get_train_dataloader(), made.get_eval_dataloader()):
            assert (loader.num_workers, loader.prefetch_factor) == (2, 3)
            assert loader.multiprocessing_context.get_start_method() == "spawn"
        assert made.get_eval_dataloader().batch_sampler.batch_size == 5


def test_options_of_ddp_are_passed_to_accelerate(trainer):
    options = {"ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 7, "ddp_broadcast_buffers": False}
    handler = trainer(**options, ddp_static_graph=True).accelerator.ddp_handler
    assert (handler.find_unused_parameters, handler.bucket_cap_mb, handler.broadcast_buffers) == (True, 7, False)
    assert handler.static_graph


def test_the_data_seed_changes_the_order_of_a_list(trainer):
    orders = [list(trainer(stream=False, data_seed=seed).get_train_dataloader().batch_sampler) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_the_last_batch_of_a_list_is_kept_on_request(trainer):
    assert [
        len(trainer(stream=False, per_device_train_batch_size=12, dataloader_drop_last=drop).get_train_dataloader())
        for drop in (True, False)
    ] == [2, 3]


class Modes(torch.optim.SGD):
    """An optimizer with modes, like schedule-free ones."""

    calls: Counter = Counter()

    def train(self):
        self.calls["train"] += 1

    def eval(self):
        self.calls["eval"] += 1


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_an_optimizer_with_modes_is_switched_between_training_and_evaluation(trainer, rows, mini_batch_size):
    Modes.calls.clear()
    made = trainer(
        mini_batch_size=mini_batch_size,
        eval_dataset=rows,
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


def test_several_evaluation_sets_are_measured_separately(trainer, rows):
    metrics = trainer(eval_dataset={"some": rows, "few": rows[:4]}).evaluate()
    assert metrics["eval_some_loss"] > metrics["eval_few_loss"] > 0


def test_the_best_checkpoint_is_kept_and_loaded(trainer, rows, tmp_path):
    made = trainer(
        eval_dataset=rows,
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
    assert set(losses) == {0, 2, 3, 4}
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


def test_a_nan_loss_is_filtered_from_the_log_on_request(trainer, small_model, caplog):
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
    """Reset the state that all accelerators of a process share, such as the precision."""
    PartialState._reset_state()
    AcceleratorState._reset_state()
    GradientState._reset_state()
