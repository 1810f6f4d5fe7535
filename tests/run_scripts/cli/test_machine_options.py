"""The options of verbs that depend on the machine: the device, the precision and the number of workers."""

from dataclasses import dataclass

import pytest
import torch
from accelerate import PartialState

from biomedclip.run_scripts import train
from biomedclip.run_scripts.cli.devices import training_arguments, use_device
from biomedclip.run_scripts.cli.errors import UsageError
from biomedclip.run_scripts.cli.fields import option
from biomedclip.run_scripts.cli.options import parse_options
from biomedclip.run_scripts.evaluate import _parse


@dataclass
class Several:
    precision: list[str] = option(["float32"], "Precisions.", ["float32", "bfloat16"])


EVALUATE = ["retrieval", "--model", "m", "--data", "d", "--output-dir", "o"]


def test_models_are_loaded_on_the_chosen_device():
    before = PartialState().device
    try:
        use_device("cpu")
        assert PartialState().device == torch.device("cpu")
    finally:
        PartialState().device = before


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--device", "cpu", "--seed", "1"], ["--seed", "1", "--use-cpu", "true"]),
        (["--device=auto", "--precision=bf16"], ["--bf16", "true"]),
        (["--precision", "bfloat16"], ["--bf16", "true"]),
        (["--precision", "fp32", "--dry-run"], ["--dry-run", "--bf16", "false"]),
        (["--lora-targets", "fc1", "fc2"], ["--lora-targets", "fc1", "fc2"]),
    ],
)
def test_training_takes_the_device_and_precision_of_other_verbs(given, expected):
    assert training_arguments(given) == expected


def test_training_refuses_other_values(monkeypatch):
    with pytest.raises(UsageError, match="--precision int8 does not apply to training. Choose bf16"):
        training_arguments(["--precision", "int8"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES chooses"):
        training_arguments(["--device", "cuda:1"])


@pytest.mark.parametrize(("name", "expected"), [("bf16", "bfloat16"), ("fp32", "float32"), ("bfloat16", "bfloat16")])
def test_a_precision_has_a_short_name(tmp_path, name, expected):
    assert _parse([*EVALUATE, "--precision", name]).precision == expected
    (tmp_path / "recipe.yaml").write_text(f"precision: {name}\n")
    assert _parse([*EVALUATE, "--config", str(tmp_path / "recipe.yaml")]).precision == expected
    (options,) = parse_options("export", [Several], ["--precision", name, "float32"])
    assert options.precision == [expected, "float32"]


def test_an_unknown_precision_is_refused(capsys):
    with pytest.raises(SystemExit):
        _parse([*EVALUATE, "--precision", "fp16"])
    assert "invalid choice: 'fp16'" in capsys.readouterr().err


def test_data_are_loaded_by_at_most_four_processes_unless_set(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "WORKERS", 3)
    arguments = ["--config", "lora_contrastive", "--train-data", "x", "--output-dir", str(tmp_path), "--use-cpu"]
    for more, expected in (([], 3), (["--dataloader-num-workers", "0"], 0)):
        *_, args = train.parse(train.TASKS["contrastive"], [*arguments, *more])
        assert args.dataloader_num_workers == expected
    *_, args = train.parse(train.TASKS["contrastive"], ["--config", "quickstart", *arguments[2:]])
    assert args.dataloader_num_workers == 0, "a recipe overrides the default"
