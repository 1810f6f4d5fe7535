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


def random_answers(count: int, *, repeats: bool) -> list[list[str]]:
    """Return the tokens of random answers, in which tokens may be repeated."""
    generator = np.random.default_rng(0)
    answers = [generator.choice(WORDS, size, replace=repeats) for size in generator.integers(1, 7, count)]
    tokens = [word_tokens(" ".join(answer)) for answer in answers]
    return [words if repeats else sorted(set(words)) for words in tokens]


@pytest.mark.parametrize("repeats", [False, True])
def test_token_f1_equals_the_sample_wise_f1_of_scikit_learn(repeats):
    answers = random_answers(400, repeats=repeats)
    pairs = [(given, right) for given, right in zip(answers[:200], answers[200:], strict=True) if given or right]
    # Each repetition of a token is a label of its own, because it is counted as often as both answers have it.
    numbered = [[{(word, words[:n].count(word)) for n, word in enumerate(words)} for words in pair] for pair in pairs]
    binarizer = MultiLabelBinarizer().fit([labels for pair in numbered for labels in pair])
    given, right = (binarizer.transform(labels) for labels in zip(*numbered, strict=True))
    theirs = f1_score(right, given, average="samples", zero_division=0)
    ours = [token_f1(given, right) for given, right in pairs]
    assert 0.1 < theirs < 0.9 and np.mean(ours) == pytest.approx(theirs, abs=1e-12)


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
    for tokens in (*random_answers(50, repeats=True), []):
        assert token_f1(tokens, tokens[::-1]) == 1
    assert token_f1([], ["lung"]) == token_f1(["lung"], []) == token_f1(["left"], ["right"]) == 0
    assert token_f1(["no"] * 3, ["no"]) == 0.5, "a repeated token is counted once"
