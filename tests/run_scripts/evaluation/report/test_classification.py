"""The report of a classification, as text and in headless Chromium."""

import html
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from helpers.benchmark_files import drawn_pixels
from helpers.model_results import read_results
from helpers.report_pages import HOSTILE, QUOTED, check_in_chromium, check_page, needs_chromium, words_of
from PIL import Image

from biomedclip.processing.benchmarks.leaks import Leaks
from biomedclip.run_scripts.evaluation.predictions import softmax_predictions
from biomedclip.run_scripts.evaluation.report.classification import MOST_CLASSES, write_report
from biomedclip.run_scripts.evaluation.report.sections import LEAKS
from biomedclip.run_scripts.evaluation.robustness import summarize_paraphrases


@pytest.fixture
def hostile_data(tmp_path) -> Path:
    """Images with hostile names, in a table with hostile labels and subgroups."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = ["image,label,sex,device"]
    for number in range(40):
        name = f"{HOSTILE.replace('/', '_')}{number}.png"
        Image.fromarray(drawn_pixels(number, 48, number % 2 == 0)).save(folder / name)
        label = (QUOTED, "normal")[number % 2].replace('"', '""')
        lines.append(f'"{name}","{label}",{"" if number == 5 else "FM"[number % 2 == number % 3]},"{HOSTILE}"')
    (folder / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder / "table.csv"


@pytest.fixture
def report(measure, hostile_data, tmp_path) -> str:
    measure(
        "zero-shot", hostile_data, "--report", "--subgroup-column", "sex", "device", "--templates", f"{HOSTILE} {{}}"
    )
    return (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_all_texts_are_escaped_and_nothing_is_loaded(report, tmp_path):
    check_page(report)
    assert html.escape(HOSTILE) in report and html.escape(QUOTED) in report
    assert report.count("<img") >= 25


def test_the_page_has_the_numbers_of_the_results(report, tmp_path):
    results = read_results(tmp_path / "out")
    metrics = results["metrics"]
    for name in ("accuracy", "auroc"):
        low, high = metrics[f"{name}_interval"]
        assert f"[{low:.3f}, {high:.3f}]" in report
    assert f"{results['decisions']['calibration']['ece']:.4g}" in report
    assert results["model"]["weights"] in report and results["versions"]["torch"] in report
    assert (
        report.count("<figure>")
        == 25
        + sum(sum(row) for row in metrics["confusion_matrix"])
        - sum(metrics["confusion_matrix"][number][number] for number in range(2))
        or report.count("<figure>") == 50
    )
    assert "Leaks between training and test images were not looked for." in report


def test_subgroups_have_their_own_metrics_and_a_warning_if_they_are_small(report, tmp_path):
    found = read_results(tmp_path / "out")["subgroups"]
    assert list(found) == ["sex", "device"] and list(found["sex"]) == ["(missing)", "F", "M"]
    assert sum(value["images"] for value in found["sex"].values()) == 40
    assert found["sex"]["(missing)"]["images"] == 1 and found["sex"]["(missing)"]["auroc"] is None
    (all_images,) = found["device"].values()
    metrics = read_results(tmp_path / "out")["metrics"]
    assert all_images["accuracy"] == metrics["accuracy"] and all_images["auroc"] == metrics["auroc"]
    assert not all_images["few"] and found["sex"]["F"]["few"]
    assert "Do not compare these subgroups." in report


def test_galleries_are_ordered_and_unreadable_images_are_named(tmp_path):
    scores = np.array([[3.0, 0.0], [5.0, 0.0], [0.1, 0.0], [0.0, 4.0]])
    files = ["wrong a bit.png", "wrong a lot.png", "uncertain.png", "certain.png"]
    images = [Image.new("L", (20, 10)), Image.new("RGBA", (10, 300)), tmp_path / "gone.png", Image.new("I;16", (9, 9))]
    found = softmax_predictions(scores, ["b", "b", "a", "b"], ["a", "b"], files=files, images=images)
    write_report(tmp_path / "report.html", results_of(found), found)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    worst, uncertain = text.split("<h2>The least certain images</h2>")
    worst = worst.split("<h2>The worst errors</h2>")[1]
    assert re.findall(r"<figcaption>([^<]*)<br>", worst) == ["wrong a lot.png", "wrong a bit.png"]
    assert re.findall(r"<figcaption>([^<]*)<br>", uncertain)[0] == "uncertain.png"
    assert text.count("no image") == 1


def results_of(predictions, **also):
    """Results with the fields that a report needs."""
    classes = list(predictions.classes)
    pairs = Counter(zip(predictions.true, predictions.predicted, strict=True))
    counts = [[pairs[true, given] for given in classes] for true in classes]
    return {
        "task": "zero-shot",
        "benchmark": None,
        "command": "biomedclip evaluate",
        "date": "2026-01-01",
        "model": {"name": "m", "type": "biomedclip", "weights": "00"},
        "data": {"path": "d", "split": "test", "fingerprint": "0", "damaged": [], "notes": [], "leaks": None},
        "metrics": {
            "accuracy": 0.5,
            "accuracy_interval": [0.1, 0.9],
            "balanced_accuracy": None,
            "auroc": None,
            "most_frequent_class": 0.5,
            "chance": 0.5,
            "images": len(predictions.true),
            "recall_of_class": dict.fromkeys(classes),
            "confusion_matrix": counts,
        },
        "paper": {},
        "settings": {},
        "versions": {},
        **also,
    }


def test_many_classes_and_missing_scores_give_a_page_of_bounded_size(tmp_path):
    generator = np.random.default_rng(0)
    classes = [f"class {number} {'x' * 600}" for number in range(400)]
    scores = generator.normal(size=(800, 400))
    truth = [classes[number % 400] for number in range(800)]
    found = softmax_predictions(scores, truth, classes, files=["f" * 5000] * 800)
    write_report(tmp_path / "report.html", results_of(found), found)
    assert (tmp_path / "report.html").stat().st_size < 1_500_000
    assert (
        "The most frequent confusions" in (tmp_path / "report.html").read_text(encoding="utf-8") and MOST_CLASSES < 400
    )
    scores[3] = np.nan
    found = softmax_predictions(scores, truth, classes, files=["f"] * 800)
    results = results_of(found)
    results["metrics"] |= {"confusion_matrix": None, "undefined": {"accuracy": "the scores are NaN"}}
    write_report(tmp_path / "report.html", results, found)
    assert "Undefined: accuracy: the scores are NaN." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_baseline_of_balanced_accuracy_is_that_of_the_classes_with_images(tmp_path):
    classes = ["a", "b", "c", "d", "e"]
    found = softmax_predictions(np.eye(5)[:2], ["a", "b"], classes, files=["f", "g"])
    results = results_of(found)
    results["metrics"] |= {"chance": 0.2, "recall_of_class": dict.fromkeys(classes) | {"a": 1.0, "b": 1.0}}
    write_report(tmp_path / "report.html", results, found)
    text = re.sub(r"<[^>]+>", " ", (tmp_path / "report.html").read_text(encoding="utf-8"))
    (row,) = re.findall(r"balanced accuracy\s+\S+\s+-\s+(\S+)", text)
    assert float(row) == 0.5


@pytest.mark.slow
@needs_chromium
def test_chromium_shows_the_page_offline_on_a_phone_and_as_pdf(report, tmp_path):
    check_in_chromium(tmp_path / "out" / "report.html", tmp_path)


def test_leaks_are_listed_with_the_reason(tmp_path):
    found = softmax_predictions(np.eye(2), ["a", "b"], ["a", "b"], files=["0.png", "1.png"])
    results = results_of(found)
    assert set(LEAKS) == {name.name for name in fields(Leaks) if name.name.startswith("same_")} | {"similar"}
    for reason, words in LEAKS.items():
        examples = {reason: [{"test": "<0>.png", "train": "7.png"}]}
        results["data"]["leaks"] = Leaks(9, 2, leaked=1, examples=examples).as_dict()
        write_report(tmp_path / "report.html", results, found)
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert f"&lt;0&gt;.png and 7.png ({words})" in page


def test_robustness_is_in_the_report_if_it_was_measured(tmp_path):
    found = softmax_predictions(np.eye(2), ["a", "b"], ["a", "b"], files=["0.png", "1.png"])
    results = results_of(found)
    entries = [
        {"strength": 1, "value": 0.5, "accuracy": 0.75, "drop": 0.125, "drop_interval": [0.0625, 0.25]},
        {"strength": 2, "value": 1.0, "accuracy": None, "drop": None, "drop_interval": None},
    ]
    results["metrics"]["robustness"] = {
        "metric": "accuracy",
        "clean": 0.875,
        "mean": 0.75,
        "corruptions": {"noise": entries},
    }
    values = {f"{HOSTILE} {{}}": 0.5, "a photo of {}": 0.625, "{}": None}
    results["metrics"]["prompt_sensitivity"] = summarize_paraphrases("accuracy", values)
    write_report(tmp_path / "report.html", results, found)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    check_page(page)
    words = words_of(page)
    assert "Without corruption, accuracy is 0.875. Its mean over all corruptions and strengths is 0.750." in words
    assert "noise 0.750 undefined" in words and "noise 0.125 [0.062, 0.250] undefined" in words
    assert "From 0.500 to 0.625, median 0.562, standard deviation 0.088." in words
    assert words.index("a photo of {} 0.625") < words.index("window.hacked = 1") < words.index("{} undefined")
    assert page.count("<img") == 2, "of curves and of corruptions"
