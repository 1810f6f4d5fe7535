"""Accuracy of answers to visual questions, as a module of the library `evaluate`."""

from collections.abc import Sequence

import datasets
import evaluate

from processing.answers import normalize_answer


DESCRIPTION = """
Share of the questions that are answered with the right words, of all, of the open and of the closed ones. Answers are
compared in lower case, with white space collapsed and full stops at the end off.
"""
INPUTS = """
Args:
    predictions (`list[str]`): The answers that were given.
    references (`list[str]`): The right ones.
    answer_types (`list[str]`): `open` or `closed`, for each question.

Returns:
    `accuracy`, `open_accuracy` and `closed_accuracy`, in 0..1; none where there are no such questions.
"""
CITATION = """
@article{lau2018vqarad, title={A dataset of clinically generated visual questions and answers about radiology images},
  author={Lau, Jason J. and Gayen, Soumya and Ben Abacha, Asma and Demner-Fushman, Dina}, journal={Scientific Data},
  volume={5}, pages={180251}, year={2018}}
"""


class VisualQuestionAnsweringAccuracy(evaluate.Metric):
    """Accuracy of all, of open and of closed questions."""

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
        right = right_answers(predictions, references)
        found: dict[str, float | None] = {}
        for name, answer_type in {"accuracy": None, "open_accuracy": "open", "closed_accuracy": "closed"}.items():
            of_type = [
                hit for hit, other in zip(right, answer_types, strict=True) if answer_type in (None, other.lower())
            ]
            found[name] = sum(of_type) / len(of_type) if of_type else None
        return found


def right_answers(predictions: Sequence[str], references: Sequence[str]) -> list[bool]:
    """Whether each answer is the right one, in whatever spelling [`normalize_answer`] makes equal."""
    return [
        normalize_answer(given) == normalize_answer(right) for given, right in zip(predictions, references, strict=True)
    ]
