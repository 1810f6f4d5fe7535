"""Train an image classifier on the image encoder of a checkpoint.

biomedclip train --config lora_classification --train-data folder_of_classes --output-dir classifier
biomedclip train --config lora_classification --train-data findings.csv --label-columns chexpert --output-dir classifier
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from transformers import AutoModelForImageClassification, AutoProcessor, EvalPrediction

from biomedclip.processing import FindingCollator, LabelCollator, read_labeled_images
from biomedclip.processing.collator import IGNORED_LABEL
from biomedclip.processing.images.findings import BLANK_DEFAULT, UNCERTAIN_DEFAULT, FindingImages
from biomedclip.processing.images.labeled import (
    LABEL_COLUMN,
    Labeled,
    LabeledImages,
    check_readable,
    shared_groups,
    similar_classes,
)
from biomedclip.processing.images.sources import IMAGE_COLUMN
from biomedclip.processing.stratified import hold_out, hold_out_groups_with_labels

from ..classification.classifiers import MULTI_LABEL
from ..classification.seen_images import write_seen_images
from ..cli.fields import REQUIRED, image_root_option, option, split_column_option
from ..cli.finding_fields import (
    blank_option,
    check_finding_columns,
    label_columns_option,
    label_separator_option,
    uncertain_option,
)
from ..cli.reporting import show_table
from . import runs, supervised
from .adapters import MERGED, AdapterOptions, add_adapter
from .findings import finding_metrics, measure_split, read_findings, show_splits
from .runs import check_checkpoint, cost_rows, run_and_save, start_run
from .split_facts import split_facts
from .supervised import HEAD, SupervisedArguments, SupervisedData, SupervisedTrainer, load_with_head
from .trackers import check_trackers
from .weighted_losses import (
    CLASS_WEIGHTS,
    Loss,
    WeightedTrainer,
    balanced_class_weights,
    masked_cross_entropy,
    positive_weights,
    weighted_cross_entropy,
)


logger = logging.getLogger(__name__)

TASK = "image-classification"
EXAMPLE = """biomedclip train --config lora_classification \\
      --train-data folder_of_classes --output-dir classifier"""
GROUPS = {
    "data": "task train_data image_column label_column image_root group_column split_column "
    "validation_fraction class_weights "
    "on_bad_row dataloader_num_workers",
    "several findings": "label_columns label_separator uncertain blank",
    "model": "model_name_or_path trust_remote_code",
    **supervised.GROUPS,
}
ALTERNATIVES = runs.ALTERNATIVES


@dataclass(kw_only=True)
class LabeledData(SupervisedData):
    """Labeled images and the model to start from."""

    train_data: str = option(
        REQUIRED,
        "Folder with one folder of images per class or with a metadata.csv (optionally under train, "
        "validation, test), a CSV, JSON Lines or Parquet file, a datasets folder, or a Hub id.",
    )
    model_name_or_path: str = option(
        REQUIRED, "Checkpoint with the image encoder: BiomedCLIP, CLIP or an image classifier."
    )
    task: str = option(TASK, "Training task.")
    image_column: str = option("image", "Column of the images in tables (default: image).")
    label_column: str = option("label", "Column of the labels in tables (default: label).")
    image_root: str | None = image_root_option()
    group_column: str | None = option(
        None, "Column of the patient or source in a table. A group is not split into training and validation."
    )
    split_column: str | None = split_column_option()
    validation_fraction: float = option(
        0.1, "Fraction of each class to hold out if there is no validation split (default: 0.1)."
    )
    class_weights: str = option(
        "none",
        "balanced weighs classes by the inverse of their number of images, and positive labels of findings by "
        "negative / positive labels (default: none).",
        CLASS_WEIGHTS,
    )
    label_columns: list[str] = label_columns_option()
    label_separator: str | None = label_separator_option()
    uncertain: str | None = uncertain_option()
    blank: str | None = blank_option()

    def __post_init__(self):
        given = {name for name in ("label_columns", "label_separator", "uncertain", "blank") if getattr(self, name)}
        check_finding_columns(given | ({"label_column"} if self.label_column != LABEL_COLUMN else set()))
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"--validation-fraction {self.validation_fraction} must be greater than 0 and less than 1."
            )


OPTION_CLASSES = [LabeledData, AdapterOptions, SupervisedArguments]


def run(
    data: LabeledData, adapter: AdapterOptions, args: SupervisedArguments
) -> tuple[SupervisedTrainer, dict[str, Any]]:
    """Train and save an image classifier, evaluate it on held-out images, and return the trainer and the results."""
    trust = data.trust_remote_code
    check_checkpoint(data.model_name_or_path, trust_remote_code=trust)
    check_trackers(args)
    splits, classes = read_splits(data, args.seed)
    several = isinstance(splits["train"], FindingImages)
    if several and args.metric_for_best_model == "accuracy":  # the default for images with one label
        args.metric_for_best_model = "auroc"
    checkpoint = start_run(args, [data, adapter], task=TASK)
    processor = AutoProcessor.from_pretrained(data.model_name_or_path, trust_remote_code=trust)
    processor = getattr(processor, "image_processor", processor)
    auto_class = AutoModelForImageClassification
    problem = {"problem_type": MULTI_LABEL} if several else {}
    model, _ = load_with_head(auto_class, data.model_name_or_path, classes, trust_remote_code=trust, **problem)
    config = model.config
    collator: Any = FindingCollator if several else partial(LabelCollator, label2id=config.label2id)
    collate: dict[str, Any] = {"seed": args.seed, "on_error": data.on_bad_row}
    trainer = WeightedTrainer(
        add_adapter(model, adapter, trained_whole=[HEAD]),
        args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=collator(processor, training=True, **collate),
        eval_data_collator=collator(processor, **collate),
        processing_class=processor,
        compute_metrics=finding_metrics(classes) if several else accuracies,
        loss=loss_of(splits["train"], classes, balanced=data.class_weights == "balanced"),
    )

    def measure_splits() -> dict[str, Any]:
        held_out = [split for split in ("validation", "test") if split in splits]
        facts: dict[str, Any] = {"classes": classes, **split_facts(splits)}
        if several:
            policies = {"uncertain": data.uncertain or UNCERTAIN_DEFAULT, "blank": data.blank or BLANK_DEFAULT}
            facts |= {"problem_type": MULTI_LABEL, **policies, "notes": splits["train"].notes}
            return facts | {split: measure_split(trainer, splits[split], split, args.seed) for split in held_out}
        facts |= {"chance": 1 / len(classes)}
        return facts | {split: measure(trainer, splits[split], split) for split in held_out}

    results = run_and_save(trainer, checkpoint, adapter, measure_splits, config, data=data.train_data)
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        write_seen_images([folder, folder / MERGED] if adapter.merge_adapter else [folder], splits)
    return trainer, results


def read_splits(data: LabeledData, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Return the splits with a validation split, and the classes or findings. Each split has readable images."""
    columns: dict[str, Any] = {"image_root": data.image_root, "group_column": data.group_column}
    columns["split_column"] = data.split_column
    if data.label_columns:
        if data.image_column != IMAGE_COLUMN:
            columns["image_column"] = data.image_column
        given = {name: getattr(data, name) for name in ("label_separator", "uncertain", "blank")}
        columns |= {name: value for name, value in given.items() if value is not None}
        findings = read_findings(data.train_data, label_columns=data.label_columns, **columns)
        return with_validation(findings, data.validation_fraction, seed, data.train_data), findings["train"].findings
    columns |= {"image_column": data.image_column, "label_column": data.label_column}
    read = read_labeled_images(data.train_data, **columns)
    for note in shared_groups(read):
        logger.warning("%s: %s", data.train_data, note)
    splits = with_validation(read, data.validation_fraction, seed, data.train_data)
    if not len(splits["validation"]):
        raise ValueError(
            f"{data.train_data}: each class has a single image, so none can be held out for validation. Add images, or "
            "a validation split."
        )
    classes = class_names(splits, data.train_data)
    if absent := sorted(set(classes) - set(splits["validation"].labels)):
        logger.warning(
            "%s: no image of the validation split (%d images) is of the class %s, so its metrics do not cover it.",
            data.train_data,
            len(splits["validation"]),
            ", ".join(map(repr, absent)),
        )
    for split, images in splits.items():
        check_readable(images, f"{data.train_data}, {split} split")
    return splits, classes


