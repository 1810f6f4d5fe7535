"""The estimated memory of a run compared with the memory of its tensors."""

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel
from biomedclip.contrastive_loss import contrastive_loss
from biomedclip.run_scripts.training.memory import estimate_memory
from biomedclip.run_scripts.training.models import lock_image_tower


TEXT_LENGTH, PAIRS = 96, 16
PAIRS_IN_BF16 = 4  # fewer, because CPUs without bfloat16 instructions are slow


def wide_model(patch_dropout: float = 0.0, locked: bool = False) -> BiomedCLIPModel:
    """Return encoders of the published proportions with four layers. Without dropout, attention is fused."""
    shape = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision = shape | {"image_size": 160, "patch_dropout": patch_dropout}
    text = shape | {"vocab_size": 1000, "hidden_dropout": 0.0, "attention_dropout": 0.0}
    model = BiomedCLIPModel(BiomedCLIPConfig(projection_dim=64, vision_config=vision, text_config=text))
    if locked:
        lock_image_tower(model)
    return model


def peak_of_two_steps(options: dict, pairs: int, *, bf16: bool, checkpointing: bool) -> int:
    """Return the peak of the bytes of all tensors in two steps, as torch's allocator counts them."""
    gc.collect()
    pixels = torch.randn(pairs, 3, 160, 160)
    words = torch.randint(5, 1000, (pairs, TEXT_LENGTH))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model = wide_model(**options).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, foreach=True)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                outputs = model(input_ids=words, pixel_values=pixels)
                loss = contrastive_loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale.exp())
            del outputs
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def estimate(model, **options) -> dict[str, int]:
    defaults = {"batch_size": PAIRS, "processes": 1, "mini_batch_size": PAIRS, "text_length": TEXT_LENGTH}
    return estimate_memory(model, **defaults | {"bf16": False, "checkpointing": False} | options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "bf16", "checkpointing"),
    [({}, bf16, checkpointing) for bf16 in (False, True) for checkpointing in (False, True)]
    + [({"locked": True}, False, False), ({"locked": True}, False, True), ({"locked": True}, True, True)]
    + [({"patch_dropout": 0.5}, False, False)],
)
def test_the_estimate_is_an_upper_bound_within_25_percent(model, bf16, checkpointing):
    pairs = PAIRS_IN_BF16 if bf16 else PAIRS
    sizes = {"batch_size": pairs, "mini_batch_size": pairs}
    estimated = estimate(wide_model(**model), bf16=bf16, checkpointing=checkpointing, **sizes)
    measured = peak_of_two_steps(model, pairs, bf16=bf16, checkpointing=checkpointing)
    assert 1 <= estimated["peak"] / measured <= 1.25


def test_mini_batches_bound_the_activations():
    options = {"processes": 16, "bf16": True, "checkpointing": True}
    model = wide_model()
    small = estimate(model, batch_size=4096, mini_batch_size=64, **options)
    large = estimate(model, batch_size=65536, mini_batch_size=64, **options)
    assert small["activations"] == large["activations"]
    assert large["logits"] == 8 * 2**24, "a slice of rows, not 4,096 x 65,536"
    assert small["logits"] == 8 * 256 * 4096, "all rows of a process"
    wider = estimate(model, batch_size=4096, mini_batch_size=256, **options)
    assert wider["activations"] == pytest.approx(4 * small["activations"])


def test_several_processes_need_buckets_of_gradients():
    alone, together = (estimate(wide_model(), processes=processes, mini_batch_size=4) for processes in (1, 4))
    assert together["gradients"] == 2 * alone["gradients"]


def test_texts_are_limited_by_the_positions_of_the_encoder(small_model):
    assert estimate(small_model, text_length=64) == estimate(small_model, text_length=256)
