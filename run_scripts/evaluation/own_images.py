"""Labelled images of one's own for zero-shot classification: pairs of a built data set, or folders of classes."""

import csv
from collections.abc import Sequence
from pathlib import Path

from processing import PairStream
from processing.benchmarks.benchmark import ClassificationBenchmark
from processing.benchmarks.fingerprint import fingerprint_of
from processing.labelled_images import LabelledImages, image_files_by_class, split_folders


LABELS = "labels.csv"
TEMPLATES = ["this is a photo of {}", "{} presented in image"]


def labelled_images(path: str, split: str) -> LabelledImages:
    """
    Images and labels for zero-shot classification.

    Args:
        path: A built data set with a `labels.csv` (`pair_id,label`), or a folder of class folders.
        split: Split of a built data set.

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
        return LabelledImages([row["image"] for row in pairs], [label_of[name] for name in names], names)
    if not Path(path).exists():
        raise FileNotFoundError(f"--data {path}: there is no such folder.")
    folders = split_folders(Path(path))
    if folders and split not in folders:
        raise FileNotFoundError(f"{path} has no {split} folder; --split may be {' or '.join(folders)}.")
    files_by_class = image_files_by_class(folders.get(split, path))
    if not files_by_class:
        raise FileNotFoundError(
            f"{path}: zero-shot classification needs labels: a {LABELS} with pair_id,label beside a built data set, or "
            "a folder of images for each class. A data set of the `datasets` library takes --benchmark imagefolder."
        )
    files = [file for found in files_by_class.values() for file in found]
    labels = [label for label, found in files_by_class.items() for _ in found]
    return LabelledImages(files, labels, [file.relative_to(path).as_posix() for file in files])


def read_labels(path: Path) -> dict[str, str]:
    """Labels by pair id, from a CSV with a header and two columns, the second of any name."""
    with path.open(newline="", encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    return dict(rows)


def unpublished_benchmark(path: str, split: str, templates: Sequence[str]) -> ClassificationBenchmark:
    """Labelled images of one's own as a benchmark; the class names are the labels."""
    images = labelled_images(path, split)
    classes = sorted(set(images.labels))
    return ClassificationBenchmark(
        name="",
        split=split,
        path=path,
        images=images,
        classes=classes,
        class_names=classes,
        templates=list(templates),
        template_sets={},
        positive=None,
        metric="accuracy",
        paper={},
        source="",
        fingerprint=fingerprint_of(list(zip(images.names, images.labels, strict=True)), images.images),
    )
