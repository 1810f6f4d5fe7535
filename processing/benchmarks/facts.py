"""Names, prompts and published values of benchmarks, from `benchmarks.yaml`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


FILE = Path(__file__).parent / "benchmarks.yaml"
PAPER_MODEL = "BiomedCLIP"


@dataclass(frozen=True)
class PublishedModel:
    """Published values of a model on a benchmark. This project has not measured them."""

    model: str
    values: dict[str, Any]  # fractions, with the same keys and nesting as `metrics` in `results.json`
    source: str
    read_from_figure: bool = False  # from a plot, so the last digit is uncertain


@lru_cache(maxsize=8)
def _read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def facts_version() -> int:
    """Return the version of `benchmarks.yaml`. Every change to a prompt, a class or a value increments it."""
    return _read(FILE)["version"]


def benchmark_names(task: str | None = None) -> list[str]:
    """Return the names of the benchmarks of a task, such as `retrieval` (default: of all tasks)."""
    labeled = ("linear-probe", "few-shot", "image-classification")
    task = "zero-shot" if task in labeled else task  # all use labeled images
    return [name for name, facts in _read(FILE)["benchmarks"].items() if task in (None, facts["task"])]


def facts_of(name: str) -> dict[str, Any]:
    """Return the entry of a benchmark, including its `name`."""
    benchmarks = _read(FILE)["benchmarks"]
    if name not in benchmarks:
        raise ValueError(f"Unknown benchmark {name!r}. Choose one of {', '.join(benchmarks)}.")
    return {"name": name, **benchmarks[name]}


def published_models(benchmark: str, task: str, split: str = "test") -> list[PublishedModel]:
    """Return the published values of each model for a split of a benchmark. Those of BiomedCLIP come first.

    `task` is `retrieval`, `zero-shot`, `linear-probe` or `visual-question-answering`. Only `pmc15m` has values of a
    validation split.

    Example:
    ```python
    >>> from biomedclip.processing.benchmarks.facts import published_models

    >>> [(entry.model, entry.values["accuracy"]) for entry in published_models("lc25000_lung", "zero-shot")]
    [('BiomedCLIP', 0.6523), ('BiomedCLIP (independent run)', 0.6523), ('GPT variant of BiomedCLIP', 0.606)]
    ```
    """
    facts = facts_of(benchmark)
    if split != "test":
        return [PublishedModel(**entry) for entry in facts.get(split, []) if task == facts["task"]]
    entries = [PublishedModel(**entry) for entry in facts.get("others", {}).get(task, [])]
    own = {facts["task"]: facts["paper"], "linear-probe": facts.get("paper_of_linear_probe")}.get(task)
    if own:
        read_from_figure = task in facts.get("read_from_figure", [])
        source = "; ".join(filter(None, [f"{PAPER_MODEL} paper (arXiv 2303.00915)", facts.get("paper_note")]))
        entries.insert(0, PublishedModel(PAPER_MODEL, own, source, read_from_figure))
    return entries


def published_few_shot(
    benchmark: str | None, shots: Sequence[int], *, base_to_novel: bool = False
) -> list[PublishedModel]:
    """Return published means over several benchmarks, if the benchmark is one of them.

    The values are keyed like `metrics` of `biomedclip evaluate few-shot`. They are not those of the benchmark itself.
    `shots` are the numbers of training images of a class whose values are returned, in addition to zero-shot values.
    """
    facts = _read(FILE)["few_shot"]
    if benchmark not in facts["benchmarks"]:
        return []
    wanted = {"0", *map(str, shots)}
    by_method = {
        method: {count: values for count, values in by_shots.items() if count in wanted}
        for method, by_shots in facts["base_to_novel" if base_to_novel else "by_method"].items()
    }
    values = {"by_method": {method: by_shots for method, by_shots in by_method.items() if by_shots}}
    return [PublishedModel(f"{facts['model']}, mean of BiomedCoOp's sets", values, facts["source"])]


def choose_prompts(
    prompts: str | os.PathLike[str] | None, facts: Mapping[str, Any]
) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Return the class names in the order of the classes, the prompt templates, and all template sets.

    `prompts` is the name of a template set of `facts`, or a YAML file with `templates` (a list of strings with `{}`),
    `class_names` (a mapping of labels to names), or both (default: the first set). Templates from a file are added to
    the sets under the name of the file.
    """
    classes, sets = facts["classes"], facts["template_sets"]
    if prompts is None or prompts in sets:
        chosen = next(iter(sets)) if prompts is None else str(prompts)
        names = {**classes, **facts.get("class_names_of_sets", {}).get(chosen, {})}
        return list(names.values()), list(sets[chosen]), dict(sets)
    path = Path(prompts)
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        raise ValueError(f"prompts={str(prompts)!r} is neither a set of prompts ({', '.join(sets)}) nor a YAML file.")
    class_names, templates = _read_prompts(path, classes)
    templates = templates or next(iter(sets.values()))
    return class_names, templates, {**sets, path.name: templates}


def _read_prompts(path: Path, classes: Mapping[str, str]) -> tuple[list[str], list[str]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a readable YAML file ({error}).") from error
    if not isinstance(content, dict) or not content or not content.keys() <= {"templates", "class_names"}:
        raise ValueError(f"{path}: prompts must be `templates` (a list), `class_names` (names by label), or both.")
    templates, names = content.get("templates", []), content.get("class_names", {})
    if not isinstance(templates, list) or not all(
        isinstance(text, str) and text.count("{}") == 1 for text in templates
    ):
        raise ValueError(f"{path}: `templates` must be a list of texts with one {{}} each.")
    if not isinstance(names, dict):
        raise ValueError(f"{path}: `class_names` must be a mapping of labels to names.")
    names = {str(label): str(name) for label, name in names.items()}
    if empty := [label for label, name in names.items() if not name.strip()]:
        raise ValueError(f"{path}: `class_names` has an empty name for {empty[0]}.")
    if unknown := names.keys() - classes.keys():
        raise ValueError(f"{path}: unknown class {', '.join(sorted(unknown))}. The classes are {', '.join(classes)}.")
    return [names.get(label, name) for label, name in classes.items()], templates
