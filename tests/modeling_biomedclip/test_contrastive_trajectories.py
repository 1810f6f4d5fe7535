"""One batch of 64 pairs, however it is divided: the same losses step by step, through the real command."""

import json
import subprocess
import sys

import pytest
import torch
from helpers.commands import ENVIRONMENT, ON_TWO_PROCESSES, ROOT, losses
from safetensors.torch import load_file

from biomedclip.contrastive_loss import LOSSES


STEPS = 8
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODEL = {
    "projection_dim": 16,
    "logit_bias_init_value": -3.0,
    "vision_config": TOWER | {"image_size": 32, "patch_size": 8, "initializer_range": 0.2},
    "text_config": TOWER
    | {"max_position_embeddings": 64, "hidden_dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.2},
}
# (processes, pairs of each, pairs of a mini-batch, other options)
WAYS = {
    "cached 4 x 16": (1, 64, 16, {}),
    "2 processes x 32": (2, 32, None, {}),
    "2 processes x 32, cached 2 x 16": (2, 32, 16, {}),
    "2 processes x 32, activations of 2 x 16 kept": (2, 32, 16, {"keep-activations": "true"}),
}


def trajectory(built, folder, loss, processes, pairs, mini_batch, others):
    """Losses of each step and final weights of a run."""
    launch = ON_TWO_PROCESSES if processes == 2 else []
    options = {
        "train-data": built,
        "output-dir": folder,
        "model-config": json.dumps(MODEL),
        "loss": loss,
        "max-steps": STEPS,
        "per-device-train-batch-size": pairs,
        "logging-steps": 1,
        "learning-rate": 1e-3,
        "report-to": "none",
        "save-strategy": "no",
        "use-cpu": "true",
        **others,
    }
    if mini_batch:
        options["mini-batch-size"] = mini_batch
    arguments = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, *launch, "-m", "biomedclip.run_scripts.main", "train", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    return losses(folder), load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(built, tmp_path_factory):
    """Losses and weights of the undivided batch, for each loss."""
    return {loss: trajectory(built, tmp_path_factory.mktemp(loss), loss, 1, 64, None, {}) for loss in LOSSES}


@pytest.mark.parametrize(("loss", "way"), [*(("infonce", way) for way in WAYS), ("siglip", list(WAYS)[-1])])
def test_a_divided_batch_takes_the_steps_of_the_whole_one(built, tmp_path, whole, loss, way):
    steps, weights = trajectory(built, tmp_path, loss, *WAYS[way])
    expected_steps, expected_weights = whole[loss]
    assert len(steps) == STEPS and len(set(steps)) == STEPS
    # Float32 sums in another order, which AdamW carries on: 7e-7 of the losses was seen, and 2e-6 of the weights.
    assert steps == pytest.approx(expected_steps, rel=3e-6)
    for name, weight in weights.items():
        # The bias of the keys shifts all scores of a softmax alike: its gradient is rounding alone.
        if name.endswith("k_proj.bias"):
            continue
        torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=1e-5, msg=name)
