"""The metrics against scikit-learn and plain loops, loaded by `evaluate` as anyone would."""

import json
import subprocess
import sys
import warnings

import evaluate
import numpy as np
import pytest
import torch
from helpers.commands import ENVIRONMENT, ROOT
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score, roc_auc_score

from biomedclip.run_scripts.evaluation.metrics import load_metric
from biomedclip.run_scripts.evaluation.retrieval import EmbeddedPairs, count_ranks, retrieval_of, show_retrieval


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


def test_intervals_over_groups_are_those_of_a_plain_bootstrap_of_groups(classification):
    scores, truth = some_scores(2, images=200)
    groups = np.random.default_rng(5).integers(40, size=200)
    measured = classification.compute(
        predictions=scores, references=truth, groups=[f"patient {group:02}" for group in groups], seed=3
    )
    generator, found = np.random.default_rng(3), {"accuracy": [], "balanced_accuracy": [], "auroc": []}
    for _ in range(1000):
        drawn = [image for group in generator.integers(40, size=40) for image in np.flatnonzero(groups == group)]
        answers = scores[drawn].argmax(axis=1)
        found["accuracy"].append(accuracy_score(truth[drawn], answers))
        found["balanced_accuracy"].append(balanced_accuracy_score(truth[drawn], answers))
        found["auroc"].append(roc_auc_score(truth[drawn], scores[drawn, 1] - scores[drawn, 0]))
    for name, values in found.items():
        assert measured[f"{name}_interval"] == pytest.approx(np.quantile(values, [0.025, 0.975])), name


def test_intervals_have_these_ends(classification):
    """Pinned: what is published must come out again."""
    scores, truth = some_scores(3, images=60)
    measured = classification.compute(predictions=scores, references=truth)
    assert measured["accuracy_interval"] == pytest.approx([0.366666666666667, 0.616666666666667], abs=1e-12)
    assert measured["balanced_accuracy_interval"] == pytest.approx([0.369054397502708, 0.624955746187364], abs=1e-12)
    assert measured["auroc_interval"] == pytest.approx([0.562024302717496, 0.78102630752], abs=1e-12)
    assert classification.compute(predictions=scores, references=truth, seed=1) != measured


def test_intervals_need_resampled_sets_that_hold_all_classes(classification):
    """Of sets of 10 images with one of each class, one in 2,755 holds them all: two ends of a few sets mean nothing."""
    measured = classification.compute(predictions=np.eye(10) + 0.1, references=np.arange(10))
    assert measured["balanced_accuracy"] == measured["auroc"] == 1
    assert measured["balanced_accuracy_interval"] is None and measured["auroc_interval"] is None
    assert measured["accuracy_interval"] == [1, 1]


UNDEFINED_AUROC = {
    "one class alone": (np.eye(3)[[0, 1]], [0, 0], "all images are of one class"),
    "one class of two": (np.eye(2)[[0, 1, 0]], [1, 1, 1], "all images are of one class"),
    "one image": (np.eye(2)[[0]], [0], "all images are of one class"),
    "a class without images": (np.eye(3)[[0, 1, 1]], [0, 1, 0], "1 of 3 classes have no images"),
    "more classes than images": (np.eye(9)[[0, 1, 2]], [0, 1, 5], "6 of 9 classes have no images"),
    "constant scores and a class without images": (np.zeros((4, 3)), [0, 0, 1, 1], "1 of 3 classes have no images"),
}


