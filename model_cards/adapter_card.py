"""Fill the card of a LoRA adapter from the options and the results of its training."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from .escaping import Markdown, code_block
from .formatting import public_name, render
from .model_card import COSTS, is_hub_id


SHOWN_CLASSES = 20
# Name, rows, class in transformers, and tag of the Hub for each task of `biomedclip train`.
_TASKS = {
    "contrastive": ("with a contrastive loss on pairs", "pairs", None, "zero-shot-image-classification"),
    "image-classification": (
        "for image classification",
        "images",
        "AutoModelForImageClassification",
        "image-classification",
    ),
    "visual-question-answering": (
        "for visual question answering",
        "questions",
        "AutoModelForVisualQuestionAnswering",
        "visual-question-answering",
    ),
}


def fill_adapter_card(
    adapter: Mapping[str, Any],
    *,
    results: Mapping[str, Any],
    last: Mapping[str, Any],
    recipe: Mapping[str, Any],
    data: str,
    merged: str | None = None,
) -> str:
    """Return the card of an adapter as Markdown, without local paths.

    `adapter` is PEFT's configuration, `results` the content of `train_results.json`, `last` has the metrics of the last
    evaluation, `recipe` is the content of `recipe.yaml`, `data` the training data, and `merged` the folder of the
    merged model.
    """
    base = public_name(adapter["base_model_name_or_path"])
    task_name, rows, auto_class, tag = _TASKS[recipe.get("task", "contrastive")]
    classes = results.get("classes") or []
    more = [f"and {len(classes) - SHOWN_CLASSES} more"] if len(classes) > SHOWN_CLASSES else []
    measured = [(key, name) for key, name in COSTS if results.get(key) is not None]
    metadata = ModelCardData(
        language=["en"],
        library_name="peft",
        base_model=base if is_hub_id(base) else None,
        pipeline_tag=tag,
        tags=["biomedclip", "lora", "medical"],
    )
    return render(
        "adapter_card.md",
        metadata=Markdown(metadata.to_yaml()),
        title=f"LoRA adapter of {base}",
        base=base,
        code_base=Markdown(re.sub(r"[^\w./-]", "_", base)),
        task_name=task_name,
        auto_class=auto_class and Markdown(auto_class),
        merged=merged,
        rank=adapter["r"],
        alpha=adapter["lora_alpha"],
        dropout=adapter["lora_dropout"],
        layers=sorted(adapter["target_modules"]),
        trained_whole=sorted(adapter["modules_to_save"] or []),
        classes=[*classes[:SHOWN_CLASSES], *more],
        results=results,
        data=public_name(data),
        costs=[(name.replace("pairs", rows), _number(results[key])) for key, name in measured],
        metrics=[*_metrics(results, last)],
        recipe=code_block(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).strip(), "yaml"),
    )


def _metrics(results: Mapping[str, Any], last: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the split, name and value of the metrics: those after the training, or else of the last evaluation."""
    measured = {split: results[split] for split in ("validation", "test") if results.get(split)}
    for split, metrics in (measured or {"validation": last}).items():
        for name, value in metrics.items():
            if isinstance(value, int | float):
                yield split, name.replace("_", " "), _number(value)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
