"""Intervals of fractions of 0 and 1 against scipy, and how often they contain the true value."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest

from biomedclip.run_scripts.evaluation.classification import measure_classification
from biomedclip.run_scripts.evaluation.decisions import measure_threshold
from biomedclip.run_scripts.evaluation.statistics.bootstrap import bootstrap_interval, fraction_interval
from biomedclip.run_scripts.evaluation.statistics.exact_intervals import exact_interval, exact_mean_interval


def clopper_pearson(right: int, number: int) -> list[float]:
    interval = binomtest(right, number).proportion_ci(method="exact")
    return [interval.low, interval.high]


@pytest.mark.parametrize("number", [2, 30, 500])
def test_all_right_and_all_wrong_images_have_the_interval_of_clopper_and_pearson(number):
    assert fraction_interval(np.ones(number), range(number)) == pytest.approx(clopper_pearson(number, number))
    assert fraction_interval(np.zeros(number), range(number)) == pytest.approx(clopper_pearson(0, number))
    assert bootstrap_interval(np.ones(number), range(number)) == [1, 1]


def test_groups_and_not_images_are_counted():
    patients = np.repeat(range(8), 5)
    assert fraction_interval(np.ones(40), patients) == pytest.approx(clopper_pearson(8, 8))
    assert fraction_interval(np.ones(40), ["one patient"] * 40) is None
    mixed = np.arange(40) % 3 > 0
    assert fraction_interval(mixed.astype(float), patients) == bootstrap_interval(mixed.astype(float), patients)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("rate", [0.98, 0.95, 0.9])
def test_the_intervals_contain_the_true_accuracy_more_often_than_those_of_the_bootstrap_alone(rate, grouped):
    """30 patients with one image, or with three that are all right or all wrong."""
    generator = np.random.default_rng(0)
    patients = np.repeat(range(30), 3) if grouped else np.arange(30)
    of_patient = generator.random((300, 30)) < rate
    covered = {"exact": 0, "bootstrap": 0}
    for right in of_patient[:, patients].astype(float):
        for name, interval_of in (("exact", fraction_interval), ("bootstrap", bootstrap_interval)):
            low, high = interval_of(right, patients, resamples=200)
            covered[name] += low <= rate <= high
    all_right = int(of_patient.all(axis=1).sum())
    assert covered["exact"] == covered["bootstrap"] + all_right, "without an error, only the exact interval has it"
    # The percentile bootstrap of 30 patients with one or two errors is itself too narrow.
    assert covered["exact"] / 300 > 0.92 and all_right > 0


@pytest.mark.parametrize("units", [[5, 5, 5], [1, 20, 300], [2, 3, 100, 100], [7, 7]])
def test_the_balanced_accuracy_of_right_answers_has_the_smallest_plausible_mean(units):
    """A general solver finds the same smallest mean of recalls that make all answers right with 2.5 %."""
    numbers = np.array(units, dtype=float)
    low, high = exact_mean_interval(1, units)
    plausible = {"type": "ineq", "fun": lambda recalls: numbers @ np.log(recalls) - np.log(0.025)}
    bounds = [(1e-6, 1)] * len(units)
    start = np.full(len(units), 0.99)
    solved = minimize(np.mean, start, constraints=[plausible], bounds=bounds, method="SLSQP", tol=1e-12)
    assert low == pytest.approx(solved.fun, abs=1e-4) and high == 1
    assert exact_mean_interval(0, units) == pytest.approx([0, 1 - low])
    if len(set(units)) == 1:
        assert low == pytest.approx(exact_interval(1, sum(units))[0])


def test_metrics_of_a_perfect_classifier_have_intervals_that_are_not_points():
    truth = np.repeat([0, 1], [10, 30])
    found = measure_classification(np.eye(2)[truth] * 9, truth)
    assert found["accuracy_interval"] == pytest.approx(clopper_pearson(40, 40))
    assert found["balanced_accuracy_interval"] == pytest.approx(exact_mean_interval(1, [10, 30]))
    point = measure_threshold(truth * 1.0, truth == 1, 0.5)
    assert point["sensitivity_interval"] == pytest.approx(clopper_pearson(30, 30))
    assert point["specificity_interval"] == pytest.approx(clopper_pearson(10, 10))
    patients = np.repeat(range(8), 5)
    point = measure_threshold(truth * 1.0, truth == 1, 0.5, groups=patients)
    assert point["sensitivity_interval"] == pytest.approx(clopper_pearson(6, 6))
    assert point["specificity_interval"] == pytest.approx(clopper_pearson(2, 2))
