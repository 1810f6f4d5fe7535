"""`--torch-compile` through the command, and the fused optimizer."""

import shutil

import pytest
import torch
from conftest import SMALL_CONFIG
from helpers.commands import biomedclip, losses
from helpers.gradient_processes import some_batch, tiny_model
from helpers.training_runs import command, train
from safetensors.torch import load_file

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, ContrastiveTrainingArguments
from biomedclip.cached_gradients import RandomState


pytestmark = pytest.mark.slow
STEPS = 2
# Without a code generator, which would take a minute.
COMPILED = {"torch_compile": "true", "torch_compile_backend": "aot_eager", "mini_batch_size": 4}


@pytest.fixture(scope="module")
def options(small_processor, shards, tmp_path_factory) -> dict:
    """A small model with one layer in each tower. Each layer is traced, in each process."""
    folder = tmp_path_factory.mktemp("checkpoint")
    towers = {name: SMALL_CONFIG[name] | {"num_hidden_layers": 1} for name in ("vision_config", "text_config")}
    torch.manual_seed(0)
    BiomedCLIPModel(BiomedCLIPConfig(**SMALL_CONFIG | towers)).save_pretrained(folder)
    small_processor.save_pretrained(folder)
    # The default epsilon turns the rounding of a small gradient into a step.
    return {"model_name_or_path": folder, "train_data": shards, "max_steps": STEPS, "adam_epsilon": 1e-4}


@pytest.fixture(scope="module")
def plain(options, tmp_path_factory):
    folder = train(tmp_path_factory.mktemp("plain") / "run", **options)
    return losses(folder), load_file(folder / "model.safetensors")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_compiled_model_has_the_losses_and_weights_of_a_plain_one(options, plain, processes, tmp_path):
    arguments = command(tmp_path / "run", **options, **COMPILED)
    biomedclip(*arguments, processes=processes)
    steps, weights = plain
    assert len(steps) == STEPS and losses(tmp_path / "run") == pytest.approx(steps, rel=3e-6)
    compiled = load_file(tmp_path / "run" / "model.safetensors")
    assert compiled.keys() == weights.keys()
    for name, weight in weights.items():
        # Float32 sums in another order, which AdamW propagates.
        torch.testing.assert_close(compiled[name], weight, rtol=0, atol=1e-4, msg=name)


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor writes C++ and needs g++ to compile it")
def test_inductor_repeats_dropout_from_the_same_random_state():
    """Cached gradients require that the random state determines the dropout of compiled code."""
    compiled, batch = torch.compile(tiny_model(dropout=0.3).text_model.train()), some_batch(4)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.manual_seed(0)
    state = RandomState("cpu")
    with torch.no_grad():
        first = compiled(**texts).pooler_output
    other = compiled(**texts).pooler_output
    state.restore()
    second = compiled(**texts).pooler_output
    # Two graphs, with sums in different orders.
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    assert (other - second).abs().max() > 0.01


def test_the_fused_optimizer_is_the_default_and_has_the_losses_of_the_plain_one(options, plain, tmp_path):
    assert ContrastiveTrainingArguments(output_dir=str(tmp_path)).optim == "adamw_torch_fused"
    train(tmp_path / "run", **options, optim="adamw_torch")
    assert losses(tmp_path / "run") == pytest.approx(plain[0], rel=1e-6)
