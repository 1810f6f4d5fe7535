"""Captions of compound figures are split by panels, and others are not."""

import json
import random
import re
from dataclasses import replace

import pytest

from biomedclip.processing.panels import split_caption


@pytest.mark.parametrize(
    ("caption", "panels"),
    [
        ("(A) CT. (B) MRI.", {"A": "CT.", "B": "MRI."}),
        ("A, CT. B, MRI.", {"A": "CT.", "B": "MRI."}),
        ("A: CT; B: MRI", {"A": "CT", "B": "MRI"}),
        ("A. CT of the chest. B. MRI.", {"A": "CT of the chest.", "B": "MRI."}),
        ("a) CT b) MRI", {"A": "CT", "B": "MRI"}),
        ("[a] CT, [b] MRI", {"A": "CT", "B": "MRI"}),
        ("(A-C) Stains. (D) A plot.", {"A": "Stains.", "B": "Stains.", "C": "Stains.", "D": "A plot."}),
        ("(A and B) Stains. (C) A plot.", {"A": "Stains.", "B": "Stains.", "C": "A plot."}),
        ("((a) and (b)) Stains. (c) A plot.", {"A": "Stains.", "B": "Stains.", "C": "A plot."}),
        ("(a, c) Before. (b, d) After.", {"A": "Before.", "B": "After.", "C": "Before.", "D": "After."}),
        ("(i) CT, (ii) MRI, (iii) PET", {"I": "CT", "II": "MRI", "III": "PET"}),
        ("(1) CT, (2) MRI, (3) PET", {"1": "CT", "2": "MRI", "3": "PET"}),
        ("(A1) CT. (A2) MRI. (B) PET.", {"A1": "CT.", "A2": "MRI.", "B": "PET."}),
        ("(Panel a) CT, (panel b) MRI", {"A": "CT", "B": "MRI"}),
        ("Left: CT. Right: MRI.", {"left": "CT.", "right": "MRI."}),
        ("Top row: CT. Bottom row: MRI.", {"top": "CT.", "bottom": "MRI."}),
        ("Upper panel, CT; lower panel, MRI.", {"upper": "CT", "lower": "MRI."}),
        ("Images at temperatures a 30 °C, b 50 °C, and c 70 °C.", {"A": "30 °C", "B": "50 °C", "C": "70 °C."}),
        ("ATP (A), ADP (B), and NADP (C).", {"A": "ATP", "B": "ADP", "C": "NADP"}),
        ("CT (left) and MRI (right).", {"left": "CT", "right": "MRI"}),
        ("Signs at high magnification.A) CT b. B) MRI.", {"A": "CT b.", "B": "MRI."}),
        ("(a-c) Sections of liver, lung and skin, respectively.", {"A": "liver", "B": "lung", "C": "skin"}),
        ("(A) CT, and (B) MRI, with (C) PET.", {"A": "CT", "B": "MRI", "C": "PET."}),
        ("(A) A blot. (B, C) Levels of AAT (B) and Akt (C).", {"A": "A blot.", "B": "AAT", "C": "Akt"}),
    ],
)
def test_every_form_of_markers_is_read(caption, panels):
    split = split_caption(caption)
    assert split.panels == panels and list(split.panels) == list(panels)
    assert split.match == "caption"


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "A chest radiograph.",
        "Group A received a drug, group B a placebo.",
        "Serum vitamin D (C) and vitamin A in patients.",
        "Sections (B) and (C) of the liver.",
        "Stains (A, C).",
        "Type A, type B and type C lesions.",
        "Expression of CD4 (arrow) and CD8 (A).",
        "Numbers denote (1) control and (2) samples.",
        "Hepatitis B, hepatitis C.",
    ],
)
def test_other_letters_are_no_markers(caption):
    split = split_caption(caption)
    assert split.match == "none" and not split.panels and split.opening == split.context == caption


def test_text_before_and_after_the_panels_is_shared():
    split = split_caption("Findings. (a) A lesion and (b) fat tissue. Scale bars: 10 μm.")
    assert (split.opening, split.closing) == ("Findings.", "Scale bars: 10 μm.")
    assert split.panels == {"A": "A lesion", "B": "fat tissue."}
    assert split.context == "Findings. Scale bars: 10 μm."
    assert split.with_context("A") == "Findings. A lesion Scale bars: 10 μm."


def test_an_opening_phrase_before_the_first_text_is_shared():
    split = split_caption("Micrographs of particles made with tulsi extract (a), quercetin (b) and glucose (c).")
    assert split.opening == "Micrographs of particles made with"
    assert split.panels == {"A": "tulsi extract", "B": "quercetin", "C": "glucose"}


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (["b", "a"], "labels"),
        (["A", "B", "C"], "some labels"),
        (["C", "D"], "none"),
        (["A", "B", "C", "D", "E"], "none"),
        ([], "none"),
    ],
)
def test_labels_that_were_read_confirm_or_reject_the_markers(labels, match):
    split = split_caption("CT (a) and MRI (b).", labels)
    assert split.match == match and bool(split.panels) == (match != "none")


def test_labels_tell_where_the_sequence_begins():
    caption = "Micrographs of the control (D-G)."
    assert split_caption(caption).match == "none"
    assert list(split_caption(caption, "DEFG").panels) == ["D", "E", "F", "G"]


