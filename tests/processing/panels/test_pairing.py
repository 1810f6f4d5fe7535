"""Parts of a caption belong to panels by the labels that were read, or else by their order."""

import pytest

from biomedclip.processing.panels.figure_panels import FigurePanels, Panel
from biomedclip.processing.panels.pairing import labels_for, split_for


def compound(*labels):
    return FigurePanels(True, 1.0, tuple(Panel((0, 0, 1, 1), 1.0, label) for label in labels))


@pytest.mark.parametrize(
    ("labels", "texts", "match"),
    [
        (("A", "B"), ["CT", "MRI."], "labels"),
        (("B", "A"), ["MRI.", "CT"], "labels"),
        (("A", "B", None), ["CT", "MRI.", None], "labels"),
        (("C", "D"), [None, None], "none"),
        ((None, None), ["CT", "MRI."], "caption"),
        ((None, None, None), [None] * 3, "none"),
    ],
)
def test_labels_that_were_read_decide_which_text_belongs_to_a_panel(labels, texts, match):
    split, found = split_for(compound(*labels), "(A) CT, (B) MRI.")
    assert found == texts and split.match == match


@pytest.mark.parametrize(
    ("read", "labels"),
    [
        ((None, None), ["A", "B"]),
        (("B", None), ["B", None]),
        ((None, None, None), [None, None, None]),
        (("C", "D"), ["C", "D"]),
    ],
)
def test_a_panel_has_the_label_that_was_read_or_that_of_its_text(read, labels):
    figure = compound(*read)
    assert labels_for(figure, split_for(figure, "(A) CT, (B) MRI.")[0]) == labels


def test_the_caption_of_a_single_figure_is_not_split():
    figure = FigurePanels(False, 0.0, (Panel((0, 0, 1, 1), 1.0),))
    split, texts = split_for(figure, "(A) CT, (B) MRI.")
    assert split.match == "none" and texts == labels_for(figure, split) == [None]
