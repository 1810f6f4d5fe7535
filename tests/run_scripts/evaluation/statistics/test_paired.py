"""Tests of two models on the same images, beside SciPy and plain loops."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, norm
from sklearn.metrics import roc_auc_score

from biomedclip.run_scripts.evaluation.statistics.paired import delong, mcnemar, paired_interval


@pytest.mark.parametrize("only_first, only_second", [(0, 0), (3, 3), (1, 9), (12, 5), (0, 7), (400, 650), (2000, 2000)])
def test_mcnemar_is_the_binomial_test_of_scipy(only_first, only_second):
    first = np.array([True] * only_first + [False] * only_second + [True] * 10 + [False] * 4)
    second = np.array([False] * only_first + [True] * only_second + [True] * 10 + [False] * 4)
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (only_first, only_second)
    wanted = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    assert found.p_value == pytest.approx(wanted, rel=1e-9)


def plain_delong(first, second, positive):
    """DeLong's variance as the formula has it: sums over all pairs of images."""
    scores = [first, second]
    m, n = [i for i, kind in enumerate(positive) if kind], [i for i, kind in enumerate(positive) if not kind]

    def wins(s, x, y):
        return 1.0 if s[x] > s[y] else 0.5 if s[x] == s[y] else 0.0

    areas = [sum(wins(s, x, y) for x in m for y in n) / len(m) / len(n) for s in scores]
    v10 = [[sum(wins(s, x, y) for y in n) / len(n) for x in m] for s in scores]
    v01 = [[sum(wins(s, x, y) for x in m) / len(m) for y in n] for s in scores]

    def covariance(a, b, i, j):
        return sum((p - areas[i]) * (q - areas[j]) for p, q in zip(a, b, strict=True)) / (len(a) - 1)

    s = [
        [covariance(v10[i], v10[j], i, j) / len(m) + covariance(v01[i], v01[j], i, j) / len(n) for j in (0, 1)]
        for i in (0, 1)
    ]
    return areas, math.sqrt(s[0][0] + s[1][1] - 2 * s[0][1])


@pytest.mark.parametrize("digits", [1, 12])
def test_delong_is_the_sum_over_all_pairs(digits):
    generator = np.random.default_rng(digits)
    positive = generator.random(70) < 0.4
    first = np.round(generator.normal(size=70) + positive, digits)
    second = np.round(0.5 * first + generator.normal(size=70) + 0.3 * positive, digits)
    found = delong(first, second, positive)
    areas, error = plain_delong(first.tolist(), second.tolist(), positive.tolist())
    assert [found.first, found.second] == pytest.approx(areas, abs=1e-12)
    assert found.first == pytest.approx(roc_auc_score(positive, first), abs=1e-12)
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(areas[1] - areas[0]) / error), rel=1e-9)
    assert found.interval == pytest.approx(norm.interval(0.95, areas[1] - areas[0], error), rel=1e-9)


def test_delong_rejects_the_truth_in_5_percent_of_the_cases():
    generator = np.random.default_rng(0)
    rejected = 0
    for _ in range(2000):
        positive = np.arange(80) < 30
        shared = generator.normal(size=80) + positive
        first, second = (shared + generator.normal(size=80) for _ in range(2))
        rejected += delong(first, second, positive).p_value < 0.05
    assert 0.035 < rejected / 2000 < 0.068


def test_equal_models_do_not_differ():
    scores, positive = np.array([0.1, 0.4, 0.3, 0.9]), np.array([False, False, True, True])
    found = delong(scores, scores, positive)
    assert found.difference == 0 and found.p_value is None and found.interval is None
    with pytest.raises(ValueError, match="at least two"):
        delong(scores, scores, np.array([False, False, False, True]))


def test_the_paired_interval_is_that_of_scipy():
    generator = np.random.default_rng(5)
    first, second = generator.random(120) < 0.6, generator.random(120) < 0.7
    gain = second.astype(float) - first
    found = paired_interval(lambda weights: weights @ gain / weights.sum(), np.arange(120), seed=3, resamples=4000)
    wanted = bootstrap((gain,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert found == pytest.approx(list(wanted), abs=0.012)
    assert paired_interval(lambda weights: None, np.arange(5), resamples=20) is None
