"""Metrics of detected panels against annotated figures, with bootstrap intervals over articles."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from biomedclip.processing.panels.annotations import AnnotatedFigure, AnnotatedPanel
from biomedclip.processing.panels.figure_panels import FigurePanels, Panel
from biomedclip.processing.panels.image_types import GROUP_OF, GROUPS, IMAGE_TYPES, TypeScore, fit_unknown_threshold
from biomedclip.processing.panels.scores import imageclef_accuracy, judge, matches

from .statistics.bootstrap import Metric, metrics_with_intervals, ratio, undefined_metrics


NO_TYPES = "the detector tells no types"
ACCURACY = 0.95  # of the types and groups that are not named unknown, for which thresholds are fitted


@dataclass(frozen=True)
class MeasuredFigure:
    """An annotated figure, and what was found in it."""

    gold: AnnotatedFigure
    found: FigurePanels

    @property
    def is_compound(self) -> bool:
        """Whether the figure has several panels, by its annotation."""
        return len(self.gold.panels) > 1 if self.gold.compound is None else self.gold.compound

    @property
    def boxes(self) -> tuple[list[Any], list[Any]]:
        """Boxes of the found panels, and of the true ones."""
        return [panel.box for panel in self.found.panels], [panel.box for panel in self.gold.panels]

    def pairs(self) -> list[tuple[Panel, AnnotatedPanel]]:
        """Return each found panel with the true one that it matches at an intersection over union of 0.5."""
        return [(self.found.panels[ours], self.gold.panels[true]) for ours, true in matches(*self.boxes)]


def panel_metrics(figures: Sequence[MeasuredFigure], *, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Return all metrics of panels, printed labels and image types.

    Panels are found at an intersection over union of 0.5. All numbers but the accuracy of ImageCLEF, which is the mean
    over figures, are counted over the panels of all figures.

    Args:
        figures: Annotated figures, and what was found in them.
        seed: Seed of the bootstrap over articles.
        resamples: Number of bootstrap samples.
    """
    articles = [figure.gold.article for figure in figures]

    def with_intervals(metrics: dict[str, Metric]) -> dict[str, Any]:
        return metrics_with_intervals(metrics, articles, seed=seed, resamples=resamples)

    no_types = all(panel.image_type.name is None for figure in figures for panel in figure.found.panels)
    types = with_intervals(_types(figures))
    result: dict[str, Any] = {
        "figures": len(figures),
        "articles": len(set(articles)),
        "compound_figures": sum(figure.is_compound for figure in figures),
        "panels": sum(len(figure.gold.panels) for figure in figures),
        "single_or_compound": with_intervals(_compound(figures)),
        "panels_of_compound_figures": with_intervals(_separation(figures, lambda figure: figure.is_compound)),
        "panels_of_all_figures": with_intervals(_separation(figures, lambda figure: True)),
        "printed_labels": with_intervals(_labels(figures)),
        "image_types": (dict.fromkeys(types) if no_types else types) | _types_in_detail(figures),
    }
    reasons = {
        f"{part} {name}": NO_TYPES if no_types and part == "image_types" else reason
        for part, metrics in result.items()
        if isinstance(metrics, dict)
        for name, reason in undefined_metrics(metrics).items()
    }
    return result | ({"undefined": reasons} if reasons else {})


def _compound(figures: Sequence[MeasuredFigure]) -> dict[str, Metric]:
    true = np.array([figure.is_compound for figure in figures])
    ours = np.array([figure.found.compound for figure in figures])
    return {
        "accuracy": ratio(true == ours, np.ones(len(true))),
        "precision": ratio(true & ours, ours),
        "recall": ratio(true & ours, true),
        "f1": ratio(2.0 * (true & ours), true.astype(float) + ours),
    }


def _separation(figures: Sequence[MeasuredFigure], is_measured: Callable[[MeasuredFigure], bool]) -> dict[str, Metric]:
    """Return the metrics of the boxes of some figures."""
    measured = np.array([is_measured(figure) for figure in figures], dtype=float)
    boxes = [figure.boxes if part else ([], []) for figure, part in zip(figures, measured, strict=True)]
    scores = [
        [panel.score for panel in figure.found.panels] if part else []
        for figure, part in zip(figures, measured, strict=True)
    ]
    found = [len(matches(ours, true)) for ours, true in boxes]
    detections = judge([ours for ours, _ in boxes], scores, [true for _, true in boxes])

    def average_precision(weights: np.ndarray) -> float | None:
        return detections.average_precision(weights) if weights @ detections.gold else None

    return {
        "imageclef_accuracy": ratio([imageclef_accuracy(ours, true) for ours, true in boxes], measured),
        "recall": ratio(found, [len(true) for _, true in boxes]),
        "precision": ratio(found, [len(ours) for ours, _ in boxes]),
        "average_precision": average_precision,
    }


