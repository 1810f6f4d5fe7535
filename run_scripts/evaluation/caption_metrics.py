"""Metrics of captions that were split by panels, with bootstrap intervals over articles."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from biomedclip.processing.panels import SplitCaption
from biomedclip.processing.panels.annotations import AnnotatedCaption

from ..cli.models import import_optional
from .statistics.bootstrap import Metric, metrics_with_intervals, ratio


Similarity = Callable[[str, str], float]
INSTALL = "pip install rouge-score, or 'biomedclip[evaluate]'"
# How captions are split: without labels, with those of the annotation, and with those that the detector read.
MODES = {"caption_alone": "caption alone", "gold_labels": "gold labels", "read_labels": "read labels"}
SHOWN_METRICS = {
    "label_f1": "F1 of labels",
    "label_f1_of_captions": "mean F1 of captions",
    "rouge_l": "ROUGE-L",
    "rouge_l_with_context": "ROUGE-L with context",
    "word_similarity": "word similarity",
    "word_similarity_with_context": "word similarity with context",
}


def load_rouge_l() -> Similarity:
    """Return the F1 of ROUGE-L of the package `rouge-score`, without stemming.

    Raises:
        ImportError: If the package is not installed.
    """
    module = import_optional("rouge_score.rouge_scorer", "ROUGE-L of captions", INSTALL)
    scorer = module.RougeScorer(["rougeL"])

    @lru_cache(maxsize=100_000)
    def rouge_l(text: str, reference: str) -> float:
        return float(scorer.score(reference, text)["rougeL"].fmeasure)

    return rouge_l


def word_similarity(text: str, reference: str) -> float:
    """Return 1 minus the Levenshtein distance of two texts in words, by the number of words of the longer one.

    Words are compared in lower case and without punctuation, as in ROUGE.

    Example:
        >>> from biomedclip.run_scripts.evaluation.caption_metrics import word_similarity
        >>> word_similarity("CT of the chest.", "MRI of the chest")
        0.75
    """
    ours, true = (re.findall(r"[a-z0-9]+", each.lower()) for each in (text, reference))
    if not ours and not true:
        return 1.0
    row = list(range(len(true) + 1))
    for number, word in enumerate(ours, start=1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(true, start=1):
            changed = diagonal + (word != other)
            diagonal = row[place]
            row[place] = min(changed, diagonal + 1, row[place - 1] + 1)
    return 1 - row[-1] / max(len(ours), len(true))


def caption_metrics(
    captions: Sequence[AnnotatedCaption],
    splits: Sequence[SplitCaption],
    rouge_l: Similarity,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Return the metrics of captions that were split.

    Labels are counted over all captions (`label_f1`, with precision and recall), and averaged over captions
    (`label_f1_of_captions`). Texts are compared for each panel of the annotation, alone and together with the text for
    all panels (`..._with_context`). A panel that is not found counts as 0.

    Args:
        captions: Captions that were split by hand.
        splits: The same captions, split by us.
        rouge_l: From [`load_rouge_l`].
        seed: Seed of the bootstrap over articles.
        resamples: Number of bootstrap samples.
    """
    labels = np.array([_labels(caption, split) for caption, split in zip(captions, splits, strict=True)], dtype=float)
    right, found, true = labels.reshape(-1, 3).T
    metrics: dict[str, Metric] = {
        "label_f1": ratio(2 * right, found + true),
        "label_precision": ratio(right, found),
        "label_recall": ratio(right, true),
        "label_f1_of_captions": ratio(2 * right / np.maximum(found + true, 1), np.ones(len(true))),
    }
    for name, similarity in (("rouge_l", rouge_l), ("word_similarity", word_similarity)):
        for with_context, suffix in ((False, ""), (True, "_with_context")):
            sums = [
                _similarities(caption, split, similarity, with_context=with_context)
                for caption, split in zip(captions, splits, strict=True)
            ]
            metrics[f"{name}{suffix}"] = ratio([sum(each) for each in sums], [len(each) for each in sums])
    articles = [caption.article for caption in captions]
    return metrics_with_intervals(metrics, articles, seed=seed, resamples=resamples)


def _labels(caption: AnnotatedCaption, split: SplitCaption) -> tuple[int, int, int]:
    """Return the number of right labels, of found ones, and of true ones."""
    true = caption.with_context.keys()
    return len(true & split.panels.keys()), len(split.panels), len(true)


def _similarities(
    caption: AnnotatedCaption, split: SplitCaption, similarity: Similarity, *, with_context: bool
) -> list[float]:
    references = caption.with_context if with_context else caption.panels
    return [
        similarity(split.with_context(label) if with_context else split.panels[label], reference)
        if split.panels.get(label)
        else 0.0
        for label, reference in references.items()
    ]
