"""Answers to visual questions: normalization, token F1, and the vocabulary of a model."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(answer: Any) -> str:
    """Return the form in which answers are compared: lower case, single spaces, without full stops at the end.

    Articles, other punctuation and number words are kept.

    Args:
        answer: A text or a number. VQA-RAD contains both.
    """
    return " ".join(str(answer).lower().split()).rstrip(". ")


def answer_vocabulary(answers: Iterable[Any]) -> list[str]:
    """Return the distinct normalized answers that are not empty, by descending frequency and then alphabetically.

    Raises:
        ValueError: If all answers are empty.
    """
    counts = Counter(filter(None, map(normalize_answer, answers)))
    if not counts:
        raise ValueError("All answers are empty: there is nothing to learn.")
    return sorted(counts, key=lambda answer: (-counts[answer], answer))


def word_tokens(answer: Any) -> list[str]:
    """Split an answer at white space like SQuAD: in lower case, without ASCII punctuation and English articles."""
    return _ARTICLES.sub(" ", str(answer).lower().translate(_WITHOUT_PUNCTUATION)).split()


def token_f1(given: Sequence[str], right: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of the tokens of an answer, like SQuAD.

    A token counts as often as it occurs in both answers. Two answers without tokens score 1, and one scores 0.

    Args:
        given: Tokens of the answer that was given.
        right: Tokens of the right answer.

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


__all__ = ["answer_vocabulary", "normalize_answer", "token_f1", "word_tokens"]
