"""Stratified draws."""

import re
from collections import Counter

import numpy as np
import pytest

from biomedclip.processing.stratified import (
    draw_count,
    draw_fraction,
    hold_out,
    hold_out_groups,
    hold_out_groups_with_labels,
)


def test_a_fraction_of_each_class_is_held_out_by_seed():
    labels = ["a"] * 50 + ["b"] * 10 + ["c"] * 2 + ["d"]
    kept, held_out = hold_out(labels, 0.1, seed=0)
    assert sorted(kept + held_out) == list(range(63))
    assert Counter(labels[row] for row in held_out) == {"a": 5, "b": 1, "c": 1}
    assert hold_out(labels, 0.1, seed=0) == (kept, held_out) != hold_out(labels, 0.1, seed=1)
    assert held_out == [2, 4, 18, 23, 36, 59, 60], "pinned"
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        hold_out(labels, 1.0, seed=0)


def test_a_draw_keeps_at_least_one_row_of_each_class():
    labels = np.array([0] * 1000 + [1] * 100 + [2] * 3)
    assert np.bincount(labels[draw_fraction(labels, 0.01, 0)]).tolist() == [10, 1, 1]
    assert draw_fraction(labels, 0.01, 0) != draw_fraction(labels, 0.01, 1)
    assert draw_fraction(labels, 1.0, 0) == list(range(1103))
    with pytest.raises(ValueError, match="at most 1, not 1.5"):
        draw_fraction(labels, 1.5, 0)


def test_a_number_of_each_class_is_drawn_and_a_larger_draw_contains_a_smaller_one():
    labels = np.array([0] * 50 + [1] * 3)
    draws = [set(draw_count(labels, count, 0)) for count in (1, 2, 4)]
    assert [np.bincount(labels[list(draw)]).tolist() for draw in draws] == [[1, 1], [2, 2], [4, 3]]
    assert draws[0] < draws[1] < draws[2] and draw_count(labels, 4, 0) != draw_count(labels, 4, 1)
    with pytest.raises(ValueError, match="must be 1 or more, not 0"):
        draw_count(labels, 0, 0)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_groups_are_held_out_whole(fraction):
    groups = [f"g{number * number % 37}" for number in range(200)]
    kept, held_out = hold_out_groups(groups, fraction, 0)
    assert sorted(kept + held_out) == list(range(200))
    assert not {groups[row] for row in kept} & {groups[row] for row in held_out}
    assert fraction * 200 - max(Counter(groups).values()) < len(held_out) <= fraction * 200


@pytest.mark.parametrize(("seed", "rows"), [(0, [2, 3, 9]), (1, [0, 4, 6]), (7, [2, 6, 8])])
def test_the_held_out_groups_are_those_of_earlier_versions_in_any_order(seed, rows):
    groups = [f"p{number}" for number in range(10)]
    assert hold_out_groups(groups, 0.3, seed)[1] == rows
    assert [9 - row for row in hold_out_groups(groups[::-1], 0.3, seed)[1]][::-1] == rows


def test_at_least_one_group_is_held_out_and_one_is_kept():
    assert hold_out_groups(["a", "a", "a", "b", "b"], 0.1, 0) == ([0, 1, 2], [3, 4])
    assert [len(part) for part in hold_out_groups(["a", "b"], 0.99, 0)] == [1, 1]
    with pytest.raises(ValueError, match="scans: all 2 images belong to the group 'a' of group_column"):
        hold_out_groups(["a", "a"], 0.5, 0, where="scans")
    with pytest.raises(ValueError, match="scans: there are no images, so no group can be held out"):
        hold_out_groups([], 0.5, 0, where="scans")
    with pytest.raises(ValueError, match="between 0 and 1, not 0"):
        hold_out_groups(["a", "b"], 0, 0)


def patients(seed: int) -> tuple[list[str], list[list[str]]]:
    """Thirty patients with a rare class, of which three have images."""
    generator = np.random.default_rng(seed)
    groups, labels = [], []
    for number in range(30):
        label = "rare" if number < 3 else "ab"[number % 2]
        for _ in range(generator.integers(1, 4)):
            groups.append(f"p{number}")
            labels.append([label])
    return groups, labels


