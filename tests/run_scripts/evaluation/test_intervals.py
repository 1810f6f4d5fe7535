"""Bootstrap intervals of every task against scipy: they draw the right units with the right seed."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.bootstrap import scipy_interval
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score

from biomedclip.retrieval_metrics import DIRECTIONS, RankCounts
from biomedclip.run_scripts.evaluation import linear_probe, zero_shot
from biomedclip.run_scripts.evaluation.classification import measure_classification
from biomedclip.run_scripts.evaluation.linear_probe import LabeledFeatures, probe_with_scores
from biomedclip.run_scripts.evaluation.pairs import EmbeddedPairs
from biomedclip.run_scripts.evaluation.retrieval import Pool, count_ranks, retrieval_of_pools, show_retrieval
from biomedclip.run_scripts.evaluation.run import note_if_few_drawn
from biomedclip.run_scripts.evaluation.statistics.bootstrap import bootstrap_interval
from biomedclip.run_scripts.evaluation.statistics.fractions import show_probe
from biomedclip.run_scripts.evaluation.subgroups import measure_subgroups
from biomedclip.run_scripts.evaluation.visual_question_answering import answer_metrics, show_answers, write_answers
from biomedclip.run_scripts.evaluation.zero_shot import classification_metrics, show_classification, zero_shot_scores


def test_an_interval_contains_the_mean_and_widens_with_groups():
    values = np.repeat(np.random.default_rng(0).integers(0, 2, 40), 10).astype(float)
    single = bootstrap_interval(values, range(400))
    grouped = bootstrap_interval(values, np.repeat(range(40), 10))
    assert single[0] < values.mean() < single[1]
    assert grouped[1] - grouped[0] > 2 * (single[1] - single[0])


@pytest.mark.parametrize(
    ("groups", "resamples", "interval"),
    [
        (range(12), 1000, (5 / 12, 11 / 12)),
        ("aabbccddeeff", 1000, (1 / 2, 5 / 6)),
        ("aaaabbccddef", 200, (0.5333333333333333, 0.8891666666666667)),
    ],
)
def test_an_interval_has_these_ends(groups, resamples, interval):
    """Published results must stay reproducible."""
    hits = np.array([0.0, 1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1])
    assert bootstrap_interval(hits, list(groups), resamples=resamples) == pytest.approx(interval, abs=1e-15)


def test_a_single_patient_has_no_interval():
    values, truth, groups = np.arange(40.0) % 2, np.arange(40) % 2, ["p"] * 40
    assert bootstrap_interval(values, groups) is None
    scores = np.random.default_rng(0).normal(size=(40, 2))
    found = measure_classification(scores, truth, groups=groups)
    assert found["auroc"] is not None
    assert {value for name, value in found.items() if name.endswith("_interval")} == {None}


def test_the_note_on_few_counts_patients_if_they_are_known():
    assert note_if_few_drawn(40, None) == []
    assert note_if_few_drawn(40, ["a", "b"] * 20) == ["Only 2 groups: the intervals are too narrow."]
    assert note_if_few_drawn(29, None) == ["Only 29 images: the intervals are too narrow."]


def test_a_subgroup_of_few_patients_is_marked():
    groups, labels = [f"p{number % 29}" for number in range(60)], ["a", "b"] * 30
    measured = dict.fromkeys(("accuracy", "balanced_accuracy", "auroc"), 0.5)
    columns = {"device": ["old"] * 60}
    (found,) = measure_subgroups(columns, labels, lambda rows: measured, groups)["device"].values()
    assert found["few"]
    (found,) = measure_subgroups(columns, labels, lambda rows: measured)["device"].values()
    assert not found["few"]


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("grouped", [False, True])
def test_an_interval_equals_that_of_scipy(grouped, seed):
    generator = np.random.default_rng(2)
    groups = generator.integers(60, size=300) if grouped else np.arange(300)
    values = generator.random(300) + groups % 2
    interval = bootstrap_interval(values, groups, seed=seed)
    assert interval == pytest.approx(scipy_interval(values, groups, seed), abs=1e-12)
    assert interval != bootstrap_interval(values, groups, seed=seed + 1)


def test_an_interval_of_many_groups_that_are_drawn_in_pieces_equals_that_of_scipy():
    values = np.random.default_rng(3).random(5000)  # more than 4,194,304 draws
    assert bootstrap_interval(values, range(5000)) == pytest.approx(scipy_interval(values, range(5000)), abs=1e-12)


def test_zero_shot_classification_draws_whole_patients(monkeypatch):
    generator = np.random.default_rng(0)
    truth, groups = generator.integers(2, size=80), generator.integers(20, size=80)
    embeds = torch.tensor(generator.normal(size=(80, 2)) + np.eye(2)[truth])
    classifier = SimpleNamespace(class_embeds=torch.eye(2, dtype=torch.float64))
    monkeypatch.setattr(zero_shot, "ZeroShotClassifier", lambda *arguments, **options: classifier)
    encoder = SimpleNamespace(precise=contextlib.nullcontext, model=None, processor=None, logit_scale=1.0)
    labels = [("a", "b")[number] for number in truth]
    scores = zero_shot_scores(encoder, embeds, ["a", "b"], ["{}"])
    metrics = classification_metrics(scores, labels, ["a", "b"], groups=[f"{group:02}" for group in groups], seed=4)
    hits = (embeds.argmax(dim=1).numpy() == truth).astype(float)
    assert metrics["accuracy"] == accuracy_score(truth, embeds.argmax(dim=1))
    assert metrics["accuracy_interval"] == pytest.approx(scipy_interval(hits, groups, 4))


def test_the_linear_probe_draws_whole_patients_of_the_test_images(monkeypatch):
    generator = np.random.default_rng(1)

    def split(images: int) -> LabeledFeatures:
        labels = generator.integers(2, size=images)
        groups = [f"{group:02}" for group in generator.integers(15, size=images)]
        return LabeledFeatures(generator.normal(size=(images, 3)) + 0.4 * labels[:, None], labels, groups)

    train, validation, test = split(80), split(60), split(60)
    judged = []
    measure = linear_probe.classification_metrics
    monkeypatch.setattr(
        linear_probe,
        "classification_metrics",
        lambda scores, *arguments, **options: judged.append(scores) or measure(scores, *arguments, **options),
    )
    metrics = probe_with_scores(train, validation, test, ["a", "b"], fractions=[1.0], seed=9)[0]
    hits = (judged[-1].argmax(dim=1).numpy() == test.labels).astype(float)
    assert metrics["accuracy"] == hits.mean()
    assert metrics["accuracy_interval"] == pytest.approx(scipy_interval(hits, test.groups, 9))


@pytest.mark.parametrize("several", [False, True])
def test_retrieval_draws_whole_articles(several):
    """Queries are images in one direction and texts in the other. An image can have several captions."""
    generator = np.random.default_rng(4)
    image_of_text = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 6, 7]) if several else None
    article_of_image = [f"PMC{image // 2}" for image in range(8 if several else 12)]
    articles = [article_of_image[image] for image in image_of_text] if several else article_of_image
    counts = {}
    for direction, groups in zip(DIRECTIONS, (article_of_image, articles), strict=True):
        one = torch.ones(len(groups), dtype=torch.int64)
        counts[direction] = RankCounts(torch.tensor(generator.integers(0, 8, size=len(groups))), one, one)
    metrics = retrieval_of_pools([Pool(counts, articles, image_of_text)], 6)
    for direction, groups in zip(DIRECTIONS, (article_of_image, articles), strict=True):
        for k in (1, 5, 10):
            hits = (counts[direction].better.numpy() < k).astype(float)
            interval = metrics[direction][f"recall_at_{k}_interval"]
            if hits.std():  # scipy has no interval of constants
                assert interval == pytest.approx(scipy_interval(hits, groups, 6)), (direction, k)
            else:
                number = len(set(groups))
                expected = binomtest(int(hits[0]) * number, number).proportion_ci(method="exact")
                assert interval == pytest.approx([expected.low, expected.high])


def answers(right: np.ndarray, images: np.ndarray) -> list[dict]:
    return [
        {"answer": "yes", "right": hit, "answer_type": ("open", "closed")[n % 2], "image": f"{image:02}"}
        | {"can_be_given": True}
        for n, (hit, image) in enumerate(zip(right.tolist(), images, strict=True))
    ]


def test_answers_to_questions_draw_whole_images():
    generator = np.random.default_rng(2)
    images = generator.integers(25, size=120)
    right = generator.random(120) < 0.3 + 0.4 * (images % 2)
    metrics = answer_metrics(answers(right, images), seed=5)
    for name, chosen in (("", slice(None)), ("open_", slice(0, None, 2)), ("closed_", slice(1, None, 2))):
        assert metrics[f"{name}accuracy"] == pytest.approx(right[chosen].mean())
        expected = scipy_interval(right[chosen], images[chosen], 5)
        assert metrics[f"{name}accuracy_interval"] == pytest.approx(expected, abs=1e-12)


def test_nan_scores_of_answers_make_the_accuracy_undefined(tmp_path, capsys):
    rows = answers(np.array([True] * 6), np.arange(6))
    rows[2] |= {"right": None, "given": None, "score": None}
    metrics = answer_metrics(rows, seed=0)
    assert metrics["accuracy"] is None and metrics["open_accuracy"] is None and metrics["closed_accuracy"] == 1
    assert metrics["accuracy_interval"] is None and metrics["closed_accuracy_interval"] == pytest.approx(
        [0.025 ** (1 / 3), 1]
    )
    assert metrics["undefined"] == {
        "accuracy": "the scores of 1 of 6 answers are NaN or infinite",
        "open_accuracy": "the scores of 1 of 3 answers are NaN or infinite",
    }
    json.dumps(metrics, allow_nan=False)
    show_answers(metrics, SimpleNamespace(name="vqa_rad", split="test", paper={}))
    output = capsys.readouterr().out
    assert output.count("undefined") >= 2 and "1 of 6 answers" in " ".join(output.split())
    write_answers(tmp_path / "answers.jsonl", rows)
    lines = (tmp_path / "answers.jsonl").read_text().splitlines()
    assert json.loads(lines[2], parse_constant=pytest.fail)["right"] is None


def test_nan_embeddings_make_retrieval_undefined(tmp_path, capsys):
    images, texts = torch.randn(4, 3), torch.randn(4, 3)
    texts[2, 1] = float("nan")
    assert count_ranks(EmbeddedPairs(images, texts, None, torch.arange(4), [], "0"), tmp_path, {}) is None
    metrics = retrieval_of_pools([Pool(None, ["a", "a", "b", "b"])], 0)
    assert metrics["pairs"] == 4 and metrics["articles"] == 2 and metrics["chance_at_1"] == 0.25
    for direction in DIRECTIONS:
        assert set(metrics[direction].values()) == {None} and len(metrics[direction]) == 7
        assert metrics["undefined"][direction] == "the embeddings contain NaN or infinity"
    json.dumps(metrics, allow_nan=False)
    show_retrieval(metrics)
    assert capsys.readouterr().out.count("undefined") >= 8


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["train", "validation", "test"])
def test_nan_features_make_the_linear_probe_undefined(which, value, capsys):
    generator = np.random.default_rng(3)
    splits = {}
    for name in ("train", "validation", "test"):
        labels = np.arange(20) % 2
        splits[name] = LabeledFeatures(generator.normal(size=(20, 3)) + labels[:, None], labels)
    splits[which].features[4, 1] = value
    metrics = probe_with_scores(*splits.values(), ["a", "b"], fractions=[0.5, 1.0], draws=2)[0]
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        assert metrics[name] is None and metrics["by_fraction"]["1"][name] is None
    assert metrics["undefined"]["accuracy"].endswith("images are NaN or infinite")
    json.dumps(metrics, allow_nan=False)
    show_probe(metrics)
    show_classification(metrics)
    assert capsys.readouterr().out.count("undefined") >= 6


def test_accuracy_chooses_the_strength_if_validation_lacks_a_class():
    """AUROC is undefined then, and every strength would tie."""
    generator = np.random.default_rng(4)

    def split(images: int, classes: int) -> LabeledFeatures:
        labels = np.minimum(np.resize([0, 0, 0, 0, 1, 2], images), classes - 1)
        return LabeledFeatures(generator.normal(size=(images, 4)) + 3 * np.eye(4)[labels], labels)

    train, validation, test = split(60, 3), split(40, 2), split(60, 3)
    by_auroc, by_accuracy = (
        probe_with_scores(train, validation, test, ["a", "b", "c"], fractions=[1.0], metric=metric)[0]
        for metric in ("auroc", "accuracy")
    )
    assert by_auroc == by_accuracy
    assert by_auroc["by_fraction"]["1"]["runs"][0]["C"] > 1e-6 and by_auroc["auroc"] > 0.9
