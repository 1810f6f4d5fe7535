"""Intervals over draws and test images, beside scipy, float64 loops and a simulation."""

import numpy as np
import pytest
from scipy import stats

from biomedclip.run_scripts.evaluation.few_shot.intervals import mean_interval
from biomedclip.run_scripts.evaluation.few_shot.summary import harmonic_mean, harmonic_values


def drawn(generator: np.random.Generator, draws: int, images: int) -> np.ndarray:
    """Answers that depend on the draw, on the image, and on both."""
    logits = 1 + generator.normal(0, 0.5, (draws, 1)) + generator.normal(0, 1.5, images)
    chances = 1 / (1 + np.exp(-logits - generator.normal(0, 1, (draws, images))))
    return (generator.random((draws, images)) < chances).astype(float)


def test_a_single_draw_has_the_interval_of_student_over_the_images():
    values = drawn(np.random.default_rng(0), 1, 40)
    expected = stats.ttest_1samp(values[0], 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx([expected.low, expected.high])


def test_groups_of_one_image_are_the_images_and_repeated_images_of_one_group_count_once():
    values = drawn(np.random.default_rng(1), 3, 40)
    assert mean_interval(values, np.arange(40)) == mean_interval(values)
    twice = np.repeat(values, 2, axis=1)
    assert mean_interval(twice, np.repeat(np.arange(40), 2)) == pytest.approx(mean_interval(values))
    assert np.diff(mean_interval(twice[:1])) < 0.75 * np.diff(mean_interval(values[:1])), "as if they were new images"


@pytest.mark.parametrize("seed", range(4))
def test_the_variance_is_that_of_an_analysis_of_variance_with_two_crossed_factors(seed):
    values = drawn(np.random.default_rng(seed), 4, 30)
    draws, images = values.shape
    mean = values.mean()
    squares = {"draws": 0.0, "images": 0.0, "rest": 0.0}
    for draw in range(draws):
        squares["draws"] += images * (values[draw].mean() - mean) ** 2 / (draws - 1)
    for image in range(images):
        squares["images"] += draws * (values[:, image].mean() - mean) ** 2 / (images - 1)
    for draw in range(draws):
        for image in range(images):
            rest = values[draw, image] - values[draw].mean() - values[:, image].mean() + mean
            squares["rest"] += rest**2 / ((draws - 1) * (images - 1))
    parts = {name: square / (draws * images) for name, square in squares.items()}
    variance = max(parts["draws"] + parts["images"] - parts["rest"], parts["draws"], parts["images"])
    degrees = {"draws": draws - 1, "images": images - 1, "rest": (draws - 1) * (images - 1)}
    freedom = variance**2 / sum(part**2 / degrees[name] for name, part in parts.items())
    half = stats.t.ppf(0.975, freedom) * variance**0.5
    assert mean_interval(values) == pytest.approx([mean - half, mean + half])


def test_an_interval_that_cannot_be_estimated_is_none():
    assert mean_interval(np.ones((3, 20))) is None and mean_interval(np.zeros((1, 20))) is None
    assert mean_interval(np.array([[1.0, 0.0], [0.0, 1.0]]), ["p", "p"]) is None, "a single patient"


@pytest.mark.parametrize("draws, least", [(2, 0.88), (3, 0.9), (5, 0.9)])
def test_intervals_cover_the_true_mean_where_those_over_draws_alone_do_not(draws, least):
    generator = np.random.default_rng(3)
    logits = 1 + generator.normal(0, (0.5**2 + 1.5**2 + 1) ** 0.5, 1_000_000)
    truth = (1 / (1 + np.exp(-logits))).mean()
    covered = 0
    for _ in range(300):
        low, high = mean_interval(drawn(generator, draws, 60)) or (0, 0)
        covered += low <= truth <= high
    assert least <= covered / 300 <= 0.995


def test_the_mean_of_harmonic_values_is_the_harmonic_mean():
    base, novel = np.array([1, 1, 0, 1, 0]), np.array([1, 0, 0])
    values = harmonic_values(base, novel)
    assert values.mean() == pytest.approx(harmonic_mean(base.mean(), novel.mean()))
    # Their sums are the slopes of the harmonic mean.
    slope = (harmonic_mean(base.mean() + 1e-6, 1 / 3) - harmonic_mean(base.mean() - 1e-6, 1 / 3)) / 2e-6
    assert values[0] / 8 == pytest.approx(slope / 5)
    assert not harmonic_values(base * 0, novel * 0).any()
