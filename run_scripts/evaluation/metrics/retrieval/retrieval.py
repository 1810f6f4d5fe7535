"""Recall at 1, 5 and 10 and median rank, exactly and with ties counted as chance would break them."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch

from biomedclip.retrieval_metrics import bootstrap_interval, rank_counts, recall_at, summarize_ranks


_DESCRIPTION = """\
Retrieval. By default both directions among pairs of embeddings; with the configuration `ranks`, one direction of which
the ranks have been counted already, block by block, where the similarities of all pairs would take too long.
"""
_INPUTS = """\
Args:
    predictions: Normalised image embeddings, of shape (pairs, dimension).
    references: Normalised text embeddings; text i is the right one of image i.
    better, equal, right (in the place of both, with `ranks`): For each query the number of candidates that score higher
        than the best right one, of those that score the same, and of right ones among these.
    groups: What each query belongs to (an article): the bootstrap draws whole groups; single queries if left out.
    resamples: Resampled sets for the 95 % intervals; 0 for none.
    seed: Seed of the resampling.
Returns:
    recall_at_1, recall_at_5 and recall_at_10, each with ..._interval, and median_rank; by default of image_to_text and
    text_to_image.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class Retrieval(evaluate.Metric):
    """The metric, as `evaluate.load` finds it."""

    def _info(self) -> evaluate.MetricInfo:
        vector, number = datasets.Sequence(datasets.Value("float32")), datasets.Value("int64")
        features = {
            "default": {"predictions": vector, "references": vector},
            "ranks": {"better": number, "equal": number, "right": number},
        }
        if self.config_name not in features:
            raise ValueError(f"The configuration is one of {', '.join(features)}, not {self.config_name!r}.")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(features[self.config_name]),
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]] | None = None,
        references: Sequence[Sequence[float]] | None = None,
        better: Sequence[int] | None = None,
        equal: Sequence[int] | None = None,
        right: Sequence[int] | None = None,
        groups: Sequence[Any] | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> dict[str, Any]:
        if self.config_name == "ranks":
            above, level, correct = (torch.as_tensor(np.asarray(values)) for values in (better, equal, right))
            return _of_direction(above, level, correct, groups, resamples, seed)
        higher, same = rank_counts(
            torch.tensor(np.asarray(predictions, dtype=np.float32)),
            torch.tensor(np.asarray(references, dtype=np.float32)),
        )
        one = torch.ones(len(next(iter(same.values()))), dtype=torch.int64)
        return {name: _of_direction(higher[name], same[name], one, groups, resamples, seed) for name in higher}


def _of_direction(
    better: torch.Tensor,
    equal: torch.Tensor,
    right: torch.Tensor,
    groups: Sequence[Any] | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    several = None if (right == 1).all() else right
    summary: dict[str, Any] = summarize_ranks(better, equal, several)
    if resamples:
        groups = range(len(better)) if groups is None else groups
        for k in (1, 5, 10):
            hits = recall_at(k, better, equal, several).numpy()
            summary[f"recall_at_{k}_interval"] = list(bootstrap_interval(hits, groups, seed=seed, resamples=resamples))
    return summary
