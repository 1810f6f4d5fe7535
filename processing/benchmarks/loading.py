"""The door to all benchmarks."""

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal, get_args

from ..images.labeled import LabeledImages, similar_classes
from .benchmark import ClassificationBenchmark, RetrievalBenchmark, VisualQuestion, VisualQuestionBenchmark
from .facts import choose_prompts, facts_of, published_models, template_sets_of_any_images
from .fingerprint import fingerprint_of
from .folders import read_any_images
from .lc25000 import read_lc25000
from .medmnist import read_medmnist
from .pcam import find_kaggle, read_pcam
from .questions import read_slake, read_vqa_rad
from .rsna import RsnaSplit, read_rsna
from .tcga_til import DEFAULT_CANCER, is_of_the_paper, read_tcga_til


Benchmark = ClassificationBenchmark | VisualQuestionBenchmark | RetrievalBenchmark
CLASSIFICATION = ("pcam", "lc25000_lung", "lc25000_colon", "tcga_til", "rsna", "medmnist", "imagefolder")
VISUAL_QUESTIONS = ("vqa_rad", "slake")
RETRIEVAL = ("pmc15m",)
BENCHMARK_NAMES = (*CLASSIFICATION, *VISUAL_QUESTIONS, *RETRIEVAL)
Split = Literal["train", "validation", "test"]

# What AUROC is about in MedMNIST's two sets of two classes.
_POSITIVE_OF_MEDMNIST = {"normal, pneumonia": "1", "malignant, normal or benign": "0"}


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
    cancer: str = DEFAULT_CANCER,
    rsna_split: RsnaSplit = "paper-test",
    image_folder: str | os.PathLike[str] | None = None,
    language: str = "en",
) -> Benchmark:
    """Reads a benchmark out of the files that people download.

    Args:
        name: One of `BENCHMARK_NAMES`; `imagefolder` is any folder of class folders, or a `datasets` set. Which files
            each one needs is told by its reader in `processing/benchmarks`, and by the error when they are not there.
        path: Folder of the benchmark, or its file.
        split: `train`, `validation` or `test`. LC25000, RSNA and most folders of images come without: see `held_out`.
        prompts: Name of a template set, such as `biovil` for RSNA, or a YAML file with `templates`, `class_names` or
            both. If `None`, the first set, which is the paper's if there is one.
        held_out: For images that come without splits: share of each class that is held out for `test`, and as much
            for `validation`. Without it all such images are the test split. RSNA is always split, by patient.
        seed: Of such splits.
        image_column: Column of images of a `datasets` set.
        label_column: Column of labels of a `datasets` set.
        cancer: Study of TCGA-TIL: `luad` (the default, which the paper measures), another one (`brca`, ...), or `all`.
            For other studies than `luad`, `paper` is empty.
        rsna_split: Sizes of RSNA's splits, as `biomedclip.processing.benchmarks.rsna.split_patients` takes it:
            `paper-test` (9,069 test patients, the default) or `paper-fractions` (70 / 15 / 15 %).
        image_folder: Of VQA-RAD and SLAKE, where the images do not lie beside the questions.
        language: Of SLAKE's questions: `en`, `zh` or `all`.

    Returns:
        A `ClassificationBenchmark`, a `VisualQuestionBenchmark` (`vqa_rad`, `slake`) or a `RetrievalBenchmark`
        (`pmc15m`). Images are read when asked for, and only then is one found to be damaged.

    Raises:
        FileNotFoundError: Nothing of the kind there, or a part of it is missing.
        ImportError: The files need a library of an extra, `hdf5` or `dicom`.
        ValueError: If the name or the split is unknown, if `cancer` or `rsna_split` has no effect on the benchmark, or
            if files hold something else.

    Example:
    ```python
    >>> from biomedclip.processing import load_benchmark, read_image

    >>> benchmark = load_benchmark("imagefolder", "folder_of_classes")
    >>> read_image(benchmark.images[0]["image"])
    ```
    """
    if name not in BENCHMARK_NAMES:
        raise ValueError(f"No benchmark is called {name!r}; there are {', '.join(BENCHMARK_NAMES)}.")
    if split not in get_args(Split):
        raise ValueError(f"No split is called {split!r}; there are {', '.join(get_args(Split))}.")
    for option, value, default, only in (
        ("cancer", cancer, DEFAULT_CANCER, "tcga_til"),
        ("rsna_split", rsna_split, "paper-test", "rsna"),
    ):
        if value != default and name != only:
            raise ValueError(f"{option} has no effect on {name}, only on {only}. Leave it out.")
    root = Path(path)
    if name == "imagefolder":
        images, notes = read_any_images(path, split, held_out, seed, image_column, label_column)
        classes = {label: label.replace("_", " ") for label in sorted(set(images.labels))}
        notes += similar_classes(list(classes))
        return _classification(name, split, path, images, _unpublished(classes), notes, prompts)
    if not root.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder.")
    if name == "medmnist":
        images, classes, notes = read_medmnist(root, split)
        positive = _POSITIVE_OF_MEDMNIST.get(", ".join(classes.values()))
        return _classification(name, split, path, images, _unpublished(classes, positive), notes, prompts)
    if name in VISUAL_QUESTIONS:
        folder = Path(image_folder) if image_folder is not None else None
        if name == "vqa_rad":
            questions, notes = read_vqa_rad(root, split, folder)
        else:
            questions, notes = read_slake(root, split, folder, language)
        return _visual_questions(name, split, path, questions, notes)
    if name == "pmc15m":
        return _pairs(split, path)
    facts = facts_of(name)
    selection: dict[str, Any] = {}
    if name == "pcam":
        images, notes = read_pcam(root, split, held_out, seed)
        if find_kaggle(root):
            facts = {**facts, "paper": {}, "images": {}}
    elif name == "tcga_til":
        images, notes, selection = read_tcga_til(root, split, cancer)
        if not is_of_the_paper(cancer):
            facts = {**facts, "paper": {}, "images": {}}
    elif name == "rsna":
        images, notes, selection = read_rsna(root, split, seed, rsna_split)
    else:
        images, notes = read_lc25000(root, name, split, held_out, seed)
    benchmark = _classification(name, split, path, images, facts, notes, prompts)
    return dataclasses.replace(benchmark, selection=selection)


