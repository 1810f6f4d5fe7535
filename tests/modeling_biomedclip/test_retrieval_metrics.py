"""Recall and rank against a plain loop, with ties counted as chance would break them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from modeling_biomedclip import retrieval_metrics as module
from modeling_biomedclip.retrieval_metrics import bootstrap_interval, rank_counts, retrieval_metrics


def unit(pairs: int, dimension: int = 8, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(pairs, dimension, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_metrics_equal_a_plain_loop():
    images, texts = unit(60), normalize(unit(60) + 0.9 * unit(60, seed=1), dim=-1)
    metrics = retrieval_metrics(images, texts)
    similarity = (images.double() @ texts.double().T).numpy()
    for direction, matrix in (("image_to_text", similarity), ("text_to_image", similarity.T)):
        ranks = [1 + sum(row[j] > row[i] for j in range(60)) for i, row in enumerate(matrix)]
        for k in (1, 5, 10):
            assert metrics[direction][f"recall_at_{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
        assert metrics[direction]["median_rank"] == np.median(ranks)


def test_tiles_change_nothing(monkeypatch):
    images, texts = unit(50), normalize(unit(50) + unit(50, seed=1), dim=-1)
    whole = retrieval_metrics(images, texts)
    monkeypatch.setattr(module, "TILE", 7)
    assert retrieval_metrics(images, texts) == whole


def test_a_perfect_model_scores_one():
    metrics = retrieval_metrics(unit(100, 64), unit(100, 64))
    assert metrics["image_to_text"] == {"recall_at_1": 1, "recall_at_5": 1, "recall_at_10": 1, "median_rank": 1}


@pytest.mark.parametrize("tile", [4096, 7])
def test_a_collapsed_model_scores_chance(monkeypatch, tile):
    monkeypatch.setattr(module, "TILE", tile)
    point = unit(1).expand(40, -1).contiguous()
    for values in retrieval_metrics(point, point).values():
        assert values["recall_at_1"] == pytest.approx(1 / 40)
        assert values["recall_at_5"] == pytest.approx(5 / 40)
        assert values["median_rank"] == 20.5


def test_a_tie_of_two_counts_half():
    images = torch.eye(4)
    texts = torch.eye(4)
    texts[1] = texts[0]
    better, equal = rank_counts(images, texts)
    assert equal["image_to_text"].tolist() == [2, 4, 1, 1] and better["image_to_text"].tolist() == [0, 0, 0, 0]
    assert retrieval_metrics(images, texts)["image_to_text"]["recall_at_1"] == (0.5 + 0.25 + 1 + 1) / 4


def test_a_random_model_scores_chance():
    recalls = [
        retrieval_metrics(unit(500, 32, seed=seed), unit(500, 32, seed=seed + 100))["image_to_text"]["recall_at_10"]
        for seed in range(20)
    ]
    # 10,000 queries at p = 0.02: three standard deviations are 0.0042.
    assert abs(np.mean(recalls) - 0.02) < 0.0042


@pytest.mark.parametrize("bad", [torch.full((3, 8), float("nan")), torch.zeros(0, 8), torch.zeros(2, 8)])
def test_embeddings_that_cannot_be_ranked_are_refused(bad):
    with pytest.raises(ValueError, match="NaN|pairs"):
        retrieval_metrics(bad, unit(3) if len(bad) else bad)


def test_an_interval_holds_the_mean_and_widens_with_groups():
    values = np.repeat(np.random.default_rng(0).integers(0, 2, 40), 10).astype(float)
    single = bootstrap_interval(values, range(400))
    grouped = bootstrap_interval(values, np.repeat(range(40), 10))
    assert single[0] < values.mean() < single[1]
    assert grouped[1] - grouped[0] > 2 * (single[1] - single[0])
    assert grouped == bootstrap_interval(values, np.repeat(range(40), 10))
