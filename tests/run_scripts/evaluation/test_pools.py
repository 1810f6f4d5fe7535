"""Retrieval among pools of pairs that are drawn out of a split."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.commands import biomedclip
from helpers.model_results import read_results
from torch.nn.functional import normalize

from biomedclip.processing.benchmarks import facts, load_benchmark
from biomedclip.retrieval_metrics import DIRECTIONS, RankCounts
from biomedclip.run_scripts.cli.errors import UsageError
from biomedclip.run_scripts.evaluation.dual_encoders import DualEncoder
from biomedclip.run_scripts.evaluation.pairs import EmbeddedPairs
from biomedclip.run_scripts.evaluation.pools import draw_pool
from biomedclip.run_scripts.evaluation.retrieval import Pool, count_ranks, retrieval_of_pools, validation_loss
from biomedclip.run_scripts.evaluation.statistics.bootstrap import bootstrap_interval


def test_a_pool_is_drawn_without_replacement_and_depends_on_seed_and_draw_alone():
    pool = draw_pool(100, 40, seed=0, draw=1)
    assert pool == sorted(set(pool)) and len(pool) == 40 and set(pool) <= set(range(100))
    assert pool == draw_pool(100, 40, seed=0, draw=1)
    others = [draw_pool(100, 40, seed=seed, draw=draw) for seed in range(3) for draw in range(3)]
    assert len({tuple(other) for other in others}) == 9
    assert draw_pool(7, 7, seed=3) == list(range(7))
    with pytest.raises(ValueError, match="A pool of 8 pairs cannot be drawn from 7 pairs"):
        draw_pool(7, 8, seed=0)


def embedded_pairs(pairs: int, *, several: bool, levels: int) -> EmbeddedPairs:
    """Pairs with embeddings of few different values, so that many similarities tie exactly, in float32 too."""
    generator = torch.Generator().manual_seed(0)
    image_of_text = None
    images = pairs
    if several:
        image_of_text = torch.randint(0, pairs // 2, (pairs,), generator=generator)
        image_of_text = image_of_text.unique(return_inverse=True)[1]
        images = int(image_of_text.max()) + 1
    of_images, of_texts = (torch.randint(0, levels, (rows, 3), generator=generator).float() for rows in (images, pairs))
    return EmbeddedPairs(of_images, of_texts, image_of_text, torch.arange(pairs), [], "")


def recall_of_a_plain_loop(embedded: EmbeddedPairs, rows: list[int], k: int, direction: str) -> float:
    """
    Recall at k among the pairs of some rows, in float64.

    Of the candidates with the score of the best right one, chance decides about the order.
    """
    image_of = range(len(embedded.texts)) if embedded.image_of_text is None else embedded.image_of_text.tolist()
    images, texts = sorted({image_of[row] for row in rows}), rows
    queries, candidates = (images, texts) if direction == "image_to_text" else (texts, images)
    total = 0.0
    for query in queries:
        scores, right = [], []
        for candidate in candidates:
            image, text = (query, candidate) if direction == "image_to_text" else (candidate, query)
            scores.append(float(embedded.images[image].double() @ embedded.texts[text].double()))
            right.append(image_of[text] == image)
        best = max(score for score, is_right in zip(scores, right, strict=True) if is_right)
        better = sum(score > best for score in scores)
        tied = [is_right for score, is_right in zip(scores, right, strict=True) if score == best]
        wrong, missed = len(tied) - sum(tied), 1.0
        for place in range(min(max(k - better, 0), len(tied))):
            missed *= max(wrong - place, 0) / (len(tied) - place)
        total += 1 - missed if k > better else 0.0
    return total / len(queries)


@pytest.mark.parametrize("several", [False, True])
def test_recall_in_pools_is_the_mean_of_a_plain_loop_over_the_draws(several, tmp_path):
    embedded = embedded_pairs(60, several=several, levels=3)
    articles = [f"PMC{row // 3}" for row in range(60)]
    drawn = [draw_pool(60, 20, seed=4, draw=draw) for draw in range(3)]
    chosen = [embedded.select(rows) for rows in drawn]
    pools = [
        Pool(count_ranks(pairs, tmp_path, {"draw": draw}), [articles[row] for row in rows], pairs.image_of_text)
        for draw, (pairs, rows) in enumerate(zip(chosen, drawn, strict=True))
    ]
    metrics = retrieval_of_pools(pools, 0)
    for direction in DIRECTIONS:
        for k in (1, 5, 10):
            expected = [recall_of_a_plain_loop(embedded, rows, k, direction) for rows in drawn]
            assert metrics[direction][f"recall_at_{k}_of_draws"] == pytest.approx(expected, abs=1e-12)
            assert metrics[direction][f"recall_at_{k}"] == pytest.approx(np.mean(expected), abs=1e-12)
            low, high = metrics[direction][f"recall_at_{k}_interval"]
            assert low <= min(expected) and max(expected) <= high
    assert metrics["pairs"] == 20 and metrics["articles"] == min(len(set(pool.articles)) for pool in pools)
    if several:
        assert metrics["chance_at_1"] == pytest.approx(np.mean([1 / len(pairs.images) for pairs in chosen]))


def test_the_interval_of_draws_has_the_coverage_of_one_pool(tmp_path):
    """The mean of three equal pools has the interval of one of them, but for the seeds of the bootstrap."""
    embedded = embedded_pairs(200, several=False, levels=40)
    articles = [f"PMC{row}" for row in range(200)]
    pool = Pool(count_ranks(embedded, tmp_path, {}), articles)
    metrics, alone = retrieval_of_pools([pool] * 3, 0), retrieval_of_pools([pool], 0)
    for direction in DIRECTIONS:
        interval = metrics[direction]["recall_at_10_interval"]
        assert interval == pytest.approx(alone[direction]["recall_at_10_interval"], abs=0.01)
        hits = np.array([1.0] * 20 + [0.0] * 180)
        assert bootstrap_interval(hits, articles) == pytest.approx((0.06, 0.145), abs=0.01), "and of a known one"


def test_the_interval_holds_each_of_two_pools_that_differ():
    """One pool in which all are found, one in which none is."""
    one = torch.ones(50, dtype=torch.int64)
    counts = [{name: RankCounts(torch.full((50,), better), one, one) for name in DIRECTIONS} for better in (0, 20)]
    metrics = retrieval_of_pools([Pool(counted, range(50)) for counted in counts], 0)["text_to_image"]
    assert metrics["recall_at_10_of_draws"] == [1.0, 0.0] and metrics["recall_at_10"] == 0.5
    assert metrics["recall_at_10_interval"] == [0.0, 1.0] and metrics["median_rank"] == (1 + 21) / 2


def test_pools_that_hold_nan_are_undefined(tmp_path):
    embedded = embedded_pairs(20, several=False, levels=40)
    embedded.images[3] = float("nan")
    counts = [count_ranks(embedded.select(rows), tmp_path, {"draw": rows[0]}) for rows in ([3, 4, 5], [6, 7, 8])]
    metrics = retrieval_of_pools([Pool(counted, "abc") for counted in counts], 0)
    assert metrics["image_to_text"]["recall_at_1"] is None and set(metrics["undefined"]) == set(DIRECTIONS)


@pytest.fixture
def retrieve(measure, built, tmp_path):
    """Measure retrieval on the test split of a built set. The embeddings are kept in one folder."""
    return lambda *options, **other: measure("retrieval", built, "--features-dir", tmp_path / "f", *options, **other)


def test_pools_are_drawn_with_the_seed_and_embeddings_are_computed_once(retrieve, capsys, monkeypatch):
    everything = retrieve()["metrics"]
    pairs = everything["pool"]["pairs"]
    assert everything["pool"] == {"size": pairs, "draws": 1, "pairs": pairs, "seed": 0}
    assert everything["loss_in_batches_of_4096"] > 0
    assert "Loss in batches of 4,096 pairs" in capsys.readouterr().out

    monkeypatch.setattr(DualEncoder, "embed_pixels", lambda *_: pytest.fail("embedded again"))
    found = retrieve("--pool-size", "8")
    metrics = found["metrics"]
    assert metrics["pool"] == {"size": 8, "draws": 5, "pairs": pairs, "seed": 0}
    assert found["data"]["rows"] == metrics["pairs"] == 8 and metrics["chance_at_1"] == 1 / 8
    of_draws = metrics["image_to_text"]["recall_at_1_of_draws"]
    assert len(of_draws) == 5
    assert f"Mean of 5 draws of 8 of {pairs} pairs, seed 0." in " ".join(capsys.readouterr().out.split())
    again = retrieve("--pool-size", "8", "--pool-draws", "2")["metrics"]
    assert again["image_to_text"]["recall_at_1_of_draws"] == of_draws[:2]
    assert retrieve("--pool-size", pairs)["metrics"] == everything


def test_pools_that_do_not_fit_the_split_are_refused_before_a_model_is_loaded(measure, built, no_model):
    pairs = len(load_benchmark("pmc15m", built, split="validation"))
    data = ["retrieval", built, "--split", "validation", "--pool-size"]
    with pytest.raises(UsageError, match=f"--pool-size 100,000 is larger than the validation split, .* {pairs} usable"):
        measure(*data, 100_000)
    with pytest.raises(UsageError, match="--pool-draws 2 has no effect"):
        measure(*data, pairs, "--pool-draws", 2)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_papers_values_are_shown_only_beside_a_pool_of_their_size(split, retrieve, capsys, monkeypatch):
    paper = {"test": 0.701, "validation": 0.829}[split]
    published = {"test": 725_739, "validation": 13_600}[split]
    options = ["--benchmark", "pmc15m", "--split", split, "--pool-size", "8"]
    results, output = retrieve(*options), " ".join(capsys.readouterr().out.split())
    assert results["paper"] == {} and results["published"] == [] and "paper " not in output.split("Note:")[0]
    note = next(note for note in results["data"]["notes"] if "The pools differ" in note)
    assert "among 8 pairs here" in note and f"among {published:,} in the paper" in note and note in output

    monkeypatch.setitem(facts._read(facts.FILE)["benchmarks"]["pmc15m"], "images", {split: 8})
    results = retrieve(*options, "--image-id", "pmcid")
    assert results["paper"] == {} and results["published"] == [], "several captions of an image are another task"
    assert any("--image-id pmcid: an image can have several right" in note for note in results["data"]["notes"])
    capsys.readouterr()
    results, output = retrieve(*options), " ".join(capsys.readouterr().out.split())
    assert results["paper"]["image_to_text"]["recall_at_1"] == paper
    assert results["published"][0]["values"] == results["paper"] and "BiomedCLIP" in results["published"][0]["model"]
    assert not any("The pools differ" in note for note in results["data"]["notes"])
    assert f"{paper:.4g}" in output
    models = [entry["model"] for entry in results["published"]]
    assert models[:3] == ["BiomedCLIP", "GPT variant of BiomedCLIP", "OpenAI CLIP"]
    if split == "test":
        assert models[3:] == ["PubMedCLIP"]
        assert "Published values, not measured here" in output and "PubMedCLIP *" in output
    else:
        assert results["paper"]["loss_in_batches_of_4096"] == 0.3819 and "(paper: 0.3819)" in output
        assert len(models) == 3


@pytest.mark.slow
def test_processes_share_pools_and_rows_of_one_image(retrieve, small_checkpoint, built, tmp_path):
    options = ["--pool-size", "10", "--pool-draws", "2", "--image-id", "pmcid"]
    alone = retrieve(*options)["metrics"]
    command = ["evaluate", "retrieval", "--model", small_checkpoint, "--data", built, "--output-dir", tmp_path / "two"]
    biomedclip(*command, *options, processes=2)
    together = read_results(tmp_path / "two")
    assert together["settings"]["processes"] == 2 and together["metrics"] == alone
    assert 5 <= alone["images"] < 10


def test_the_loss_of_several_captions_of_an_image_is_that_of_the_pairs():
    embedded = embedded_pairs(12, several=True, levels=9)
    images, texts = normalize(embedded.images[embedded.image_of_text].double()), normalize(embedded.texts.double())
    logits = 3 * images @ texts.T
    expected = sum(torch.nn.functional.cross_entropy(side, torch.arange(12)) for side in (logits, logits.T)) / 2
    unit = replace(embedded, images=normalize(embedded.images), texts=normalize(embedded.texts))
    encoder = SimpleNamespace(type="biomedclip", logit_scale=3.0)
    assert validation_loss(unit, encoder) == pytest.approx(expected.item(), rel=1e-5)
    encoder.type = "biovil"
    assert math.isnan(validation_loss(unit, encoder)), "its temperature is not published"
