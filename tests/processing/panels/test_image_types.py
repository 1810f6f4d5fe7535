"""The 30 types of ImageCLEF 2015 and the words that name them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from biomedclip.processing.panels.image_types import (
    GROUP_OF,
    GROUPS,
    IMAGE_TYPES,
    PROMPTS,
    TEMPLATES,
    FittedThreshold,
    TypeScore,
    fit_unknown_threshold,
    most_probable_type,
    parse_image_types,
    type_in_caption,
    types_in_caption,
    unknown_below,
    with_caption,
)


MRI = "Magnetic Resonance"


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
        ("Stained sections, ×200.", "Light microscopy"),
        ("Biopsy (40x).", "Light microscopy"),
        ("HRCT of the lung.", "Computerized Tomography"),
        ("Effects of ACT and ECT on survival, FACT sheet.", None),
        ("OCT of the retina.", None),
        ("SDS score of depression.", None),
        ("Yield of PET bottles and a PET film.", None),
        ("Groups of 8 x 20 mice, plots of 200 x 300 mm.", None),
        ("A grid of 10 × 20 cells.", None),
        ("The study site.", None),
        ("Emri is a name.", None),
        ("", None),
    ],
)
def test_a_caption_names_the_type_that_comes_first(caption, image_type):
    assert type_in_caption(caption) == image_type


def test_a_caption_names_types_in_its_order_and_makes_them_more_probable():
    assert types_in_caption("MRI (left) and a chest radiograph, then another MRI.") == [MRI, "X-Ray 2D Radiography"]
    names = [MRI, "Endoscopy"]
    assert with_caption([0.5, 0.5], ["Before.", "MRI scans."], names) == pytest.approx([25 / 26, 1 / 26])
    assert with_caption([0.5, 0.5], ["Endoscopic view.", "MRI scans."], names)[1] > 0.9, "the part of the panel counts"
    assert with_caption([0.2, 0.8], ["PET scans."], names) == [0.2, 0.8], "the detector does not know PET"
    assert with_caption([0.0, 0.0], ["MRI scans."], names) == [0.0, 0.0]


def test_the_type_belongs_to_the_most_probable_group():
    found = most_probable_type([0.4, 0.35, 0.25], ["Endoscopy", "PET", "Ultrasound"])
    expected = TypeScore("PET", 0.35, "radiology", 0.6, pytest.approx(0.05))
    assert found == expected, "although Endoscopy is the most probable type"
    assert most_probable_type([0.3, 0.7], ["mine", "Endoscopy"]).group == "visible light photo"
    assert most_probable_type([1.0], ["mine"]) == TypeScore("mine", 1.0, "mine", 1.0, 1.0)
    assert most_probable_type([], []) == TypeScore()


def test_below_a_threshold_type_and_group_are_unknown_each_by_its_own_score():
    found = TypeScore("PET", 0.35, "radiology", 0.6, 0.05)
    assert unknown_below(found, 0.35) == found
    assert unknown_below(found, 0.36) == replace(found, name="unknown")
    assert unknown_below(found, 0.61) == replace(found, name="unknown", group="unknown")
    assert unknown_below(replace(found, score=math.nan), 0.1).name == "unknown"
    assert unknown_below(TypeScore(), 0.5) == TypeScore(), "nothing predicts types"


def test_the_fitted_threshold_is_the_smallest_that_is_accurate_enough():
    rng = np.random.default_rng(0)
    for _ in range(200):
        scores = rng.integers(1, 12, rng.integers(1, 30)) / 12  # many are equal
        correct = rng.random(len(scores)) < scores
        accuracy = rng.choice([0.5, 0.8, 0.95, 1.0])
        accurate = [score for score in scores if correct[scores >= score].mean() >= accuracy]
        found = fit_unknown_threshold(scores.tolist(), correct.tolist(), accuracy)
        if not accurate:
            assert found == FittedThreshold(None, 0.0, None)
            continue
        accepted = scores >= min(accurate)
        assert found == FittedThreshold(min(accurate), accepted.mean(), correct[accepted].mean())


def test_a_threshold_is_fitted_to_an_exact_fraction_and_not_to_impossible_input():
    assert fit_unknown_threshold([0.5] * 20, [True] * 19 + [False]) == FittedThreshold(0.5, 1.0, 0.95)
    assert fit_unknown_threshold([], []) == FittedThreshold(None, 0.0, None)
    for arguments, message in (
        (([0.5], []), "`correct` has 0"),
        (([math.nan], [True]), "not finite"),
        (([0.5], [True], 0.0), "above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_unknown_threshold(*arguments)


@pytest.mark.parametrize(
    ("choice", "types"),
    [
        ("PET", ["PET"]),
        ("pet, ultrasound", ["Ultrasound", "PET"]),
        (["Light microscopy", "reconstructions"], ["Light microscopy", "3D reconstructions"]),
        (["radiology", "PET"], list(GROUPS["radiology"])),
        ([*GROUPS], list(IMAGE_TYPES)),
    ],
)
def test_types_and_groups_are_chosen_by_name(choice, types):
    assert list(parse_image_types(choice)) == types


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("radiologie", "'radiologie' is neither a type nor a group.*Did you mean 'radiology'.*visible light photo"),
        (["PET", "zzz"], r"'zzz' is neither a type nor a group of images\. The groups"),
        ([], "No type of image is selected"),
        (" , ", "No type of image is selected"),
    ],
)
def test_an_unknown_type_is_an_error_that_names_the_groups(choice, message):
    with pytest.raises(ValueError, match=message):
        parse_image_types(choice)
