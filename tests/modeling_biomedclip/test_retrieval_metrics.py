"""Recall and rank against a plain loop, with ties counted as chance would break them."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import normalize

from biomedclip import retrieval_metrics as module
from biomedclip.retrieval_metrics import (
    RankCounter,
    bootstrap_interval,
    rank_counts,
    recall_at,
    retrieval_metrics,
    summarize_ranks,
)


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


def whole_numbers(rows: int, seed: int, dimension: int = 8) -> torch.Tensor:
    """Rows whose products are whole, so that every way to work them out gives the same, with many ties."""
    return torch.randint(-2, 3, (rows, dimension), generator=torch.Generator().manual_seed(seed)).float()


def counts_of_a_plain_loop(images: torch.Tensor, texts: torch.Tensor, image_of_text: torch.Tensor) -> dict:
    scores = (images.double() @ texts.double().T).numpy()
    counts = {name: [] for name in ("image_to_text_better", "image_to_text_equal", "right")}
    for image, row in enumerate(scores):
        of_image = [score for text, score in enumerate(row) if image_of_text[text] == image]
        counts["image_to_text_better"].append(sum(score > max(of_image) for score in row))
        counts["image_to_text_equal"].append(sum(score == max(of_image) for score in row))
        counts["right"].append(sum(score == max(of_image) for score in of_image))
    columns = [(column, column[image_of_text[text]]) for text, column in enumerate(scores.T)]
    counts["text_to_image_better"] = [sum(score > right for score in column) for column, right in columns]
    counts["text_to_image_equal"] = [sum(score == right for score in column) for column, right in columns]
    return counts


@pytest.mark.parametrize("shape", [(512, 2048), (128, 1024), (256, 1024)])
def test_counts_of_whole_tiles_and_of_parts_equal_a_plain_loop(monkeypatch, shape):
    monkeypatch.setattr(module, "TILE", shape)
    images, texts = whole_numbers(300, 0), whole_numbers(1100, 1)
    image_of_text = torch.cat(
        [torch.arange(300), torch.randint(300, (800,), generator=torch.Generator().manual_seed(2))]
    )
    image_of_text = image_of_text[torch.randperm(1100, generator=torch.Generator().manual_seed(3))]
    counter = RankCounter(images, texts, image_of_text)
    assert {name: counts.tolist() for name, counts in (counter.count() | {"right": counter.right}).items()} == (
        counts_of_a_plain_loop(images, texts, image_of_text)
    )


def test_blocks_add_up_to_the_whole(monkeypatch):
    monkeypatch.setattr(module, "TILE", (128, 1024))
    counter = RankCounter(whole_numbers(500, 0), whole_numbers(500, 1))
    whole, blocks = counter.count(), [counter.count(first, first + 256) for first in (0, 256)]
    for kind in ("better", "equal"):
        assert torch.cat([block[f"image_to_text_{kind}"] for block in blocks]).equal(whole[f"image_to_text_{kind}"])
        assert sum(block[f"text_to_image_{kind}"] for block in blocks).equal(whole[f"text_to_image_{kind}"])
    with pytest.raises(ValueError, match="multiple of 128"):
        counter.count(100)


def test_of_several_captions_the_best_counts_and_ties_are_drawn():
    # Three of five candidates score the same, two of them right: the first right one is first in two of three orders.
    better, equal, right = torch.tensor([1]), torch.tensor([3]), torch.tensor([2])
    assert recall_at(1, better, equal, right).item() == 0
    assert recall_at(2, better, equal, right).item() == pytest.approx(2 / 3)
    assert recall_at(3, better, equal, right).item() == 1
    assert summarize_ranks(better, equal, right)["median_rank"] == pytest.approx(1 + 4 / 3)
    alone = torch.ones(1)
    for k in (1, 5, 10):
        for better, equal in ((torch.tensor([g]), torch.tensor([m])) for g in range(9) for m in range(1, 9)):
            expected = recall_at(k, better, equal).item()
            assert recall_at(k, better, equal, alone).item() == pytest.approx(expected)


def test_20_000_pairs_give_what_faiss_finds_by_its_exact_index():
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is in the extra `test`")
    images = unit(20_000, 64)
    texts = normalize(images + 0.35 * torch.randn(20_000, 64, generator=torch.Generator().manual_seed(1)), dim=-1)
    better, equal = rank_counts(images, texts)
    for direction, queries, candidates in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        index = faiss.IndexFlatIP(64)
        index.add(candidates.numpy())
        _, found = index.search(queries.numpy(), 10)
        for k in (1, 5, 10):
            theirs = (found[:, :k] == np.arange(20_000)[:, None]).any(axis=1)
            assert 0.05 < theirs.mean() < 0.95
            assert np.array_equal(recall_at(k, better[direction], equal[direction]).numpy() == 1, theirs)


def test_a_perfect_model_scores_one():
    metrics = retrieval_metrics(unit(100, 64), unit(100, 64))
    assert metrics["image_to_text"] == {"recall_at_1": 1, "recall_at_5": 1, "recall_at_10": 1, "median_rank": 1}


@pytest.mark.parametrize("tile", [(512, 2048), (128, 1024)])
def test_a_collapsed_model_scores_chance(monkeypatch, tile):
    monkeypatch.setattr(module, "TILE", tile)
    point = unit(1).expand(1500, -1).contiguous()
    for values in retrieval_metrics(point, point).values():
        assert values["recall_at_1"] == pytest.approx(1 / 1500)
        assert values["recall_at_5"] == pytest.approx(5 / 1500)
        assert values["median_rank"] == 750.5


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


HITS = np.array([0.0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("groups", "options", "interval"),
    [
        (range(12), {}, (5 / 12, 11 / 12)),
        ("aabbccddeeff", {}, (1 / 2, 5 / 6)),
        ("aaaabbccddef", {"resamples": 200, "level": 0.9}, (0.5384615384615384, 0.875)),
    ],
)
def test_an_interval_has_these_ends(groups, options, interval):
    """Pinned: results that were published must come out again."""
    assert bootstrap_interval(HITS, list(groups), **options) == pytest.approx(interval, abs=1e-15)


@pytest.mark.parametrize("seed", [0, 7])
def test_an_interval_over_single_queries_is_scipys(seed):
    values = np.random.default_rng(1).random(300)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(seed)
    ).confidence_interval
    ours = bootstrap_interval(values, range(300), seed=seed)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours != bootstrap_interval(values, range(300), seed=seed + 1)


def test_an_interval_over_groups_is_scipys_over_their_sums_and_sizes():
    generator = np.random.default_rng(2)
    groups = generator.integers(60, size=300)
    values = (generator.random(300) < 0.3 + 0.4 * (groups % 2)).astype(float)
    sums, sizes = np.bincount(groups, values, 60), np.bincount(groups, minlength=60)
    theirs = stats.bootstrap(
        (sums, sizes),
        lambda total, count, axis: total.sum(axis=axis) / count.sum(axis=axis),
        paired=True,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert bootstrap_interval(values, groups) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_an_interval_of_many_groups_is_drawn_in_pieces_that_give_the_same():
    """Beyond 4,194,304 draws at a time; the draws follow one another as in one piece."""
    values = np.random.default_rng(3).random(5000)
    drawn = np.random.default_rng(0).integers(5000, size=(1000, 5000))
    expected = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    assert bootstrap_interval(values, range(5000)) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize(("number", "rounded"), [(1, 8), (8, 8), (9, 16), (255, 256), (256, 256)])
def test_tiles_are_padded_no_further_than_to_the_next_multiple(number, rounded):
    assert module._up_to(number, 8) == rounded