def _labels(figures: Sequence[MeasuredFigure]) -> dict[str, Metric]:
    """Return the metrics of printed labels, in figures whose labels were annotated."""
    right, true, matched, read = np.array(list(map(_label_counts, figures)), dtype=float).reshape(-1, 4).T
    return {
        "recall": ratio(right, true),
        "accuracy_of_found_panels": ratio(right, matched),
        "precision": ratio(right, read),
    }


def _label_counts(figure: MeasuredFigure) -> tuple[int, int, int, int]:
    """Return the number of right labels, of true ones, of those whose panel is found, and of those that were read."""
    if not figure.gold.has_labels:
        return 0, 0, 0, 0
    labeled = [(ours.label, true.label) for ours, true in figure.pairs() if true.label is not None]
    return (
        sum(ours is not None and ours.upper() == true for ours, true in labeled),
        sum(panel.label is not None for panel in figure.gold.panels),
        len(labeled),
        sum(panel.label is not None for panel in figure.found.panels),
    )


def _types(figures: Sequence[MeasuredFigure]) -> dict[str, Metric]:
    """Return the metrics of image types."""
    typed = [_typed_pairs(figure) for figure in figures]
    right = [sum(ours.name == true for ours, true in pairs) for pairs in typed]
    right_group = [sum(ours.group == GROUP_OF[true] for ours, true in pairs) for pairs in typed]
    found = [len(pairs) for pairs in typed]
    total = [sum(panel.image_type is not None for panel in figure.gold.panels) for figure in figures]
    hits, ours, true = np.array([_type_counts(pairs) for pairs in typed]).transpose(1, 0, 2)

    def macro_f1(weights: np.ndarray) -> float | None:
        occurs = weights @ true > 0
        f1 = 2 * (weights @ hits) / np.maximum(weights @ (ours + true), 1e-9)
        return float(f1[occurs].mean()) if occurs.any() else None

    return {
        "accuracy": ratio(right, found),
        "group_accuracy": ratio(right_group, found),
        "macro_f1": macro_f1,
        "recall": ratio(right, total),
        "group_recall": ratio(right_group, total),
    }


def _typed_pairs(figure: MeasuredFigure) -> list[tuple[TypeScore, str]]:
    """Return the types that were found and those of the annotation, of found panels whose type was annotated."""
    return [(ours.image_type, true.image_type) for ours, true in figure.pairs() if true.image_type is not None]


def _type_counts(pairs: Sequence[tuple[TypeScore, str]]) -> np.ndarray:
    """Return the number of right, of predicted and of true panels of each type, of shape `(3, types)`."""
    counts = np.zeros((3, len(IMAGE_TYPES)))
    for ours, true in pairs:
        place = IMAGE_TYPES.index(true)
        counts[2, place] += 1
        counts[0, place] += ours.name == true
        if ours.name in IMAGE_TYPES:
            counts[1, IMAGE_TYPES.index(ours.name)] += 1
    return counts


def _types_in_detail(figures: Sequence[MeasuredFigure]) -> dict[str, Any]:
    """Return precision, recall and F1 of each group and type, on the found panels whose type was annotated."""
    pairs = [pair for figure in figures for pair in _typed_pairs(figure)]
    groups = [(ours.group, GROUP_OF[true]) for ours, true in pairs]
    types = [(ours.name, true) for ours, true in pairs]
    return {
        "found_panels": len(pairs),
        "unknown_below": {
            "required_accuracy": ACCURACY,
            "type": _fitted([(ours.score, ours.name == true) for ours, true in pairs]),
            "group": _fitted([(ours.group_score, ours.group == GROUP_OF[true]) for ours, true in pairs]),
        },
        "of_group": {name: _of_class(groups, name) for name in GROUPS},
        "of_type": {name: _of_class(types, name) for name in IMAGE_TYPES if any(true == name for _, true in types)},
    }


def _fitted(predictions: Sequence[tuple[float | None, bool]]) -> dict[str, Any]:
    """Return the fitted threshold of predictions, each with its score and whether it is right."""
    scored = [(score, right) for score, right in predictions if score is not None and math.isfinite(score)]
    return asdict(fit_unknown_threshold([score for score, _ in scored], [right for _, right in scored], ACCURACY))


def _of_class(pairs: Sequence[tuple[str | None, str]], name: str) -> dict[str, Any]:
    right = sum(ours == true == name for ours, true in pairs)
    predicted, gold = sum(ours == name for ours, _ in pairs), sum(true == name for _, true in pairs)
    return {
        "panels": gold,
        "precision": right / predicted if predicted else None,
        "recall": right / gold if gold else None,
        "f1": 2 * right / (predicted + gold) if predicted + gold else None,
    }
