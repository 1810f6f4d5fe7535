"""Random choice without NumPy's detour through arrays, which would turn tuples into rows and strings into scalars."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np


Option = TypeVar("Option")


def pick(options: Sequence[Option], rng: np.random.Generator) -> Option:
    """One of the options, each as likely as any other."""
    return options[int(rng.integers(len(options)))]
