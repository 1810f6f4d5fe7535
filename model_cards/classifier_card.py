"""Fill the card of an image classifier from its training and its evaluation results."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from .escaping import Markdown, code, code_block, one_line
from .formatting import render
from .model_card import (
    COSTS,
    NOT_STATED,
    UNDEFINED,
    benchmark_name,
    eval_results,
    is_hub_id,
    measured_rows,
    metric_name,
    number,
)
from .results import chances, reasons


_METRICS = ("accuracy", "balanced_accuracy", "auroc", "average_precision", "cross_entropy")
_KEPT_EMBEDDINGS = ("tip-adapter", "tip-adapter-f")  # methods whose heads contain the embeddings of training images


def fill_classifier_card(facts: Mapping[str, Any]) -> str:
    """Fill the card of a classifier from the facts of `classifier_facts`. Return Markdown with metadata for the Hub.

    If a fact is None, the card states that it is missing.
    """
    training, results, recipe = facts["training"] or {}, facts["results"], facts["recipe"]
    license_of_base = facts["base"]["license"]
    return render(
        "classifier_card.md",
        **facts,
        metadata=Markdown(_metadata(facts)),
        code_name=Markdown(re.sub(r"[^\w./-]", "_", facts["name"])),
        not_stated=Markdown(NOT_STATED),
        base_license=license_of_base or "not known",
        label_rows=[*_label_rows(facts["model"]["labels"], training)],
        split_rows=[*_split_rows(training)],
        costs=[(name.replace("pairs", "images"), _cost(training[key])) for key, name in COSTS if key in training],
        chosen=", ".join(f"{name} {value}" for name, value in (training.get("chosen") or {}).items()),
        training_metrics=[*_training_metrics(training)],
        recipe_block=code_block(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).strip(), "yaml")
        if recipe
        else None,
        keeps_embeddings=facts["model"]["method"] in _KEPT_EMBEDDINGS,
        # The column of the paper's values is for dual encoders.
        rows=[_row(result, row) for result in results for row in measured_rows(_without_recalls(result))],
        some_trained=any(map(includes_training_images, results)),
        measurements=[_measurement(result) for result in results],
    )


def includes_training_images(result: Mapping[str, Any]) -> bool:
    """Return whether some of the measured images, or near-duplicates of them, are known to be training images."""
    data = result["data"]
    return bool((data.get("seen_in_training") or {}).get("train") or (data.get("leaks") or {}).get("leaked"))


def _row(result: Mapping[str, Any], row: Sequence[str]) -> tuple[str, ...]:
    """Return the cells of a row of the results table: data, images, metric, value and interval."""
    data, *others = row[1:6]
    return (f"{data} (includes training images)" if includes_training_images(result) else data), *others


def _without_recalls(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result without the recall of each class, which has its own table."""
    return {**result, "metrics": {**result["metrics"], "recall_of_class": {}}}


def _metadata(facts: Mapping[str, Any]) -> str:
    """Return the metadata.

    The results of each finding are only in the text, because there can be hundreds. Results that include training
    images are only in the text too, because the Hub would show them as those of a test.
    """
    results = [
        entry
        for result in facts["results"]
        if not includes_training_images(result)
        for entry in eval_results({**result, "metrics": {**result["metrics"], "findings": {}}})
    ]
    license = one_line(facts["license"] or "unknown")
    base, dataset = facts["base"]["name"], facts["dataset"]
    data = ModelCardData(
        license=license,
        license_name="other-terms" if license == "other" else None,
        license_link="#license" if license == "other" else None,
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=base if is_hub_id(base) else None,
        datasets=[dataset] if dataset else None,
        tags=["biomedclip", "medical", *(["multi-label"] if facts["model"]["several"] else [])],
        **({"model_name": one_line(facts["title"]), "eval_results": results} if results else {}),
    )
    return data.to_yaml()


