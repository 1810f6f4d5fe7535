"""Plots of findings, as PNG images: curves and reliability."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from biomedclip.model_cards.escaping import one_line

from ...cli.fonts import fonts_for
from .figures import plain_text, png_of, short
from .plots import MOST_CURVES, draw_curves, fractions_on_both_axes, plt


_COLUMNS = 4
_SIDE = 2.9  # inches of a small plot


def plot_finding_curves(probabilities: np.ndarray, targets: np.ndarray, findings: Sequence[str]) -> bytes | None:
    """Plot ROC and precision-recall curves. Of more than ten findings, those with the lowest AUROC are plotted.

    Args:
        probabilities: Probability of each finding, `(images, findings)`.
        targets: 1, 0 or NaN (ignored), `(images, findings)`.
        findings: Names of the findings.

    Returns:
        The image, or None if no finding has labels of both classes and finite scores.
    """
    found = []
    for number, name in enumerate(findings):
        kept = ~np.isnan(targets[:, number])
        positive, chances = targets[kept, number] == 1, probabilities[kept, number]
        if positive.any() and not positive.all() and np.isfinite(chances).all():
            with np.errstate(divide="ignore"):
                scores = np.clip(logit(chances), -1e9, 1e9)
            found.append((roc_auc_score(positive, scores), number, (name, positive, scores)))
    worst = sorted(found, key=lambda entry: entry[:2])[:MOST_CURVES]
    curves = [curve for _, _, curve in sorted(worst, key=lambda entry: entry[1])]
    return draw_curves(curves, prevalence=True) if curves else None


@plain_text
def plot_finding_reliability(findings: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """Plot the frequency of each finding by its probability, before and after calibration.

    `findings` is that of `decisions`. Of more than ten findings, those with the largest error are plotted.
    """
    worst = sorted(findings, key=lambda name: -findings[name]["calibration"]["adaptive_ece"])[:MOST_CURVES]
    shown = [name for name in findings if name in worst]
    if not shown:
        return None
    lines = -(-len(shown) // _COLUMNS)
    columns = min(len(shown), _COLUMNS)
    with fonts_for("".join(map(one_line, shown))):
        size = (_SIDE * max(columns, 2), _SIDE * lines)
        figure, grid = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.set_axis_off()
        for axes, name in zip(grid.flat, shown, strict=False):
            found = findings[name]
            parts = [("before_calibration", "before", "tab:orange")] if "before_calibration" in found else []
            parts.append(("calibration", "after" if parts else "bins", "tab:blue"))
            for key, label, color in parts:
                bins, error = found[key]["adaptive_bins"], found[key]["adaptive_ece"]
                label = f"{label}, error {error:.3f}"
                axes.plot(bins["confidence"], bins["accuracy"], "o-", color=color, label=label, markersize=3)
            axes.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1)
            axes.set(title=short(name), xlabel="mean probability", ylabel="fraction positive")
            fractions_on_both_axes(axes)
        return png_of(figure)
