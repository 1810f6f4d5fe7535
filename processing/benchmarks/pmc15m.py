"""PMC-15M: pairs from a dataset that `biomedclip build` wrote."""

from pathlib import Path
from typing import Any

from .benchmark import Content


def read(path: Path, split: str, facts: dict[str, Any]) -> Content:
    """Read the pairs of a split."""
    from ..pmc15m import load_pmc15m  # imports torch and `datasets`

    columns = ["pair_id", "pmcid", "image", "caption"]
    return Content(load_pmc15m(path, split, streaming=False, columns=columns, decode=False))
