"""ELEVATER's linear probe against torch's own layers and optimizer, its published search loop, and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score

from biomedclip.run_scripts.evaluation import elevater
from biomedclip.run_scripts.evaluation.elevater import DECAYS, RATES, fit_elevater, held_out, search, train_heads
from biomedclip.run_scripts.evaluation.linear_probe import LabeledFeatures, probe_with_scores


def split(images: int, classes: int, seed: int, apart: float = 1.0) -> LabeledFeatures:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=images)
    centres = np.random.default_rng(99).normal(size=(classes, 8))
    return LabeledFeatures(5 + apart * centres[labels] + generator.normal(size=(images, 8)), labels)


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    return float((scores.argmax(axis=1) == labels).mean())


def plain_training(train, judged, classes, rate, decay, epochs, seed):
    """One head with torch's layers and optimizer, on the same first weights and batches."""
    generator = torch.Generator().manual_seed(seed)
    features, labels = torch.tensor(train.features).float(), torch.tensor(train.labels)
    model = torch.nn.Sequential(
        torch.nn.BatchNorm1d(features.shape[1], affine=False), torch.nn.Linear(features.shape[1], classes)
    )
    bound = 1 / math.sqrt(features.shape[1])
    with torch.no_grad():
        model[1].weight.uniform_(-bound, bound, generator=generator)
        model[1].bias.uniform_(-bound, bound, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    after = []
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(labels), generator=generator).split(64):
            if len(batch) > 1:
                optimizer.zero_grad()
                torch.nn.CrossEntropyLoss()(model(features[batch]), labels[batch]).backward()
                optimizer.step()
        model.eval()
        with torch.no_grad():
            after.append(model(torch.tensor(judged).float()).numpy())
    return after


@pytest.mark.parametrize(("images", "classes"), [(150, 2), (129, 3)])  # 129: a last batch of one image is left out
def test_each_head_is_trained_as_torch_trains_it_alone(images, classes):
    train, judged = split(images, classes, 0), split(40, classes, 1).features
    rates, decays = [1e-3, 1e-1, 1e-2, 1e-6], [1e-6, 1e-3, 1.0, 10.0]
    ours = [*train_heads(train.features, train.labels, judged, classes, rates, decays, epochs=4, seed=3)]
    for head, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        for scores, expected in zip(ours, plain_training(train, judged, classes, rate, decay, 4, 3), strict=True):
            np.testing.assert_allclose(scores[head], expected, atol=2e-6)


def published_search(train, held, classes, seed):
    """The loops of the toolkit, one training after the other."""

    def best_of(rate, decay):
        after = plain_training(train, held.features, classes, rate, decay, 10, seed)
        return max(accuracy(scores, held.labels) if np.isfinite(scores).all() else 0.0 for scores in after)

    decays = np.logspace(-6, 6, num=97).tolist()
    chosen, best_score = (0, 0), 0
    for rate in np.logspace(-6, -1, num=6).tolist():
        peak, peak_score = -1, 0
        for place in range(0, 97, 16):
            if (score := best_of(rate, decays[place])) > peak_score:
                peak, peak_score = place, score
        span = 8
        while span > 0:
            left, right = max(peak - span, 0), min(peak + span, 96)
            for place in [place for place in (left, right) if place != peak]:
                if (score := best_of(rate, decays[place])) > peak_score:
                    peak, peak_score = place, score
            span //= 2
        if best_score < peak_score:
            chosen, best_score = (rate, decays[peak]), peak_score
    return chosen


@pytest.mark.parametrize("seed", [0, 1])
def test_the_search_chooses_what_the_published_loops_choose(seed):
    train, held = split(60, 3, seed, 0.5), split(60, 3, seed + 10, 0.5)
    chosen = search(train.features, train.labels, held.features, held.labels, 3, accuracy, seed)
    assert chosen == pytest.approx(published_search(train, held, 3, seed))


def test_the_grids_are_those_of_the_toolkit():
    assert pytest.approx(np.logspace(-6, -1, num=6)) == RATES
    assert pytest.approx(np.logspace(-6, 6, num=97)) == DECAYS
    coarse = [DECAYS[place] for place in range(0, 97, elevater.FIRST_STEP)]
    assert coarse == pytest.approx(np.logspace(-6, 6, num=7))


