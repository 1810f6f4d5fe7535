"""Labeled images of the user's own for zero-shot classification: pairs of a built dataset, or images in a folder."""

from collections.abc import Sequence
from pathlib import Path

from biomedclip.processing import PairStream
from biomedclip.processing.benchmarks.benchmark import ClassificationBenchmark
from biomedclip.processing.benchmarks.fingerprint import fingerprint_of
from biomedclip.processing.benchmarks.folders import choose_split
from biomedclip.processing.images.folders import shown_name
from biomedclip.processing.images.labeled import (
    IMAGE_COLUMN,
    LABEL_COLUMN,
    SPLIT_NAMES,
    LabeledImages,
    read_splits,
    similar_classes,
)
from biomedclip.processing.tables import Row, labels_by_name, read_table


LABELS = "labels.csv"
PAIR_ID = "pair_id"
BUILD_REPORT = "report.json"  # `biomedclip.processing.pmc.build` has the same name, and takes two seconds to import
TEMPLATES = ["this is a photo of {}", "{} presented in image"]


def labeled_images(
    path: str, split: str, *, image_column: str = IMAGE_COLUMN, label_column: str = LABEL_COLUMN
) -> tuple[LabeledImages, list[str]]:
    """Read images and labels for zero-shot classification.

    Args:
        path: A built dataset with a `labels.csv` (`pair_id,label`), or what [`read_labeled_images`] takes.
        split: The split that is read.
        image_column: Column of images of a metadata file or a `datasets` set.
        label_column: Column of labels of `labels.csv`, a metadata file or a `datasets` set.

    Returns:
        The images, and notes on them.

    Raises:
        FileNotFoundError: If there are no labeled images.
        ValueError: If the labels cannot be read, or if there is no such split.
    """
    root = Path(path)
    if (root / LABELS).is_file():
        if image_column != IMAGE_COLUMN:
            raise ValueError(f"--image-column {image_column} has no effect on a built dataset. Leave it out.")
        return _labeled_pairs(root, split, label_column)
    if not root.exists():
        raise FileNotFoundError(f"--data {path}: there is no such folder.")
    needed = (
        f"Zero-shot classification needs labels: a {LABELS} with {PAIR_ID},label beside a built dataset, or labeled "
        "images as docs/images.md describes them."
    )
    if (root / BUILD_REPORT).is_file() and (root / "data").is_dir():
        raise FileNotFoundError(f"{path}: a built dataset without a {LABELS}. {needed}")
    try:
        splits = read_splits(path, image_column=image_column, label_column=label_column)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} {needed}") from error
    return choose_split(splits, path, split, None, 0)


def _labeled_pairs(root: Path, split: str, label_column: str) -> tuple[LabeledImages, list[str]]:
    """Pairs of a split that have a label, and notes."""
    row_of, label = read_labels(root / LABELS, label_column)
    try:
        stream = PairStream(root, split, columns=[PAIR_ID, "image"])
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} {LABELS} gives labels to pairs of a built dataset. For files of images, write a metadata.csv "
            "with file_name and label."
        ) from error
    pairs = [row for row in stream.rows(0, 0, len(stream)) if row[PAIR_ID] in row_of]
    names = [row[PAIR_ID] for row in pairs]
    _check_ids(root, split, row_of, names)
    if not pairs:
        raise ValueError(f"{root / LABELS}: no pair of the {split} split has a label.")
    notes = []
    if len(pairs) < len(stream):
        notes.append(f"{len(pairs):,} of {len(stream):,} pairs of the {split} split have a label in {LABELS}.")
    return LabeledImages([row["image"] for row in pairs], [row_of[name][label] for name in names], names), notes


def _check_ids(root: Path, split: str, row_of: dict[str, Row], found: Sequence[str]) -> None:
    """Check that each row of labels names a pair of some split.

    Raises:
        ValueError: If there are rows that do not. The message names the line of the first.
    """
    here = set(found)
    unknown = dict.fromkeys(name for name in row_of if name not in here)
    for other in SPLIT_NAMES if unknown else ():
        for name in pair_ids(root, other) if other != split else ():
            unknown.pop(name, None)
    if unknown:
        first = next(iter(unknown))
        raise ValueError(
            f"{root / LABELS}, line {row_of[first].line}: the dataset has no pair {shown_name(first[:100])!r} "
            f"({len(unknown):,} such rows). Correct or remove them."
        )


def pair_ids(root: Path, split: str) -> list[str]:
    """Return the ids of the pairs of a split; none if the dataset has no such split."""
    try:
        stream = PairStream(root, split, columns=[PAIR_ID])
    except FileNotFoundError:
        return []
    return [row[PAIR_ID] for row in stream.rows(0, 0, len(stream))]


def read_labels(path: Path, label_column: str = LABEL_COLUMN) -> tuple[dict[str, Row], str]:
    """Read the labels of pairs.

    Args:
        path: A CSV file with a header: `pair_id`, and a column of labels.
        label_column: Name of the latter. Of two columns the second may have any name.

    Returns:
        A row for each pair id, and the name of the column of labels.

    Raises:
        ValueError: If the table cannot be read, lacks a column or a value, or gives one pair two labels. The message
            names the line.
    """
    table = read_table(path, [PAIR_ID], known=[label_column])
    others = [column for column in table.columns if column != PAIR_ID]
    label = table.column(label_column)
    if label is None and label_column == LABEL_COLUMN and len(others) == 1:
        (label,) = others
    if label is None:
        raise ValueError(
            f"{path}: no column {label_column!r}; it has {', '.join(table.columns)}. Name it with --label-column."
        )
    return labels_by_name(read_table(path, [PAIR_ID, label]), PAIR_ID, label), label


def unpublished_benchmark(
    path: str,
    split: str,
    templates: Sequence[str],
    *,
    image_column: str = IMAGE_COLUMN,
    label_column: str = LABEL_COLUMN,
) -> ClassificationBenchmark:
    """Return labeled images of the user's own as a benchmark; the class names are the labels."""
    images, notes = labeled_images(path, split, image_column=image_column, label_column=label_column)
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
        notes=notes + similar_classes(classes),
    )
