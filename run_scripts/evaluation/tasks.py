"""The tasks of `biomedclip evaluate`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .linear_probe import evaluate_linear_probe, read_probed
from .panels import PANELS, evaluate_panels, read_annotated
from .retrieval import evaluate_retrieval, read_pairs
from .run import Run
from .visual_question_answering import evaluate_questions, read_questions
from .zero_shot import evaluate_zero_shot, read_classes


@dataclass(frozen=True)
class Task:
    """A task of the evaluation.

    `read` reads and checks the data before a model is loaded. `evaluate` measures a model, and returns the results in
    the first process and None in the others.
    """

    read: Callable[[Any], Any]
    evaluate: Callable[[Run], dict[str, Any] | None]


TASKS = {
    "retrieval": Task(read_pairs, evaluate_retrieval),
    "zero-shot": Task(read_classes, evaluate_zero_shot),
    "linear-probe": Task(read_probed, evaluate_linear_probe),
    "visual-question-answering": Task(read_questions, evaluate_questions),
    PANELS: Task(read_annotated, evaluate_panels),
}
