"""Answers to visual questions: normalization, token F1, and the vocabulary of a model."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(answer: Any) -> str:
    """Normalize an answer for comparison: lower case, single spaces, no trailing full stops.

    Articles, other punctuation and number words are kept. The answer may be a number, as in VQA-RAD.
    """
    return " ".join(str(answer).lower().split()).rstrip(". ")


def answer_vocabulary(answers: Iterable[Any]) -> list[str]:
    """Return the distinct non-empty normalized answers, sorted by descending frequency and then alphabetically."""
    counts = Counter(filter(None, map(normalize_answer, answers)))
    if not counts:
        raise ValueError("All answers are empty: there is nothing to learn.")
    return sorted(counts, key=lambda answer: (-counts[answer], answer))


def word_tokens(answer: Any) -> list[str]:
    """Split an answer at whitespace as SQuAD does: in lower case, without ASCII punctuation or English articles."""
    return _ARTICLES.sub(" ", str(answer).lower().translate(_WITHOUT_PUNCTUATION)).split()


def token_f1(given: Sequence[str], right: Sequence[str]) -> float:
    """Return the token F1 of an answer, as SQuAD defines it: the harmonic mean of precision and recall.

    A token is counted as many times as it occurs in both answers. The score is 1 if neither answer has tokens, and 0 if
    only one has none.

    Example:
    ```python
    >>> from biomedclip.processing.answers import token_f1, word_tokens

    >>> token_f1(word_tokens("the left lung"), word_tokens("Right lung"))
    0.5
    ```
    """
    if not given or not right:
        return float(not given and not right)
    common = sum((Counter(given) & Counter(right)).values())
    return 2 * common / (len(given) + len(right))
