"""Each option of transformers' Trainer is supported, or raises an error that names it."""

import dataclasses
import inspect
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

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


# Values of restricted fields that are unsupported, alone or together with other options.
REFUSED = {
    "hub_token": {"hub_token": "secret"},
    "optim": {"optim": "galore_adamw"},
    "train_sampling_strategy": {"train_sampling_strategy": "group_by_length"},
    "hub_strategy": {"hub_strategy": "end"},
    "debug": {"debug": "underflow_overflow"},
    "include_num_input_tokens_seen": {"include_num_input_tokens_seen": "all"},
    "fsdp": {"fsdp": True},
    "remove_unused_columns": {"remove_unused_columns": True},
    "dataloader_drop_last": {"dataloader_drop_last": False},
    "accelerator_config": {"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
    "num_train_epochs": {"num_train_epochs": 2, "max_steps": 5},
    "logging_steps": {"logging_steps": 3, "logging_strategy": "epoch"},
    "project": {"project": "mine", "report_to": ["tensorboard"]},
    "metric_for_best_model": {"metric_for_best_model": "loss"},
    "save_strategy": {"save_strategy": "best", "metric_for_best_model": "loss"},
    "save_steps": {"save_steps": 3, "save_strategy": "epoch"},
    "save_total_limit": {"save_total_limit": 3, "save_strategy": "no"},
    "load_best_model_at_end": {"load_best_model_at_end": True, "save_strategy": "no"},
    "dataloader_persistent_workers": {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
    "ddp_static_graph": {"ddp_static_graph": True, "mini_batch_size": 2},
}
OF_A_STREAM = {"data_seed", "dataloader_drop_last"}  # unsupported only for a stream


def restricted_fields(training: str, *excluded: str) -> list[str]:
    restricted = {name for name, rule in FIELDS[training].items() if rule.accepts is not None}
    return sorted(restricted & INSTALLED - set(excluded))


def unsupported_values(name: str) -> dict[str, Any]:
    """Return an unsupported value of a field: those above, or one that differs from the default."""
    default = TrainingArguments.__dataclass_fields__[name].default
    if isinstance(default, bool):
        return REFUSED.get(name, {name: not default})
    other = {"any": 1} if name.endswith(("_kwargs", "_config", "deepspeed")) else 2
    return REFUSED.get(name, {name: other})


@pytest.mark.parametrize(
    ("arguments_class", "name"),
    [(ContrastiveTrainingArguments, name) for name in restricted_fields(CONTRASTIVE, *OF_A_STREAM)]
    + [(SupervisedArguments, name) for name in restricted_fields(LABELS, "ddp_static_graph")],
)
def test_an_unsupported_field_is_an_error_that_names_it(arguments_class, name, tmp_path):
    with pytest.raises(ValueError, match=f"{name}=.* is not supported: .*") as error:
        arguments_class(output_dir=str(tmp_path), use_cpu=True, **unsupported_values(name))
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


@pytest.mark.parametrize(
    "options", [{"data_seed": 3}, {"dataloader_drop_last": False}, {"train_sampling_strategy": "sequential"}]
)
def test_a_field_that_a_stream_ignores_is_an_error(trainer, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* is not supported"):
        trainer(**options)
    trainer(stream=False, **options)


@pytest.mark.parametrize("name", [name for name, rule in ARGUMENTS.items() if rule.accepts is not None])
def test_an_unsupported_argument_is_an_error_that_names_it(trainer, name):
    with pytest.raises(ValueError, match=f"`{name}` is not supported"):
        trainer(further={name: lambda *values, **named: {}})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gradient_accumulation_steps", 2, "is not supported"),
        ("mini_batch_size", 9, "is larger than the batch"),
        ("accelerator_config", {"gradient_accumulation_kwargs": {"num_steps": 4}}, "is not supported"),
    ],
)
def test_a_field_that_is_changed_later_is_checked_when_training_starts(trainer, name, value, message):
    made = trainer()
    setattr(made.args, name, value)
    with pytest.raises(ValueError, match=f"{name}=.* {message}"):
        made.train()


def test_gradient_accumulation_of_accelerate_is_an_error(trainer, monkeypatch):
    made = trainer()
    with monkeypatch.context() as patch:
        patch.setattr(made.accelerator, "gradient_accumulation_steps", 2)
        with pytest.raises(ValueError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS=2 is not supported"):
            made.train()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    for start in (made.train, trainer):
        with pytest.raises(ValueError, match="ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is not supported"):
            start()


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


def test_options_are_passed_to_optimizer_schedule_and_accelerate(trainer):
    options = {"optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-5, "weight_decay": 0.1}
    options |= {"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}}
    options |= {"ddp_find_unused_parameters": True, "ddp_bucket_cap_mb": 7, "ddp_broadcast_buffers": False}
    made = trainer(warmup_steps=4, ddp_static_graph=True, **options)
    made.create_optimizer_and_scheduler(20)
    group = made.optimizer.param_groups[0]
    assert type(made.optimizer) is torch.optim.AdamW
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-5, 0.1)
    factors = [made.lr_scheduler.lr_lambdas[0](step) for step in range(20)]
    assert factors[:5] == [0, 0.25, 0.5, 0.75, 1] and factors[12] == pytest.approx(1), "the second cycle"
    handler = made.accelerator.ddp_handler
    assert (handler.find_unused_parameters, handler.bucket_cap_mb, handler.broadcast_buffers) == (True, 7, False)
    assert handler.static_graph
    assert trainer(optim="sgd", optim_args="momentum=0.5").create_optimizer().defaults["momentum"] == 0.5


def test_options_are_passed_to_the_loaders(trainer, rows):
    options = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3, "per_device_eval_batch_size": 5}
    options |= {"dataloader_multiprocessing_context": "spawn"}
    for stream in (True, False):
        made = trainer(stream=stream, eval_dataset=rows, **options)
        for loader in (made.get_train_dataloader(), made.get_eval_dataloader()):
            assert (loader.num_workers, loader.prefetch_factor) == (2, 3)
            assert loader.multiprocessing_context.get_start_method() == "spawn"
        assert made.get_eval_dataloader().batch_sampler.batch_size == 5


def test_order_and_last_batch_of_a_list_can_be_changed(trainer):
    def loader(**options):
        return trainer(stream=False, **options).get_train_dataloader()

    orders = [list(loader(data_seed=seed).batch_sampler) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert "Sequential" in type(loader(train_sampling_strategy="sequential").batch_sampler.sampler).__name__
    sizes = [len(loader(per_device_train_batch_size=12, dataloader_drop_last=drop)) for drop in (True, False)]
    assert sizes == [2, 3]


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
    for state in (PartialState, AcceleratorState, GradientState):
        state._reset_state()
