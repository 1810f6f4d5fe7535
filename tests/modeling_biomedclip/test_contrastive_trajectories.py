"""A batch of 64 pairs has the same losses in each step, however it is divided among processes and mini-batches."""

import pytest
import torch
from helpers.commands import biomedclip, losses
from helpers.training_runs import command, train
from safetensors.torch import load_file

from biomedclip.contrastive_loss import LOSSES


pytestmark = pytest.mark.slow
STEPS = 5
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
MODEL = {
    "projection_dim": 16,
    "logit_bias_init_value": -3.0,
    "vision_config": TOWER | {"image_size": 32, "patch_size": 8, "initializer_range": 0.2},
    "text_config": TOWER
    | {"max_position_embeddings": 64, "hidden_dropout": 0.0, "attention_dropout": 0.0, "initializer_range": 0.2},
}
# (processes, pairs of each process, pairs of a mini-batch)
WAYS = {
    "cached 4 x 16": (1, 64, 16),
    "2 processes x 32": (2, 32, None),
    "2 processes x 32, cached 2 x 16": (2, 32, 16),
}


def trajectory(built, folder, loss, processes, pairs, mini_batch):
    """Return the losses of each step and the final weights of a run."""
    options = {"train_data": built, "model_config": MODEL, "loss": loss, "max_steps": STEPS, "learning_rate": 1e-3}
    options["adam_epsilon"] = 1e-4  # the default turns the rounding of a small gradient into a step
    options |= {"batch_size": None, "per_device_train_batch_size": pairs, "mini_batch_size": mini_batch}
    if processes == 1:
        train(folder, **options, use_cpu="true")
    else:
        biomedclip(*command(folder, **options, use_cpu="true"), processes=processes)
    return losses(folder), load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(built, tmp_path_factory):
    """Losses and weights with the undivided batch."""
    return {loss: trajectory(built, tmp_path_factory.mktemp(loss), loss, 1, 64, None) for loss in LOSSES}


@pytest.mark.parametrize(("loss", "way"), [*(("infonce", way) for way in WAYS), ("siglip", list(WAYS)[-1])])
def test_a_divided_batch_has_the_losses_and_weights_of_the_whole_one(built, tmp_path, whole, loss, way):
    steps, weights = trajectory(built, tmp_path, loss, *WAYS[way])
    expected_steps, expected_weights = whole[loss]
    assert len(steps) == STEPS and len(set(steps)) == STEPS
    # Float32 sums in another order, which AdamW propagates: up to 7e-7 of the losses, and 2e-6 of the weights.
    assert steps == pytest.approx(expected_steps, rel=3e-6)
    for name, weight in weights.items():
        # Softmax does not depend on the bias of the keys. Its gradient is rounding.
        if name.endswith("k_proj.bias"):
            continue
        torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=1e-5, msg=name)
