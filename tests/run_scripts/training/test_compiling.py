"""`--torch-compile` through the command, and the optimizer that takes one kernel for all weights."""

import shutil
import subprocess
import sys

import pytest
import torch
from helpers.commands import ENVIRONMENT, ON_TWO_PROCESSES, ROOT, losses
from helpers.gradient_processes import some_batch, tiny_model
from helpers.pair_shards import write_shards
from safetensors.torch import load_file

from biomedclip import ContrastiveTrainingArguments
from biomedclip.cached_gradients import RandomState
from biomedclip.run_scripts.main import main


STEPS = 3
# Traced and differentiated as for any processor, but without code for one: that takes a minute.
COMPILED = ["--torch-compile", "true", "--torch-compile-backend", "aot_eager", "--mini-batch-size", "4"]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, small_checkpoint) -> list[str]:
    folder = write_shards(tmp_path_factory.mktemp("compiling"), image_size=(40, 30))
    arguments = ["train", "--model-name-or-path", small_checkpoint, "--train-data", folder, "--max-steps", STEPS]
    arguments += ["--batch-size", 16, "--logging-steps", 1, "--save-strategy", "no", "--report-to", "none"]
    return list(map(str, arguments))


@pytest.fixture(scope="module")
def plain(arguments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain") / "run"
    assert main([*arguments, "--output-dir", str(folder)]) == 0
    return losses(folder), load_file(folder / "model.safetensors")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_compiled_model_takes_the_steps_of_a_plain_one_and_saves_the_same_names(
    arguments, plain, processes, tmp_path
):
    launch = ON_TWO_PROCESSES if processes == 2 else []
    command = [sys.executable, *launch, "-m", "biomedclip.run_scripts.main", *arguments, *COMPILED]
    command += ["--output-dir", str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    steps, weights = plain
    assert len(steps) == STEPS and losses(tmp_path / "run") == pytest.approx(steps, rel=3e-6)
    compiled = load_file(tmp_path / "run" / "model.safetensors")
    assert compiled.keys() == weights.keys()
    for name, weight in weights.items():
        # Float32 sums in another order, which AdamW carries on.
        torch.testing.assert_close(compiled[name], weight, rtol=0, atol=1e-4, msg=name)


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor writes C++ and needs g++ to compile it")
def test_inductor_draws_the_dropout_of_the_first_pass_again_in_the_second():
    """It draws numbers of its own; cached gradients are wrong unless the random state sets them both times."""
    compiled, batch = torch.compile(tiny_model(dropout=0.3).train()), some_batch(4)
    torch.manual_seed(0)
    state = RandomState("cpu")
    with torch.no_grad():
        first = compiled(**batch)
    other = compiled(**batch)
    state.restore()
    second = compiled(**batch)
    # Two graphs, with sums in orders of their own.
    torch.testing.assert_close(first.image_embeds, second.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(first.text_embeds, second.text_embeds, rtol=0, atol=1e-6)
    assert (other.text_embeds - second.text_embeds).abs().max() > 0.01


def test_one_kernel_updates_all_weights_by_default(tmp_path):
    assert ContrastiveTrainingArguments(output_dir=str(tmp_path)).optim == "adamw_torch_fused"


def test_the_fused_optimizer_takes_the_steps_of_the_plain_one(arguments, plain, tmp_path):
    assert main([*arguments, "--output-dir", str(tmp_path / "run"), "--optim", "adamw_torch"]) == 0
    assert losses(tmp_path / "run") == pytest.approx(plain[0], rel=1e-6)
