"""When two answers are the same, and which ones a model can give."""

import pytest

from processing.answers import answer_vocabulary, normalize_answer


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        (" right  upper\tlobe\n", "right upper lobe"),
        (4, "4"),
        ("CSF is white.", "csf is white"),
        ("3.4 cm", "3.4 cm"),
        ("etc. .", "etc"),
        ("the liver", "the liver"),
    ],
)
def test_case_white_space_full_stops_and_numbers_make_no_difference(answer, expected):
    assert normalize_answer(answer) == expected == normalize_answer(normalize_answer(answer))


def test_the_vocabulary_begins_with_the_most_frequent_answer_and_is_the_same_in_any_order():
    answers = ["no", "Yes", "yes.", 2, "left", "2"]
    assert answer_vocabulary(answers) == answer_vocabulary(answers[::-1]) == ["2", "yes", "left", "no"]


def test_an_empty_answer_is_none():
    assert answer_vocabulary(["yes", " . ", ""]) == ["yes"]
    with pytest.raises(ValueError, match="All answers are empty"):
        answer_vocabulary([" . "])
