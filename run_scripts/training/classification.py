"""Trains an image classifier on BiomedCLIP's image tower: the task image-classification of `biomedclip train`.

biomedclip train --config lora_classification --train-data folder_of_classes --output-dir classifier
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from transformers import (
    AutoModelForImageClassification,
    AutoProcessor,
    EvalPrediction,
    PreTrainedModel,
    set_seed,
)

from biomedclip.processing import LabelCollator, read_labeled_images
from biomedclip.processing.collator import IGNORED_LABEL
from biomedclip.processing.images.labeled import LabeledImages, check_readable, hold_out, similar_classes

from ..cli.options import parse_options, write_recipe
from ..cli.progress import show_progress
from ..cli.reporting import say, show_table
from ..cli.trust import trust_option
from .adapters import AdapterOptions, add_adapter, refuse_sharded_merge, what_is_where
from .runs import (
    ALTERNATIVES,
    check_checkpoint,
    check_trackers,
    checkpoint_to_resume,
    cost_rows,
    part_processes,
    run_training,
)
from .supervised import SupervisedArguments, SupervisedTrainer, load_with_head, save_results


logger = logging.getLogger(__name__)

TASK = "image-classification"
EXAMPLE = """biomedclip train --config lora_classification \\
      --train-data folder_of_classes --output-dir classifier"""
SHOWN = """
    task train_data image_column label_column validation_share on_bad_row model_name_or_path trust_remote_code lora_rank
    lora_alpha lora_dropout lora_targets merge_adapter output_dir max_steps num_train_epochs per_device_train_batch_size
    per_device_eval_batch_size gradient_accumulation_steps learning_rate warmup_steps weight_decay bf16
    dataloader_num_workers eval_strategy save_steps logging_steps report_to resume_from_checkpoint seed
""".split()
HEAD = "classifier"  # what transformers' image classifiers call it


@dataclass
class LabeledData:
    """What is trained on, and from which model."""

    train_data: str = field(
        metadata={
            "help": "Folder with a folder of images for each class, or of images with a metadata.csv (both optionally "
            "under train, validation, test); a datasets set; or a Hub id."
        }
    )
    model_name_or_path: str = field(
        metadata={"help": "Checkpoint whose image tower is used: BiomedCLIP, CLIP or an image classifier."}
    )
    task: str = field(default=TASK, metadata={"help": "What is learned."})
    image_column: str = field(
        default="image", metadata={"help": "Column of images of a metadata.csv or a datasets set."}
    )
    label_column: str = field(
        default="label", metadata={"help": "Column of labels of a metadata.csv or a datasets set."}
    )
    validation_share: float = field(
        default=0.1, metadata={"help": "Share of each class that is held out where the set has no validation split."}
    )
    on_bad_row: str = field(
        default="substitute",
        metadata={
            "help": "What an image does that cannot be decoded: raise, or substitute another one and count it.",
            "choices": ["raise", "substitute"],
        },
    )
    trust_remote_code: bool = trust_option()

    def __post_init__(self):
        if not 0 < self.validation_share < 1:
            raise ValueError(f"--validation-share must lie between 0 and 1, not {self.validation_share}.")


OPTION_CLASSES = [LabeledData, AdapterOptions, SupervisedArguments]


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip train --task image-classification`."""
    data, adapter, args = parse_options(
        "train",
        OPTION_CLASSES,
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        shown=SHOWN,
        alternatives=ALTERNATIVES,
    )
    trainer, results = train_classifier(data, args, adapter)
    if trainer.is_world_process_zero():
        show_results(results)
        say(what_is_where(args.output_dir, adapter))
    part_processes()


