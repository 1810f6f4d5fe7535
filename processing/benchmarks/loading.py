"""Load any benchmark by name."""

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args

from ..images.labeled import LabeledImages
from .benchmark import Benchmark, ClassificationBenchmark, Content, RetrievalBenchmark, VisualQuestionBenchmark
from .facts import choose_prompts, facts_of, published_models
from .fingerprint import fingerprint_of


Split = Literal["train", "validation", "test"]
_OF_SPLITS = ("held_out", "seed")


def load_benchmark(
    name: str,
    path: str | os.PathLike[str],
    *,
    split: Split = "test",
    prompts: str | os.PathLike[str] | None = None,
    held_out: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Benchmark:
    """Load a split of a benchmark from the files that its authors publish.

    A benchmark is an entry in `benchmarks.yaml` and a module in the same folder with a function
    `read(path, split, facts, **options) -> Content`. The module is named after the entry, or after its field `reader`.

    Args:
        name: Name of the benchmark, see [`benchmark_names`]. `imagefolder` is any folder of labeled images that
            [`read_labeled_images`] can read.
        path: Folder or file of the benchmark. If files are missing, the error message lists the expected ones.
        split: `train`, `validation` or `test`.
        prompts: Name of a template set, such as `biovil` for RSNA, or a YAML file with `templates`, `class_names` or
            both. If None, the first set of the entry, which is the paper's if there is one.
        held_out: For images without splits: fraction of each class to hold out for the test split, and again for the
            validation split. If None, all these images are the test split.
        seed: Seed for drawing splits.
        options: Options of the benchmark:

            - `imagefolder`: `image_column`, `label_column`, `image_root`, `group_column`,
              `split_column` and `subgroup_column` (a list of columns)
            - `tcga_til`: `cancer`: the study (`luad` (the default), `brca`, ...), or `all`
            - `rsna`: `rsna_split`, `paper-test` (the default) or `paper-fractions`
            - `vqa_rad` and `slake`: `image_folder`, if the images are not next to the questions
            - `slake`: `language`, `en` (the default), `zh` or `all`

    Returns:
        A [`ClassificationBenchmark`], [`VisualQuestionBenchmark`] or [`RetrievalBenchmark`]. Images are read on access,
        so damaged images only raise an error then.

    Raises:
        FileNotFoundError: If files are missing.
        ImportError: If the files need a library from the extra `hdf5` or `dicom`, which is not installed.
        ValueError: If the name, the split or an option is unknown, or if files have unexpected content.

    Example:
    ```python
    >>> from biomedclip.processing import load_benchmark, read_image

    >>> benchmark = load_benchmark("imagefolder", "folder_of_classes")
    >>> read_image(benchmark.images[0]["image"])
    ```
    """
    facts = facts_of(name)
    if split not in get_args(Split):
        raise ValueError(f"Unknown split {split!r}. Choose one of {', '.join(get_args(Split))}.")
    if unknown := options.keys() - set(benchmark_options(name)):
        known = ", ".join(benchmark_options(name)) or "none"
        raise ValueError(f"{min(unknown)} has no effect on {name}. Its options: {known}. Omit it.")
    if "download" in facts and not os.path.exists(path):
        raise FileNotFoundError(f"{path}: the file or folder does not exist.")
    reader = _reader(name)
    of_splits = {"held_out": held_out, "seed": seed}
    options |= {option: value for option, value in of_splits.items() if option in _parameters(reader)}
    content = reader(Path(path), split, facts, **options)
    return _benchmark(content, facts | content.facts, os.fspath(path), split, prompts)


def benchmark_options(name: str) -> list[str]:
    """Return the names of the options of a benchmark that not all benchmarks have, such as `cancer`."""
    return [option for option in _parameters(_reader(name)) if option not in _OF_SPLITS]


def _reader(name: str) -> Callable[..., Content]:
    return import_module(f"{__package__}.{facts_of(name).get('reader', name)}").read


def _parameters(reader: Callable[..., Content]) -> list[str]:
    parameters = inspect.signature(reader).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def _benchmark(
    content: Content, facts: dict[str, Any], path: str, split: str, prompts: str | os.PathLike[str] | None
) -> Benchmark:
    rows = content.rows
    notes = [*(rows.notes if isinstance(rows, LabeledImages) else []), *content.notes]
    published = facts["images"].get(split)
    if published is not None and len(rows) != published:
        what = {"retrieval": "pairs", "visual-question-answering": "questions"}.get(facts["task"], "images")
        notes.append(f"{len(rows):,} {what}, but the published {split} split has {published:,}.")
    shared: dict[str, Any] = {
        "name": facts["name"],
        "split": split,
        "path": path,
        "paper": dict(facts["paper"]) if split == "test" else {},
        "source": facts["source"],
        "notes": notes,
        "selection": content.selection,
    }
    if facts["task"] == "retrieval":
        models = published_models(facts["name"], "retrieval", split)
        shared["paper"] = dict(models[0].values) if models else {}
        shared["source"] = models[0].source if models and split != "test" else facts["source"]
        fingerprint = fingerprint_of([[pair_id] for pair_id in rows["pair_id"]], [])
        return RetrievalBenchmark(**shared, fingerprint=fingerprint, pairs=rows, published_pairs=published)
    if facts["task"] == "visual-question-answering":
        texts = [(row.name, row.image_name, row.question, row.answer, row.answer_type) for row in rows]
        fingerprint = fingerprint_of(texts, list({row.image_name: row.image for row in rows}.values()))
        return VisualQuestionBenchmark(**shared, fingerprint=fingerprint, questions=rows)
    class_names, templates, template_sets = choose_prompts(prompts, facts)
    return ClassificationBenchmark(
        **shared,
        fingerprint=fingerprint_of(list(zip(rows.names, rows.labels, strict=True)), rows.images),
        images=rows,
        classes=list(facts["classes"]),
        class_names=class_names,
        templates=templates,
        template_sets=template_sets,
        positive=facts["positive"],
        metric=facts["metric"],
        paper_of_linear_probe=dict(facts.get("paper_of_linear_probe", {})) if split == "test" else {},
    )
