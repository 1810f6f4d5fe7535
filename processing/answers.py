"""Answers to visual questions: when two are the same, and which ones a model can give."""

from collections import Counter
from collections.abc import Iterable
from typing import Any


def normalize_answer(answer: Any) -> str:
    """
    The form in which answers are compared.

    Lower case, white space collapsed, full stops at the end off, numbers as text (VQA-RAD holds some as numbers).
    Nothing else: articles, punctuation inside and words for numbers stay, which others' evaluations also unify.

    Args:
        answer: A text or a number.
    """
    return " ".join(str(answer).lower().split()).rstrip(". ")


def answer_vocabulary(answers: Iterable[Any]) -> list[str]:
    """
    The different answers, normalised: the most frequent first, equally frequent ones in alphabetical order. Empty ones,
    of which SLAKE has some, are none.

    Raises:
        ValueError: No answer that is not empty.
    """
    counts = Counter(filter(None, map(normalize_answer, answers)))
    if not counts:
        raise ValueError("All answers are empty: there is nothing to learn.")
    return sorted(counts, key=lambda answer: (-counts[answer], answer))


__all__ = ["answer_vocabulary", "normalize_answer"]
