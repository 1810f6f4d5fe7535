"""Accuracy and token F1 of answers to visual questions, as a module of the library `evaluate`."""

from typing import Any

import datasets
import evaluate

from biomedclip.run_scripts.evaluation.visual_question_answering import measure_answers


CITATION = """
@article{lau2018vqarad, title={A dataset of clinically generated visual questions and answers about radiology images},
  author={Lau, Jason J. and Gayen, Soumya and Ben Abacha, Asma and Demner-Fushman, Dina}, journal={Scientific Data},
  volume={5}, pages={180251}, year={2018}}
"""


class VisualQuestionAnswering(evaluate.Metric):
    """Accuracy and token F1 on all, open, and closed questions. See `measure_answers`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=measure_answers.__doc__,
            citation=CITATION,
            features=datasets.Features({"predictions": text, "references": text, "answer_types": text}),
        )

    def _compute(self, predictions: Any, references: Any, answer_types: Any) -> dict[str, float | None]:
        return measure_answers(predictions, references, answer_types)
