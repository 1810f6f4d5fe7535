"""Pools: random subsets of the pairs of a split, on which retrieval is measured."""

import numpy as np

from ..cli.errors import UsageError


DRAWS = 5
# Evaluations during training use the same pairs for every seed, so that runs with different seeds can be compared.
TRAINING_POOL_SEED = 0


def draw_pool(pairs: int, size: int, *, seed: int, draw: int = 0) -> list[int]:
    """Draw `size` of `pairs` rows without replacement, and return them in ascending order.

    The result does not depend on the number of processes or on earlier draws. Draws are numbered from 0. Raise
    `ValueError` if `size` is larger than `pairs`.
    """
    if size > pairs:
        raise ValueError(f"A pool of {size:,} pairs cannot be drawn from {pairs:,} pairs.")
    return np.sort(np.random.default_rng([seed, draw]).choice(pairs, size, replace=False)).tolist()


def number_of_draws(pairs: int, size: int | None, draws: int | None, split: str) -> int:
    """Return the number of pools to draw: 1 if a pool contains all pairs, and 5 by default otherwise.

    Raise `UsageError` if the pool is larger than the split, or if several draws would be the same pool.
    """
    if size is None:
        return 1
    if size > pairs:
        raise UsageError(
            f"--pool-size {size:,} is larger than the {split} split, which has {pairs:,} usable pairs. Choose a "
            "smaller pool, or omit the option to measure among all pairs."
        )
    if size == pairs and draws not in (None, 1):
        raise UsageError(
            f"--pool-draws {draws} has no effect: --pool-size {size:,} is the whole {split} split, so all "
            "draws are the same. Omit it."
        )
    return 1 if size == pairs else draws or DRAWS
