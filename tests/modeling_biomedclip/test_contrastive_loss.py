"""The contrastive losses, by themselves and over several processes."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing
from helpers.commands import free_port
from helpers.evaluation_processes import evaluate_in_a_process
from helpers.gradient_processes import assert_same_gradients, gradients_of_a_process, unit

from biomedclip import contrastive_trainer
from biomedclip.contrastive_loss import (
    LOSSES,
    SIGLIP_LOGIT_BIAS,
    SIGLIP_LOGIT_SCALE,
    contrastive_loss,
    summed_loss,
)
from biomedclip.contrastive_trainer import loss_in_batches, whole_set_loss


def scalars(dtype=torch.float32, shape=()):
    """A temperature and a bias, such as a model would have after some training."""
    return torch.full(shape, 14.0, dtype=dtype), torch.full(shape, -5.0, dtype=dtype)


def infonce_of_a_plain_loop(images, texts, scale, bias):
    total = 0.0
    for i in range(len(images)):
        for query, candidates in ((images[i], texts), (texts[i], images)):
            logits = [scale * (query @ candidate).item() + bias for candidate in candidates]
            total += math.log(sum(math.exp(logit) for logit in logits)) - logits[i]
    return total / (2 * len(images))


def siglip_of_a_plain_loop(images, texts, scale, bias):
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            logit = scale * (image @ text).item() + bias
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / len(images)


PLAIN_LOOPS = {"infonce": infonce_of_a_plain_loop, "siglip": siglip_of_a_plain_loop}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_equals_a_plain_loop(loss):
    images, texts = unit(12, 0, torch.float64), unit(12, 1, torch.float64)
    expected = PLAIN_LOOPS[loss](images, texts, 14.0, -5.0)
    # Sums of 144 terms in double precision.
    assert contrastive_loss(images, texts, *scalars(torch.float64), loss=loss).item() == pytest.approx(expected, 1e-13)
    assert whole_set_loss(images, texts, *scalars(torch.float64), loss=loss) == pytest.approx(expected, 1e-13)
    assert contrastive_loss(images.float(), texts.float(), *scalars(), loss=loss).item() == pytest.approx(
        expected, 1e-6
    )


@pytest.mark.parametrize("pairs", [4200, 4096, 100])
def test_the_loss_in_batches_is_the_validation_loss_of_open_clip(pairs, monkeypatch):
    """Of open_clip's own function, on the same features in batches of 4,096, the last of which is smaller."""
    from open_clip_train import train

    monkeypatch.setattr(train, "get_clip_metrics", lambda **features: {})  # its ranks take seconds
    images, texts, scale = unit(pairs, 0), unit(pairs, 1), scalars()[0]

    class Features(torch.nn.Module):
        def forward(self, image, text):
            return {"image_features": image, "text_features": text, "logit_scale": scale}

    class Batches(list):
        num_samples = pairs

    data = {"val": SimpleNamespace(dataloader=Batches(zip(images.split(4096), texts.split(4096), strict=True)))}
    options = {
        "rank": 0,
        "device": "cpu",
        "precision": "fp32",
        "val_frequency": 1,
        "epochs": 1,
        "zeroshot_frequency": 0,
    }
    options |= {"distributed": False, "save_logs": False, "wandb": False}
    expected = train.evaluate(Features(), data, 1, SimpleNamespace(**options))["clip_val_loss"]
    assert loss_in_batches(images, texts, scale) == pytest.approx(expected, rel=1e-5)
    whole = whole_set_loss(images, texts, scale)
    assert (loss_in_batches(images, texts, scale) == pytest.approx(whole, rel=1e-6)) == (pairs <= 4096)