@pytest.mark.parametrize("seed", range(8))
def test_both_parts_of_whole_groups_have_each_class_that_several_groups_have(seed):
    groups, labels = patients(seed)
    kept, held_out, notes = hold_out_groups_with_labels(groups, labels, 0.2, seed)
    assert sorted(kept + held_out) == list(range(len(groups)))
    assert not {groups[row] for row in kept} & {groups[row] for row in held_out}
    for part in (kept, held_out):
        assert {labels[row][0] for row in part} == {"a", "b", "rare"}
    plain = hold_out_groups(groups, 0.2, seed)
    complete = all({labels[row][0] for row in part} == {"a", "b", "rare"} for part in plain)
    assert ((kept, held_out) == plain) == complete == (notes == [])
    if notes:
        (drawn,) = re.findall(r"drawn again with seed (\d+), because with seed (\d+) the images", notes[0])
        assert int(drawn[1]) == seed and (kept, held_out) == hold_out_groups(groups, 0.2, int(drawn[0]))


def test_a_class_of_one_group_is_named_and_does_not_draw_the_groups_again():
    groups, labels = [f"p{number}" for number in range(10)], [["a"], ["b"]] * 4 + [["a"], ["single"]]
    kept, held_out, (note,) = hold_out_groups_with_labels(groups, labels, 0.4, 0)
    assert (kept, held_out) == hold_out_groups(groups, 0.4, 0)
    part = "held out" if 9 in kept else "kept"
    assert note == f"Because groups are not split, the images that are {part} have none of 'single'."


def test_without_a_complete_draw_the_first_one_with_the_fewest_missing_labels_is_used():
    # One group of three is held out, and only p1 has both labels.
    groups, labels = ["p0", "p0", "p1", "p1", "p2", "p2"], [["a"], ["a"], ["a"], ["b"], ["b"], ["b"]]
    kept, held_out, notes = hold_out_groups_with_labels(groups, labels, 0.34, 0)
    assert {groups[row] for row in held_out} == {"p1"}, "it has both labels, and so have the others"
    assert notes == [] or "because with seed 0" in notes[0]
    groups, labels = ["p0", "p1", "p2", "p3"], [["a"], ["a"], ["b"], ["b"]]  # one label is missing in each draw
    kept, held_out, (note,) = hold_out_groups_with_labels(groups, labels, 0.25, 0)
    assert (kept, held_out) == hold_out_groups(groups, 0.25, 0)
    absent = "b" if held_out[0] < 2 else "a"
    assert note == f"Because groups are not split, the images that are held out have none of '{absent}'."


def test_a_note_names_labels_that_are_still_missing_after_the_groups_were_drawn_again():
    # A fourth of the groups can have three of the five labels at most.
    pairs = ["ab", "ab", "bc", "cd", "de", "ea", "e", "d"]
    groups, labels = [f"p{number}" for number in range(len(pairs))], [list(pair) for pair in pairs]
    found = set()
    for seed in range(20):
        kept, held_out, notes = hold_out_groups_with_labels(groups, labels, 0.25, seed)
        absent = [sorted(set("abcde") - {label for row in part for label in labels[row]}) for part in (kept, held_out)]
        assert any(absent)
        words = notes[-1].removeprefix("Because groups are not split, ")
        assert words != notes[-1] and re.findall("'(.)'", words) == sum(absent, [])
        found.add(len(notes))
    assert found == {1, 2}


def test_a_note_on_many_missing_labels_counts_those_that_it_omits():
    groups, labels = ["p0", "p1"], [[f"{number:02}" for number in range(12)], ["z"]]
    notes = hold_out_groups_with_labels(groups, labels, 0.5, 0)[2]
    assert "none of '00', '01', '02', '03', '04' and 7 more" in notes[0] and "none of 'z'" in notes[0]
