"""Captions for drawn figures: every attribute of a picture in words, in the manner of journals or of prompts."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .figures import FIGURE_KINDS
from .randomness import pick


KIND_NAMES: tuple[str, ...] = tuple(FIGURE_KINDS)
ZERO_SHOT_TEMPLATES: tuple[str, ...] = ("this is a photo of {}", "{} presented in image")


@dataclass(frozen=True)
class Wording:
    """How captions of one kind speak: what such figures are about, and all attributes in one noun phrase."""

    topics: tuple[str, ...]
    descriptions: tuple[str, ...]


# Sentences of a caption. `{Description}` begins a sentence.
_TEMPLATES: tuple[tuple[str, ...], ...] = (
    (ZERO_SHOT_TEMPLATES[0].format("{kind}") + " with {description}.",),
    (ZERO_SHOT_TEMPLATES[1].format("{kind}") + " with {description}.",),
    ("{topic}.", "The {kind} shows {description}."),
    ("{topic}.", "Representative {kind} with {description}.", "See the text for details."),
    ("{topic}: {kind}.", "{Description}."),
    ("{topic}.", "{Description}.", "This {kind} is representative of three experiments."),
)

# Other words for values of attributes; a value that is not here has one name only.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "rising": ("rising", "increasing"),
    "falling": ("falling", "decreasing"),
    "staying flat": ("staying flat", "staying constant"),
    "oscillating": ("oscillating", "waving up and down"),
    "one curve": ("one curve", "a single curve"),
    "rising from left to right": ("rising from left to right", "increasing from left to right"),
    "falling from left to right": ("falling from left to right", "decreasing from left to right"),
    "tallest in the middle": ("tallest in the middle", "highest in the middle"),
    "shortest in the middle": ("shortest in the middle", "lowest in the middle"),
    "of equal height": ("of equal height", "of the same height"),
    "in two separate clusters": ("in two separate clusters", "in two distinct clusters"),
    "throughout": ("throughout", "everywhere"),
    "in the upper half": ("in the upper half", "in the upper part"),
    "in the lower half": ("in the lower half", "in the lower part"),
    "no gland": ("no gland", "no glands"),
    "one gland": ("one gland", "a single gland"),
    "round": ("round", "circular"),
    "elongated": ("elongated", "spindle-shaped"),
    "near the top": ("near the top", "close to the top"),
    "near the bottom": ("near the bottom", "close to the bottom"),
}

_WORDINGS: dict[str, Wording] = {
    "line chart": Wording(
        ("Release of CO2 over time", "Time course of TNF-α", "Growth of cultured cells"),
        (
            "{curves} in {colour} {trend} on a {background} background",
            "a {background} background and {curves} in {colour} {trend}",
        ),
    ),
    "bar chart": Wording(
        ("Relative expression of IL-1β", "IC50 of the compounds", "Mean score of each group"),
        (
            "{bars} in {colour} {pattern} on a {background} background",
            "a {background} background and {bars} in {colour} {pattern}",
        ),
    ),
    "scatter plot": Wording(
        ("Correlation of two markers", "Principal components of the samples", "Uptake of O2 against body mass"),
        (
            "{amount} {colour} dots {arrangement} on a {background} background",
            "a {background} background and {amount} dots in {colour} {arrangement}",
        ),
    ),
    "pie chart": Wording(
        ("Composition of the cohort", "Share of each γ-globin variant", "Distribution of diagnoses"),
        (
            "{slices} and the largest slice in {colour} {place}, on a {background} background",
            "a {background} background and {slices}, the largest in {colour} {place}",
        ),
    ),
    "heat map": Wording(
        ("Expression of β-catenin targets", "Similarity of the samples", "Activity of 50 enzymes"),
        (
            "a {grid} grid and a {patch} patch in the {place}, {scheme}",
            "a {patch} patch {scheme} in the {place} of a {grid} grid",
        ),
    ),
    "flow chart": Wording(
        ("Selection of the studies", "Design of the trial", "Enrolment of participants"),
        (
            "{boxes} in {colour} {layout} on a {background} background",
            "a {background} background and {boxes} in {colour} {layout}",
        ),
    ),
    "composite figure": Wording(
        ("Effect of the treatment", "Comparison of two assays", "Response to IFN-γ"),
        (
            "{left panel} in {left colour} on the left (A) and {right panel} in {right colour} on the right (B)",
            "(A) {left panel} in {left colour} on the left, (B) {right panel} in {right colour} on the right",
        ),
    ),
    "gel electrophoresis": Wording(
        ("Amplified fragments of the gene", "Detection of α-tubulin", "Digestion with two enzymes"),
        (
            "{lanes} and {look} {level}, {strength}",
            "{look} {level} in {lanes}, {strength}",
        ),
    ),
    "fluorescence microscopy": Wording(
        ("Localization of β-actin", "Transfected cells", "Uptake of labeled particles"),
        (
            "{amount} {shape} {colour} cells {place}",
            "{amount} {shape} cells in {colour} {place}",
        ),
    ),
    "hematoxylin and eosin histopathology": Wording(
        ("Morphology of the lesion", "Biopsy of the tumour", "Section of the resected tissue"),
        (
            "{nuclei} nuclei crowded {place}, {glands} and {eosin} stroma",
            "{eosin} stroma, {glands} and {nuclei} nuclei crowded {place}",
        ),
    ),
    "immunohistochemistry histopathology": Wording(
        ("Staining for the CD8 antigen", "Expression of TGF-β in tissue", "Positive cells of the biopsy"),
        (
            "{cells} {stain} cells {place} on a {background} background",
            "a {background} background and {cells} cells stained {stain} {place}",
        ),
    ),
    "chest X-ray": Wording(
        ("Radiograph on admission", "Findings after four weeks", "Imaging of the lungs"),
        (
            "{finding}, a {heart} heart, {display} display and {electrodes}",
            "a {heart} heart and {finding}, {display} display and {electrodes}",
        ),
    ),
    "brain MRI": Wording(
        ("Axial image of the patient", "Imaging before surgery", "Follow-up at 12 weeks"),
        (
            "a {lesion} lesion {place}, {ventricles} ventricles and {scalp} scalp",
            "{ventricles} ventricles, {scalp} scalp and a {lesion} lesion {place}",
        ),
    ),
}


def write_caption(kind: str, attributes: Mapping[str, str], rng: np.random.Generator) -> tuple[str, ...]:
    """Words for a picture, every attribute among them.

    Args:
        kind: One of `KIND_NAMES`; stands in the caption as it is.
        attributes: The values that the picture was drawn from.
        rng: Chooses template and synonyms.

    Returns:
        The sentences of the caption; joined by single spaces they are its text.
    """
    wording = _WORDINGS[kind]
    words = {attribute: pick(_SYNONYMS.get(value, (value,)), rng) for attribute, value in attributes.items()}
    description = pick(wording.descriptions, rng).format(**words)
    parts = {
        "kind": kind,
        "topic": pick(wording.topics, rng),
        "description": description,
        "Description": description[0].upper() + description[1:],
    }
    return tuple(sentence.format(**parts) for sentence in pick(_TEMPLATES, rng))


def write_short_caption(kind: str, number: int, rng: np.random.Generator) -> tuple[str, ...]:
    """A caption that names the kind and nothing else that could be seen, as many do in the literature.

    Such captions are what ties the name of a kind to its pictures: in a long caption the attributes give it away.

    Args:
        kind: One of `KIND_NAMES`; stands in the caption as it is.
        number: Number of the sample, which sets the caption apart from others.
        rng: Chooses the template.

    Returns:
        The sentences of the caption; joined by single spaces they are its text.
    """
    return (pick(ZERO_SHOT_TEMPLATES, rng).format(kind) + f" of sample {number}.",)


def topic_of(kind: str) -> str:
    """What figures of this kind are most often about: for the title of an article."""
    return _WORDINGS[kind].topics[0]