def test_the_loss_in_batches_depends_on_neither_processes_nor_their_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(contrastive_trainer, "loss_in_batches", loss_in_batches)  # which the function replaces
    evaluate_in_a_process(0, 1, str(tmp_path), 0, 100)
    torch.multiprocessing.spawn(evaluate_in_a_process, (2, str(tmp_path), int(free_port()), 3), nprocs=2)
    alone, together = (json.loads((tmp_path / f"{processes}.json").read_text()) for processes in (1, 2))
    assert alone["eval_loss_in_batches_of_4096"] != pytest.approx(alone["eval_loss"], rel=0.01)
    for name in ("eval_loss_in_batches_of_4096", "eval_loss", "eval_image_to_text_recall_at_5"):
        assert together[name] == pytest.approx(alone[name], rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", [(), (1,)])  # BiomedCLIP's and CLIP's, SigLIP's
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_the_gradients_of_a_loss_are_its_slopes(loss, shape, rows):
    queries, candidates = unit(5, 0, torch.float64).requires_grad_(), unit(9, 1, torch.float64).requires_grad_()
    scale, bias = (scalar.requires_grad_() for scalar in scalars(torch.float64, shape))

    def loss_of_chunks(*inputs):
        return summed_loss(*inputs, loss=loss, first=3, logits_at_once=rows * 9)

    assert torch.autograd.gradcheck(loss_of_chunks, (queries, candidates, scale, bias))
    assert torch.autograd.gradcheck(loss_of_chunks, (queries, candidates, scale))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_does_not_depend_on_how_many_rows_are_worked_out_at_a_time(loss):
    values = []
    for rows in (1, 7, 64):
        images, texts = unit(64, 0).requires_grad_(), unit(64, 1).requires_grad_()
        scale, bias = (scalar.requires_grad_() for scalar in scalars())
        total = summed_loss(images, texts, scale, bias, loss=loss, logits_at_once=rows * 64)
        values.append((total, *torch.autograd.grad(total, (images, texts, scale, bias))))
    for chunked in values[:2]:
        for ours, whole in zip(chunked, values[2], strict=True):
            # Sums of 64 float32 numbers in another order.
            torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("logits_at_once", "rows"), [(1, [1] * 5), (20, [2, 2, 1]), (45, [5]), (1000, [5])])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_more_rows_of_logits_are_held_at_a_time_than_asked_for(loss, logits_at_once, rows, monkeypatch):
    held = []
    owner, name = (torch.nn.functional, "softplus") if loss == "siglip" else (torch.Tensor, "logsumexp")
    function = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda logits, **options: held.append(logits.shape) or function(logits, **options))
    summed_loss(unit(5, 0), unit(9, 1), *scalars(), loss=loss, logits_at_once=logits_at_once)
    assert held == [(count, 9) for count in rows]


@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivatives_are_refused(loss):
    """The gradients are computed in the forward pass, so autograd would take them for constants."""
    images = unit(4, 0).requires_grad_()
    value = contrastive_loss(images, unit(4, 1), *scalars(), loss=loss)
    (gradient,) = torch.autograd.grad(value.square(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_siglip_starts_with_the_temperature_and_the_bias_of_its_paper():
    assert math.exp(SIGLIP_LOGIT_SCALE) == pytest.approx(10) and SIGLIP_LOGIT_BIAS == -10


@pytest.mark.parametrize("loss", LOSSES)
def test_logits_are_float32_under_autocast_and_for_bfloat16_features(loss):
    images, texts = unit(64, 0).bfloat16(), unit(64, 1).bfloat16()
    expected = contrastive_loss(images.float(), texts.float(), *scalars(), loss=loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_loss(images, texts, *scalars(), loss=loss), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_losses_and_gradients_are_finite_at_both_ends_of_the_temperature(loss, scale):
    images = unit(16, 0).requires_grad_()
    value = contrastive_loss(images, unit(16, 1), torch.tensor(scale), torch.tensor(-10.0), loss=loss)
    value.backward()
    assert value.isfinite() and images.grad.isfinite().all()


def test_infonce_gives_a_bias_a_gradient_of_zero():
    """None at all would let DDP wait for it for ever."""
    scale, bias = (scalar.requires_grad_() for scalar in scalars())
    contrastive_loss(unit(4, 0), unit(4, 1), scale, bias).backward()
    assert bias.grad == 0


def test_images_and_texts_that_are_not_pairs_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        contrastive_loss(unit(3, 0), unit(4, 0), torch.tensor(1.0))


def test_a_loss_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="infonce, siglip"):
        contrastive_loss(unit(3, 0), unit(3, 1), torch.tensor(1.0), loss="triplet")


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Those of each parameter by number of processes, loss and author."""
    pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("gradients")
    for world_size in (1, 2, 4):
        torch.multiprocessing.spawn(gradients_of_a_process, (world_size, str(folder)), nprocs=world_size)
    return {world_size: torch.load(folder / f"{world_size}.pt") for world_size in (1, 2, 4)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize(("author", "authority"), [("ours", "ours"), ("ours", "theirs"), ("cached", "theirs")])
def test_gradients_of_several_processes_are_those_of_one_with_the_whole_batch_and_open_clips(
    gradients, loss, world_size, author, authority
):
    expected = gradients[1][loss, authority]
    assert_same_gradients(gradients[world_size][loss, author], expected)
    assert {"logit_scale", "logit_bias"} < set(expected) and expected["logit_scale"] != 0
    assert (expected["logit_bias"].abs() > 1e-3) == (loss == "siglip")
