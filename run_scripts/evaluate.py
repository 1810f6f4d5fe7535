"""Evaluates a dual encoder: retrieval of held-out pairs, or zero-shot classification.

biomedclip evaluate retrieval --model run --data out --output-dir results
biomedclip evaluate zero-shot --model run --data folder_of_classes --output-dir results
"""

import csv
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, recall_score
from transformers import AutoModel, AutoProcessor

from modeling_biomedclip import ContrastiveTrainer, ContrastiveTrainingArguments, ZeroShotClassifier
from modeling_biomedclip.retrieval_metrics import bootstrap_interval, rank_counts, recall_at, summarize_ranks
from processing import ContrastiveCollator, PairStream, load_pmc15m, read_image
from processing.labelled_images import image_files_by_class, split_folders

from .options import parse_options
from .reporting import say, show_table, versions, write_json


EXAMPLE = "biomedclip evaluate retrieval --model run --data out --output-dir results"
TASKS = ("retrieval", "zero-shot")
LABELS = "labels.csv"


@dataclass
class EvaluateOptions:
    """What is evaluated on what."""

    model: str = field(metadata={"help": "Folder or Hub id of BiomedCLIP, CLIP or another dual encoder."})
    data: str = field(
        metadata={
            "help": "Folder that biomedclip build wrote (for zero-shot with a labels.csv of pair_id,label), or for "
            "zero-shot a folder with one folder of images for each class."
        }
    )
    output_dir: str = field(metadata={"help": "Folder for results.json."})
    task: str = field(default="retrieval", metadata={"help": "May stand as the first word.", "choices": list(TASKS)})
    split: str = field(default="test", metadata={"help": "Split of a built data set."})
    batch_size: int = field(default=32, metadata={"help": "Pairs or images at a time."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a caption or prompt is cut at. The tokenizer's limit if left out."}
    )
    templates: list[str] = field(
        default_factory=lambda: ["this is a photo of {}", "{} presented in image"],
        metadata={"help": "Prompts of zero-shot classification; {} stands for the class name."},
    )
    seed: int = field(default=0, metadata={"help": "Seed of the bootstrap."})


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip evaluate`."""
    (options,) = parse_options(
        "evaluate",
        [EvaluateOptions],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        positionals=["task"],
    )
    # float32 whatever the checkpoint holds: similarities in half precision would tie.
    model = AutoModel.from_pretrained(options.model, dtype=torch.float32).eval().to(PartialState().device)
    processor = AutoProcessor.from_pretrained(options.model)
    started = time.monotonic()
    if options.task == "retrieval":
        metrics, fingerprint = evaluate_retrieval(model, processor, options)
        show: Any = show_retrieval
    else:
        images, labels, fingerprint = labelled_images(options.data, options.split)
        metrics = evaluate_zero_shot(model, processor, images, labels, options)
        show = show_zero_shot
    if not PartialState().is_main_process:
        return
    show(metrics)
    output_dir = Path(options.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(
        output_dir / "results.json",
        {
            "task": options.task,
            "model": options.model,
            "data": {"path": options.data, "split": options.split, "fingerprint": fingerprint},
            "metrics": metrics,
            "seconds": round(time.monotonic() - started, 1),
            "versions": versions(),
        },
    )
    say(f"Results in {output_dir / 'results.json'}")


def evaluate_retrieval(model: torch.nn.Module, processor: Any, options: EvaluateOptions) -> tuple[dict[str, Any], str]:
    """Retrieval among all pairs of a split: what [`retrieval_of`] gives, and the fingerprint of the pairs."""
    pairs, images, texts = embed_pairs(model, processor, options)
    return retrieval_of(pairs, images, texts, options.seed), _fingerprint(pairs["pair_id"])


def retrieval_of(pairs: Any, images: torch.Tensor, texts: torch.Tensor, seed: int) -> dict[str, Any]:
    """
    Retrieval in both directions.

    Args:
        pairs: A data set with a column `pmcid`.
        images: Their normalised image embeddings, of shape `(pairs, dimension)`.
        texts: Their normalised text embeddings.
        seed: Seed of the bootstrap.

    Returns:
        Metrics by direction with 95 % bootstrap intervals over articles, chance, and the numbers of pairs and articles.
    """
    better, equal = rank_counts(images, texts)
    articles = pairs["pmcid"]
    metrics: dict[str, Any] = {
        "pairs": len(pairs),
        "articles": len(set(articles)),
        "chance_at_1": 1 / len(pairs),
    }
    for direction in better:
        summary: dict[str, Any] = summarize_ranks(better[direction], equal[direction])
        for k in (1, 5, 10):
            hits = recall_at(k, better[direction], equal[direction]).numpy()
            summary[f"recall_at_{k}_interval"] = bootstrap_interval(hits, articles, seed=seed)
        metrics[direction] = summary
    return metrics


def embed_pairs(
    model: torch.nn.Module, processor: Any, options: EvaluateOptions
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The pairs of a split, and their normalised image and text embeddings, of shape `(pairs, dimension)`."""
    columns = ["pair_id", "pmcid", "image", "caption"]
    pairs = load_pmc15m(options.data, options.split, streaming=False, columns=columns, decode=False)
    trainer = ContrastiveTrainer(
        model,
        ContrastiveTrainingArguments(
            output_dir=options.output_dir, per_device_eval_batch_size=options.batch_size, report_to=["none"]
        ),
        data_collator=ContrastiveCollator(processor, max_length=options.max_length),
    )
    images, texts = trainer.predict(pairs).predictions
    return pairs, torch.from_numpy(images), torch.from_numpy(texts)


def evaluate_zero_shot(
    model: torch.nn.Module, processor: Any, images: Sequence[Any], labels: Sequence[str], options: EvaluateOptions
) -> dict[str, Any]:
    """
    Zero-shot classification of labelled images; the class names are the labels.

    Returns:
        Accuracy, balanced accuracy, recall of each class, the confusion matrix (rows: truth), and chance, which is one
        over the number of classes.
    """
    class_names = sorted(set(labels))
    if len(class_names) < 2:
        raise ValueError(f"All images are labelled {class_names[0]!r}: classification needs at least two classes.")
    classifier = ZeroShotClassifier(model, processor, class_names, options.templates, max_length=options.max_length)
    logits = classifier.logits(images, batch_size=options.batch_size)
    truth = np.array([class_names.index(label) for label in labels])
    answers = logits.argmax(dim=-1).numpy()
    classes = range(len(class_names))
    return {
        "accuracy": float(accuracy_score(truth, answers)),
        "balanced_accuracy": float(balanced_accuracy_score(truth, answers)),
        "chance": 1 / len(class_names),
        "images": len(truth),
        "classes": class_names,
        "templates": list(options.templates),
        "recall_of_class": dict(
            zip(class_names, map(float, recall_score(truth, answers, labels=classes, average=None)), strict=True)
        ),
        "confusion_matrix": confusion_matrix(truth, answers, labels=classes).tolist(),
    }


def labelled_images(path: str, split: str) -> tuple[Sequence[Any], list[str], str]:
    """
    Images and labels for zero-shot classification.

    Args:
        path: A built data set with a `labels.csv` (`pair_id,label`), or a folder of class folders.
        split: Split of a built data set.

    Returns:
        Pillow images, decoded when asked for, their labels, and the fingerprint of the set.

    Raises:
        FileNotFoundError: Neither of the two is there.
    """
    if (Path(path) / LABELS).is_file():
        label_of = read_labels(Path(path) / LABELS)
        stream = PairStream(path, split, columns=["pair_id", "image"])
        pairs = [row for row in stream.rows(0, 0, len(stream)) if row["pair_id"] in label_of]
        if not pairs:
            raise ValueError(f"{path}: no pair of the {split} split stands in {LABELS}.")
        names = [row["pair_id"] for row in pairs]
        return LazyImages([row["image"] for row in pairs]), [label_of[name] for name in names], _fingerprint(names)
    folders = split_folders(Path(path))
    if folders and split not in folders:
        raise FileNotFoundError(f"{path} has no {split} folder; --split may be {' or '.join(folders)}.")
    files_by_class = image_files_by_class(folders.get(split, path))
    if not files_by_class:
        raise FileNotFoundError(
            f"{path}: zero-shot classification needs labels: a {LABELS} with pair_id,label beside a built data set, or "
            "a folder of images for each class."
        )
    files = [file for found in files_by_class.values() for file in found]
    labels = [label for label, found in files_by_class.items() for _ in found]
    return LazyImages(files), labels, _fingerprint([file.relative_to(path).as_posix() for file in files])


class LazyImages(Sequence[Any]):
    """Images that are decoded when they are asked for: those of a benchmark would not fit into memory."""

    def __init__(self, sources: Sequence[Any]):
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [read_image(source) for source in self.sources[index]]
        return read_image(self.sources[index])


def read_labels(path: Path) -> dict[str, str]:
    """Labels by pair id, from a CSV with a header and two columns, the second of any name."""
    with path.open(newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    return dict(rows)


def show_retrieval(metrics: dict[str, Any], oracle: float | None = None) -> None:
    """Prints retrieval beside chance, and beside an oracle where one is given."""
    rows: list[tuple[Any, ...]] = []
    for k in (1, 5, 10):
        cells = []
        for direction in ("image_to_text", "text_to_image"):
            low, high = metrics[direction][f"recall_at_{k}_interval"]
            cells.append(f"{metrics[direction][f'recall_at_{k}']:.3f} [{low:.3f}, {high:.3f}]")
        rows.append((f"recall at {k}", *cells, min(1.0, k * metrics["chance_at_1"])))
    ranks = [metrics[direction]["median_rank"] for direction in ("image_to_text", "text_to_image")]
    rows.append(("median rank", *ranks, (metrics["pairs"] + 1) / 2))
    if oracle is not None:
        rows.append(("oracle of kind", oracle, oracle, None))
    title = f"Retrieval, {metrics['pairs']:,} pairs of {metrics['articles']:,} held-out articles [95 % interval]"
    show_table(title, rows, ["", "image to text", "text to image", "chance"])


def show_zero_shot(metrics: dict[str, Any]) -> None:
    """Prints zero-shot accuracy beside chance, and the recall of each class."""
    rows = [("accuracy", metrics["accuracy"]), ("balanced accuracy", metrics["balanced_accuracy"])]
    rows += [("chance", metrics["chance"])]
    rows += [(f"  {name}", recall) for name, recall in metrics["recall_of_class"].items()]
    show_table(f"Zero-shot classification, {metrics['images']:,} images", rows, ["", "value"])


def _fingerprint(names: Sequence[str]) -> str:
    """A short hash of what was evaluated on, whatever its order."""
    return hashlib.blake2b("\n".join(sorted(names)).encode(), digest_size=8).hexdigest()
