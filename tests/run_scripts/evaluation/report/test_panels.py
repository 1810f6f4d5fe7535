"""The report of panels, as text and in headless Chromium."""

import html
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.report_pages import HOSTILE, QUOTED, check_in_chromium, check_page, figures_in, needs_chromium, words_of
from PIL import Image

from biomedclip.processing.panels.annotations import AnnotatedFigure, AnnotatedPanel
from biomedclip.processing.panels.figure_panels import FigurePanels, Panel
from biomedclip.processing.panels.image_types import GROUP_OF, TypeScore
from biomedclip.run_scripts.evaluation.panel_metrics import MeasuredFigure, panel_metrics
from biomedclip.run_scripts.evaluation.report.panels import (
    draw_boxes,
    uncertain_figures,
    worst_figures,
    write_panel_report,
)
from biomedclip.run_scripts.main import main


LEFT, RIGHT, WHOLE = (0.0, 0.0, 90.0, 100.0), (110.0, 0.0, 200.0, 100.0), (0.0, 0.0, 200.0, 100.0)
CT, GEL = "Computerized Tomography", "Chromatography Gel"
BLUE, ORANGE = (11, 95, 255), (255, 122, 0)


def picture(width=200, height=100) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(file, "PNG")
    return file.getvalue()


def measured(name, true, found, article="PMC1", file=None) -> MeasuredFigure:
    """A figure of annotated panels (box, label, type), and what was found in it."""
    annotated = tuple(AnnotatedPanel(box, label, None, kind) for box, label, kind in true)
    ours = tuple(Panel(box, 1.0, label, TypeScore(kind, 1.0, GROUP_OF.get(kind), 1.0)) for box, label, kind in found)
    figure = AnnotatedFigure(picture() if file is None else file, annotated, len(true) > 1, article, name)
    return MeasuredFigure(figure, FigurePanels(len(found) > 1, 1.0, ours))


FIGURES = [
    measured("right.png", [(WHOLE, None, GEL)], [(WHOLE, None, GEL)]),
    measured("label.png", [(LEFT, "A", CT), (RIGHT, "B", CT)], [(LEFT, "A", CT), (RIGHT, "C", GEL)], "PMC2"),
    measured(f"{HOSTILE}.png", [(LEFT, "A", CT), (RIGHT, "B", GEL)], [(WHOLE, None, CT)], "PMC3"),
    measured("false.png", [(LEFT, "A", CT)], [(LEFT, "A", CT), (RIGHT, QUOTED, CT)], "PMC4"),
]


def write(figures, path, **metrics) -> str:
    results = {
        "task": "panels",
        "benchmark": None,
        "command": f"biomedclip evaluate {HOSTILE}",
        "date": "2026-01-01",
        "model": {"name": QUOTED, "type": "x", "weights": "none"},
        "data": {"path": "gold.jsonl", "split": "all", "fingerprint": "0", "damaged": [], "notes": [], "leaks": None},
        "metrics": panel_metrics(figures, resamples=20) | metrics,
        "paper": {},
        "settings": {},
        "versions": {},
    }
    write_panel_report(path, results, figures=figures)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    many = [replace(figure, gold=replace(figure.gold, article=f"PMC{n}")) for n in range(8) for figure in FIGURES]
    write(many, path)
    return path


def test_all_texts_are_escaped_and_nothing_is_loaded(page):
    text = page.read_text(encoding="utf-8")
    check_page(text)
    assert html.escape(HOSTILE) in text and html.escape(QUOTED) in text


def test_the_page_has_metrics_with_intervals_and_a_baseline(tmp_path):
    words = words_of(write(FIGURES, tmp_path / "report.html"))
    assert "metric value 95 % interval always compound F1 0.5 [" in words, "of two compound figures one is found"
    assert "] 0.6667 precision 0.5 [" in words and "] 0.5 recall 0.5 [" in words
    assert "ImageCLEF accuracy 0.5 [" in words, "of the two compound figures"
    assert "Groups of found panels" in words


def test_confused_groups_of_image_types_are_counted(tmp_path):
    words = words_of(write(FIGURES, tmp_path / "report.html"))
    # Found panels: a gel, three CTs of which one is named a gel. The whole figure matches no panel.
    assert "true radiology generic radiology 2 1 generic 0 1" in words


def test_the_worst_figures_come_first_with_the_reasons():
    worst = worst_figures(FIGURES)
    assert [fault.figure.gold.name for fault in worst] == [f"{HOSTILE}.png", "false.png", "label.png"]
    assert [fault.reasons() for fault in worst] == [
        "compound figure taken for a single one, 2 missed panels, 1 false panel",
        "single figure taken for a compound one, 1 false panel",
        "1 wrong label, 1 wrong image group",
    ]
    assert [fault.accuracy for fault in worst] == [0.0, 0.5, 1.0]


