"""Scores of panels, compared with values that were computed by hand and with a plain loop."""

import numpy as np
import pytest

from biomedclip.processing.panels.scores import (
    PanelCounts,
    average_precision,
    imageclef_accuracy,
    judge,
    matches,
    overlaps,
)


LEFT, RIGHT, WHOLE = (0, 0, 50, 100), (50, 0, 100, 100), (0, 0, 100, 100)


def test_overlaps_are_parts_of_the_union_and_of_the_predicted_panel():
    iou, inside = overlaps([LEFT, WHOLE], [LEFT, RIGHT])
    assert iou.tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert inside.tolist() == [[1.0, 0.0], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("predicted", "gold", "score"),
    [
        ([LEFT, RIGHT], [LEFT, RIGHT], 1.0),
        ([LEFT], [LEFT, RIGHT], 0.5),
        ([WHOLE], [LEFT, RIGHT], 0.0),  # half of it lies in a panel
        ([(0, 0, 20, 20), (25, 25, 45, 45)], [LEFT, RIGHT], 0.5),  # two in one panel count once
        ([LEFT, RIGHT, (0, 0, 10, 10)], [LEFT, RIGHT], 2 / 3),
        ([], [LEFT], 0.0),
    ],
)
def test_accuracy_of_imageclef(predicted, gold, score):
    assert imageclef_accuracy(predicted, gold) == pytest.approx(score)


def test_each_panel_is_matched_once_and_the_best_pairs_first():
    close = (2, 0, 50, 100)
    assert matches([close, LEFT], [LEFT, RIGHT]) == [(1, 0)]
    assert matches([], [LEFT]) == [] and matches([LEFT], []) == []


def test_counts_without_panels_score_zero():
    assert PanelCounts(0, 0, 0).precision == PanelCounts(0, 0, 0).recall == 0.0
    assert (PanelCounts(3, 4, 6).precision, PanelCounts(3, 4, 6).recall) == (0.75, 0.5)


def test_average_precision_equals_a_plain_loop_over_all_recalls():
    rng = np.random.default_rng(0)
    gold = [[(x * 40, 0, x * 40 + 30, 30) for x in range(count)] for count in (3, 5, 1)]
    predicted = [
        [tuple(np.array(box) + rng.integers(-12, 13, 4)) for box in boxes] + [(500, 500, 510, 510)] for boxes in gold
    ]
    scores = [rng.random(len(boxes)).tolist() for boxes in predicted]
    everything = sorted(
        ((score, figure, number) for figure, part in enumerate(scores) for number, score in enumerate(part)),
        reverse=True,
    )
    taken, hits, curve = set(), 0, []
    for count, (_, figure, number) in enumerate(everything, start=1):
        options = []
        for other, box in enumerate(gold[figure]):
            iou = overlaps([predicted[figure][number]], [box])[0][0, 0]
            if (figure, other) not in taken:
                options.append((iou, other))
        if options and max(options)[0] >= 0.5:
            taken.add((figure, max(options)[1]))
            hits += 1
        curve.append((hits / 9, hits / count))
    expected = np.mean(
        [max((p for r, p in curve if r >= level - 1e-12), default=0) for level in np.linspace(0, 1, 101)]
    )
    assert average_precision(predicted, scores, gold) == pytest.approx(expected)
    assert 0 < expected < 1


def test_average_precision_is_one_for_the_truth_and_zero_without_panels():
    assert average_precision([[LEFT, RIGHT]], [[0.9, 0.1]], [[LEFT, RIGHT]]) == 1.0
    assert average_precision([[]], [[]], [[LEFT]]) == 0.0


def test_a_figure_that_is_counted_twice_is_like_two_figures():
    rng = np.random.default_rng(1)
    gold = [[LEFT, RIGHT], [WHOLE], [LEFT]]
    predicted = [[tuple(np.array(box) + rng.integers(-30, 31, 4)) for box in boxes + [WHOLE]] for boxes in gold]
    scores = [rng.random(len(boxes)).tolist() for boxes in predicted]
    weights = [2, 0, 1]
    again = [number for number, weight in enumerate(weights) for _ in range(weight)]
    expected = average_precision(*([each[number] for number in again] for each in (predicted, scores, gold)))
    judged = judge(predicted, scores, gold)
    assert judged.average_precision(np.array(weights, dtype=float)) == pytest.approx(expected) and 0 < expected < 1
    assert judged.average_precision(np.zeros(3)) == 0.0
