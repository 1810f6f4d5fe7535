"""Read labels and their prompts: values of an option, text files, YAML files and shipped taxonomies."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from biomedclip.processing.tables import read_text

from ..cli.errors import UsageError
from ..cli.options import suggestion
from ..cli.yaml_files import read_yaml


DEFAULT_TEMPLATE = "this is a photo of {}"
TAXONOMY = "taxonomy:"
_SUFFIXES = (".txt", ".yaml", ".yml")
_SHOWN = 5  # names in a note


def taxonomy_names() -> list[str]:
    """Return the names of the shipped taxonomies."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.yaml"))


def read_labels(values: Sequence[str], templates: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the prompts of each label, in order.

    Args:
        values: Labels, or one text file with a label in each line, YAML file with the prompts of each label, or
            `taxonomy:NAME`. Labels without prompts of their own are their own prompt.
        templates: Templates with `{}` for each prompt. The default is `this is a photo of {}` for text and files, and
            the prompts as they are for a YAML file that lists prompts.

    Raises:
        UsageError: If there are fewer than two labels, or a template has no `{}`.
        FileNotFoundError: If a file does not exist.
        ValueError: If a file cannot be read, or a label occurs twice.
    """
    for template in templates:
        if "{}" not in template:
            raise UsageError(f"--template {template!r} has no {{}} for the label.")
    found, where = _read(values)
    _check(found, where)
    return {label: _prompts(label, own, templates) for label, own in found}


def notes_on_numbers(names: Iterable[str], remedy: str) -> list[str]:
    """Return a note if names have no letters, such as `0` or `1-2`. They mean nothing in a prompt.

    `remedy` states how to name the classes.
    """
    found = [name for name in names if not any(map(str.isalpha, name))]
    if not found:
        return []
    shown = ", ".join(map(repr, found[:_SHOWN])) + (f" and {len(found) - _SHOWN:,} more" if len(found) > _SHOWN else "")
    return [f"{shown} in prompts mean nothing to a text encoder. {remedy}"]


def _prompts(label: str, own: list[str], templates: Sequence[str]) -> list[str]:
    if own and not templates:
        return own
    return [template.replace("{}", text) for template in templates or [DEFAULT_TEMPLATE] for text in own or [label]]


def _read(values: Sequence[str]) -> tuple[list[tuple[str, list[str]]], str]:
    """Return the labels with their own prompts, and the name of their source for messages."""
    files = [value for value in values if value.startswith(TAXONOMY) or Path(value).suffix.lower() in _SUFFIXES]
    if files and len(values) > 1:
        raise UsageError(f"--labels {files[0]} is a file or taxonomy. Pass it alone.")
    if not files:
        return [(value.strip(), []) for value in values], "--labels"
    path = _file_of(files[0])
    if not path.exists():
        raise FileNotFoundError(f"--labels {path}: the file does not exist.")
    if path.suffix.lower() == ".txt":
        return [(line.strip(), []) for line in read_text(path).splitlines() if line.strip()], f"--labels {path}"
    return _read_yaml(path), f"--labels {files[0]}"


def _file_of(value: str) -> Path:
    if not value.startswith(TAXONOMY):
        return Path(value)
    name, names = value.removeprefix(TAXONOMY), taxonomy_names()
    if name not in names:
        raise UsageError(f"--labels {value}: unknown taxonomy. Choose {TAXONOMY}{f', {TAXONOMY}'.join(names)}.")
    return Path(__file__).parent / f"{name}.yaml"


def _read_yaml(path: Path) -> list[tuple[str, list[str]]]:
    content = read_yaml(path, str(path), as_text=True)
    if isinstance(content, list) and all(isinstance(item, str) for item in content):
        return [(item.strip(), []) for item in content]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: it must contain `label: [prompt, prompt]` lines.")
    found = []
    for label, prompts in content.items():
        texts = [prompts] if isinstance(prompts, str) else prompts
        if not isinstance(label, str) or not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
            raise ValueError(f"{path}: the prompts of {label!r} must be a list of texts.")
        found.append((label.strip(), [text.strip() for text in texts if text.strip()]))
    return found


def _check(found: Iterable[tuple[str, list[str]]], where: str) -> None:
    labels = [label for label, _ in found]
    if not all(labels):
        raise ValueError(f"{where}: a label is empty.")
    if twice := [label for label, count in Counter(labels).items() if count > 1]:
        raise ValueError(f"{where}: the label {twice[0]!r} occurs twice.")
    if len(labels) < 2:
        hint = " Separate labels with spaces, and quote each one." if labels and "," in labels[0] else ""
        raise UsageError(f"{where}: classification needs at least two labels.{hint}")


def check_known(label: str, labels: Iterable[str], where: str) -> None:
    """Raise `ValueError` if a label is not one of the labels of the classifier."""
    known = list(labels)
    if label not in known:
        names = ", ".join(map(repr, known[:10])) + (", ..." if len(known) > 10 else "")
        raise ValueError(f"{where}: {label!r} is not one of the labels {names}.{suggestion(label, known)}")


__all__ = ["DEFAULT_TEMPLATE", "TAXONOMY", "check_known", "read_labels", "taxonomy_names"]
