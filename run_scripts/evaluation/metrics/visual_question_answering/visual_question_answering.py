"""Accuracy and token F1 of answers to visual questions, as a module of the library `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate

from biomedclip.processing.answers import normalize_answer, token_f1, word_tokens


DESCRIPTION = """
Accuracy and mean token F1 of all, open and closed questions. For the accuracy, answers are compared in lower case, with
white space collapsed and without full stops at the end. Token F1 is that of SQuAD's evaluation: it compares the
words of the answers in lower case, without punctuation and articles.
"""
INPUTS = """
Args:
    predictions (`list[str]`): The answers that were given.
    references (`list[str]`): The right answers.
    answer_types (`list[str]`): `open` or `closed`, for each question.

Returns:
    `accuracy`, `open_accuracy`, `closed_accuracy`, `f1`, `open_f1` and `closed_f1`, from 0 to 1, or None if there
    are no such questions.
"""
CITATION = """
@article{lau2018vqarad, title={A dataset of clinically generated visual questions and answers about radiology images},
  author={Lau, Jason J. and Gayen, Soumya and Ben Abacha, Asma and Demner-Fushman, Dina}, journal={Scientific Data},
  volume={5}, pages={180251}, year={2018}}
"""


class VisualQuestionAnsweringAccuracy(evaluate.Metric):
    """Accuracy and token F1 of all, open and closed questions."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text, "answer_types": text}),
        )

    def _compute(
        self, predictions: Sequence[str], references: Sequence[str], answer_types: Sequence[str]
    ) -> dict[str, float | None]:
        scores: dict[str, Sequence[float]] = {
            "accuracy": right_answers(predictions, references),
            "f1": [
                token_f1(word_tokens(given), word_tokens(right))
                for given, right in zip(predictions, references, strict=True)
            ],
        }
        found: dict[str, float | None] = {}
        for metric, values in scores.items():
            for prefix, answer_type in {"": None, "open_": "open", "closed_": "closed"}.items():
                of_type = [
                    value
                    for value, other in zip(values, answer_types, strict=True)
                    if answer_type in (None, other.lower())
                ]
                found[f"{prefix}{metric}"] = sum(of_type) / len(of_type) if of_type else None
        return found


def right_answers(predictions: Sequence[str], references: Sequence[str]) -> list[bool]:
    """Return whether each answer equals the right one after [`normalize_answer`]."""
    return [
        normalize_answer(given) == normalize_answer(right) for given, right in zip(predictions, references, strict=True)
    ]
