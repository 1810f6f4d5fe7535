"""The plan of a run equals the run."""

import dataclasses
import json

import pytest
from helpers.training_runs import results, train

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.run_scripts.cli.options import read_recipe
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.models import ModelOptions, outline


@pytest.fixture
def plan(tmp_path, capsys):
    """Run `biomedclip train --dry-run`, and return the plan and the output."""

    def of(*options: str) -> tuple[dict, str]:
        assert main(["train", "--dry-run", "--output-dir", str(tmp_path / "plan"), *map(str, options)]) == 0
        assert [path.name for path in (tmp_path / "plan").iterdir()] == ["dry_run.json"]
        return json.loads((tmp_path / "plan" / "dry_run.json").read_text()), capsys.readouterr().out

    return of


def test_a_plan_has_the_steps_and_parameters_of_the_run(plan, small_checkpoint, shards, tmp_path):
    options = {"model_name_or_path": small_checkpoint, "train_data": shards, "batch_size": 16, "seed": 5}
    options |= {"num_train_epochs": 1.4, "licenses": "CC BY,CC0,CC BY-NC"}
    planned, _ = plan(*(text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", value)))
    done = results(train(tmp_path / "run", **options, max_steps=None))
    assert planned["schedule"]["steps"] == done["steps"] > 0
    assert {name: planned["schedule"][name] for name in ("samples", "batch_size")}.items() <= done.items()
    assert {name: planned["model"][name] for name in ("parameters", "trainable_parameters")}.items() <= done.items()


def test_weight_decay_is_planned_as_in_the_optimizer(plan, small_checkpoint, small_model, tmp_path):
    decay = plan("--model-name-or-path", small_checkpoint, "--batch-size", 16)[0]["weight_decay"]
    trainer = ContrastiveTrainer(small_model, ContrastiveTrainingArguments(str(tmp_path / "run"), use_cpu=True))
    decayed, not_decayed = trainer.create_optimizer().param_groups
    assert decayed["weight_decay"] == decay["value"] > not_decayed["weight_decay"] == 0
    # The rule of open_clip (open_clip_train/main.py).
    excluded = [
        parameter
        for name, parameter in small_model.named_parameters()
        if parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name
    ]
    for name, parameters in (("decayed", decayed["params"]), ("not_decayed", not_decayed["params"])):
        assert decay[name]["parameters"] == sum(parameter.numel() for parameter in parameters)
    assert decay["not_decayed"]["parameters"] == sum(parameter.numel() for parameter in excluded)


def test_the_published_run_is_planned_without_data_or_network(plan, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name: pytest.fail(f"asked for {name}"))
    planned, printed = plan("--config", "biomedclip", "--processes", 16)
    assert planned["schedule"]["steps"] == 108_576
    assert "13,900,000 pairs are assumed" in printed and "Training will need the weights" in printed
    assert planned["memory_mib"]["bf16"] and planned["memory_mib"]["gradient_checkpointing"]
    assert max(map(len, printed.splitlines())) <= 80


def test_the_number_of_pairs_can_be_set(plan):
    schedule = plan("--config", "biomedclip", "--pairs", 409_700, "--num-train-epochs", 3)[0]["schedule"]
    assert (schedule["batches_per_epoch"], schedule["steps"], schedule["unused_pairs_per_epoch"]) == (100, 300, 100)


def test_a_model_of_the_user_is_planned(plan):
    planned, _ = plan("--config", "quickstart", "--pairs", 1000)
    schedule = planned["schedule"]
    assert (schedule["steps"], schedule["image_size"], schedule["text_length"]) == (240, 64, 64)
    more = plan("--config", "quickstart", "--pairs", 1000, "--vocabulary-size", 3000)[0]
    words, more_words = (found["parts"]["text encoder"]["parameters"] for found in (planned, more))
    assert more_words == words + 1000 * 128


def test_an_adapter_is_planned_with_its_frozen_base(plan, small_checkpoint, small_model):
    options = ["--config", "lora_contrastive", "--model-name-or-path", small_checkpoint, "--pairs", 1000]
    planned = plan(*options, "--batch-size", 32)[0]
    base = sum(parameter.numel() for parameter in small_model.parameters())
    assert planned["model"]["parameters"] == base + planned["model"]["trainable_parameters"]
    assert planned["parts"]["logit scale"]["trainable_parameters"] == 0


def test_no_file_is_written_without_an_output_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "quickstart", "--dry-run", "--pairs", "1000"]) == 0
    assert not list(tmp_path.iterdir()) and "Parameters" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["biomedclip", "vit_m", "gpt_77", "image_384", "quickstart"])
def test_no_memory_is_allocated_for_weights(name):
    options = read_recipe(name, ["train"])
    fields = {field.name for field in dataclasses.fields(ModelOptions)}
    model, _ = outline(ModelOptions(**{key: value for key, value in options.items() if key in fields}))
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}


@pytest.mark.parametrize(
    ("status", "options", "message"),
    [
        (2, ["--config", "biomedclip", "--processes", "3"], "cannot be divided evenly among 3 devices"),
        (2, ["--config", "biomedclip", "--pairs", "4000"], "There are 4,000 pairs, fewer than a batch of 4,096"),
        (2, ["--config", "biomedclip", "--processes", "0"], "--processes must be at least 1, not 0"),
        (2, ["--config", "biomedclip", "--num-train-epochs", "0"], "results in no step"),
        (1, ["--model-name-or-path", "nobody/nothing"], "nobody/nothing: the configuration could not be loaded"),
    ],
)
def test_invalid_plans_are_errors(status, options, message, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["train", "--dry-run", *options]) == status
    assert message in capsys.readouterr().err
