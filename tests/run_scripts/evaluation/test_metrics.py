"""The metrics against scikit-learn and plain loops, loaded by `evaluate` as anyone would."""

import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from commands import ENVIRONMENT, ROOT
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score, roc_auc_score

from run_scripts.evaluation.metrics import load_metric


METRICS = ROOT / "run_scripts" / "evaluation" / "metrics"


@pytest.fixture(scope="module")
def classification():
    return load_metric("classification")


def some_scores(classes: int, images: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores in eighths, so that sums are exact and many images tie, and classes that they tell something about."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(classes, size=images)
    scores = np.round(8 * generator.normal(size=(images, classes))) / 8
    scores[np.arange(images), truth] += 0.5
    return scores, truth


@pytest.mark.parametrize("classes", [2, 5])
def test_classification_equals_scikit_learn(classification, classes):
    scores, truth = some_scores(classes)
    measured = classification.compute(predictions=scores, references=truth)
    answers = scores.argmax(axis=1)
    assert measured["accuracy"] == accuracy_score(truth, answers)
    assert measured["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, answers), abs=1e-12)
    assert measured["recall_of_class"] == pytest.approx(recall_score(truth, answers, average=None))
    assert measured["confusion_matrix"] == confusion_matrix(truth, answers).tolist()
    if classes == 2:
        assert measured["auroc"] == pytest.approx(roc_auc_score(truth, scores[:, 1] - scores[:, 0]), abs=1e-12)
        other = classification.compute(predictions=scores, references=truth, positive=0, resamples=0)
        assert other["auroc"] == pytest.approx(measured["auroc"]), "of two classes each has the other's area"
    else:
        # Rounding of exponentials tells apart here and there what is a tie: of 32,000 pairs of images 1e-5 are three.
        probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        expected = roc_auc_score(truth, probabilities, multi_class="ovr", average="macro")
        assert measured["auroc"] == pytest.approx(expected, abs=2e-5)


def test_auroc_equals_a_plain_loop_over_pairs_of_images(classification):
    scores, truth = some_scores(2, images=60)
    margins = scores[:, 1] - scores[:, 0]
    wins = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in margins[truth == 1]
        for low in margins[truth == 0]
    ]
    measured = classification.compute(predictions=scores, references=truth, resamples=0)
    assert measured["auroc"] == pytest.approx(np.mean(wins), abs=1e-12)


def test_scores_far_apart_are_still_told_apart(classification):
    """Their probabilities are 1.0 in float64, all alike."""
    scores = np.stack([np.zeros(4), [100.0, 200.0, 300.0, 400.0]], axis=1)
    assert classification.compute(predictions=scores, references=[0, 0, 1, 1], resamples=0)["auroc"] == 1


def test_a_perfect_model_scores_one_and_a_random_one_chance(classification):
    truth = np.random.default_rng(0).integers(4, size=4000)
    perfect = classification.compute(predictions=np.eye(4)[truth], references=truth)
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        assert perfect[name] == 1 and perfect[f"{name}_interval"] == [1, 1]
    random = classification.compute(
        predictions=np.random.default_rng(1).normal(size=(4000, 4)), references=truth, resamples=200
    )
    # Three standard deviations of a share of 4,000 at a quarter are 0.02.
    assert abs(random["accuracy"] - 0.25) < 0.021 and abs(random["auroc"] - 0.5) < 0.02
    assert random["accuracy_interval"][0] < 0.25 < random["accuracy_interval"][1]


def test_intervals_are_those_of_a_plain_bootstrap_and_widen_with_groups(classification):
    scores, truth = some_scores(2, images=200)
    measured = classification.compute(predictions=scores, references=truth, seed=3)
    generator, areas, balanced = np.random.default_rng(3), [], []
    for _ in range(1000):
        drawn = generator.integers(200, size=200)
        areas.append(roc_auc_score(truth[drawn], scores[drawn, 1] - scores[drawn, 0]))
        balanced.append(balanced_accuracy_score(truth[drawn], scores[drawn].argmax(axis=1)))
    assert measured["auroc_interval"] == pytest.approx(np.quantile(areas, [0.025, 0.975]))
    assert measured["balanced_accuracy_interval"] == pytest.approx(np.quantile(balanced, [0.025, 0.975]))

    four = {"predictions": np.repeat(scores, 4, axis=0), "references": np.repeat(truth, 4)}
    single = classification.compute(**four)
    grouped = classification.compute(**four, groups=np.repeat(np.arange(200), 4).astype(str).tolist())
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        (low, high), (lowest, highest) = single[f"{name}_interval"], grouped[f"{name}_interval"]
        assert highest - lowest > 1.5 * (high - low), name


def test_a_class_without_images_counts_nowhere(classification):
    measured = classification.compute(predictions=np.eye(3)[[0, 1, 1]], references=[0, 1, 0])
    assert measured["recall_of_class"] == [0.5, 1, None] and measured["balanced_accuracy"] == 0.75
    alone = classification.compute(predictions=np.eye(3)[[0, 1]], references=[0, 0])
    assert alone["auroc"] is None and alone["auroc_interval"] is None


def test_what_cannot_be_measured_is_refused(classification):
    with pytest.raises(ValueError, match="NaN"):
        classification.compute(predictions=[[np.nan, 1.0]], references=[0])
    with pytest.raises(ValueError, match="from 0 to 1"):
        classification.compute(predictions=[[0.0, 1.0]], references=[2])


def test_retrieval_of_embeddings_equals_a_plain_loop():
    generator = np.random.default_rng(0)
    images, texts = generator.integers(-2, 3, size=(2, 50, 6)).astype(np.float32)
    measured = load_metric("retrieval").compute(predictions=images, references=texts, resamples=0)
    scores = images.astype(float) @ texts.T
    for direction, matrix in (("image_to_text", scores), ("text_to_image", scores.T)):
        for k in (1, 5, 10):
            hits = []
            for query, row in enumerate(matrix):
                better, equal = (row > row[query]).sum(), (row == row[query]).sum()
                hits.append(np.mean([better + place < k for place in range(equal)]))  # each place in the tie alike
            assert measured[direction][f"recall_at_{k}"] == pytest.approx(np.mean(hits))


def test_ranks_give_what_embeddings_give():
    from modeling_biomedclip.retrieval_metrics import RankCounter

    generator = np.random.default_rng(0)
    images, texts = generator.normal(size=(2, 80, 6)).astype(np.float32)
    whole = load_metric("retrieval").compute(predictions=images, references=texts, groups=list("ab" * 40))
    import torch

    counts = RankCounter(torch.tensor(images), torch.tensor(texts)).count()
    measured = load_metric("retrieval", "ranks").compute(
        better=counts["image_to_text_better"],
        equal=counts["image_to_text_equal"],
        right=np.ones(80, dtype=int),
        groups=list("ab" * 40),
    )
    assert measured == whole["image_to_text"]


def test_metrics_load_without_a_network_from_another_folder(tmp_path):
    code = f"""
import socket
def refuse(*arguments): raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import evaluate
for name in ("classification", "retrieval"):
    print(evaluate.load(r"{METRICS}/" + name, keep_in_memory=True).name)
"""
    environment = ENVIRONMENT | {"HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "0"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.stdout.split() == ["classification", "retrieval"], result.stderr[-2000:]


def test_the_distribution_carries_the_metrics():
    from setuptools import find_namespace_packages

    packages = find_namespace_packages(str(ROOT), include=["run_scripts*"])
    for name in ("classification", "retrieval"):
        assert f"run_scripts.evaluation.metrics.{name}" in packages
        assert Path(METRICS, name, f"{name}.py").is_file()
        assert evaluate.load(str(METRICS / name), keep_in_memory=True).description
