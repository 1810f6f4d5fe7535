"""Train classifiers of images with several findings: data, metrics and their table."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import EvalPrediction

from biomedclip.processing.images.finding_tables import read_finding_splits
from biomedclip.processing.images.findings import FindingImages, check_some_readable, single_valued
from biomedclip.processing.images.labeled import shared_groups

from ..evaluation.findings.metrics import measure_findings, show_findings
from .supervised import SupervisedTrainer
from .weighted_losses import masked_cross_entropy


logger = logging.getLogger(__name__)


def read_findings(path: str, **columns: Any) -> dict[str, FindingImages]:
    """Read images with several findings, and warn of findings that cannot be learned and of shared patients.

    Raise `ValueError` if there is no training split, or a split has no readable image.
    """
    splits = read_finding_splits(path, **columns)
    if "train" not in splits:
        raise ValueError(f"{path} has no training split, only {', '.join(splits)}.")
    for split, images in splits.items():
        check_some_readable(images, f"{path}, {split} split")
    for note in [*splits["train"].notes, *shared_groups(splits)]:
        logger.warning("%s: %s", path, note)
    for name, why in single_valued(splits["train"]).items():
        logger.warning("%s: %r cannot be learned, because in the training split %s.", path, name, why)
    return splits


def finding_metrics(findings: list[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the function that computes mean AUROC, mean average precision and cross-entropy for `Trainer`."""

    def compute(evaluated: EvalPrediction) -> dict[str, float]:
        logits, targets = evaluated.predictions, evaluated.label_ids
        found = measure_findings(logits, targets, findings, resamples=0)
        loss = masked_cross_entropy()(torch.tensor(logits), torch.tensor(targets))
        means = {name: float("nan") if found[name] is None else found[name] for name in ("auroc", "average_precision")}
        return {**means, "cross_entropy": float(loss)}

    return compute


def measure_split(trainer: SupervisedTrainer, images: FindingImages, split: str, seed: int) -> dict[str, Any]:
    """Return the metrics of a split with intervals over groups, and the number of its unreadable images."""
    before = trainer.eval_data_collator.substituted_rows
    output = trainer.predict(images, metric_key_prefix=split)
    metrics = measure_findings(output.predictions, output.label_ids, images.findings, groups=images.groups, seed=seed)
    unreadable = trainer.eval_data_collator.substituted_rows - before
    return {**metrics, "cross_entropy": output.metrics[f"{split}_cross_entropy"], "unreadable_images": unreadable}


def show_splits(results: Mapping[str, Any]) -> None:
    """Print the metrics of each measured split."""
    for split in ("validation", "test"):
        if split in results:
            title = f"{split.capitalize()} split, {results[split]['images']:,} images"
            show_findings(title, results[split])