def test_figures_with_a_probability_near_a_half_are_uncertain(tmp_path):
    scores = (0.0, 0.9, 0.4, 1.0)
    figures = [
        replace(figure, found=replace(figure.found, compound_score=score))
        for figure, score in zip(FIGURES, scores, strict=True)
    ]
    assert [fault.figure.gold.name for fault in uncertain_figures(figures)] == [f"{HOSTILE}.png", "label.png"]
    text = write(figures, tmp_path / "report.html").split("<h2>The least certain figures</h2>")[1]
    assert figures_in(text) == [html.escape(f"{HOSTILE}.png"), "label.png"]
    assert "compound with probability 0.40" in text
    assert "The least certain figures" not in write(FIGURES, tmp_path / "report.html"), "the scores are 1"


def test_labels_that_were_not_annotated_and_types_that_are_not_told_are_no_faults():
    figure = measured("a.png", [(LEFT, "A", CT), (RIGHT, "B", CT)], [(LEFT, "X", None), (RIGHT, "Y", None)])
    assert worst_figures([replace(figure, gold=replace(figure.gold, has_labels=False))]) == []


def test_boxes_are_drawn_in_two_colors_where_they_are():
    image = Image.new("RGB", (800, 400), "white")
    drawn = draw_boxes(image, [(0, 0, 400, 400)], [(400, 200, 900, 900)], side=200)
    assert drawn.size == (200, 100)
    pixels = np.asarray(drawn)
    assert tuple(pixels[50, 0]) == BLUE and tuple(pixels[50, 120]) == ORANGE and tuple(pixels[98, 199]) == ORANGE
    assert tuple(pixels[25, 50]) == tuple(pixels[75, 150]) == (255, 255, 255), "boxes are not filled"
    same = np.asarray(draw_boxes(image, [(40, 40, 400, 360)], [(40, 40, 400, 360)], side=200))
    colors = {tuple(pixel) for pixel in same.reshape(-1, 3).tolist()}
    assert {BLUE, ORANGE} <= colors, "both are seen if they agree"


def test_boxes_outside_of_a_picture_are_drawn_on_its_border():
    drawn = draw_boxes(Image.new("L", (30, 20)), [(-50, -50, -10, -10), (100, 100, 200, 200)], [(5, 5, 5, 5)])
    assert drawn.size == (30, 20)


def test_pictures_that_are_gone_or_damaged_have_no_thumbnail(tmp_path):
    true, found = [(LEFT, "A", CT), (RIGHT, "B", CT)], [(WHOLE, None, CT)]
    files = {"gone.png": tmp_path / "gone.png", "damaged.png": picture()[:60], "good.png": None}
    text = write([measured(name, true, found, name, file) for name, file in files.items()], tmp_path / "report.html")
    assert sorted(figures_in(text)) == sorted(files) and text.count("no image") == 2


def test_a_detector_without_types_and_figures_without_faults_have_a_page(tmp_path):
    figures = [measured(f"{n}.png", [(WHOLE, None, GEL)], [(WHOLE, None, None)], f"PMC{n}") for n in range(3)]
    words = words_of(write(figures, tmp_path / "report.html"))
    assert "There are no errors." in words and "no found panels whose type is both annotated and predicted" in words
    assert "Undefined: image types accuracy, " in words and words.count("the detector tells no types") == 1


def test_the_command_writes_the_report_and_refuses_it_without_pictures(tmp_path, capsys):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(400, 190))
    row = {"file": "a.png", "compound": True, "panels": [{"box": [0, 0, 180, 190]}, {"box": [220, 0, 400, 190]}]}
    (tmp_path / "gold.jsonl").write_text(f"{json.dumps(row)}\n", encoding="utf-8")
    command = ["evaluate", "panels", "--data", str(tmp_path / "gold.jsonl"), "--output-dir", str(tmp_path / "out")]
    options = ["--images", str(folder), "--detector", "x-y-cut", "--report"]
    assert main([*command, *options]) == 0
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    check_page(text)
    assert figures_in(text) == ["a.png"] and "compound figure taken for a single one" in text
    capsys.readouterr()
    assert main([*command, "--report"]) == 2
    assert "--report has no effect without --images" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@needs_chromium
def test_chromium_shows_the_page_offline_on_a_phone_and_as_pdf(page, tmp_path):
    check_in_chromium(page, tmp_path)
