"""What is published about each benchmark, out of `benchmarks.yaml`."""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "benchmarks.yaml").read_text(encoding="utf-8"))


def facts_of(name: str) -> dict[str, Any]:
    """
    The entry of a benchmark in `benchmarks.yaml`.

    Raises:
        KeyError: There is none: nothing is published about it.
    """
    return _file()["benchmarks"][name]


def template_sets_of_any_images() -> dict[str, list[str]]:
    """Prompts for images of which nothing is published."""
    return _file()["template_sets_of_any_images"]


def medmnist_classes(flag: str) -> dict[str, str] | None:
    """Labels and names of the classes of a MedMNIST set (`pathmnist`); nothing if it is not known."""
    names = _file()["medmnist"].get(flag)
    return {str(number): name for number, name in enumerate(names)} if isinstance(names, list) else None


def choose_prompts(
    prompts: str | os.PathLike[str] | None, classes: Mapping[str, str], template_sets: Mapping[str, list[str]]
) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """
    Names of the classes, and templates.

    Args:
        prompts: Name of a template set (nothing: the first), or a YAML file with `templates` (a list of texts with
            `{}`), `class_names` (a mapping of labels to names), or both.
        classes: Labels and their names.
        template_sets: Templates by name of the set.

    Returns:
        Names of the classes in the order of `classes`, the chosen templates, and all sets; a file's templates are
        called by its name.

    Raises:
        ValueError: No such set or file, or a file that holds something else.
    """
    if prompts is None or prompts in template_sets:
        chosen = next(iter(template_sets)) if prompts is None else str(prompts)
        return list(classes.values()), list(template_sets[chosen]), dict(template_sets)
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


__all__ = ["choose_prompts", "facts_of", "medmnist_classes", "template_sets_of_any_images"]