def _classification(
    name: str,
    split: str,
    path: str | os.PathLike[str],
    images: LabeledImages,
    facts: dict[str, Any],
    notes: list[str],
    prompts: str | os.PathLike[str] | None,
) -> ClassificationBenchmark:
    class_names, templates, template_sets = choose_prompts(
        prompts, facts["classes"], facts["template_sets"], facts.get("class_names_of_sets")
    )
    return ClassificationBenchmark(
        name=name,
        split=split,
        path=os.fspath(path),
        images=images,
        classes=list(facts["classes"]),
        class_names=class_names,
        templates=templates,
        template_sets=template_sets,
        positive=facts["positive"],
        metric=facts["metric"],
        paper=dict(facts["paper"]) if split == "test" else {},
        source=facts["source"],
        fingerprint=fingerprint_of(list(zip(images.names, images.labels, strict=True)), images.images),
        notes=notes + _of_another_size(facts, split, len(images), "images"),
        paper_of_linear_probe=dict(facts.get("paper_of_linear_probe", {})) if split == "test" else {},
    )


def _unpublished(classes: dict[str, str], positive: str | None = None) -> dict[str, Any]:
    """Facts of images of which nothing is published, as [`facts_of`] gives those of the others."""
    return {
        "classes": classes,
        "template_sets": template_sets_of_any_images(),
        "positive": positive,
        "metric": "accuracy",
        "paper": {},
        "source": "nothing is published of BiomedCLIP; prompts of the published model card",
        "images": {},
    }


def _visual_questions(
    name: str, split: str, path: str | os.PathLike[str], questions: list[VisualQuestion], notes: list[str]
) -> VisualQuestionBenchmark:
    facts = facts_of(name)
    images = {question.image_name: question.image for question in questions}
    rows = [(asked.name, asked.image_name, asked.question, asked.answer, asked.answer_type) for asked in questions]
    return VisualQuestionBenchmark(
        name=name,
        split=split,
        path=os.fspath(path),
        questions=questions,
        paper=dict(facts["paper"]) if split == "test" else {},
        source=facts["source"],
        fingerprint=fingerprint_of(rows, list(images.values())),
        notes=notes + _of_another_size(facts, split, len(questions), "questions"),
    )


def _pairs(split: str, path: str | os.PathLike[str]) -> RetrievalBenchmark:
    from ..pmc15m import load_pmc15m  # torch and `datasets`

    facts = facts_of("pmc15m")
    columns = ["pair_id", "pmcid", "image", "caption"]
    pairs: Any = load_pmc15m(path, split, streaming=False, columns=columns, decode=False)
    published = published_models("pmc15m", "retrieval", split)
    return RetrievalBenchmark(
        name="pmc15m",
        split=split,
        path=os.fspath(path),
        pairs=pairs,
        paper=dict(published[0].values) if published else {},
        published_pairs=facts["images"].get(split),
        source=published[0].source if published and split != "test" else facts["source"],
        fingerprint=fingerprint_of([[pair_id] for pair_id in pairs["pair_id"]], []),
        notes=_of_another_size(facts, split, len(pairs), "pairs"),
    )


def _of_another_size(facts: dict[str, Any], split: str, found: int, of_what: str) -> list[str]:
    published = facts["images"].get(split)
    if published is None or found == published:
        return []
    return [f"{found:,} {of_what}, where the published {split} split has {published:,}."]


__all__ = ["BENCHMARK_NAMES", "load_benchmark"]
