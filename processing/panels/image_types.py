"""The 30 types of medical figures of ImageCLEF 2015, their groups, prompts, and words in captions.

Garcia Seco de Herrera et al. 2015, "Overview of the ImageCLEF 2015 medical classification task".
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

import numpy as np
import yaml


_DATA: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("image_types.yaml").read_text(encoding="utf-8"))
GROUPS: dict[str, tuple[str, ...]] = {group: tuple(types) for group, types in _DATA["groups"].items()}
IMAGE_TYPES: tuple[str, ...] = tuple(name for names in GROUPS.values() for name in names)
GROUP_OF: dict[str, str] = {name: group for group, names in GROUPS.items() for name in names}
TEMPLATES: tuple[str, ...] = tuple(_DATA["templates"])
PROMPTS: dict[str, tuple[str, ...]] = {
    name: tuple(entry["prompts"]) for types in _DATA["groups"].values() for name, entry in types.items()
}
_CUES: dict[str, tuple[re.Pattern[str], ...]] = {
    name: tuple(re.compile(cue, 0 if re.search("[A-Z]", cue) else re.IGNORECASE) for cue in entry["cues"])
    for types in _DATA["groups"].values()
    for name, entry in types.items()
}
UNKNOWN = "unknown"  # type or group of an image whose probability is below a threshold
NAMED = 25.0  # how many times as probable a type becomes that the caption names; docs/panels.md states its source


@dataclass(frozen=True)
class TypeScore:
    """Type and group of an image, each with its probability. Names are None if nothing predicts types.

    `margin` is the difference between the probabilities of the two most probable types.
    """

    name: str | None = None
    score: float | None = None
    group: str | None = None
    group_score: float | None = None
    margin: float | None = None


def most_probable_type(probabilities: Sequence[float], names: Sequence[str] = IMAGE_TYPES) -> TypeScore:
    """Return the most probable group, and the most probable type in it.

    Args:
        probabilities: One for each name.
        names: Names of types. Each that is not one of `IMAGE_TYPES` is a group of its own.

    Example:
        >>> from biomedclip.processing.panels.image_types import most_probable_type
        >>> most_probable_type([0.5, 0.5, 0.0], ["PET", "Ultrasound", "Endoscopy"])
        TypeScore(name='Ultrasound', score=0.5, group='radiology', group_score=1.0, margin=0.0)
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
    best, second = sorted([0.0, *map(float, probabilities)], reverse=True)[:2]
    return TypeScore(name, score, group, groups[group], best - second)


def unknown_below(image_type: TypeScore, threshold: float) -> TypeScore:
    """Name a type, and a group, `unknown` if its probability is below the threshold or not a number.

    Example:
        >>> from biomedclip.processing.panels.image_types import TypeScore, unknown_below
        >>> unknown_below(TypeScore("PET", 0.35, "radiology", 0.6, 0.1), 0.5)
        TypeScore(name='unknown', score=0.35, group='radiology', group_score=0.6, margin=0.1)
    """
    if image_type.score is None or image_type.group_score is None:
        return image_type
    name = image_type.name if image_type.score >= threshold else UNKNOWN
    return replace(image_type, name=name, group=image_type.group if image_type.group_score >= threshold else UNKNOWN)


@dataclass(frozen=True)
class FittedThreshold:
    """Threshold of [`fit_unknown_threshold`], with the accepted fraction of the validation set and its accuracy.

    `threshold` and `accuracy` are None if no threshold reaches the required accuracy.
    """

    threshold: float | None
    accepted: float
    accuracy: float | None