def loss_of(images: LabeledImages | FindingImages, classes: Sequence[str], *, balanced: bool) -> Loss | None:
    """Return the loss for the training images, or None for that of the model."""
    if isinstance(images, FindingImages):
        return masked_cross_entropy(positive_weights(images.targets) if balanced else None)
    return weighted_cross_entropy(balanced_class_weights(images.labels, classes)) if balanced else None


def with_validation(splits: Mapping[str, Labeled], fraction: float, seed: int, path: str) -> dict[str, Labeled]:
    """Return the splits with a validation split. A missing one is held out from the training images.

    If the images have groups, such as patients, whole groups are held out, so that both splits have images of each
    class or finding if possible. Otherwise, a fraction of each class is held out, or of all images with several
    findings. `path` is used in messages.
    """
    if "validation" in splits:
        if fraction != LabeledData.validation_fraction:
            raise ValueError("--validation-fraction has no effect: the dataset has a validation split. Omit it.")
        return dict(splits)
    train = splits["train"]
    if train.groups is None:
        stay, held_out = hold_out(train.strata, fraction, seed)
    else:
        labels = train.labels_of_rows
        stay, held_out, notes = hold_out_groups_with_labels(train.groups, labels, fraction, seed, where=path)
        for note in notes:
            logger.warning("%s: %s", path, note)
    return {**splits, "train": train.select(stay), "validation": replace(train.select(held_out), drawn=True)}