def train_classifier(
    data: LabeledData, args: SupervisedArguments, adapter: AdapterOptions
) -> tuple[SupervisedTrainer, dict[str, Any]]:
    """Trains and saves an image classifier, and measures it on held-out images.

    Args:
        data: What is trained on, and from which model.
        args: Everything else.
        adapter: LoRA, or none.

    Returns:
        The trainer, its model trained, and the results that `train_results.json` holds.

    Raises:
        ValueError: If there are fewer than two classes, fewer images than a batch, labels that training does not have,
            a class without readable images, or an option without effect.
        FileNotFoundError: No images there.
        FileExistsError: Checkpoints of an earlier run in `output_dir`, and no word of resuming.
    """
    trust = data.trust_remote_code
    check_checkpoint(data.model_name_or_path, trust_remote_code=trust)
    check_trackers(args)
    splits = with_validation(
        read_labeled_images(data.train_data, image_column=data.image_column, label_column=data.label_column),
        data.validation_share,
        args.seed,
    )
    classes = class_names(splits, data.train_data)
    for split, images in splits.items():
        check_readable(images, f"{data.train_data}, {split} split")
    checkpoint = checkpoint_to_resume(args)
    if args.process_index == 0:
        write_recipe(args.output_dir, [data, adapter, args], task=TASK)
    set_seed(args.seed)
    image_processor = AutoProcessor.from_pretrained(data.model_name_or_path, trust_remote_code=trust)
    image_processor = getattr(image_processor, "image_processor", image_processor)
    model = load_classifier(data.model_name_or_path, classes, trust_remote_code=trust)
    config = model.config
    if adapter.lora_rank is not None:
        model = add_adapter(model, adapter, trained_whole=[HEAD])
    collate: dict[str, Any] = {"label2id": config.label2id, "seed": args.seed, "on_error": data.on_bad_row}
    collators = [LabelCollator(image_processor, training=training, **collate) for training in (True, False)]
    trainer = SupervisedTrainer(
        model,
        args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=collators[0],
        eval_data_collator=collators[1],
        processing_class=image_processor,
        compute_metrics=accuracies,
    )
    refuse_sharded_merge(trainer, adapter)
    show_progress(trainer)
    results: dict[str, Any] = {
        **run_training(trainer, checkpoint),
        "classes": classes,
        "chance": 1 / len(classes),
        "substituted_rows": collators[0].substituted_rows,
    }
    for split in ("validation", "test"):
        if split in splits:
            results[split] = measure(trainer, splits[split], split)
    save_results(trainer, results, adapter, config)
    return trainer, results


def with_validation(splits: Mapping[str, LabeledImages], share: float, seed: int) -> dict[str, LabeledImages]:
    """The splits as they are if one of them is for validation, or else with a share of the training images as one."""
    if "validation" in splits:
        if share != LabeledData.validation_share:
            raise ValueError("--validation-share has no effect: the set has a validation split. Leave it out.")
        return dict(splits)
    stay, held_out = hold_out(splits["train"].labels, share, seed)
    return {**splits, "train": splits["train"].select(stay), "validation": splits["train"].select(held_out)}


def class_names(splits: Mapping[str, LabeledImages], path: str) -> list[str]:
    """The classes of the training images, sorted.

    Raises:
        ValueError: Fewer than two, or a split with others.
    """
    classes = sorted(set(splits["train"].labels))
    for note in similar_classes(classes):
        logger.warning("%s: %s", path, note)
    if len(classes) < 2:
        raise ValueError(f"{path}: all images are labeled {classes[0]!r}: classification needs at least two classes.")
    for split, images in splits.items():
        others = sorted(set(images.labels) - set(classes))
        if others:
            raise ValueError(
                f"{path}: {', '.join(map(repr, others))} of the {split} split is no class of the training images, "
                f"which have {', '.join(classes)}."
            )
    return classes


def load_classifier(name: str, classes: Sequence[str], *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The image tower of a checkpoint with a classifier for these classes, a new one where it has none that fits."""
    model, _ = load_with_head(AutoModelForImageClassification, name, classes, trust_remote_code=trust_remote_code)
    return model


def accuracies(evaluated: EvalPrediction) -> dict[str, float]:
    """Accuracy, its mean over classes, and cross-entropy of the images that could be read."""
    readable = evaluated.label_ids != IGNORED_LABEL
    truth, logits = evaluated.label_ids[readable], evaluated.predictions[readable]
    answers = logits.argmax(axis=-1)
    return {
        # Trainer's loss is a mean over batches, and not a number where one of them holds unreadable images alone.
        "cross_entropy": float(torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(truth))),
        "accuracy": float(accuracy_score(truth, answers)),
        "balanced_accuracy": float(balanced_accuracy_score(truth, answers)),
    }


def measure(trainer: SupervisedTrainer, images: LabeledImages, split: str) -> dict[str, Any]:
    """What the trained model makes of a split, and how many of its images could not be read."""
    before = trainer.eval_data_collator.substituted_rows
    metrics = trainer.evaluate(images, metric_key_prefix=split)
    return {
        **{name: metrics[f"{split}_{name}"] for name in ("accuracy", "balanced_accuracy", "cross_entropy")},
        "images": len(images),
        "unreadable_images": trainer.eval_data_collator.substituted_rows - before,
    }


def show_results(results: dict[str, Any]) -> None:
    """Prints the accuracies beside chance, and what the training took."""
    rows = [
        (f"{split} {name.replace('_', ' ')}", results[split][name])
        for split in ("validation", "test")
        if split in results
        for name in ("images", "accuracy", "balanced_accuracy")
    ]
    rows += [("chance", results["chance"])]
    rows += cost_rows(results)
    show_table(f"Classification, {len(results['classes'])} classes", rows, ["", "value"])