def fit_unknown_threshold(scores: Sequence[float], correct: Sequence[bool], accuracy: float = 0.95) -> FittedThreshold:
    """Return the smallest threshold at which the accepted predictions of a validation set are accurate enough.

    Args:
        scores: Score of each prediction. It is accepted if its score is at least the threshold.
        correct: Whether each prediction is correct.
        accuracy: Required accuracy of the accepted predictions.

    Raises:
        ValueError: If the lengths differ, a score is not finite, or `accuracy` is not above 0 and at most 1.

    Example:
        >>> from biomedclip.processing.panels.image_types import fit_unknown_threshold
        >>> fit_unknown_threshold([0.9, 0.8, 0.4, 0.3], [True, True, False, True], accuracy=0.9)
        FittedThreshold(threshold=0.8, accepted=0.5, accuracy=1.0)
    """
    if len(scores) != len(correct):
        raise ValueError(f"`scores` has {len(scores)} entries, but `correct` has {len(correct)}.")
    if not all(map(math.isfinite, scores)):
        raise ValueError("`scores` contains a value that is not finite. Leave out such predictions.")
    if not 0 < accuracy <= 1:
        raise ValueError(f"`accuracy` is {accuracy}. It must be above 0 and at most 1.")
    values = np.asarray(scores, dtype=float)
    order = np.argsort(-values, kind="stable")
    values, right = values[order], np.asarray(correct, dtype=bool)[order]
    accuracies = np.cumsum(right) / np.arange(1, len(right) + 1)
    ends_tie = np.append(values[1:] < values[:-1], True)[: len(values)]  # equal scores are accepted together
    reached = np.flatnonzero(ends_tie & (accuracies >= accuracy))
    if not len(reached):
        return FittedThreshold(None, 0.0, None)
    last = int(reached[-1])
    return FittedThreshold(float(values[last]), (last + 1) / len(values), float(accuracies[last]))


def parse_image_types(choice: str | Iterable[str]) -> tuple[str, ...]:
    """Return the types that are chosen, in the order of `IMAGE_TYPES`.

    Args:
        choice: Types and groups, as a list or separated by commas. Case is ignored.

    Raises:
        ValueError: If a name is neither a type nor a group, or there is none.

    Example:
        >>> from biomedclip.processing.panels.image_types import parse_image_types
        >>> parse_image_types("signals and waves, PET")
        ('PET', 'Electroencephalography', 'Electrocardiography', 'Electromyography')
    """
    known = {name.lower(): (name,) for name in IMAGE_TYPES} | {name.lower(): types for name, types in GROUPS.items()}
    names = [name.strip() for name in (choice.split(",") if isinstance(choice, str) else choice)]
    chosen: set[str] = set()
    for name in filter(None, names):
        if name.lower() not in known:
            close = difflib.get_close_matches(name.lower(), known, n=1)
            meant = [each for each in (*GROUPS, *IMAGE_TYPES) if each.lower() in close]
            hint = f" Did you mean {meant[0]!r}?" if meant else ""
            raise ValueError(
                f"{name!r} is neither a type nor a group of images.{hint} The groups are {', '.join(GROUPS)}."
            )
        chosen.update(known[name.lower()])
    if not chosen:
        raise ValueError(f"No type of image is selected. Pass types or groups, such as {next(iter(GROUPS))!r}.")
    return tuple(name for name in IMAGE_TYPES if name in chosen)


def types_in_caption(caption: str) -> list[str]:
    """Return the types of images that a caption names, the first one first.

    Abbreviations in capitals, such as MRI, must be written like that. Other words may begin with a capital.

    Example:
        >>> from biomedclip.processing.panels.image_types import types_in_caption
        >>> types_in_caption("Chest radiograph at admission, and CT after a week.")
        ['X-Ray 2D Radiography', 'Computerized Tomography']
    """
    found = []
    for name, cues in _CUES.items():
        places = [match.span() for cue in cues if (match := cue.search(caption))]
        if places:
            start, end = min(places, key=lambda place: (place[0], -place[1]))
            found.append((start, -end, name))
    return [name for _, _, name in sorted(found)]


def with_caption(
    probabilities: Sequence[float], texts: Sequence[str], names: Sequence[str] = IMAGE_TYPES
) -> list[float]:
    """Return the probabilities of types given a caption too. Types that it names gain by a factor of `NAMED`.

    Args:
        probabilities: One for each name, from the image alone.
        texts: Parts of the caption, the one about the image first. The first that names a type counts.
        names: Names of types.

    Example:
        >>> from biomedclip.processing.panels.image_types import with_caption
        >>> with_caption([0.5, 0.5], ["Before.", "MRI of the brain."], ["Magnetic Resonance", "Endoscopy"])
        [0.96..., 0.03...]
    """
    named = next(filter(None, ({*types_in_caption(text)} & {*names} for text in texts)), set())
    if not named:
        return list(probabilities)
    weights = [value * (NAMED if name in named else 1.0) for value, name in zip(probabilities, names, strict=True)]
    return [weight / (sum(weights) or 1.0) for weight in weights]


def type_in_caption(caption: str) -> str | None:
    """Return the type of image that a caption names first, or None if it names none.

    Example:
        >>> from biomedclip.processing.panels.image_types import type_in_caption
        >>> type_in_caption("Chest radiograph at admission.")
        'X-Ray 2D Radiography'
    """
    return next(iter(types_in_caption(caption)), None)
