"""Metrics as modules of the `evaluate` library, which load from this folder without a network."""

from pathlib import Path
from typing import Any

import evaluate


def load_metric(name: str, config_name: str | None = None) -> Any:
    """One of our metrics.

    Args:
        name: `classification` or `retrieval`.
        config_name: Which form its input has.
    """
    # In memory: it would write what it is given to a folder of the user's, under a name that other processes take too.
    return evaluate.load(str(Path(__file__).parent / name), config_name, keep_in_memory=True)
