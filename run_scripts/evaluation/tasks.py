"""The tasks of `biomedclip evaluate`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .few_shot.task import evaluate_few_shot, read_few_shot
from .findings.classifier import FindingsTest, evaluate_classified_findings, read_classified_findings
from .findings.linear_probe import evaluate_findings_probe, read_probed_findings
from .findings.zero_shot import MeasuredFindings, evaluate_findings, read_findings
from .image_classification import TASK as IMAGE_CLASSIFICATION
from .image_classification import evaluate_image_classification, read_classified
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
    the first process and None in the others. With `checks_models`, `read` checks the models too.
    """

    read: Callable[[Any], Any]
    evaluate: Callable[[Run], dict[str, Any] | None]
    checks_models: bool = False


def _read_zero_shot(options: Any) -> Any:
    return read_findings(options) if options.label_columns else read_classes(options)


def _evaluate_zero_shot(run: Run) -> dict[str, Any] | None:
    return evaluate_findings(run) if isinstance(run.data, MeasuredFindings) else evaluate_zero_shot(run)


def _read_probed(options: Any) -> Any:
    return read_probed_findings(options) if options.label_columns else read_probed(options)


def _evaluate_probe(run: Run) -> dict[str, Any] | None:
    return evaluate_findings_probe(run) if isinstance(run.data, dict) else evaluate_linear_probe(run)


def _read_classified(options: Any) -> Any:
    return read_classified_findings(options) if options.label_columns else read_classified(options)


def _evaluate_classified(run: Run) -> dict[str, Any] | None:
    several = isinstance(run.data, FindingsTest)
    return evaluate_classified_findings(run) if several else evaluate_image_classification(run)


TASKS = {
    "retrieval": Task(read_pairs, evaluate_retrieval),
    "zero-shot": Task(_read_zero_shot, _evaluate_zero_shot),
    "linear-probe": Task(_read_probed, _evaluate_probe),
    "few-shot": Task(read_few_shot, evaluate_few_shot),
    IMAGE_CLASSIFICATION: Task(_read_classified, _evaluate_classified, checks_models=True),
    "visual-question-answering": Task(read_questions, evaluate_questions),
    PANELS: Task(read_annotated, evaluate_panels, checks_models=True),
}