@pytest.mark.parametrize(("scores", "truth", "reason"), UNDEFINED_AUROC.values(), ids=UNDEFINED_AUROC.keys())
def test_an_undefined_auroc_is_none_with_a_reason(classification, scores, truth, reason):
    measured = classification.compute(predictions=scores, references=truth)
    assert measured["auroc"] is None and measured["auroc_interval"] is None
    assert measured["undefined"] == {"auroc": reason}
    answers = scores.argmax(axis=1)
    assert measured["accuracy"] == accuracy_score(truth, answers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn says what is undefined
        assert measured["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, answers))
        if scores.shape[1] > 2:
            chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            try:
                theirs = roc_auc_score(truth, chances, multi_class="ovr", labels=np.arange(scores.shape[1]))
            except ValueError:
                theirs = np.nan
            assert np.isnan(theirs)
    expected = [None if recall is None else pytest.approx(recall) for recall in recalls(truth, answers, scores)]
    assert measured["recall_of_class"] == expected
    json.dumps(measured, allow_nan=False)


def recalls(truth, answers, scores) -> list[float | None]:
    truth = np.asarray(truth)
    return [
        float((answers[truth == number] == number).mean()) if (truth == number).any() else None
        for number in range(scores.shape[1])
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("images", [1, 6])
def test_nan_scores_make_every_metric_undefined(classification, value, images):
    scores = np.zeros((6, 3))
    scores[:images, 1] = value
    measured = classification.compute(predictions=scores, references=[0, 1, 2, 0, 1, 2])
    reason = f"the scores of {images} of 6 images are NaN or infinite"
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        assert measured[name] is None and measured[f"{name}_interval"] is None
        assert measured["undefined"][name] == reason
    assert measured["recall_of_class"] == [None] * 3 and measured["confusion_matrix"] is None
    json.dumps(measured, allow_nan=False)


def test_constant_scores_give_an_auroc_of_one_half(classification):
    measured = classification.compute(predictions=np.zeros((30, 3)), references=[0, 1, 2] * 10)
    assert measured["auroc"] == roc_auc_score([0, 1, 2] * 10, np.full((30, 3), 1 / 3), multi_class="ovr") == 0.5
    assert measured["auroc_interval"] == [0.5, 0.5] and measured["undefined"] == {}


def test_classes_that_do_not_exist_are_refused(classification):
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
    from biomedclip.retrieval_metrics import RankCounter

    generator = np.random.default_rng(0)
    images, texts = generator.normal(size=(2, 80, 6)).astype(np.float32)
    whole = load_metric("retrieval").compute(predictions=images, references=texts, groups=list("ab" * 40))
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


def test_the_metrics_load_from_their_folder():
    for name in ("classification", "retrieval"):
        assert evaluate.load(str(METRICS / name), keep_in_memory=True).description


@pytest.mark.parametrize("several", [False, True])
def test_intervals_of_retrieval_draw_whole_articles(several):
    """Both directions against a plain loop; with several captions of an image it is the images' articles that count."""
    generator = np.random.default_rng(4)
    image_of_text = torch.tensor([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 6, 7]) if several else None
    texts, images = 12, 8 if several else 12
    article_of_image = [f"PMC{image // 2}" for image in range(images)]
    articles = [article_of_image[image] for image in (image_of_text.tolist() if several else range(texts))]
    counts = {
        direction: {
            "better": torch.tensor(generator.integers(0, 8, size=queries)),
            "equal": torch.ones(queries, dtype=torch.int64),
            "right": torch.ones(queries, dtype=torch.int64),
        }
        for direction, queries in (("image_to_text", images), ("text_to_image", texts))
    }
    metrics = retrieval_of(counts, articles, 6, image_of_text)
    for direction, groups in (("image_to_text", article_of_image), ("text_to_image", articles)):
        for k in (1, 5, 10):
            hits = (counts[direction]["better"].numpy() < k).astype(float)
            members = [np.flatnonzero(np.array(groups) == name) for name in sorted(set(groups))]
            generator, means = np.random.default_rng(6), []
            for _ in range(1000):
                drawn = np.concatenate(
                    [members[group] for group in generator.integers(len(members), size=len(members))]
                )
                means.append(hits[drawn].mean())
            expected = np.quantile(means, [0.025, 0.975])
            assert metrics[direction][f"recall_at_{k}_interval"] == pytest.approx(expected), (direction, k)


def test_retrieval_with_nan_embeddings_is_undefined(tmp_path, capsys):
    images, texts = torch.randn(4, 3), torch.randn(4, 3)
    texts[2, 1] = float("nan")
    embedded = EmbeddedPairs(images, texts, None, torch.arange(4), [], "0")
    assert count_ranks(embedded, tmp_path, {}) is None
    metrics = retrieval_of(None, ["a", "a", "b", "b"], 0)
    assert metrics["pairs"] == 4 and metrics["articles"] == 2 and metrics["chance_at_1"] == 0.25
    for direction in ("image_to_text", "text_to_image"):
        assert set(metrics[direction].values()) == {None} and len(metrics[direction]) == 7
    assert metrics["undefined"]["image_to_text"] == "the embeddings hold NaN or infinity"
    json.dumps(metrics, allow_nan=False)
    show_retrieval(metrics, paper={})
    assert capsys.readouterr().out.count("undefined") >= 8
