"""Pools: pairs drawn out of a split, among which retrieval is measured."""

import numpy as np


# Training evaluates on the same pairs whatever its seed is, so that runs with different seeds can be compared.
TRAINING_POOL_SEED = 0


def draw_pool(pairs: int, size: int, *, seed: int, draw: int = 0) -> list[int]:
    """
    Draw a pool of pairs without replacement.

    The result depends on the arguments alone, not on the number of processes or on earlier draws.

    Args:
        pairs: Number of pairs to draw from.
        size: Number of pairs to draw.
        seed: Seed of all draws.
        draw: Number of the draw, from 0.

    Returns:
        The rows of the drawn pairs, ascending.

    Raises:
        ValueError: If `size` is larger than `pairs`.
    """
    if size > pairs:
        raise ValueError(f"A pool of {size:,} pairs cannot be drawn from {pairs:,} pairs.")
    return np.sort(np.random.default_rng([seed, draw]).choice(pairs, size, replace=False)).tolist()
