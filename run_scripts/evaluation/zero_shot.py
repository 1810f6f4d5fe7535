"""Zero-shot classification: images by the names of their classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from biomedclip import ZeroShotClassifier

from ..cli.reporting import UNDEFINED, say_undefined, show_table
from .classification import measure_classification
from .dual_encoders import DualEncoder


def classify_zero_shot(
    encoder: DualEncoder,
    image_embeds: torch.Tensor,
    labels: Sequence[str],
    classes: Sequence[str],
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    positive: str | None = None,
    groups: Sequence[str] | None = None,
    max_length: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Classifies embedded images by prompts.

    Args:
        encoder: The model.
        image_embeds: Normalised, of shape `(images, dimension)`.
        labels: The label of each image.
        classes: Labels in their order.
        class_names: What each is called in a prompt.
        templates: Prompts with `{}`: a class is the normalised mean of its normalised prompts.
        positive: The class that AUROC of two is about; the last when left out.
        groups: Patient or source of each image, for the bootstrap.
        max_length: Tokens a prompt is cut at.
        seed: Seed of the bootstrap.

    Returns:
        As of [`classification_metrics`], and the templates.
    """
    with encoder.precise():
        classifier = ZeroShotClassifier(
            encoder.model, encoder.processor, class_names, list(templates), max_length=max_length
        )
    # Texts before images, as in the model's forward: the product's last bit depends on it.
    scores = (classifier.class_embeds @ image_embeds.t()).t() * encoder.logit_scale
    metrics = classification_metrics(scores, labels, classes, positive=positive, groups=groups, seed=seed)
    return {**metrics, "templates": list(templates)}


def classification_metrics(
    scores: torch.Tensor,
    labels: Sequence[str],
    classes: Sequence[str],
    *,
    positive: str | None = None,
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """What the metric `classification` says, with labels in the place of numbers; chance, and the share of the
    most frequent class, which is the accuracy of whoever always names that one.

    Args:
        scores: Logits, of shape `(images, classes)`.
        labels: The label of each image.
        classes: Labels in their order.
        positive: The class that AUROC of two is about; the last when left out.
        groups: Patient or source of each image, for the bootstrap.
        resamples: Resampled sets of the bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: Fewer than two classes.
    """
    if len(classes) < 2:
        raise ValueError(f"All images are labeled {classes[0]!r}: classification needs at least two classes.")
    number_of = {label: number for number, label in enumerate(classes)}
    measured = measure_classification(
        scores.double().numpy(),
        [number_of[label] for label in labels],
        positive=len(classes) - 1 if positive is None else number_of[positive],
        groups=groups,
        resamples=resamples,
        seed=seed,
    )
    undefined = measured.pop("undefined")
    recalls = dict(zip(classes, measured.pop("recall_of_class"), strict=True))
    return {
        **{name: value for name, value in measured.items() if name != "confusion_matrix"},
        "chance": 1 / len(classes),
        "most_frequent_class": max(Counter(labels).values()) / len(labels),
        "images": len(labels),
        "classes": list(classes),
        "recall_of_class": recalls,
        "confusion_matrix": measured["confusion_matrix"],
        **({"undefined": undefined} if undefined else {}),
    }


def show_zero_shot(metrics: Mapping[str, Any], paper: Mapping[str, float] | None = None) -> None:
    """Prints zero-shot accuracy beside the paper's value and chance, and the recall of each class."""
    show_classification(f"Zero-shot classification, {metrics['images']:,} images", metrics, paper or {})


def show_classification(title: str, metrics: Mapping[str, Any], paper: Mapping[str, float]) -> None:
    """Prints a classification: accuracies and AUROC with their intervals, what guessing gives, and recalls."""
    rows: list[tuple[Any, ...]] = []
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        interval = metrics.get(f"{name}_interval")
        shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else None
        value = UNDEFINED if metrics[name] is None else metrics[name]
        rows.append((name.replace("_", " ").replace("auroc", "AUROC"), value, shown, paper.get(name)))
    rows.append(("chance", metrics["chance"], None, None))
    rows.append(("always the most frequent class", metrics["most_frequent_class"], None, None))
    rows.append(("recall of", "", "", ""))
    rows += [
        (f"  {name}", UNDEFINED if recall is None else recall, None, None)
        for name, recall in metrics["recall_of_class"].items()
    ]
    if paper:
        show_table(title, rows, ["", "value", "95 % interval", "paper"])
    else:
        show_table(title, [row[:3] for row in rows], ["", "value", "95 % interval"])
    say_undefined(metrics)