def class_names(splits: Mapping[str, LabeledImages], path: str) -> list[str]:
    """Return the sorted classes of the training images, which must contain those of the other splits."""
    classes = sorted(set(splits["train"].labels))
    for note in similar_classes(classes):
        logger.warning("%s: %s", path, note)
    if len(classes) < 2:
        raise ValueError(f"{path}: all images are labeled {classes[0]!r}. Classification needs at least two classes.")
    for split, images in splits.items():
        others = sorted(set(images.labels) - set(classes))
        if others:
            raise ValueError(
                f"{path}: the {split} split has the classes {', '.join(map(repr, others))}, which the training images "
                f"do not have. These have {', '.join(classes)}."
            )
    return classes


def accuracies(evaluated: EvalPrediction) -> dict[str, float]:
    """Return accuracy, balanced accuracy and cross-entropy on the readable images."""
    readable = evaluated.label_ids != IGNORED_LABEL
    truth, logits = evaluated.label_ids[readable], evaluated.predictions[readable]
    answers = logits.argmax(axis=-1)
    return {
        # The loss of Trainer is a mean over batches, and NaN if a batch has only unreadable images.
        "cross_entropy": float(torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(truth))),
        "accuracy": float(accuracy_score(truth, answers)),
        "balanced_accuracy": float(balanced_accuracy_score(truth, answers)),
    }


def measure(trainer: SupervisedTrainer, images: LabeledImages, split: str) -> dict[str, Any]:
    """Return the metrics of a split and the number of its unreadable images."""
    before = trainer.eval_data_collator.substituted_rows
    metrics = trainer.evaluate(images, metric_key_prefix=split)
    return {
        **{name: metrics[f"{split}_{name}"] for name in ("accuracy", "balanced_accuracy", "cross_entropy")},
        "images": len(images),
        "unreadable_images": trainer.eval_data_collator.substituted_rows - before,
    }


def show_results(results: Mapping[str, Any]) -> None:
    """Print the accuracies, the chance level, and the cost of the training."""
    if results.get("problem_type") == MULTI_LABEL:
        show_splits(results)
        return show_table(f"Training, {len(results['classes'])} findings", cost_rows(results), ["", "value"])
    rows: list[tuple[str, Any]] = []
    for split in ("validation", "test"):
        for name in ("images", "accuracy", "balanced_accuracy") if split in results else ():
            rows.append((f"{split} {name.replace('_', ' ')}", results[split][name]))
    rows += [("chance", results["chance"]), *cost_rows(results)]
    return show_table(f"Classification, {len(results['classes'])} classes", rows, ["", "value"])