@pytest.mark.parametrize(
    ("caption", "labels"),
    [
        ("(i) CT, (ii) MRI, (iii) PET, (iv) US, (v) A plot", ["I", "II", "III", "IV", "V"]),
        ("(A1) CT. (B) PET.", ["A1", "B"]),
        ("(A1) CT. (A2) PET. (A10) A gel.", ["A1", "A2"]),
        ("CT (left) and MRI (right).", ["left", "right"]),
        ("Top: CT. Bottom: MRI.", ["top", "bottom"]),
    ],
)
def test_labels_that_a_caption_has_are_accepted_for_it_in_their_order(caption, labels):
    split = split_caption(caption)
    assert list(split.panels) == labels
    for written in (labels, [label.lower() for label in labels], [label.upper() for label in labels][::-1]):
        assert split_caption(caption, written) == replace(split, match="labels")


@pytest.mark.parametrize("label", ["\u212a", "\u017f", "\u0663", "", " ", "AA", "(a)", "100"])
def test_labels_that_are_no_labels_do_not_match(label):
    assert split_caption("CT (a) and MRI (b).", [label, "C"]).match == "none"


def test_empty_labels_are_ignored():
    assert split_caption("CT (a) and MRI (b).", ["A", "", "B", " "]).match == "labels"


def test_a_caption_that_is_no_string_is_refused():
    with pytest.raises(TypeError, match="`caption` is NoneType"):
        split_caption(None)


def hand_split(folder, name):
    """Yield captions with the text of each panel, for the prostate captions together with the shared text."""
    for line in (folder / "panels" / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if name == "gold.jsonl":
            yield row["caption"], row["sub_captions"] or {}
        else:
            yield row["caption"], {each["label"].upper(): each["sub_caption_with_context"] for each in row["panels"]}


@pytest.mark.parametrize(
    ("name", "with_context", "panels", "f1", "rouge"),
    [("sub_captions_prostate.jsonl", True, 849, 0.988, 0.878), ("gold.jsonl", False, 154, 0.983, 0.912)],
)
def test_captions_that_were_split_by_hand_are_split_as_the_documentation_says(
    shared_data, name, with_context, panels, f1, rouge
):
    module = pytest.importorskip("rouge_score.rouge_scorer", reason="the extra 'evaluate' is not installed")
    scorer = module.RougeScorer(["rougeL"])
    right = found = 0
    scores = []
    for caption, truth in hand_split(shared_data, name):
        if not truth:
            continue
        split = split_caption(caption)
        right += len(truth.keys() & split.panels.keys())
        found += len(split.panels)
        for label, text in truth.items():
            ours = split.panels.get(label, "")
            ours = split.with_context(label) if ours and with_context else ours
            scores.append(scorer.score(text, ours)["rougeL"].fmeasure)
    assert len(scores) == panels
    assert round(2 * right / (found + panels), 3) == f1
    assert round(sum(scores) / panels, 3) == rouge


def test_damaged_captions_of_real_articles_are_split_without_an_error(shared_data):
    lines = (shared_data / "captions" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    captions = [json.loads(line)["caption"] for line in lines[::16]]
    choose = random.Random(0)
    pieces = [
        "(A",
        "B)",
        "(",
        ")))",
        "(A-",
        "(a,b",
        "\x00",
        "\ud800",
        "and (",
        "A. B. C.",
        "(i)",
        ", ",
        "(z-a)",
        "Left:",
    ]
    for caption in captions:
        words = re.split(r"(\s)", caption)
        for _ in range(3):
            words.insert(choose.randrange(len(words) + 1), choose.choice(pieces))
        damaged = "".join(words)
        split = split_caption(damaged)
        assert all(isinstance(text, str) for text in split.panels.values())
        assert split.panels or split.opening == damaged.strip()


LONG = {
    "markers": "(A) " * 12_000,
    "letters": "A, " * 16_000,
    "parentheses": "(" * 50_000,
    "words": "a b " * 12_000,
    "ranges": "(A-" * 16_000,
    "sentences": "x. " * 16_000,
    "separators": "(A) CT" + ", " * 24_000 + "x (B) MRI",
    "open parentheses": "(A) CT" + "(" * 49_000 + "x (B) MRI",
    "spaces": "(A) CT" + " " * 24_000 + "and" + " " * 24_000 + "x (B) MRI",
    "spaces in a list": "(A-C) liver" + " " * 24_000 + "and" + " " * 24_000 + "lung, respectively",
    "prepositions": "Spectra " + "of " * 16_000 + "A (a), B (b)",
    "abbreviations": "(A) " + "Fig. " * 9900 + "(B) MRI",
    "clauses": "one (a) two; " + "x, " * 16_000 + " three (b)",
    "shared texts": "".join(f"(A{n}, A{n + 1})" for n in range(1, 98, 2)) + " text A1 (A1) " * 2500,
    "numbers": "".join(f"({letter}{n})" for letter in "ABCDEFGHIJ" for n in range(1, 100)) * 8,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_the_time_for_long_captions_grows_with_their_length(text):
    """Quadratic time would take minutes."""
    split_caption(text)


def test_long_spaces_count_as_one():
    split = split_caption("Scans." + " " * 40 + "(A) CT" + "\n" * 40 + "of the chest. (B) MRI.")
    assert split.panels == {"A": "CT of the chest.", "B": "MRI."}
    unsplit = "A scan" + " " * 40 + "of the chest."
    assert split_caption(unsplit).opening == unsplit