@pytest.mark.parametrize("place", [0, 43, 53, 96])
@pytest.mark.parametrize("rate", [1e-6, 1e-3])
def test_the_search_finds_the_best_weight_decay_on_either_side(place, rate, monkeypatch):
    def told(features, labels, judged, classes, rates, decays, *, epochs, seed):
        yield np.array([[[tried, decay]] for tried, decay in zip(rates, decays, strict=True)])

    def score(scores, labels):
        (tried, decay), *_ = scores
        return -abs(np.log10(decay / DECAYS[place])) - abs(np.log10(tried / rate))

    monkeypatch.setattr(elevater, "train_heads", told)
    assert search(np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1), 2, score, 0) == (
        pytest.approx(rate),
        DECAYS[place],
    )


def test_the_first_fifth_of_each_class_is_held_out_and_one_image_stays():
    labels = np.array([0, 1, 0, 0, 1, 0, 0, 0, 2, 3, 3])
    assert held_out(labels).tolist() == [0, 2, 1, 9], "a fifth of 6 and of 2, rounded up; none of a single image"


def test_separable_classes_are_learned_as_scikit_learn_learns_them():
    train, test = split(120, 3, 0, 6.0), split(90, 3, 1, 6.0)
    metrics = probe_with_scores(train, None, test, ["a", "b", "c"], protocol="elevater", fractions=[0.2, 1.0], draws=2)[
        0
    ]
    fitted = LogisticRegression(max_iter=1000).fit(train.features, train.labels)
    assert metrics["accuracy"] == 1.0 == accuracy_score(test.labels, fitted.predict(test.features))
    few, (whole,) = metrics["by_fraction"]["0.2"], metrics["by_fraction"]["1"]["runs"]
    assert few["accuracy"] > 0.95 and [run["seed"] for run in few["runs"]] == [0, 1]
    assert whole["learning_rate"] in RATES and whole["weight_decay"] in DECAYS and whole["images"] == 120
    assert whole["accuracy_of_best_test_epoch"] == 1.0
    assert metrics["validation_images"] is None


def test_classes_that_overlap_are_told_apart_about_as_well_as_by_scikit_learn():
    train, test = split(400, 2, 0, 0.5), split(1000, 2, 1, 0.5)
    metrics = probe_with_scores(train, None, test, ["a", "b"], protocol="elevater", fractions=[1.0])[0]
    fitted = LogisticRegression(max_iter=1000).fit(train.features, train.labels)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(test.labels, fitted.predict(test.features)), abs=0.03)


def test_the_test_labels_decide_nothing():
    train, test = split(80, 2, 0), split(40, 2, 1)
    fits = [
        fit_elevater(train.features, train.labels, test.features, labels, 2, accuracy, 0)
        for labels in (test.labels, 1 - test.labels)
    ]
    assert np.array_equal(fits[0].scores, fits[1].scores) and fits[0][1:3] == fits[1][1:3]
    assert fits[0].best_epoch != fits[1].best_epoch


def test_features_that_are_not_finite_have_no_settings_and_no_metrics():
    train, test = split(40, 2, 0), split(20, 2, 1)
    test.features[0, 0] = np.nan
    metrics = probe_with_scores(train, None, test, ["a", "b"], protocol="elevater", fractions=[1.0])[0]
    assert metrics["accuracy"] is None and metrics["by_fraction"]["1"]["runs"][0]["learning_rate"] is None


def test_a_training_that_diverges_is_not_chosen(monkeypatch):
    def diverging(features, labels, judged, classes, rates, decays, *, epochs, seed):
        for _ in range(epochs):
            scores = np.zeros((len(rates), len(judged), classes))
            scores[np.array(rates) > 1e-3] = np.nan  # argmax of NaN is the first class
            yield scores

    monkeypatch.setattr(elevater, "train_heads", diverging)
    rate, _ = search(np.zeros((4, 1)), np.zeros(4), np.zeros((4, 1)), np.array([0, 0, 0, 1]), 2, accuracy, 0)
    assert rate == 1e-6


def test_logistic_regression_needs_a_validation_split():
    train = split(40, 2, 0)
    with pytest.raises(ValueError, match="logistic requires a validation split"):
        probe_with_scores(train, None, train, ["a", "b"])
