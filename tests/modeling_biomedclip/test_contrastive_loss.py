"""The contrastive losses, in one process and over several."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing
from helpers.commands import free_port
from helpers.evaluation_processes import evaluate_in_a_process
from helpers.forked_processes import spawn
from helpers.gradient_processes import assert_same_gradients, gradients_of_a_process, unit

from biomedclip import contrastive_trainer
from biomedclip.contrastive_loss import LOSSES, SIGLIP_LOGIT_BIAS, SIGLIP_LOGIT_SCALE, contrastive_loss, summed_loss
from biomedclip.contrastive_trainer import loss_in_batches, whole_set_loss


def scalars(dtype=torch.float32, shape=()):
    """Return a logit scale and a bias."""
    return torch.full(shape, 14.0, dtype=dtype), torch.full(shape, -5.0, dtype=dtype)


def infonce_in_a_loop(images, texts, scale, bias):
    total = 0.0
    for i in range(len(images)):
        for query, candidates in ((images[i], texts), (texts[i], images)):
            logits = [scale * (query @ candidate).item() + bias for candidate in candidates]
            total += math.log(sum(math.exp(logit) for logit in logits)) - logits[i]
    return total / (2 * len(images))


def siglip_in_a_loop(images, texts, scale, bias):
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            logit = scale * (image @ text).item() + bias
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / len(images)


LOOPS = {"infonce": infonce_in_a_loop, "siglip": siglip_in_a_loop}


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_equals_a_plain_loop(loss):
    images, texts = unit(12, 0, torch.float64), unit(12, 1, torch.float64)
    expected = LOOPS[loss](images, texts, 14.0, -5.0)
    # Sums of 144 terms in double precision.
    assert contrastive_loss(images, texts, *scalars(torch.float64), loss=loss).item() == pytest.approx(expected, 1e-13)
    assert whole_set_loss(images, texts, *scalars(torch.float64), loss=loss) == pytest.approx(expected, 1e-13)
    assert contrastive_loss(images.float(), texts.float(), *scalars(), loss=loss).item() == pytest.approx(
        expected, 1e-6
    )


@pytest.mark.parametrize("pairs", [4200, 4096, 100])
def test_the_loss_in_batches_is_the_validation_loss_of_open_clip(pairs, monkeypatch):
    from open_clip_train import train

    monkeypatch.setattr(train, "get_clip_metrics", lambda **features: {})  # takes seconds
    images, texts, scale = unit(pairs, 0), unit(pairs, 1), scalars()[0]

    class Features(torch.nn.Module):
        def forward(self, image, text):
            return {"image_features": image, "text_features": text, "logit_scale": scale}

    class Batches(list):
        num_samples = pairs

    data = {"val": SimpleNamespace(dataloader=Batches(zip(images.split(4096), texts.split(4096), strict=True)))}
    options = {"rank": 0, "device": "cpu", "precision": "fp32", "epochs": 1, "distributed": False}
    options |= {"val_frequency": 1, "zeroshot_frequency": 0, "wandb": False, "save_logs": False}
    expected = train.evaluate(Features(), data, 1, SimpleNamespace(**options))["clip_val_loss"]
    assert loss_in_batches(images, texts, scale) == pytest.approx(expected, rel=1e-5)
    whole = whole_set_loss(images, texts, scale)
    assert (loss_in_batches(images, texts, scale) == pytest.approx(whole, rel=1e-6)) == (pairs <= 4096)


@pytest.mark.slow
def test_the_loss_in_batches_does_not_depend_on_processes_or_their_batch_size(tmp_path, monkeypatch):
    monkeypatch.setattr(contrastive_trainer, "loss_in_batches", loss_in_batches)  # the function replaces it
    evaluate_in_a_process(0, 1, str(tmp_path), 0, 100)
    spawn(evaluate_in_a_process, (2, str(tmp_path), int(free_port()), 3), 2)
    alone, together = (json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2))
    assert alone["eval_loss_in_batches_of_4096"] != pytest.approx(alone["eval_loss"], rel=0.01)
    for name in ("eval_loss_in_batches_of_4096", "eval_loss", "eval_image_to_text_recall_at_5"):
        assert together[name] == pytest.approx(alone[name], rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(), (1,)])  # of BiomedCLIP and CLIP, and of SigLIP
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_chunks_of_any_size_have_the_same_loss_and_gradients_that_equal_numerical_ones(loss, shape, rows):
    queries, candidates = unit(5, 0, torch.float64).requires_grad_(), unit(9, 1, torch.float64).requires_grad_()
    scale, bias = (scalar.requires_grad_() for scalar in scalars(torch.float64, shape))

    def loss_of_chunks(*inputs):
        return summed_loss(*inputs, loss=loss, first=3, logits_at_once=rows * 9)

    whole = summed_loss(queries, candidates, scale, bias, loss=loss, first=3).item()
    assert loss_of_chunks(queries, candidates, scale, bias).item() == pytest.approx(whole, rel=1e-12)
    assert torch.autograd.gradcheck(loss_of_chunks, (queries, candidates, scale, bias))
    assert torch.autograd.gradcheck(loss_of_chunks, (queries, candidates, scale))


@pytest.mark.parametrize(("logits_at_once", "rows"), [(1, [1] * 5), (20, [2, 2, 1]), (45, [5]), (1000, [5])])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_number_of_logits_in_memory_is_limited(loss, logits_at_once, rows, monkeypatch):
    held = []
    owner, name = (torch.nn.functional, "softplus") if loss == "siglip" else (torch.Tensor, "logsumexp")
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda logits, **options: held.append(logits.shape) or function(logits, **options))
    summed_loss(unit(5, 0), unit(9, 1), *scalars(), loss=loss, logits_at_once=logits_at_once)
    assert held == [(count, 9) for count in rows]


@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivatives_are_an_error(loss):
    """The gradients are computed in the forward pass, so they would be constants for autograd."""
    images = unit(4, 0).requires_grad_()
    value = contrastive_loss(images, unit(4, 1), *scalars(), loss=loss)
    (gradient,) = torch.autograd.grad(value.square(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_initial_scale_and_bias_of_siglip_are_those_of_its_paper():
    assert math.exp(SIGLIP_LOGIT_SCALE) == pytest.approx(10) and SIGLIP_LOGIT_BIAS == -10


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_are_float32_under_autocast_and_for_bfloat16_features(loss):
    images, texts = unit(64, 0).bfloat16(), unit(64, 1).bfloat16()
    expected = contrastive_loss(images.float(), texts.float(), *scalars(), loss=loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_loss(images, texts, *scalars(), loss=loss), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_losses_and_gradients_are_finite_for_extreme_scales(loss, scale):
    images = unit(16, 0).requires_grad_()
    value = contrastive_loss(images, unit(16, 1), torch.tensor(scale), torch.tensor(-10.0), loss=loss)
    value.backward()
    assert value.isfinite() and images.grad.isfinite().all()


def test_infonce_gives_a_bias_a_gradient_of_zero():
    """Without a gradient, DDP would wait for it."""
    scale, bias = (scalar.requires_grad_() for scalar in scalars())
    contrastive_loss(unit(4, 0), unit(4, 1), scale, bias).backward()
    assert bias.grad == 0


@pytest.mark.parametrize(
    ("texts", "loss", "message"), [(4, "infonce", "differ in shape"), (3, "triplet", "infonce, siglip")]
)
def test_invalid_arguments_are_errors(texts, loss, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(unit(3, 0), unit(texts, 1), torch.tensor(1.0), loss=loss)


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Gradients of each parameter by number of processes, loss and author."""
    pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("gradients")
    for world_size in (1, 2, 4):
        spawn(gradients_of_a_process, (world_size, str(folder)), world_size)
    return {world_size: torch.load(folder / f"{world_size}.pt") for world_size in (1, 2, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(("author", "authority"), [("ours", "ours"), ("ours", "theirs"), ("cached", "theirs")])
def test_gradients_of_several_processes_equal_those_of_one_and_of_open_clip(
    gradients, loss, world_size, author, authority
):
    expected = gradients[1][loss, authority]
    assert_same_gradients(gradients[world_size][loss, author], expected)
    assert {"logit_scale", "logit_bias"} < set(expected) and expected["logit_scale"] != 0
    assert (expected["logit_bias"].abs() > 1e-3) == (loss == "siglip")
