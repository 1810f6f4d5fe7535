"""Pools of pairs."""

import pytest

from run_scripts.evaluation.pools import draw_pool


def test_a_pool_is_drawn_without_replacement_and_depends_on_seed_and_draw_alone():
    pool = draw_pool(100, 40, seed=0, draw=1)
    assert pool == sorted(set(pool)) and len(pool) == 40 and set(pool) <= set(range(100))
    assert pool == draw_pool(100, 40, seed=0, draw=1)
    others = [draw_pool(100, 40, seed=seed, draw=draw) for seed in range(3) for draw in range(3)]
    assert len({tuple(other) for other in others}) == 9
    assert draw_pool(7, 7, seed=3) == list(range(7))
    with pytest.raises(ValueError, match="A pool of 8 pairs cannot be drawn from 7 pairs"):
        draw_pool(7, 8, seed=0)