def _label_rows(labels: Sequence[str], training: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield each label with its numbers of training images: of a class, or positive, negative and ignored labels."""
    images, counts = training.get("images"), training.get("labels")
    for label in labels:
        if counts is not None:
            of_label = counts.get(label, {})
            yield label, *(f"{of_label.get(kind, 0):,}" for kind in ("positive", "negative", "ignored"))
        else:
            yield label, "not recorded" if images is None else f"{images.get(label, 0):,}"


def _split_rows(training: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    groups = training.get("groups") or {}
    for split, images in (training.get("split_images") or {}).items():
        yield split, f"{images:,}", f"{groups[split]:,}" if split in groups else "not known"


def _training_metrics(training: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the metrics that the training measured on its validation and test split."""
    for split in ("validation", "test"):
        for name in _METRICS:
            value = (training.get(split) or {}).get(name)
            if isinstance(value, int | float):
                yield split, name.replace("_", " ").replace("auroc", "AUROC"), f"{value:,.4g}"
    if "validation_accuracy" in training:
        yield "validation", "accuracy", f"{training['validation_accuracy']:.4g}"


def _cost(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _measurement(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the details of an evaluation that the card states."""
    data, decisions = result["data"], result.get("decisions") or {}
    leaks = data.get("leaks")
    counts = {name: value for name, value in (leaks or {}).items() if name.startswith(("same_", "similar"))}
    recalls = result["metrics"].get("recall_of_class") or {}
    settings = {name: value for name, value in result["settings"].items() if name != "labels"}
    before, after = decisions.get("before_calibration"), decisions.get("calibration")
    return {
        "title": f"{benchmark_name(result)}, {data['split']} split",
        "command": code_block(one_line(result["command"]), "bash"),
        "result": result,
        "chances": [(metric_name(name), number(value)) for name, value in chances(result)],
        "reasons": [(metric_name(name), why) for name, why in reasons(result)],
        "recalls": [(label, UNDEFINED if value is None else f"{value:.4f}") for label, value in recalls.items()],
        "leaks": leaks,
        "seen": _seen(data),
        "leak_counts": ", ".join(f"{metric_name(name)} {count:,}" for name, count in counts.items()),
        "calibration": [*_calibration_rows(before, after)],
        "before": before is not None,
        "temperature": None if "findings" in decisions else decisions.get("temperature"),
        "findings": "findings" in decisions,
        "thresholds": [_threshold_row(point) for point in decisions.get("operating_points") or []],
        "sets": [
            (f"{entry['coverage']:g}", _with_interval(entry, "measured_coverage"), f"{entry['mean_size']:.2f}")
            for entry in decisions.get("prediction_sets") or []
        ],
        "subgroups": [
            (
                column,
                value,
                f"{found['images']:,}",
                *(_with_interval(found, name) if name in found else "-" for name in ("accuracy", "auroc")),
            )
            for column, values in result["subgroups"].items()
            for value, found in values.items()
        ],
        "settings": settings and code(json.dumps(settings, ensure_ascii=False)),
    }


def _seen(data: Mapping[str, Any]) -> str | None:
    """Return how many of the measured images were used by the training, or None if they were not counted."""
    counts = data.get("seen_in_training") or {}
    return ", ".join(f"{count:,} {split}" for split, count in counts.items()) or None


def _calibration_rows(before: Any, after: Any) -> Iterator[tuple[str, ...]]:
    if after is None:
        return
    parts = [before, after] if before else [after]
    yield "expected calibration error", *(f"{part['ece']:.4f}" for part in parts)
    yield "the same, if it were calibrated", *(f"{part['ece_if_calibrated']['mean']:.4f}" for part in parts)
    for name, words in (("brier", "Brier score"), ("nll", "negative log-likelihood")):
        yield words, *(_with_interval(part, name) for part in parts)


def _threshold_row(point: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        point["class"],
        f"{point['goal']} {point['wanted']:g}",
        f"{point['threshold']:.4g}",
        _with_interval(point, "sensitivity"),
        _with_interval(point, "specificity"),
    )


def _with_interval(metrics: Mapping[str, Any], name: str) -> str:
    if metrics[name] is None:
        return UNDEFINED
    interval = metrics.get(f"{name}_interval")
    return f"{metrics[name]:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")
