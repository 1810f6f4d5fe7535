"""Fonts for text in any script, and lines of a given width."""

import warnings
from pathlib import Path

import matplotlib
import pytest
from matplotlib import font_manager
from matplotlib import pyplot as plt

from biomedclip.run_scripts.cli import fonts
from biomedclip.run_scripts.cli.fonts import fonts_for, wrap_text


MATPLOTLIB_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@pytest.fixture(autouse=True)
def nothing_is_reported_yet(monkeypatch):
    monkeypatch.setattr(fonts, "_reported", set())


def test_latin_greek_and_cyrillic_need_no_other_font(caplog):
    with fonts_for("Left lung, Σίσυφος, Привет, ±"):
        assert matplotlib.rcParams["font.family"] == ["DejaVu Sans"]
    assert caplog.text == ""


def test_characters_without_an_installed_font_are_named_once_and_drawn_without_warnings(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_other_fonts", list)
    for _ in range(2):
        with warnings.catch_warnings(), fonts_for("肺 炎 lung"):
            warnings.simplefilter("error")
            figure = plt.figure()
            figure.text(0, 0.5, "肺 炎 lung")
            figure.savefig(tmp_path / "plot.png")
            plt.close(figure)
    assert caplog.text.count("drawn as boxes: 炎肺.") == 1
    assert matplotlib.rcParams["font.family"] == ["sans-serif"]


def test_an_installed_font_that_has_the_characters_is_used(monkeypatch):
    # STIX General, which comes with matplotlib, has a character that the default is made to lack.
    path = str(MATPLOTLIB_FONTS / "STIXGeneral.ttf")
    default = font_manager.findfont("DejaVu Sans")
    characters = fonts._characters.__wrapped__
    monkeypatch.setattr(fonts, "_other_fonts", lambda: [("STIXGeneral", path)])
    monkeypatch.setattr(fonts, "_characters", lambda name: characters(name) - ({"ℵ"} if name == default else set()))
    with fonts_for("ℵ"):
        assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "STIXGeneral"]


@pytest.mark.parametrize("text", ["W" * 300, "i" * 300, "left lung " * 60, "肺炎" * 100, "Wide W iiii 肺 " * 40])
def test_no_line_is_wider_than_asked(text):
    with fonts_for(text):
        lines = wrap_text(text, 3.0, 10, 50)
        figure = plt.figure(figsize=(20, 2), dpi=100)
        widths = [figure.text(0, 0.5, line, fontsize=10).get_window_extent().width / 100 for line in lines]
        plt.close(figure)
    assert max(widths) <= 3.05 and (len(lines) == 1 or max(widths) > 2.0)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_text_of_too_many_lines_is_cut_and_says_so():
    lines = wrap_text("right lower lobe " * 50, 2.0, 10, 3)
    assert len(lines) == 3 and lines[-1].endswith(" ...") and not lines[0].endswith("...")
    assert wrap_text("", 2.0, 10, 3) == [""] and wrap_text("lung", 2.0, 10, 1) == ["lung"]
    assert wrap_text("x" * 500, 2.0, 10, 1)[0].endswith("x ...")
