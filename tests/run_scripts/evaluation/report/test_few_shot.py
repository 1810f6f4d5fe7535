"""The page of `biomedclip evaluate few-shot --report`."""

import re
from pathlib import Path

import pytest
from helpers.benchmark_files import save_drawn

from biomedclip.run_scripts.evaluate import main as evaluate
from biomedclip.run_scripts.evaluation.few_shot import task as module
from biomedclip.run_scripts.evaluation.few_shot.finished import FITS


@pytest.fixture
def classes(tmp_path) -> Path:
    for order, label in enumerate(("few & spots", "many", "none", "other")):
        for place, (split, images) in enumerate({"train": 4, "validation": 2, "test": 3}.items()):
            for number in range(images):
                path = tmp_path / "scans" / split / label / f"{order}{place}{number}.png"
                save_drawn(path, [order, place, number], 32, positive=order % 2 == 1)
    return tmp_path / "scans"


def page_of(small_checkpoint, classes: Path, out: Path, *options: str) -> str:
    arguments = ["few-shot", "--model", small_checkpoint, "--data", classes, "--output-dir", out, "--report", *options]
    evaluate(list(map(str, arguments)))
    return (out / "report.html").read_text(encoding="utf-8")


def test_the_page_has_the_methods_the_plots_and_the_errors_of_the_first_draw(small_checkpoint, classes, tmp_path):
    options = ["--methods", "zero-shot", "linear-probe", "--shots", "1", "2", "--draws", "2", "--corruptions", "mark"]
    page = page_of(small_checkpoint, classes, tmp_path / "out", *options)
    for text in ("linear-probe, 2 shots of a class, draw with seed 0", "Corrupted test images", "few &amp; spots"):
        assert text in page
    assert "No image that was drawn is a copy of a test image" in page and "few & spots" not in page
    assert page.count('<img class="plot" src="data:image/png') == 2
    rows = re.findall(r'<th scope="row">(zero-shot|linear-probe)</th>(.*?)</tr>', page)
    assert [row[0] for row in rows] == ["zero-shot", "linear-probe"]
    assert all(re.search(r"<td>[01][.][0-9]{3} \[", cells) for _, cells in rows), "with intervals"
    before = page
    (tmp_path / "out" / FITS).unlink()
    assert page_of(small_checkpoint, classes, tmp_path / "out", *options) == before


def test_published_values_are_below_those_of_the_same_method(small_checkpoint, classes, tmp_path, monkeypatch):
    published = module.published_few_shot
    monkeypatch.setattr(module, "published_few_shot", lambda *args, **kwargs: published("busi", [1]))
    options = ["--methods", "zero-shot", "tip-adapter", "--shots", "1", "--draws", "1", "--no-find-leaks"]
    page = page_of(small_checkpoint, classes, tmp_path / "out", *options)
    first, second = page.index(">tip-adapter<"), page.index("tip-adapter, published (")
    assert first < second < page.index("biomedcoop, published (") and "0.492" in page
    assert "were not looked for" in page


def test_base_and_novel_classes_have_their_own_confusions(small_checkpoint, classes, tmp_path):
    page = page_of(small_checkpoint, classes, tmp_path / "out", "--methods", "zero-shot", "--base-to-novel")
    assert page.count("Confusion matrix") == 2 and "Images of the novel classes:" in page
    assert "Base classes: few &amp; spots, many." in page and "Novel classes: none, other." in page
