"""Calibration of findings against scikit-learn and plain loops, and the bias that is only fitted if it is needed."""

import math

import numpy as np
import pytest
from helpers.bootstrap import scipy_interval
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from biomedclip.run_scripts.evaluation.calibration import fit_temperature
from biomedclip.run_scripts.evaluation.findings.calibration import fit_log_odds, measure_log_odds


def drawn(images: int, temperature: float, bias: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds, and labels that are drawn at a temperature and a bias."""
    generator = np.random.default_rng(seed)
    log_odds = generator.normal(scale=4, size=images)
    return log_odds, generator.random(images) < expit(log_odds / temperature + bias)


def test_a_temperature_and_a_bias_are_those_of_a_logistic_regression_without_regularization():
    log_odds, positive = drawn(2000, 2.5, -2)
    fitted = fit_log_odds(log_odds, positive)
    expected = LogisticRegression(C=1e12, tol=1e-10, max_iter=10_000).fit(log_odds[:, None], positive)
    assert 1 / fitted.temperature == pytest.approx(expected.coef_[0, 0], rel=1e-4)
    assert fitted.bias == pytest.approx(expected.intercept_[0], rel=1e-4)
    assert fitted.temperature == pytest.approx(2.5, rel=0.15) and fitted.bias == pytest.approx(-2, rel=0.15)
    chances = expected.predict_proba(log_odds[:, None])[:, 1]
    np.testing.assert_allclose(expit(fitted(log_odds)), chances, atol=1e-4)


def test_a_bias_that_does_not_help_significantly_stays_0():
    biases = []
    for seed in range(200):
        log_odds, positive = drawn(150, 2.5, 0, seed)
        fitted = fit_log_odds(log_odds, positive)
        biases.append(fitted.bias)
        if fitted.bias == 0:
            two_classes = np.stack([np.zeros_like(log_odds), log_odds], axis=1)
            assert fitted.temperature == fit_temperature(two_classes, positive.astype(int))
    assert 0.01 < np.mean(np.array(biases) != 0) < 0.1, "the level of the test is 5 %"
    log_odds, positive = drawn(150, 2.5, -1.2)
    assert fit_log_odds(log_odds, positive).bias < 0
    assert fit_log_odds(log_odds, positive, units=3).bias == 0, "three patients are too few to tell"


@pytest.mark.parametrize("scale", [1e-4, 1, 30])
def test_the_calibrated_probabilities_do_not_depend_on_the_scale_of_the_scores(scale):
    """The log-odds of a strongly regularized linear probe are tiny."""
    log_odds, positive = drawn(400, 1, -1)
    reference, fitted = fit_log_odds(log_odds, positive), fit_log_odds(log_odds * scale, positive)
    assert fitted.temperature == pytest.approx(reference.temperature * scale, rel=1e-3)
    assert fitted.bias == pytest.approx(reference.bias, abs=1e-3)


def test_scores_that_say_nothing_get_the_largest_temperature_and_are_never_turned_around():
    log_odds, positive = drawn(500, 1, 0)
    fitted = fit_log_odds(-log_odds, positive)
    assert fitted.temperature == pytest.approx(100)
    prevalent = fit_log_odds(np.where(positive, -3.0, 3.0) + log_odds * 1e-3, positive | (log_odds > 1))
    assert np.all(np.diff(prevalent(np.sort(log_odds))) > 0)


@pytest.mark.parametrize(
    ("log_odds", "labels", "message"),
    [
        ([0.1, 0.2, 0.9, 1.0], [0, 0, 1, 1], "separate the 2 positive from the 2 negative validation images"),
        ([0, 1, 2, 2, 3, 4], [0, 0, 0, 1, 1, 1], "separate the 3 positive from the 3 .* images but for equal scores"),
        ([1, 1, 1, 2], [0, 1, 0, 1], "but for equal scores"),
        ([0.1, 0.2, 0.9], [0, 0, 0], "all 3 validation labels are 0"),
        ([0.1, 0.2], [1, 1], "all 2 validation labels are 1"),
        ([], [], "no labels"),
        ([0.1, np.nan], [1, 0], "NaN or infinite"),
    ],
)
def test_a_calibration_that_cannot_be_fitted_has_a_reason(log_odds, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_log_odds(np.array(log_odds), np.array(labels, dtype=bool))


def test_equal_scores_of_all_images_are_calibrated_to_the_prevalence():
    positive = np.arange(100) < 20
    fitted = fit_log_odds(np.full(100, 2.0), positive)
    assert expit(fitted(np.array([2.0]))) == pytest.approx(0.2, abs=1e-4)


def test_the_metrics_are_those_of_scikit_learn_and_of_plain_loops():
    log_odds, positive = drawn(300, 2, -1)
    log_odds[:5] = [800, -800, 45, -45, 0]
    groups = [f"p{number // 3}" for number in range(300)]
    found = measure_log_odds(log_odds, positive, groups=groups, seed=3)
    chances = expit(log_odds)
    assert found["brier"] == pytest.approx(brier_score_loss(positive, chances))
    assert found["nll"] == pytest.approx(
        np.mean(
            [math.log1p(math.exp(-abs(z))) + max(0, -z if y else z) for z, y in zip(log_odds, positive, strict=True)]
        )
    )
    ordinary = slice(5, None)
    plain = measure_log_odds(log_odds[ordinary], positive[ordinary])
    assert plain["nll"] == pytest.approx(log_loss(positive[ordinary], chances[ordinary]))
    squares = (chances - positive) ** 2
    assert found["brier_interval"] == pytest.approx(scipy_interval(squares, groups, 3))
    true, mean = calibration_curve(positive, chances, n_bins=15)
    assert found["fixed_bins"]["confidence"] == pytest.approx(mean)
    assert found["fixed_bins"]["accuracy"] == pytest.approx(true)
    images = np.histogram(chances, np.linspace(0, 1, 16))[0]
    assert found["ece"] == pytest.approx(np.abs(true - mean) @ images[images > 0] / 300)
    assert found["probability"] == chances.mean() and found["prevalence"] == positive.mean()
