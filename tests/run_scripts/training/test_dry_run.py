"""The plan of a run, beside the run itself."""

import dataclasses
import json
from pathlib import Path

import pytest
from helpers.pair_shards import write_shards

from biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments
from biomedclip.processing import PairStream
from biomedclip.run_scripts.cli.options import read_recipe
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.models import ModelOptions, outline


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """150 pairs in six shards."""
    return write_shards(tmp_path_factory.mktemp("shards"), image_size=(40, 30))


@pytest.fixture
def plan(tmp_path, capsys):
    """Runs `biomedclip train --dry-run` with further options; returns the plan and what was printed."""

    def of(*options: str) -> tuple[dict, str]:
        assert main(["train", "--dry-run", "--output-dir", str(tmp_path / "plan"), *map(str, options)]) == 0
        assert [path.name for path in (tmp_path / "plan").iterdir()] == ["dry_run.json"]
        return json.loads((tmp_path / "plan" / "dry_run.json").read_text()), capsys.readouterr().out

    return of


def test_a_plan_is_what_the_run_then_does(plan, small_checkpoint, shards, tmp_path):
    options = ["--model-name-or-path", small_checkpoint, "--train-data", shards, "--batch-size", 16]
    options += ["--num-train-epochs", "1.4", "--licenses", "CC BY,CC0,CC BY-NC", "--seed", "5"]
    planned, _ = plan(*options)
    rest = ["--output-dir", tmp_path / "run", "--report-to", "none", "--save-strategy", "no"]
    assert main(["train", *map(str, [*options, *rest])]) == 0
    done = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert planned["schedule"]["steps"] == done["steps"] > 0
    for name in ("samples", "batch_size"):
        assert planned["schedule"][name] == done[name]
    for name in ("parameters", "trainable_parameters"):
        assert planned["model"][name] == done[name]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_rank_reads_first_what_the_plan_says(plan, small_checkpoint, shards, processes):
    planned, printed = plan(
        "--model-name-or-path", small_checkpoint, "--train-data", shards, "--batch-size", 64, "--processes", processes
    )
    stream = PairStream(shards)
    stored = {path.name: index * 25 for index, path in enumerate(sorted((shards / "data").iterdir()))}
    assert len(planned["ranks"]) == processes
    for rank in planned["ranks"]:
        rows = next(iter(stream.batches(64, rank=rank["rank"], world_size=processes)))
        numbers = [
            stored[shard["file"]] + row for shard in rank["shards"] for row in range(shard["rows"][0], shard["rows"][1])
        ]
        assert [row["pair_id"] for row in rows] == [f"PMC{number}.1/F1/g1" for number in numbers]
    assert planned["data"] == {"path": str(shards), "shards": 6, "smallest_shard": 25, "largest_shard": 25}
    assert planned["schedule"]["left_out_of_each_epoch"] == 150 - 128
    assert "rank 0" in printed and "train-0000" in printed


def test_weight_decay_is_planned_as_the_optimizer_groups_it(plan, small_checkpoint, small_model, tmp_path):
    decay = plan("--model-name-or-path", small_checkpoint, "--batch-size", 16)[0]["weight_decay"]
    trainer = ContrastiveTrainer(small_model, ContrastiveTrainingArguments(str(tmp_path / "run"), use_cpu=True))
    groups = trainer.create_optimizer().param_groups
    for name, group in zip(("decayed", "spared"), groups, strict=True):
        assert (group["weight_decay"] > 0) == (name == "decayed")
        assert decay[name] == {
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
        }
    # open_clip's own rule (open_clip_train/main.py).
    spared = [
        name
        for name, parameter in small_model.named_parameters()
        if parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name
    ]
    assert decay["spared"]["tensors"] == len(spared)


def test_without_data_or_network_the_published_run_is_planned(plan, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name: pytest.fail(f"asked for {name}"))
    planned, printed = plan("--config", "biomedclip", "--processes", 16)
    assert planned["schedule"]["steps"] == 108_576 and planned["data"] is None
    assert planned["ranks"][15] == {"rank": 15, "first_rows": [3840, 4096]}
    assert "13,900,000 pairs are assumed" in printed and "training will need its weights" in printed
    assert planned["memory_mib"]["bf16"] and planned["memory_mib"]["gradient_checkpointing"]
    assert max(map(len, printed.splitlines())) <= 80, "tables fit a terminal of 80 columns"


def test_pairs_may_be_any_number(plan):
    schedule = plan("--config", "biomedclip", "--pairs", 409_600, "--num-train-epochs", 3)[0]["schedule"]
    assert (schedule["batches_per_epoch"], schedule["steps"], schedule["epochs"]) == (100, 300, 3.0)


def test_a_model_of_the_users_own_is_planned(plan):
    planned, _ = plan("--config", "quickstart", "--pairs", 1000)
    assert planned["schedule"]["steps"] == 240 and planned["schedule"]["image_size"] == 64
    assert planned["schedule"]["text_length"] == 64
    words = planned["model"]["parts"]["text tower"]["parameters"]
    more = plan("--config", "quickstart", "--pairs", 1000, "--vocabulary-size", 3000)[0]
    assert more["model"]["parts"]["text tower"]["parameters"] == words + 1000 * 128


def test_an_adapter_is_planned_with_its_frozen_base(plan, small_checkpoint, small_model):
    options = ["--config", "lora_contrastive", "--model-name-or-path", small_checkpoint, "--pairs", 1000]
    model = plan(*options, "--batch-size", 32)[0]["model"]
    base = sum(parameter.numel() for parameter in small_model.parameters())
    assert model["parameters"] == base + model["trainable_parameters"]
    assert model["parts"]["temperature"]["trainable_parameters"] == 0


def test_nothing_is_written_where_no_folder_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "quickstart", "--dry-run", "--pairs", "1000"]) == 0
    assert not list(tmp_path.iterdir()) and "Parameters" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["biomedclip", "vit_m", "gpt_77", "image_384", "quickstart"])
def test_no_weight_is_made(name):
    options = read_recipe(name, ["train"])
    fields = {field.name for field in dataclasses.fields(ModelOptions)}
    model, _ = outline(ModelOptions(**{key: value for key, value in options.items() if key in fields}))
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {"meta"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "biomedclip", "--processes", "3"], "cannot be shared evenly by 3 devices"),
        (["--config", "biomedclip", "--pairs", "4000"], "A batch of 4,096 pairs does not fit: there are 4,000"),
        (["--config", "biomedclip", "--processes", "0"], "--processes must be 1 or more, not 0"),
        (["--model-name-or-path", "nobody/nothing"], "nobody/nothing: its configuration could not be had"),
        (["--config", "biomedclip", "--num-train-epochs", "0"], "gives no step"),
    ],
)
def test_plans_that_cannot_be_are_refused(options, message, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["train", "--dry-run", *options]) == (1 if "nobody/nothing" in options else 2)
    assert message in capsys.readouterr().err
