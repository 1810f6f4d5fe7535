"""Labels and panels: the place, the letters and the order that labels of one figure share."""

import numpy as np
import pytest

from biomedclip.processing.panels import label_reading
from biomedclip.processing.panels.label_reading import Marks, ReadLabel, reading_order


NAMES = [*"ABCDEFGHI", "1", "2", "3", "4", "ii", "iii"]
GRID = np.array(
    [(0.05, 0.05, 0.45, 0.45), (0.55, 0.05, 0.95, 0.45), (0.05, 0.55, 0.45, 0.95), (0.55, 0.55, 0.95, 0.95)]
)


def marks(*found, sure=3.0):
    """Return marks from pairs of a center and the name that is the most probable by `sure`, equal chances for None."""
    boxes = [(x - 0.01, y - 0.01, x + 0.01, y + 0.01) for (x, y), _ in found]
    chances = np.zeros((len(found), len(NAMES)))
    for row, (_, name) in enumerate(found):
        if name is not None:
            chances[row, NAMES.index(name)] = sure
    chances -= np.log(np.exp(chances).sum(1, keepdims=True))
    return Marks(np.array(boxes).reshape(-1, 4), np.full(len(found), 0.9), chances)


def read_labels(found, names, panels, expected=None):
    read = label_reading.read_labels(found, names, panels, expected)
    return {panel: label.name for panel, label in read.items()}


def above(panel):
    return (GRID[panel][0] + 0.01, GRID[panel][1] - 0.02)


@pytest.mark.parametrize("letters", ["ABCD", "ACBD", "1234", "DEFG"])
def test_letters_that_the_network_is_sure_of_are_kept(letters):
    found = marks(*((above(panel), letters[panel]) for panel in range(4)), sure=8.0)
    assert read_labels(found, NAMES, GRID) == dict(enumerate(letters))


@pytest.mark.parametrize(("seen", "read"), [("AB D", "ABCD"), ("A BD", "ACBD"), ("ABBB", "ABCD"), ("BBCD", "ABCD")])
def test_doubtful_letters_follow_from_the_order_by_rows_or_columns(seen, read):
    found = marks(*((above(panel), seen[panel].strip() or None) for panel in range(4)))
    assert read_labels(found, NAMES, GRID) == dict(enumerate(read))


def test_labels_between_two_panels_belong_to_those_that_make_a_sequence():
    """Each letter is above its own panel and equally near below the one above it, so the order decides."""
    column = np.array([(0.1, 0.1 + 0.2 * row, 0.4, 0.28 + 0.2 * row) for row in range(4)])
    centers = [(0.1, 0.09 + 0.2 * row) for row in range(4)]
    for letters in ("ABCD", "BCDE"):
        found = marks(*zip(centers, letters, strict=True), sure=8.0)
        assert read_labels(found, NAMES, column) == dict(enumerate(letters))
    found = marks(*zip(centers[1:], "BCD", strict=True), sure=8.0)
    assert read_labels(found, NAMES, column) == dict(enumerate("ABCD")), "not A, B and C of the panels above"


def test_a_caption_tells_which_letters_to_expect():
    found = marks(*((above(panel), "AB"[panel]) for panel in range(2)), (above(2), None))
    assert read_labels(found, NAMES, GRID[:3]) == {0: "A", 1: "B", 2: "C"}
    assert read_labels(found, NAMES, GRID[:3], ["A", "B"]) == {0: "A", 1: "B"}
    doubtful = marks(*((above(panel), None) for panel in range(4)))
    assert read_labels(doubtful, NAMES, GRID, list("DEFG")) == dict(enumerate("DEFG"))
    certain = marks(*((above(panel), "ABCH"[panel]) for panel in range(4)), sure=12.0)
    assert read_labels(certain, NAMES, GRID, list("ABCD"))[3] == "H", "the picture counts more than the caption"
    assert read_labels(doubtful, NAMES, GRID, ["left", "right"]) == read_labels(doubtful, NAMES, GRID)


def test_labels_that_the_network_alone_tells_are_sure():
    found = marks(*((above(panel), "ABC"[panel]) for panel in range(3)), sure=8.0)
    read = label_reading.read_labels(found, NAMES, GRID)
    assert read == {0: ReadLabel("A", True), 1: ReadLabel("B", True), 2: ReadLabel("C", True), 3: ReadLabel("D", False)}
    faint = Marks(found.boxes, found.scores / 2, found.chances)
    assert not any(label.is_sure for label in label_reading.read_labels(faint, NAMES, GRID).values())


def test_text_at_other_places_is_no_label():
    others = [((0.15, 0.2), "A"), ((0.62, 0.3), "B"), ((0.4, 0.44), "C")]
    found = marks(*others, *((above(panel), "ABCD"[panel]) for panel in range(4)))
    assert read_labels(found, NAMES, GRID) == dict(enumerate("ABCD"))


def test_a_label_that_was_not_found_follows_from_the_others():
    found = marks(*((above(panel), "ABCD"[panel]) for panel in (0, 1, 3)))
    assert read_labels(found, NAMES, GRID) == dict(enumerate("ABCD"))
    found = marks(*((above(panel), "ABCD"[panel]) for panel in (0, 3)))
    assert read_labels(found, NAMES, GRID) == {0: "A", 3: "D"}, "two of four are too few"
    assert read_labels(found, NAMES, GRID, list("ABCD")) == dict(enumerate("ABCD")), "unless a caption names four"
    assert read_labels(marks(((0.7, 0.2), None), sure=0), NAMES, GRID, list("ABCD")) == {}, "nothing was read"
    found = marks(*((above(panel), "AHCD"[panel]) for panel in (0, 1, 3)), sure=8.0)
    assert read_labels(found, NAMES, GRID) == {0: "A", 1: "H", 3: "D"}, "letters that break the order add no other"


def test_one_label_may_stand_elsewhere():
    found = marks(*((above(panel), "ABCD"[panel]) for panel in range(3)), ((0.92, 0.97), "D"))
    assert read_labels(found, NAMES, GRID) == dict(enumerate("ABCD"))


def test_roman_numerals_begin_with_the_letter_i():
    found = marks((above(0), None), (above(1), "ii"), (above(2), "iii"), sure=9.0)
    assert read_labels(found, NAMES, GRID[:3]) == {0: "I", 1: "II", 2: "III"}


@pytest.mark.parametrize("count", [0, 1, 100])
def test_any_number_of_marks_and_panels_is_read(count):
    rng = np.random.default_rng(count)
    found = marks(*(((x, y), None) for x, y in rng.uniform(0, 1, (count, 2))))
    corners = rng.uniform(0, 0.9, (count, 2))
    read = read_labels(found, NAMES, np.hstack([corners, corners + 0.05]))
    assert len(read) <= min(count, len(NAMES)) and set(read.values()) <= {name.upper() for name in NAMES}


def test_boxes_without_height_have_a_place_in_the_order():
    assert sorted(reading_order(np.array([(0, 5, 10, 5), (0, 5, 10, 4), (0, 0, 10, 10)]))) == [0, 1, 2]
    assert reading_order(np.array([(5, 1, 9, 9), (0, 2, 4, 8), (0, 12, 9, 20)])) == [1, 0, 2]
