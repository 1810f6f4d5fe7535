"""Normalization, vocabulary and token F1 of answers."""

import numpy as np
import pytest
from sklearn.metrics import f1_score
from sklearn.preprocessing import MultiLabelBinarizer

from biomedclip.processing.answers import answer_vocabulary, normalize_answer, token_f1, word_tokens


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
def test_case_white_space_full_stops_and_types_are_normalized(answer, expected):
    assert normalize_answer(answer) == expected == normalize_answer(normalize_answer(answer))


def test_the_vocabulary_is_sorted_by_frequency_and_then_alphabetically():
    answers = ["no", "Yes", "yes.", 2, "left", "2"]
    assert answer_vocabulary(answers) == answer_vocabulary(answers[::-1]) == ["2", "yes", "left", "no"]


def test_empty_answers_are_ignored():
    assert answer_vocabulary(["yes", " . ", ""]) == ["yes"]
    with pytest.raises(ValueError, match="All answers are empty"):
        answer_vocabulary([" . "])


WORDS = ["left", "right", "upper", "lobe", "lung", "x-ray", "the", "a", "An", "3.5", "cm", "Yes.", "nö", "肺"]


def random_answers(count: int, *, repeats: bool) -> list[str]:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 7, count)
    return [" ".join(generator.choice(WORDS, size, replace=repeats)) for size in sizes]


def test_token_f1_equals_the_sample_wise_f1_of_scikit_learn():
    given, right = random_answers(400, repeats=False)[:200], random_answers(400, repeats=False)[200:]
    tokens = [[set(word_tokens(answer)) for answer in answers] for answers in (given, right)]
    ours = [token_f1(sorted(one), sorted(other)) for one, other in zip(*tokens, strict=True) if one or other]
    binarizer = MultiLabelBinarizer().fit(tokens[0] + tokens[1])
    kept = [(one, other) for one, other in zip(*tokens, strict=True) if one or other]
    theirs = f1_score(
        binarizer.transform([other for _, other in kept]),
        binarizer.transform([one for one, _ in kept]),
        average="samples",
        zero_division=0,
    )
    assert 0.1 < theirs < 0.9 and np.mean(ours) == pytest.approx(theirs, abs=1e-12)


def plain_f1(given: list[str], right: list[str]) -> float:
    """Return the token F1 by removing matched tokens one by one."""
    left, matches = list(right), 0
    for token in given:
        if token in left:
            left.remove(token)
            matches += 1
    if matches == 0:
        return float(given == right == [])
    precision, recall = matches / len(given), matches / len(right)
    return 2 * precision * recall / (precision + recall)


def test_repeated_tokens_count_as_often_as_both_answers_have_them():
    answers = random_answers(400, repeats=True)
    for given, right in zip(answers[:200], answers[200:], strict=True):
        found = token_f1(word_tokens(given), word_tokens(right))
        assert found == pytest.approx(plain_f1(word_tokens(given), word_tokens(right)), abs=1e-12)
    assert token_f1(["no"] * 3, ["no"]) == 0.5


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ("The left lung.", ["left", "lung"]),
        ("X-ray, a CT and  AN MRI", ["xray", "ct", "and", "mri"]),
        (4, ["4"]),
        ("the", []),
        ("  .", []),
        ("anterior theory", ["anterior", "theory"]),
        ("肺 の 右", ["肺", "の", "右"]),
    ],
)
def test_words_are_those_of_squad(answer, tokens):
    assert word_tokens(answer) == tokens


def test_equal_answers_have_token_f1_one_and_others_without_common_words_zero():
    for answer in (*random_answers(50, repeats=True), "the", ".", ""):
        assert token_f1(word_tokens(answer), word_tokens(normalize_answer(answer))) == 1
    assert token_f1([], ["lung"]) == token_f1(["lung"], []) == token_f1(["left"], ["right"]) == 0
