"""The 30 types of medical figures of ImageCLEF 2015, their groups, prompts, and words in captions.

Garcia Seco de Herrera et al. 2015, "Overview of the ImageCLEF 2015 medical classification task".
"""

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
