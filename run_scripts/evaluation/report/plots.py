"""Plots of the report of a classification, as PNG images: curves, reliability and abstention."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from biomedclip.model_cards.escaping import one_line

from ...cli.fonts import fonts_for
from ..classification import Curve
from .figures import plain_text, png_of, short


MOST_CURVES = 10


def curves_of(probabilities: np.ndarray, truth: np.ndarray, positive: int) -> list[tuple[int, np.ndarray]]:
    """Return the classes to plot, and a score of each image for them: the log-odds of the class.

    With two classes it is the positive one. Classes without positive or negative images are left out. Of more than ten,
    those with the lowest AUROC remain.
    """
    numbers = [positive] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    found = []
    for number in numbers:
        is_class = truth == number
        if is_class.any() and not is_class.all():
            others = np.delete(probabilities, number, axis=1).sum(axis=1)
            with np.errstate(divide="ignore"):
                scores = np.log(probabilities[:, number]) - np.log(others)
            scores = np.clip(scores, -1e9, 1e9)
            found.append((Curve(scores, is_class).area(np.ones(len(scores))), number, scores))
    worst = sorted(found, key=lambda entry: entry[:2])[:MOST_CURVES]
    return [(number, scores) for _, number, scores in sorted(worst, key=lambda entry: entry[1])]


@plain_text
def plot_curves(probabilities: np.ndarray, truth: np.ndarray, classes: Sequence[str], positive: int) -> bytes | None:
    """Plot ROC and precision-recall curves. Return None if no class has a curve."""
    curves = [
        (classes[number], truth == number, scores) for number, scores in curves_of(probabilities, truth, positive)
    ]
    return draw_curves(curves, prevalence=len(curves) == 1) if curves else None


@plain_text
def draw_curves(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], *, prevalence: bool) -> bytes:
    """Plot ROC and precision-recall curves. Each one has a name, whether each image is positive, and their scores.

    `prevalence` draws the precision of a random order.
    """
    with fonts_for("".join(one_line(name) for name, _, _ in curves)):
        figure, (roc, recall) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
        for name, positive, scores in curves:
            false_rate, true_rate, _ = roc_curve(positive, scores)
            (line,) = roc.plot(false_rate, true_rate, label=f" {short(name)}: {roc_auc_score(positive, scores):.3f}")
            precision, recalled, _ = precision_recall_curve(positive, scores)
            average = average_precision_score(positive, scores)
            label = f" {short(name)}: {average:.3f}"
            recall.step(recalled, precision, where="post", color=line.get_color(), label=label)
            if prevalence:
                color = "0.5" if len(curves) == 1 else line.get_color()
                recall.axhline(positive.mean(), color=color, linestyle="--", linewidth=1)
        if prevalence:
            recall.plot([], [], color="0.5", linestyle="--", linewidth=1, label=" prevalence")
        roc.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label=" chance")
        roc.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC, with AUROC")
        recall.set(xlabel="recall (sensitivity)", ylabel="precision", title="Precision-recall, with average precision")
        fractions_on_both_axes(roc, recall)
        return png_of(figure)


@plain_text
def plot_reliability(decisions: Mapping[str, Any], counted: str = "images") -> bytes | None:
    """Plot accuracy by confidence, before and after calibration, and accuracy by coverage.

    `counted` is what the model predicts, as a plural noun.
    """
    if "abstention" not in decisions:
        return None
    figure, (reliability, coverage) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    calibrated = "before_calibration" in decisions
    parts = [("before_calibration", "before", "tab:orange")] if calibrated else []
    parts.append(("calibration", "after" if calibrated else "adaptive bins", "tab:blue"))
    for key, name, color in parts:
        bins = decisions[key]["adaptive_bins"]
        label = f"{name}, error {decisions[key]['adaptive_ece']:.3f}"
        reliability.plot(bins["confidence"], bins["accuracy"], "o-", color=color, label=label, markersize=4)
    reliability.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="perfect")
    reliability.set(xlabel="mean confidence of a bin", ylabel="accuracy", title="Reliability (bins of equal size)")
    curve = decisions["abstention"]["curve"]
    coverage.plot(curve["coverage"], curve["accuracy"], label=f"the most confident {counted}")
    accuracy = 1 - decisions["abstention"]["aurc_of_random_order"]
    coverage.axhline(accuracy, color="0.5", linestyle="--", linewidth=1, label=f"all {counted}")
    coverage.set(xlabel=f"fraction of the {counted} that are answered", ylabel="accuracy", title="Abstention")
    fractions_on_both_axes(reliability, coverage)
    return png_of(figure)


def fractions_on_both_axes(*plots: Any) -> None:
    """Let both axes of plots go from 0 to 1, with a grid and a legend."""
    for axes in plots:
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
