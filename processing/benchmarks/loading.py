"""The door to all benchmarks."""

import os
from pathlib import Path
from typing import Literal, get_args

from ..labelled_images import LabelledImages
from .benchmark import ClassificationBenchmark, RetrievalBenchmark, VisualQuestionBenchmark
from .facts import choose_prompts, template_sets_of_any_images
from .fingerprint import fingerprint_of
from .folders import read_any_images


Split = Literal["train", "validation", "test"]
ClassificationName = Literal["pcam", "lc25000_lung", "lc25000_colon", "tcga_til", "rsna", "medmnist", "imagefolder"]
VisualQuestionName = Literal["vqa_rad", "slake"]
RetrievalName = Literal["pmc15m"]
BENCHMARK_NAMES = (*get_args(ClassificationName), *get_args(VisualQuestionName), *get_args(RetrievalName))


def load_benchmark(
    name: str,
    path: str | os.PathLike[str],
    *,
    split: Split = "test",
    prompts: str | os.PathLike[str] | None = None,
    held_out: float | None = None,
    seed: int = 0,
    image_column: str = "image",
    label_column: str = "label",
) -> ClassificationBenchmark | VisualQuestionBenchmark | RetrievalBenchmark:
    """
    Reads a benchmark out of the files that people download.

    Args:
        name: One of `BENCHMARK_NAMES`; `imagefolder` is any folder of class folders, or a `datasets` set.
        path: Folder or file of the benchmark.
        split: `train`, `validation` or `test`.
        prompts: Name of a template set (nothing: the first one, which is the paper's where there is one), or a YAML
            file with `templates`, `class_names` or both.
        held_out: For images that come without splits: share of each class that is held out for `test`, and as much
            for `validation`. Without it all such images are the test split.
        seed: Of that draw.
        image_column: Column of images of a `datasets` set.
        label_column: Column of labels of a `datasets` set.

    Returns:
        Images with labels, questions with answers, or pairs of image and caption. Images are read when asked for, and
        only then is one found to be damaged.

    Raises:
        FileNotFoundError: Nothing of the kind there, or a part of it is missing.
        ValueError: An unknown name or split, or files that hold something else.

    Example:

    ```python
    >>> from processing import load_benchmark, read_image

    >>> benchmark = load_benchmark("imagefolder", "folder_of_classes")
    >>> read_image(benchmark.images[0]["image"])
    ```"""
    if name not in BENCHMARK_NAMES:
        raise ValueError(f"No benchmark is called {name!r}; there are {', '.join(BENCHMARK_NAMES)}.")
    if split not in get_args(Split):
        raise ValueError(f"No split is called {split!r}; there are {', '.join(get_args(Split))}.")
    root = Path(path)
    if name == "imagefolder":
        images, notes = read_any_images(path, split, held_out, seed, image_column, label_column)
        classes = {label: label.replace("_", " ") for label in sorted(set(images.labels))}
        return _classification(name, split, path, images, classes, notes, prompts)
    raise NotImplementedError(f"{name} of {root}")


def _classification(
    name: str,
    split: str,
    path: str | os.PathLike[str],
    images: LabelledImages,
    classes: dict[str, str],
    notes: list[str],
    prompts: str | os.PathLike[str] | None,
) -> ClassificationBenchmark:
    class_names, templates, template_sets = choose_prompts(prompts, classes, template_sets_of_any_images())
    return ClassificationBenchmark(
        name=name,
        split=split,
        path=os.fspath(path),
        images=images,
        classes=list(classes),
        class_names=class_names,
        templates=templates,
        template_sets=template_sets,
        positive=None,
        metric="accuracy",
        paper={},
        source="nothing is published; prompts of the published model card",
        fingerprint=fingerprint_of(list(zip(images.names, images.labels, strict=True)), images.images),
        notes=notes,
    )


__all__ = ["BENCHMARK_NAMES", "load_benchmark"]
