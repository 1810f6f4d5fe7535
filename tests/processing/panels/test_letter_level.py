"""Images under one printed letter are one panel."""

import pytest

from biomedclip.processing.panels.letter_level import images_of_letters


def grid(rows, columns):
    """Return boxes by rows, with narrow gaps."""
    return [(x * 10, y * 10, x * 10 + 9, y * 10 + 9) for y in range(rows) for x in range(columns)]


@pytest.mark.parametrize(
    ("rows", "labels", "groups"),
    [
        (2, ["A", None, "B", None], [[0, 1], [2, 3]]),  # two rows
        (2, ["A", "B", None, None], [[0, 2], [1, 3]]),  # two columns
        (3, ["A", "B", "C", None, None, None, None, None, None], [[0, 3, 6], [1, 4, 7], [2, 5, 8]]),
        (3, ["A", None, None, "B", None, "C", None, None, None], None),  # C would be within B
        (2, ["A", "B", "C", "D"], None),  # complete
        (2, ["A", None, None, None], None),  # one letter tells nothing
        (2, ["A", None, None, "D"], None),  # letters were not read
        (2, ["A", None, "B", "H"], [[0, 1], [2, 3]]),  # text that was taken for a label
        (2, ["X", "A", "B", "Y"], None),  # an image before the first letter
        (2, [None, None, None, None], None),
    ],
)
def test_images_belong_to_the_letter_before_them(rows, labels, groups):
    assert images_of_letters(grid(rows, len(labels) // rows), labels) == groups


def test_columns_of_different_heights_are_joined():
    boxes = [(0, 0, 60, 20), (62, 0, 100, 20), (2, 25, 58, 45), (0, 50, 60, 70), (62, 26, 100, 46)]
    assert images_of_letters(boxes, ["A", "B", None, None, None]) == [[0, 2, 3], [1, 4]]


def test_boxes_without_area_are_no_error():
    assert images_of_letters([(0, 0, 0, 0), (0, 0, 0, 0), (1, 1, 1, 1)], ["A", "B", None]) is not None
