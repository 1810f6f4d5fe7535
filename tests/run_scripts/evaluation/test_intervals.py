"""The 95 % intervals of every task draw the right units with the right seed."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score

from biomedclip.run_scripts.evaluation import linear_probe, zero_shot
from biomedclip.run_scripts.evaluation.linear_probe import LabeledFeatures, probe, show_probe
from biomedclip.run_scripts.evaluation.visual_question_answering import answer_metrics, show_answers, write_answers
from biomedclip.run_scripts.evaluation.zero_shot import classify_zero_shot, show_zero_shot


def plain_bootstrap(hits: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Ends of the 95 % interval of a mean, whole groups drawn one after another."""
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    means = [
        hits[np.concatenate([members[group] for group in generator.integers(len(members), size=len(members))])].mean()
        for _ in range(1000)
    ]
    return np.quantile(means, [0.025, 0.975])


def test_zero_shot_classification_draws_whole_patients(monkeypatch):
    generator = np.random.default_rng(0)
    truth, groups = generator.integers(2, size=80), generator.integers(20, size=80)
    embeds = torch.tensor(generator.normal(size=(80, 2)) + np.eye(2)[truth])
    classifier = SimpleNamespace(class_embeds=torch.eye(2, dtype=torch.float64))
    monkeypatch.setattr(zero_shot, "ZeroShotClassifier", lambda *arguments, **options: classifier)
    encoder = SimpleNamespace(precise=contextlib.nullcontext, model=None, processor=None, logit_scale=1.0)
    labels = [("a", "b")[number] for number in truth]
    metrics = classify_zero_shot(
        encoder, embeds, labels, ["a", "b"], ["a", "b"], ["{}"], groups=[f"{group:02}" for group in groups], seed=4
    )
    hits = (embeds.argmax(dim=1).numpy() == truth).astype(float)
    assert metrics["accuracy"] == accuracy_score(truth, embeds.argmax(dim=1))
    assert metrics["accuracy_interval"] == pytest.approx(plain_bootstrap(hits, groups, 4))


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
    metrics = probe(train, validation, test, ["a", "b"], fractions=[1.0], seed=9)
    hits = (judged[-1].argmax(dim=1).numpy() == test.labels).astype(float)
    assert metrics["accuracy"] == hits.mean()
    assert metrics["accuracy_interval"] == pytest.approx(plain_bootstrap(hits, np.array(test.groups), 9))


def answers(right: np.ndarray, images: np.ndarray) -> list[dict]:
    return [
        {"answer": "yes", "right": hit, "answer_type": ("open", "closed")[n % 2], "image": f"{image:02}"}
        | {"can_be_given": True}
        for n, (hit, image) in enumerate(zip(right.tolist(), images, strict=True))
    ]


def test_answers_to_questions_draw_whole_images_as_scipy_does():
    generator = np.random.default_rng(2)
    images = generator.integers(25, size=120)
    right = generator.random(120) < 0.3 + 0.4 * (images % 2)
    metrics = answer_metrics(answers(right, images), seed=5)
    for name, chosen in (("", slice(None)), ("open_", slice(0, None, 2)), ("closed_", slice(1, None, 2))):
        _, place = np.unique(images[chosen], return_inverse=True)
        sums, sizes = np.bincount(place, right[chosen]), np.bincount(place)
        theirs = stats.bootstrap(
            (sums, sizes),
            lambda total, count, axis: total.sum(axis=axis) / count.sum(axis=axis),
            paired=True,
            n_resamples=1000,
            method="percentile",
            rng=np.random.default_rng(5),
        ).confidence_interval
        assert metrics[f"{name}accuracy"] == pytest.approx(right[chosen].mean())
        assert metrics[f"{name}accuracy_interval"] == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_nan_scores_of_answers_make_the_accuracy_undefined(tmp_path, capsys):
    rows = answers(np.array([True] * 6), np.arange(6))
    rows[2] |= {"right": None, "given": None, "score": None}
    metrics = answer_metrics(rows, seed=0)
    assert metrics["accuracy"] is None and metrics["open_accuracy"] is None and metrics["closed_accuracy"] == 1
    assert metrics["accuracy_interval"] is None and metrics["closed_accuracy_interval"] == (1, 1)
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


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["train", "validation", "test"])
def test_nan_features_make_the_linear_probe_undefined(which, value, capsys):
    generator = np.random.default_rng(3)
    splits = {}
    for name in ("train", "validation", "test"):
        labels = np.arange(20) % 2
        splits[name] = LabeledFeatures(generator.normal(size=(20, 3)) + labels[:, None], labels)
    splits[which].features[4, 1] = value
    metrics = probe(*splits.values(), ["a", "b"], fractions=[0.5, 1.0], seeds=2)
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        assert metrics[name] is None and metrics["by_fraction"]["1"][name] is None
    assert metrics["undefined"]["accuracy"].endswith("images are NaN or infinite")
    json.dumps(metrics, allow_nan=False)
    show_probe(metrics)
    show_zero_shot(metrics)
    assert capsys.readouterr().out.count("undefined") >= 6


def test_accuracy_chooses_the_strength_where_validation_lacks_a_class():
    """AUROC is undefined there; the strongest regularization would be taken without a comparison."""
    generator = np.random.default_rng(4)

    def split(images: int, classes: int) -> LabeledFeatures:
        labels = np.minimum(np.resize([0, 0, 0, 0, 1, 2], images), classes - 1)
        return LabeledFeatures(generator.normal(size=(images, 4)) + 3 * np.eye(4)[labels], labels)

    train, validation, test = split(60, 3), split(40, 2), split(60, 3)
    by_auroc, by_accuracy = (
        probe(train, validation, test, ["a", "b", "c"], fractions=[1.0], metric=metric)
        for metric in ("auroc", "accuracy")
    )
    assert by_auroc == by_accuracy
    assert by_auroc["by_fraction"]["1"]["runs"][0]["C"] > 1e-6 and by_auroc["auroc"] > 0.9
