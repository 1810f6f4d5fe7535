"""The 30 types of medical figures of ImageCLEF 2015, their groups, prompts, and words in captions.

Garcia Seco de Herrera et al. 2015, "Overview of the ImageCLEF 2015 medical classification task".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml


_DATA: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("image_types.yaml").read_text(encoding="utf-8"))
GROUPS: dict[str, tuple[str, ...]] = {group: tuple(types) for group, types in _DATA["groups"].items()}
IMAGE_TYPES: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)
GROUP_OF: dict[str, str] = {name: group for group, names in GROUPS.items() for name in names}
TEMPLATES: tuple[str, ...] = tuple(_DATA["templates"])
PROMPTS: dict[str, tuple[str, ...]] = {
    name: tuple(entry["prompts"]) for types in _DATA["groups"].values() for name, entry in types.items()
}
_WORDS: dict[str, tuple[str, ...]] = {
    name: tuple(entry["words"]) for types in _DATA["groups"].values() for name, entry in types.items()
}


@dataclass(frozen=True)
class TypeScore:
    """Type and group of an image, each with its probability. A name is None if it is unknown."""

    name: str | None = None
    score: float | None = None
    group: str | None = None
    group_score: float | None = None


def most_probable_type(probabilities: Sequence[float], names: Sequence[str] = IMAGE_TYPES) -> TypeScore:
    """Return the most probable group, and the most probable type in it.

    Args:
        probabilities: One for each name.
        names: Names of types. Each that is not one of `IMAGE_TYPES` is a group of its own.

    Example:
        >>> from biomedclip.processing.panels.image_types import most_probable_type
        >>> most_probable_type([0.4, 0.35, 0.25], ["Endoscopy", "PET", "Ultrasound"])
        TypeScore(name='PET', score=0.35, group='radiology', group_score=0.6)
    """
    if not len(names):
        return TypeScore()
    groups: dict[str, float] = {}
    for name, probability in zip(names, probabilities, strict=True):
        group = GROUP_OF.get(name, name)
        groups[group] = groups.get(group, 0.0) + float(probability)
    group = max(groups, key=groups.__getitem__)
    score, name = max(
        (float(probability), name)
        for name, probability in zip(names, probabilities, strict=True)
        if GROUP_OF.get(name, name) == group
    )
    return TypeScore(name, score, group, groups[group])


def type_in_caption(caption: str) -> str | None:
    """Return the type of image that a caption names first, or None if it names none.

    Abbreviations in capitals, such as MRI, must be written like that. Other words may begin with a capital.

    Example:
        >>> from biomedclip.processing.panels.image_types import type_in_caption
        >>> type_in_caption("Chest radiograph at admission.")
        'X-Ray 2D Radiography'
    """
    lower = caption.lower()
    found = []
    for name, words in _WORDS.items():
        for word in words:
            place = caption.find(word) if word.upper() == word else lower.find(word.lower())
            if place >= 0:
                found.append((place, -len(word), name))
    return min(found)[2] if found else None
