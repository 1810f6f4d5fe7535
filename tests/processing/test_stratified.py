"""Stratified draws."""

from collections import Counter

import numpy as np
import pytest

from biomedclip.processing.stratified import draw_fraction, hold_out


def test_a_fraction_of_each_class_is_held_out_by_seed():
    labels = ["a"] * 50 + ["b"] * 10 + ["c"] * 2 + ["d"]
    kept, held_out = hold_out(labels, 0.1, seed=0)
    assert sorted(kept + held_out) == list(range(63))
    assert Counter(labels[row] for row in held_out) == {"a": 5, "b": 1, "c": 1}
    assert hold_out(labels, 0.1, seed=0) == (kept, held_out) != hold_out(labels, 0.1, seed=1)
    assert held_out == [2, 4, 18, 23, 36, 59, 60], "pinned"
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        hold_out(labels, 1.0, seed=0)


def test_a_draw_keeps_at_least_one_row_of_each_class():
    labels = np.array([0] * 1000 + [1] * 100 + [2] * 3)
    assert np.bincount(labels[draw_fraction(labels, 0.01, 0)]).tolist() == [10, 1, 1]
    assert draw_fraction(labels, 0.01, 0) != draw_fraction(labels, 0.01, 1)
    assert draw_fraction(labels, 1.0, 0) == list(range(1103))
    with pytest.raises(ValueError, match="at most 1, not 1.5"):
        draw_fraction(labels, 1.5, 0)
