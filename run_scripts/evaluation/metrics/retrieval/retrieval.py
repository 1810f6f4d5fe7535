"""Retrieval metrics with bootstrap intervals, as a module of the library `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from biomedclip.retrieval_metrics import DIRECTIONS, rank_counts, retrieval_metrics
from biomedclip.run_scripts.evaluation.retrieval import Pool, retrieval_of_pools


class Retrieval(evaluate.Metric):
    """Recall at 1, 5 and 10 and the median rank of both directions. See `retrieval_metrics`."""

    def _info(self) -> evaluate.MetricInfo:
        vector = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=retrieval_metrics.__doc__,
            citation="",
            features=datasets.Features({"predictions": vector, "references": vector}),
        )

    def _compute(self, predictions: Any, references: Any, groups: Any = None, seed: int = 0) -> dict[str, Any]:
        images, texts = (torch.tensor(np.asarray(part, dtype=np.float32)) for part in (predictions, references))
        found = retrieval_of_pools([Pool(rank_counts(images, texts), groups or range(len(texts)))], seed)
        return {direction: found[direction] for direction in DIRECTIONS}
