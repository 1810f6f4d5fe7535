"""Classification metrics with bootstrap intervals, as a module of the library `evaluate`."""

from typing import Any

import datasets
import evaluate

from biomedclip.run_scripts.evaluation.classification import measure_classification


class Classification(evaluate.Metric):
    """Accuracy, balanced accuracy and AUROC. See `measure_classification`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=measure_classification.__doc__,
            citation="",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
        return measure_classification(predictions, references, **options)
