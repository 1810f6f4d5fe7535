"""The report of images with several findings, as text and in headless Chromium."""

import csv
import html
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark_files import drawn_pixels
from helpers.model_results import read_results
from helpers.report_pages import HOSTILE, QUOTED, check_in_chromium, check_page, needs_chromium
from PIL import Image

from biomedclip.run_scripts.evaluation.findings.metrics import measure_findings
from biomedclip.run_scripts.evaluation.findings.zero_shot import finding_predictions
from biomedclip.run_scripts.evaluation.report.finding_plots import plot_finding_curves
from biomedclip.run_scripts.evaluation.report.findings import MOST_FINDINGS, SHOWN, write_findings_report


@pytest.fixture
def report(measure, tmp_path) -> str:
    """The page of prompt pairs, for images and findings with hostile names."""
    folder, generator = tmp_path / "data", np.random.default_rng(0)
    for split in ("validation", "test"):
        (folder / split).mkdir(parents=True)
        with (folder / split / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", "patient", "device", HOSTILE, QUOTED])
            for number in range(40):
                name = f"{HOSTILE.replace('/', '_')}{split}{number}.png"
                Image.fromarray(drawn_pixels(number, 48, number % 2 == 0)).save(folder / split / name)
                rows.writerow([name, f"patient-{split}{number // 2}", HOSTILE, *generator.integers(2, size=2)])
    columns = ["--label-columns", HOSTILE, QUOTED, "--group-column", "patient", "--subgroup-column", "device"]
    measure("zero-shot", folder, *columns, "--calibrate", "--sensitivity", "0.9", "--report")
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_the_page_has_the_numbers_of_the_results_and_all_texts_are_escaped(report, tmp_path):
    check_page(report)
    results = read_results(tmp_path / "out")
    for name, found in results["metrics"]["findings"].items():
        assert html.escape(name) in report
        for metric in ("auroc", "average_precision"):
            low, high = found[f"{metric}_interval"]
            assert f"{found[metric]:.3f} [{low:.3f}, {high:.3f}]" in report
        assert f"{found['positives'] / 40:.4g}" in report, "the average precision of chance"
        before, after = (results["decisions"]["findings"][name][part] for part in ("before_calibration", "calibration"))
        assert f"{before['ece']:.3f} → {after['ece']:.3f}" in report
    for point in results["decisions"]["operating_points"]:
        low, high = point["specificity_interval"]
        assert f"[{low:.3f}, {high:.3f}]" in report
    for text in ("Pairs of prompts", "Intervals of few images are unreliable", "ROC and precision-recall curves"):
        assert text in report
    assert results["model"]["weights"] in report and "Leaks between training and test images" in report


def test_the_captions_do_not_name_the_patients(report):
    assert report.count("<figcaption>") > 5 and "patient-" not in report


@needs_chromium
@pytest.mark.slow
def test_chromium_shows_the_page_and_runs_no_script_of_it(report, tmp_path):
    check_in_chromium(tmp_path / "out" / "report.html", tmp_path)


def page_of(folder: Path, scores: np.ndarray, targets: np.ndarray, findings: list[str]) -> str:
    """Return the page of scores, with the fewest fields that it needs."""
    from biomedclip.processing.images.findings import FindingImages

    pictures = [Image.new("L", (20, 10), number % 256) for number in range(len(scores))]
    images = FindingImages(pictures, targets, findings, [f"{number}.png" for number in range(len(scores))])
    results = {
        "task": "zero-shot",
        "benchmark": None,
        "command": "biomedclip evaluate zero-shot",
        "date": "2026-01-01",
        "model": {"name": "model", "type": "biomedclip", "weights": "00"},
        "data": {"leaks": None, "path": "data", "split": "test", "notes": [], "damaged": [], "fingerprint": "00"},
        "metrics": measure_findings(scores, targets, findings, resamples=20),
        "settings": {},
        "versions": {},
    }
    write_findings_report(folder / "report.html", results, finding_predictions(images, scores))
    return (folder / "report.html").read_text(encoding="utf-8")


def test_galleries_have_the_worst_false_positives_and_false_negatives_of_each_finding(tmp_path):
    scores = np.array([[3.0, 0], [2, 0], [-4, 1], [-5, 2], [6, 3], [9, np.nan]])
    targets = np.array([[0.0, 1], [0, 1], [1, 1], [1, 1], [1, 1], [np.nan, 1]])
    page = page_of(tmp_path, scores, targets, ["a", "b"])
    sections = re.split(r"<h3>", page)[1:]
    names = [re.findall(r"<figcaption>([^<]*)<br>", section) for section in sections]
    assert names == [["0.png", "1.png"], ["3.png", "2.png", "4.png"], [], ["0.png", "1.png", "2.png", "3.png", "4.png"]]
    assert "a: 0.953" in sections[0] and "There are none." in sections[2]
    assert "undefined" in page, "all labels of b are 1"


def test_many_findings_give_a_page_of_bounded_size(tmp_path):
    generator = np.random.default_rng(0)
    targets = (generator.random((200, 60)) < 0.3).astype(float)
    names = [f"finding {number}" for number in range(60)]
    page = page_of(tmp_path, generator.normal(size=(200, 60)) + targets, targets, names)
    assert page.count("<figure>") == MOST_FINDINGS * 2 * SHOWN
    assert f"The {MOST_FINDINGS} findings with the lowest AUROC." in page and len(page) < 3_000_000


def test_findings_without_both_labels_have_no_curves():
    assert plot_finding_curves(np.full((4, 2), 0.5), np.ones((4, 2)), ["a", "b"]) is None
