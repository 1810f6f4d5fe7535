"""Published facts about each benchmark, read from `benchmarks.yaml`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


PAPER_MODEL = "BiomedCLIP"


@dataclass(frozen=True)
class PublishedModel:
    """Published values of a model on a benchmark. This project has not measured them.

    Args:
        model: Name of the model.
        values: Metrics as fractions, with the names and the depth of `metrics` in `results.json`.
        source: Publication that gives the values.
        read_from_figure: Whether the values were read off a plot, so that the last digit is uncertain.
    """

    model: str
    values: dict[str, Any]
    source: str
    read_from_figure: bool = False


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "benchmarks.yaml").read_text(encoding="utf-8"))


def facts_version() -> int:
    """Return the version of the published facts, which every change to a prompt, a class or a value raises."""
    return _file()["version"]


def facts_of(name: str) -> dict[str, Any]:
    """The entry of a benchmark in `benchmarks.yaml`.

    Raises:
        KeyError: There is none: nothing is published about it.
    """
    return _file()["benchmarks"][name]


def published_models(benchmark: str, task: str, split: str = "test") -> list[PublishedModel]:
    """Return the published values of a split of a benchmark, BiomedCLIP's own first.

    Args:
        benchmark: As [`load_benchmark`] takes it.
        task: `retrieval`, `zero-shot`, `linear-probe` or `visual-question-answering`.
        split: `train`, `validation` or `test`. There are values of a validation split for `pmc15m` alone.

    Returns:
        One entry for each model; empty if nothing is published.

    Example:
    ```python
    >>> from biomedclip.processing.benchmarks.facts import published_models

    >>> [(entry.model, entry.values["accuracy"]) for entry in published_models("lc25000_lung", "zero-shot")]
    [('BiomedCLIP', 0.6523), ('BiomedCLIP (independent run)', 0.6523), ('GPT variant of BiomedCLIP', 0.606)]
    ```
    """
    facts = _file()["benchmarks"].get(benchmark)
    if facts is None:
        return []
    if split != "test":
        return [PublishedModel(**entry) for entry in facts.get(split, []) if task == facts["task"]]
    entries = [PublishedModel(**entry) for entry in facts.get("others", {}).get(task, [])]
    own = {facts["task"]: facts["paper"], "linear-probe": facts.get("paper_of_linear_probe")}.get(task)
    if own:
        read_from_figure = task in facts.get("read_from_figure", [])
        source = "; ".join(filter(None, [f"{PAPER_MODEL} paper (arXiv 2303.00915)", facts.get("paper_note")]))
        entries.insert(0, PublishedModel(PAPER_MODEL, own, source, read_from_figure))
    return entries


def template_sets_of_any_images() -> dict[str, list[str]]:
    """Prompts for images of which nothing is published."""
    return _file()["template_sets_of_any_images"]


def medmnist_classes(flag: str) -> dict[str, str] | None:
    """Labels and names of the classes of a MedMNIST set (`pathmnist`); nothing if it is not known."""
    names = _file()["medmnist"].get(flag)
    return {str(number): name for number, name in enumerate(names)} if isinstance(names, list) else None


def choose_prompts(
    prompts: str | os.PathLike[str] | None,
    classes: Mapping[str, str],
    template_sets: Mapping[str, list[str]],
    class_names_of_sets: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """Return the class names and the templates of prompts.

    Args:
        prompts: Name of a template set, or a YAML file with `templates` (a list of texts with `{}`), `class_names` (a
            mapping of labels to names), or both. If `None`, the first set.
        classes: Labels and their names.
        template_sets: Templates by name of the set.
        class_names_of_sets: Class names of the sets that have their own, by name of the set and label.

    Returns:
        Class names in the order of `classes`, the chosen templates, and all sets. The templates of a file are listed
        under the name of the file.

    Raises:
        ValueError: If there is no such set or file, or if the file has other content.
    """
    if prompts is None or prompts in template_sets:
        chosen = next(iter(template_sets)) if prompts is None else str(prompts)
        names = {**classes, **(class_names_of_sets or {}).get(chosen, {})}
        return list(names.values()), list(template_sets[chosen]), dict(template_sets)
    path = Path(prompts)
    if path.suffix.lower() not in (".yaml", ".yml") or not path.is_file():
        raise ValueError(
            f"prompts={str(prompts)!r}: neither a set of templates ({', '.join(template_sets)}) nor a YAML file."
        )
    class_names, templates = _read_prompts(path, classes)
    templates = templates or next(iter(template_sets.values()))
    return class_names, templates, {**template_sets, path.name: templates}


def _read_prompts(path: Path, classes: Mapping[str, str]) -> tuple[list[str], list[str]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file that can be read ({error}).") from error
    if not isinstance(content, dict) or not content or not content.keys() <= {"templates", "class_names"}:
        raise ValueError(f"{path}: prompts are `templates` (a list), `class_names` (labels and names), or both.")
    templates = content.get("templates", [])
    if not isinstance(templates, list) or not all(
        isinstance(text, str) and text.count("{}") == 1 for text in templates
    ):
        raise ValueError(f"{path}: `templates` must be a list of texts with one {{}} each.")
    names = content.get("class_names", {})
    if not isinstance(names, dict):
        raise ValueError(f"{path}: `class_names` must be a mapping of labels to names.")
    names = {str(label): str(name) for label, name in names.items()}
    if empty := [label for label, name in names.items() if not name.strip()]:
        raise ValueError(f"{path}: `class_names` gives {empty[0]} an empty name.")
    if unknown := names.keys() - classes.keys():
        raise ValueError(f"{path}: no class is called {', '.join(sorted(unknown))}; there are {', '.join(classes)}.")
    return [names.get(label, name) for label, name in classes.items()], templates


__all__ = [
    "PAPER_MODEL",
    "PublishedModel",
    "choose_prompts",
    "facts_of",
    "facts_version",
    "medmnist_classes",
    "published_models",
    "template_sets_of_any_images",
]
