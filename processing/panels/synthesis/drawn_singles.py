"""Compound figures without any data: of plots, and of drawn images that look like scans and micrographs."""

import io

import numpy as np

from ...synthetic_corpus.figures import FIGURE_KINDS
from ..image_types import GROUP_OF, type_in_caption
from ..singles import PHOTOGRAPHS, SingleFigure
from .examples import DrawnFigures


OF_EACH_KIND = 4


def figures_without_data(count: int, seed: int = 0) -> DrawnFigures:
    """Return figures that are drawn from nothing but a seed, for calibration and for measurements of speed."""
    return DrawnFigures(drawn_singles(seed), count, plots=count, seed=seed)


def drawn_singles(seed: int = 0) -> list[SingleFigure]:
    """Return four single figures of each kind of the synthetic corpus."""
    rng = np.random.default_rng(seed)
    singles = []
    for name, kind in FIGURE_KINDS.items():
        image_type = type_in_caption(name)
        is_photograph = image_type is not None and GROUP_OF[image_type] in PHOTOGRAPHS
        for _ in range(OF_EACH_KIND):
            content = io.BytesIO()
            kind.draw(kind.combination(int(rng.integers(kind.combinations))), rng).save(content, "PNG")
            singles.append(SingleFigure(content.getvalue(), name, image_type, is_photograph, False))
    return singles
