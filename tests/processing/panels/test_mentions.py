"""Which panels of a figure a paragraph cites."""

import pytest

from biomedclip.processing.panels.mentions import cited_panels, mentions_of_panels


@pytest.mark.parametrize(
    ("text", "panels"),
    [
        ("(Fig. 2B)", "B"),
        ("Figure 2b shows", "B"),
        ("Figure 2A,B.", "A B"),
        ("Figs. 2A–C", "A B C"),
        ("Fig. 2A to C", "A B C"),
        ("Fig. 2A, B and C", "A B C"),
        ("Figures 2A-2D", "A B C D"),
        ("Figures 2(a) and 2(b)", "A B"),
        ("Figures 2(a)–2(d)", "A B C D"),
        ("Fig. 2 (A, B)", "A B"),
        ("Fig. 2 A and B", "A B"),
        ("Fig. 2a and b show", "A B"),
        ("Figure 2, panels A and B", "A B"),
        ("Figs 1a, b, 2c–e, 3a", "C D E"),
        ("(Fig. 5C, Fig. 2D)", "D"),
        ("Fig. 1b–d,f; 2g", "G"),
        ("Fig. 2Aii", "A"),
        ("Fig. 2A1", "A1"),
        ("Fig. 2(ii–iv)", "II III IV"),
        ("Fig. 2A and a control", "A"),
        ("Fig. 2B, p < 0.05", "B"),
        ("Fig. 2B, n = 3", "B"),
        ("Fig. 2", ""),
        ("Fig. 2 and Fig. 3B", ""),
        ("Figs 2 and S2", ""),
        ("Fig. 22B", ""),
        ("Fig. 2 A patient", ""),
        ("Fig. 2, a patient", ""),
        ("Fig. 2 Six mice", ""),
        ("Fig. 2. Cells of C. elegans", ""),
        ("Fig. 2 30% c", ""),
        ("Supplementary Fig. 2B", ""),
        ("Fig. S2B", ""),
        ("Table 2B", ""),
    ],
)
def test_panels_are_cited_in_many_forms(text, panels):
    assert cited_panels(f"As in {text}", "Figure 2") == set(panels.split())


@pytest.mark.parametrize("figure", [None, "", "Graphical abstract", "Figure 2—figure supplement 1"])
def test_a_figure_without_one_number_has_no_cited_panels(figure):
    assert cited_panels("Fig. 1A, Fig. 2A", figure) == set()


def test_figures_of_a_supplement_are_told_from_others():
    text = "Figure 1A, Figure S1B and Supplementary Figure 1C"
    assert cited_panels(text, "Fig. 1") == {"A"}
    assert cited_panels(text, "Figure S1") == {"B"}
    assert cited_panels(text, "Supplementary Figure 1") == {"C"}


def test_each_panel_has_the_paragraphs_that_cite_it():
    mentions = ["First (Fig. 2A1).", "Second (Fig. 2A).", "Third (Fig. 2(ii)).", "Last (Fig. 2)."]
    found = mentions_of_panels("Fig. 2", ["A", "A1", "A2", "I", "II", None], mentions)
    assert [[mentions.index(mention) for mention in each] for each in found] == [[0, 1], [0, 1], [1], [], [2], []]


def test_a_long_text_is_read_in_linear_time():
    assert cited_panels("Fig. 2" + "A," * 100_000 + "Fig. 2" * 100_000, "Fig. 2") == {"A"}
