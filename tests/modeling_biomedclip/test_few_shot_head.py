"""Few-shot heads against plain loops in float64."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from biomedclip.few_shot_head import METHODS, FewShotHead, adapt_embeds, cache_logits


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1)


def dot(left, right) -> float:
    return sum(float(a) * float(b) for a, b in zip(left, right, strict=True))


def test_tip_adapter_equals_a_plain_loop():
    images, keys, texts, values = drawn(5, 8, seed=1), drawn(7, 8, seed=2), drawn(3, 8, seed=3), [0, 0, 1, 1, 2, 2, 2]
    tensors = {"class_embeds": texts, "keys": keys, "values": torch.tensor(values)}
    head = FewShotHead("tip-adapter", tensors, {"logit_scale": 20.0, "alpha": 1.5, "beta": 5.5})
    expected = [[20.0 * dot(image, text) for text in texts] for image in images]
    for row, image in enumerate(images):
        for key, value in zip(keys, values, strict=True):
            expected[row][value] += 1.5 * math.exp(-5.5 * (1 - dot(image, key)))
    torch.testing.assert_close(head(images), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        cache_logits(images, keys, torch.tensor(values), 5.5, 3) * 1.5 + 20 * images @ texts.t(), head(images)
    )


def test_clip_adapter_equals_a_plain_loop():
    images, down, up = drawn(4, 8, seed=1), drawn(2, 8, seed=2), drawn(8, 2, seed=3)
    rows = []
    for image in images:
        hidden = [max(0.0, dot(image, row)) for row in down]
        adapted = [max(0.0, dot(hidden, row)) for row in up]
        mixed = [0.2 * a + 0.8 * float(x) for a, x in zip(adapted, image, strict=True)]
        length = math.sqrt(dot(mixed, mixed))
        rows.append([value / length for value in mixed])
    torch.testing.assert_close(adapt_embeds(images, down, up, 0.2), torch.tensor(rows, dtype=torch.float64))


def test_a_cache_of_other_classes_is_dropped_and_a_linear_probe_cannot_change_its_classes():
    tensors = {"class_embeds": drawn(3, 8), "keys": drawn(4, 8), "values": torch.tensor([0, 1, 2, 2])}
    head = FewShotHead("tip-adapter", tensors, {"logit_scale": 10.0, "alpha": 1.0, "beta": 1.0})
    others = drawn(2, 8, seed=9)
    images = drawn(5, 8, seed=4)
    torch.testing.assert_close(head.with_classes(others)(images), 10 * images @ others.t())
    probe = FewShotHead("linear-probe", {"weight": drawn(3, 8), "bias": torch.zeros(3)}, {})
    with pytest.raises(ValueError, match="cannot classify other classes"):
        probe.with_classes(others)


@pytest.mark.parametrize(
    "method, tensors, settings, message",
    [
        ("prototype", {}, {}, "'prototype' is unknown. Choose one of zero-shot"),
        ("zero-shot", {}, {"logit_scale": 1.0}, "tensors of zero-shot must be class_embeds, not none"),
        ("zero-shot", {"class_embeds": torch.zeros(2, 4)}, {}, "settings of zero-shot must be logit_scale, not none"),
        ("linear-probe", {"weight": torch.zeros(2, 4), "bias": torch.zeros(3)}, {}, r"bias has the shape \(3,\)"),
        (
            "tip-adapter",
            {"class_embeds": torch.zeros(2, 4), "keys": torch.zeros(1, 4), "values": torch.tensor([2])},
            {"logit_scale": 1.0, "alpha": 1.0, "beta": 1.0},
            "contains class 2, but there are 2 classes",
        ),
    ],
)
def test_a_head_with_other_tensors_is_refused(method, tensors, settings, message):
    assert "prototype" not in METHODS
    with pytest.raises(ValueError, match=message):
        FewShotHead(method, tensors, settings)
