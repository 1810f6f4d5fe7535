"""Zero-shot classification: classify images by their similarity to prompts that contain the class names."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from biomedclip import ZeroShotClassifier
from biomedclip.processing import load_benchmark
from biomedclip.processing.benchmarks import ClassificationBenchmark
from biomedclip.processing.images.labeled import LabeledImages, check_readable

from ..classification.labels import notes_on_numbers
from ..cli.reporting import UNDEFINED, say_undefined, show_table
from .classification import measure_classification
from .decision_options import given_decisions
from .dual_encoders import DualEncoder
from .embedded import embed_splits
from .leaks import validation_leaks
from .predictions import Predictions, softmax_predictions
from .reliability import Scored, decide, notes_on, scored, show_decisions, write_calibration
from .robustness import paraphrases, show_paraphrases, summarize_paraphrases
from .run import Run, metric_words, note_if_few_drawn
from .subgroups import measure_subgroups, show_subgroups


OWN_IMAGES = "imagefolder"  # benchmark for labeled images without --benchmark
# Options that only some benchmarks have. They are keyword arguments of `load_benchmark`.
OF_BENCHMARK = (
    "image_column",
    "label_column",
    "image_root",
    "group_column",
    "split_column",
    "subgroup_column",
    "cancer",
    "rsna_split",
    "image_folder",
)


def read_classes(options: Any) -> tuple[ClassificationBenchmark, ClassificationBenchmark | None]:
    """Read the labeled images of a split, and those of the validation split if an option needs them.

    Raise `ValueError` as [`check_classes`] and [`read_validation`] do.
    """
    benchmark = read_labeled(options, options.split, prompts=options.prompts)
    check_classes(benchmark.images, benchmark.classes, f"--data {options.data}")
    benchmark = replace(benchmark, templates=list(options.templates)) if options.templates else benchmark
    return benchmark, read_validation(options, benchmark.classes)


def read_labeled(options: Any, split: str, **also: Any) -> ClassificationBenchmark:
    """Read the labeled images of a split. `also` are other arguments of [`load_benchmark`]."""
    name, given = options.benchmark or OWN_IMAGES, given_benchmark_options(options)
    benchmark: Any = load_benchmark(
        name,
        options.data,
        split=split,  # type: ignore[arg-type]
        seed=options.seed,
        **also,
        **given,
    )
    return benchmark


def read_validation(options: Any, classes: Sequence[str]) -> ClassificationBenchmark | None:
    """Read the validation split if an option of [`DecisionOptions`] needs it.

    Raise `ValueError` if it does not exist or has other classes.
    """
    if not (given := given_decisions(options)):
        return None
    try:
        validation = read_labeled(options, "validation")
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"--{given[0]} needs a validation split. {error}") from error
    if others := sorted(set(validation.images.labels) - set(classes)):
        raise ValueError(
            f"--data {options.data}: the validation split has images of {', '.join(map(repr, others))}, but the "
            f"classes are {', '.join(classes)}."
        )
    check_readable(validation.images, f"--data {options.data}, validation split")
    return validation


def given_benchmark_options(options: Any) -> dict[str, Any]:
    """Return the benchmark-specific options that the user has set."""
    values = {name: getattr(options, name, None) for name in OF_BENCHMARK}
    return {name: value for name, value in values.items() if value not in (None, [])}


def check_classes(images: LabeledImages, classes: Sequence[str], where: str) -> None:
    """Raise `ValueError` if there are fewer than two classes, or if a class has no readable image."""
    if len(classes) < 2:
        raise ValueError(f"{where}: all images are labeled {classes[0]!r}. Classification needs at least two classes.")
    check_readable(images, where)


def evaluate_zero_shot(run: Run) -> dict[str, Any] | None:
    """Evaluate zero-shot classification. The first process writes and returns the results."""
    options, (benchmark, validation) = run.options, run.data
    encoder, store = run.load()
    embedded = embed_splits(store, benchmark, {"validation": validation}, options)
    if not PartialState().is_main_process:
        return None
    usable, embeds, own = embedded.test.images, embedded.test.embeds, embedded.validation

    def scores_of(embeds: torch.Tensor, templates: Sequence[str] = benchmark.templates) -> np.ndarray:
        names = benchmark.class_names
        return zero_shot_scores(encoder, embeds, names, templates, max_length=options.max_length).double().numpy()

    classes = benchmark.classes
    test = scored(scores_of(embeds), usable.labels, classes, usable.groups)
    fitted_on = None
    if validation is not None and own is not None:
        fitted_on = scored(scores_of(own.embeds), own.images.labels, classes, own.images.groups)
    decided = decide(test, fitted_on, classes, options, positive=benchmark.positive)
    scores = torch.from_numpy(test.logits / decided.temperature)
    metrics = classification_metrics(
        scores,
        usable.labels,
        benchmark.classes,
        positive=benchmark.positive,
        groups=usable.groups,
        seed=options.seed,
    )
    metrics["templates"] = list(benchmark.templates)
    show_classification(metrics, paper=benchmark.paper)
    show_decisions(decided.results)
    if validation is not None and fitted_on is not None:
        prompts = {
            label: [template.replace("{}", name) for template in benchmark.templates]
            for label, name in zip(classes, benchmark.class_names, strict=True)
        }
        source = fitted_source(validation, fitted_on)
        write_calibration(decided, [run.output_dir], classes, encoder.weights, source, prompts)
    metrics |= embedded.robustness(run, classes, test.logits, scores_of)
    if options.prompt_sensitivity:
        values = {}
        for template in paraphrases()["templates"]:
            found = torch.from_numpy(scores_of(embeds, [template]))
            values[template] = classification_metrics(found, usable.labels, classes, resamples=0)["accuracy"]
        metrics["prompt_sensitivity"] = summarize_paraphrases("accuracy", values)
        show_paraphrases(metrics["prompt_sensitivity"])
    shared = validation_leaks(validation, benchmark, options)
    sets = [name for name, templates in benchmark.template_sets.items() if templates == benchmark.templates]
    return run.write(
        encoder,
        data=data_of(
            benchmark,
            len(usable),
            embedded.damaged,
            [
                *notes_on_class_names(benchmark),
                *note_if_few_drawn(len(usable), usable.groups),
                *notes_on(fitted_on, options, decided, zero_shot=True),
                *shared.notes,
            ],
        )
        | shared.data,
        metrics=metrics,
        paper=benchmark.paper,
        paper_source=benchmark.source,
        settings={
            "templates": benchmark.templates,
            "template_set": sets[0] if sets and not options.templates else None,
            "class_names": dict(zip(benchmark.classes, benchmark.class_names, strict=True)),
            "positive": benchmark.positive,
        },
        predictions=predictions_of(usable, scores.numpy(), classes, sets=decided.sets),
        subgroups=subgroups_of(usable, scores, classes, benchmark.positive, options.seed),
        decisions=decided.results,
    )


def notes_on_class_names(benchmark: ClassificationBenchmark) -> list[str]:
    """Return a note if classes have numbers as names, which mean nothing in prompts."""
    return notes_on_numbers(
        benchmark.class_names, "Pass --prompts FILE, a YAML file with class_names: {'0': healthy knee, ...}."
    )


def subgroups_of(
    images: LabeledImages, scores: torch.Tensor, classes: Sequence[str], positive: str | None, seed: int
) -> dict[str, Any]:
    """Measure and print the subgroups of `--subgroup-column`. `scores` are logits `(images, classes)`."""

    def measure(rows: list[int]) -> dict[str, Any]:
        chosen = images.select(rows)
        options: dict[str, Any] = {"positive": positive, "groups": chosen.groups, "seed": seed}
        return classification_metrics(scores[rows], chosen.labels, classes, **options)

    found = measure_subgroups(images.columns, images.labels, measure, images.groups)
    show_subgroups(found)
    return found


def fitted_source(validation: ClassificationBenchmark, fitted_on: Scored) -> dict[str, Any]:
    """Return `fitted_on` of `calibration.json`."""
    return {"data": validation.path, "fingerprint": validation.fingerprint, "images": len(fitted_on.truth)}


def predictions_of(images: LabeledImages, scores: np.ndarray, classes: Sequence[str], **also: Any) -> Predictions:
    """Return the predictions of labeled images by their logits, of shape `(images, classes)`."""
    of_images: dict[str, Any] = {"files": images.names, "groups": images.groups, "images": images.images}
    of_images["columns"] = images.columns
    return softmax_predictions(scores, images.labels, classes, **of_images, **also)


def data_of(
    benchmark: ClassificationBenchmark, rows: int, damaged: list[dict[str, str]], notes: Sequence[str]
) -> dict[str, Any]:
    """Return `data` of `results.json` for labeled images."""
    return {
        "fingerprint": benchmark.fingerprint,
        "rows": rows,
        "damaged": damaged,
        "notes": [*benchmark.notes, *notes],
        **({"selection": benchmark.selection} if benchmark.selection else {}),
    }


def zero_shot_scores(
    encoder: DualEncoder,
    image_embeds: torch.Tensor,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    max_length: int | None = None,
) -> torch.Tensor:
    """Return the logits of embedded images by prompts, of shape `(images, classes)`.

    A class embedding is the normalized mean of its normalized prompt embeddings.
    """
    with encoder.precise():
        classifier = ZeroShotClassifier(
            encoder.model, encoder.processor, class_names, list(templates), max_length=max_length
        )
    # Texts before images, like the forward method of the model: the last bit of the product depends on the order.
    return (classifier.class_embeds @ image_embeds.t()).t() * encoder.logit_scale


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
    """Return the metrics of [`measure_classification`] by label, with the baselines (chance, majority class).

    `scores` are logits `(images, classes)`, and `classes` labels in the order of their class indices. With two classes,
    the positive one is the last by default. Raise `ValueError` if there are fewer than two classes.
    """
    if len(classes) < 2:
        raise ValueError(f"All images are labeled {classes[0]!r}. Classification needs at least two classes.")
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
    matrix = measured.pop("confusion_matrix")
    return {
        **measured,
        "chance": 1 / len(classes),
        "most_frequent_class": max(Counter(labels).values()) / len(labels),
        "images": len(labels),
        "classes": list(classes),
        "recall_of_class": recalls,
        "confusion_matrix": matrix,
        **({"undefined": undefined} if undefined else {}),
    }


def show_classification(
    metrics: Mapping[str, Any], task: str = "Zero-shot classification", paper: Mapping[str, float] | None = None
) -> None:
    """Print the metrics with their intervals, the baselines, the recall of each class, and the paper's values."""
    rows: list[tuple[Any, ...]] = []
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        interval = metrics.get(f"{name}_interval")
        shown = f"[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else None
        value = UNDEFINED if metrics[name] is None else metrics[name]
        rows.append((metric_words(name), value, shown, (paper or {}).get(name)))
    rows.append(("chance", metrics["chance"], None, None))
    rows.append(("majority class", metrics["most_frequent_class"], None, None))
    rows.append(("recall of", "", "", ""))
    for name, recall in metrics["recall_of_class"].items():
        rows.append((f"  {name}", UNDEFINED if recall is None else recall, None, None))
    columns = ["", "value", "95 % interval", "paper"][: 4 if paper else 3]
    title = f"{task}, {metrics['images']:,} images"
    show_table(title, [row[: len(columns)] for row in rows], columns)
    say_undefined(metrics)
