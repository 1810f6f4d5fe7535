"""Training with FSDP2 in two processes equals training with DDP."""

import pytest
import torch
import torch.multiprocessing
from helpers.commands import free_port
from helpers.forked_processes import spawn
from helpers.gradient_processes import tiny_model
from helpers.sharded_training import training_of_a_process

from biomedclip import BiomedCLIPModel


pytestmark = pytest.mark.slow
RUNS = {"fsdp": "ddp", "fsdp cached": "ddp", "fsdp siglip": "ddp siglip", "fsdp resumed": "ddp", "fsdp compiled": "ddp"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    spawn(training_of_a_process, (2, free_port(), str(folder)), 2)
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return torch.load(folder / "results.pt")


@pytest.mark.parametrize("run", RUNS)
def test_all_parameters_except_those_of_the_loss_are_sharded(results, run):
    whole = set(results[run]["weights"]) - results[run]["sharded"]
    assert whole == {"logit_scale", "logit_bias"}
    assert len(results[run]["sharded"]) > 40
    assert not results["ddp"]["sharded"]


@pytest.mark.parametrize(("run", "beside"), RUNS.items())
def test_losses_gradients_and_weights_equal_those_of_ddp(results, run, beside):
    ours, theirs = results[run], results[beside]
    # Sums in another order. AdamW propagates rounding.
    assert ours["losses"] == pytest.approx(theirs["losses"], rel=1e-5)
    steps = len(ours["gradient norms"])
    assert ours["gradient norms"] == pytest.approx(theirs["gradient norms"][-steps:], rel=1e-4)
    for name, weight in ours["weights"].items():
        # Softmax does not depend on the bias of the keys. Its gradient is rounding, which AdamW scales.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(weight, theirs["weights"][name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(("run", "beside"), [("fsdp", "ddp"), ("fsdp siglip", "ddp siglip"), ("fsdp compiled", "ddp")])
def test_the_evaluation_of_a_sharded_model_equals_that_of_a_whole_one(results, run, beside):
    ours, theirs = results[run]["evaluation"], results[beside]["evaluation"]
    names = [name for name in theirs if "similarity" in name or "recall" in name or name == "eval_loss"]
    assert len(names) == 3 + 6 + 1
    # The weights are equal to 1e-5.
    assert {name: ours[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, abs=1e-3)


def test_logit_scale_changes_and_the_loss_falls(results):
    for run in ("fsdp", "fsdp siglip"):
        assert results[run]["losses"][-1] < results[run]["losses"][0]
        start = tiny_model().logit_scale.item()
        assert abs(results[run]["weights"]["logit_scale"].item() - start) > 1e-3


@pytest.mark.parametrize("run", ["fsdp cached", "fsdp compiled"])
def test_the_saved_model_is_whole_and_includes_its_code(folder, results, run):
    saved = folder / run / "model"
    assert (saved / "modeling_biomedclip.py").is_file()
    for name, weight in BiomedCLIPModel.from_pretrained(saved).named_parameters():
        assert torch.equal(weight, results[run]["weights"][name])


def test_fsdp_that_accelerate_would_ignore_is_an_error(results):
    assert "plain DDP" in results["refused"]
