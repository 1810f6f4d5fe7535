"""The 30 types of ImageCLEF 2015 and the words that name them."""

import json

import pytest

from biomedclip.processing.panels.image_types import (
    GROUP_OF,
    GROUPS,
    IMAGE_TYPES,
    PROMPTS,
    TEMPLATES,
    TypeScore,
    most_probable_type,
    type_in_caption,
)


def test_there_are_thirty_types_in_groups_each_with_prompts():
    assert len(IMAGE_TYPES) == len(set(IMAGE_TYPES)) == 30 and len(GROUPS) == 6
    assert set(PROMPTS) == set(GROUP_OF) == set(IMAGE_TYPES) and all(PROMPTS.values())
    assert TEMPLATES == ("{}", "the figure shows {}")


def test_types_and_groups_are_spelled_as_in_the_gold_standard(shared_data):
    for line in (shared_data / "panels" / "gold.jsonl").read_text(encoding="utf-8").splitlines():
        for panel in json.loads(line)["panels"]:
            assert GROUP_OF[panel["type"]] == panel["group"]


@pytest.mark.parametrize(
    ("caption", "image_type"),
    [
        ("Chest radiograph at admission.", "X-Ray 2D Radiography"),
        ("MRI and CT scan of the brain.", "Magnetic Resonance"),
        ("CT scan before MRI of the brain.", "Computerized Tomography"),
        ("PET/CT of the liver.", "Combined modalities in one image"),
        ("Western blot of AKT.", "Chromatography Gel"),
        ("Scatter plot of age and weight.", "Statistical figures graphs charts"),
        ("Hematoxylin and eosin.", "Light microscopy"),
        ("The study site.", None),
        ("Emri is a name.", None),
        ("", None),
    ],
)
def test_a_caption_names_the_type_that_comes_first(caption, image_type):
    assert type_in_caption(caption) == image_type


def test_the_type_belongs_to_the_most_probable_group():
    found = most_probable_type([0.4, 0.35, 0.25], ["Endoscopy", "PET", "Ultrasound"])
    assert found == TypeScore("PET", 0.35, "radiology", 0.6), "although Endoscopy is the most probable type"
    assert most_probable_type([0.3, 0.7], ["mine", "Endoscopy"]).group == "visible light photo"
    assert most_probable_type([1.0], ["mine"]) == TypeScore("mine", 1.0, "mine", 1.0)
    assert most_probable_type([], []) == TypeScore()
