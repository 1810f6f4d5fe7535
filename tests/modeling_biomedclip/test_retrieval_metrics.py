"""Recall and rank against plain loops. Ties count with their expected value in random order."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from biomedclip import retrieval_metrics as module
from biomedclip.retrieval_metrics import (
    DIRECTIONS,
    RankCounter,
    RankCounts,
    rank_counts,
    recall_at,
    retrieval_metrics,
    summarize_ranks,
)


def unit(pairs: int, dimension: int = 8, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(pairs, dimension, generator=torch.Generator().manual_seed(seed)), dim=-1)


def whole_numbers(rows: int, seed: int) -> torch.Tensor:
    """Rows whose products are whole numbers. They are exact in every order of summation, and many are equal."""
    return torch.randint(-2, 3, (rows, 8), generator=torch.Generator().manual_seed(seed)).float()


def test_metrics_equal_a_plain_loop():
    images, texts = unit(60), normalize(unit(60) + 0.9 * unit(60, seed=1), dim=-1)
    metrics = retrieval_metrics(images, texts)
    similarity = (images.double() @ texts.double().T).numpy()
    for direction, matrix in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
        ranks = [1 + sum(row[j] > row[i] for j in range(60)) for i, row in enumerate(matrix)]
        for k in (1, 5, 10):
            assert metrics[direction][f"recall_at_{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
        assert metrics[direction]["median_rank"] == np.median(ranks)


def counts_of_a_plain_loop(images: torch.Tensor, texts: torch.Tensor, image_of_text: torch.Tensor) -> dict:
    scores = (images.double() @ texts.double().T).numpy()
    of_images = []
    for image, row in enumerate(scores):
        right = row[image_of_text.numpy() == image]
        of_images.append((sum(row > right.max()), sum(row == right.max()), sum(right == right.max())))
    columns = [(column, column[image_of_text[text]]) for text, column in enumerate(scores.T)]
    of_texts = [(sum(column > right), sum(column == right), 1) for column, right in columns]
    return {"image_to_text": np.array(of_images).T.tolist(), "text_to_image": np.array(of_texts).T.tolist()}


@pytest.mark.parametrize("shape", [(512, 2048), (128, 1024), (256, 1024)])
def test_counts_of_several_captions_equal_a_plain_loop_for_each_size_of_tile(monkeypatch, shape):
    monkeypatch.setattr(module, "TILE", shape)
    generator = torch.Generator().manual_seed(2)
    image_of_text = torch.cat([torch.arange(300), torch.randint(300, (800,), generator=generator)])
    image_of_text = image_of_text[torch.randperm(1100, generator=generator)]
    images, texts = whole_numbers(300, 0), whole_numbers(1100, 1)
    counts = rank_counts(images, texts, image_of_text)
    found = {direction: [values.tolist() for values in counts[direction]] for direction in DIRECTIONS}
    assert found == counts_of_a_plain_loop(images, texts, image_of_text)


def test_blocks_add_up_to_the_whole(monkeypatch):
    monkeypatch.setattr(module, "TILE", (128, 1024))
    images, texts = whole_numbers(500, 0), whole_numbers(500, 1)
    counter, whole = RankCounter(images, texts), rank_counts(images, texts)
    blocks = counter.combine(counter.count(first, first + 256) for first in (0, 256))
    for direction in DIRECTIONS:
        assert all(map(torch.equal, blocks[direction], whole[direction]))
    for block in ((100, 256), (0, 100)):
        with pytest.raises(ValueError, match="multiple of 128"):
            counter.count(*block)


def test_with_several_captions_the_best_one_counts():
    # Three of five candidates tie, and two of them are right: the first right one is first in two of three orders.
    counts = RankCounts(torch.tensor([1]), torch.tensor([3]), torch.tensor([2]))
    assert recall_at(1, counts).item() == 0
    assert recall_at(2, counts).item() == pytest.approx(2 / 3)
    assert recall_at(3, counts).item() == 1
    assert summarize_ranks(counts)["median_rank"] == pytest.approx(1 + 4 / 3)


@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_of_one_right_candidate_is_the_same_beside_queries_with_several(k):
    better, equal = (values.flatten() for values in torch.meshgrid(torch.arange(9), torch.arange(1, 9), indexing="ij"))
    one = torch.ones_like(better)
    alone = recall_at(k, RankCounts(better, equal, one))
    beside = RankCounts(
        *(torch.cat([values, values[-1:]]) for values in (better, equal)), torch.cat([one, one[:1] + 1])
    )
    assert recall_at(k, beside)[:-1].tolist() == pytest.approx(alone.tolist())


def test_recall_equals_that_of_the_exact_index_of_faiss():
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is in the extra `test`")
    images = unit(5000, 64)
    texts = normalize(images + 0.3 * unit(5000, 64, seed=1) * 8, dim=-1)
    counts = rank_counts(images, texts)
    for direction, queries, candidates in zip(DIRECTIONS, (images, texts), (texts, images), strict=True):
        index = faiss.IndexFlatIP(64)
        index.add(candidates.numpy())
        _, found = index.search(queries.numpy(), 10)
        for k in (1, 5, 10):
            theirs = (found[:, :k] == np.arange(5000)[:, None]).any(axis=1)
            assert 0.05 < theirs.mean() < 0.95
            assert np.array_equal(recall_at(k, counts[direction]).numpy() == 1, theirs)


@pytest.mark.parametrize("tile", [(512, 2048), (128, 1024)])
def test_a_model_that_maps_everything_to_one_point_scores_chance(monkeypatch, tile):
    monkeypatch.setattr(module, "TILE", tile)
    point = unit(1).expand(1500, -1).contiguous()
    for values in retrieval_metrics(point, point).values():
        assert values["recall_at_1"] == pytest.approx(1 / 1500)
        assert values["recall_at_5"] == pytest.approx(5 / 1500)
        assert values["median_rank"] == 750.5


def test_a_tie_of_two_counts_half():
    images, texts = torch.eye(4), torch.eye(4)
    texts[1] = texts[0]
    better, equal, _ = rank_counts(images, texts)["image_to_text"]
    assert equal.tolist() == [2, 4, 1, 1] and better.tolist() == [0, 0, 0, 0]
    assert retrieval_metrics(images, texts)["image_to_text"]["recall_at_1"] == (0.5 + 0.25 + 1 + 1) / 4


@pytest.mark.parametrize("bad", [torch.full((3, 8), float("nan")), torch.zeros(0, 8), torch.zeros(2, 8)])
def test_embeddings_that_cannot_be_ranked_are_refused(bad):
    with pytest.raises(ValueError, match="NaN|pairs"):
        retrieval_metrics(bad, unit(3) if len(bad) else bad)


def test_each_image_needs_a_text():
    with pytest.raises(ValueError, match="each image at least once"):
        rank_counts(unit(3), unit(3), torch.tensor([0, 0, 1]))
