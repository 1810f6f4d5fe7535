"""The report of visual question answering, as text and in headless Chromium."""

import html

import numpy as np
import pytest
from helpers.benchmark_files import write_vqa_rad
from helpers.model_results import read_results
from helpers.report_pages import HOSTILE, QUOTED, check_in_chromium, check_page, figures_in, needs_chromium, words_of
from PIL import Image

from biomedclip.run_scripts.evaluation.question_kinds import KIND, measure_kinds
from biomedclip.run_scripts.evaluation.report.questions import write_question_report
from biomedclip.run_scripts.evaluation.visual_question_answering import answer_metrics, f1_metrics
from biomedclip.run_scripts.main import main


def answers_of(number: int) -> list[dict]:
    """Answers of which every third is wrong. The score is the number of the question by 100."""
    return [
        {
            "name": f"{place}",
            "image": f"{HOSTILE} {place}.png",
            "question": f"{QUOTED} {place}?",
            "answer_type": "closed" if place % 2 else "open",
            "answer": "Yes",
            "given": "no" if place % 3 == 0 else "yes",
            "score": place / 100,
            "right": place % 3 != 0,
            "can_be_given": True,
            "f1": float(place % 3 != 0),
            "top_answers": [["no" if place % 3 == 0 else "yes", place / 100], [HOSTILE, 0.0]],
        }
        for place in range(number)
    ]


def write(answers, path, images=None, **fields) -> str:
    metrics = answer_metrics(answers, 0) | f1_metrics(answers, 0)
    metrics |= {"chance": 0.25, "open_chance": 0.125, "closed_chance": 0.375}
    results = {
        "task": "visual-question-answering",
        "benchmark": "vqa_rad",
        "command": f"biomedclip evaluate {HOSTILE}",
        "date": "2026-01-01",
        "model": {"name": "m", "type": "biomedclip", "weights": "00"},
        "data": {"path": "d", "split": "test", "fingerprint": "0", "damaged": [], "notes": [QUOTED], "leaks": None},
        "metrics": metrics,
        "paper": {"accuracy": 0.727},
        "settings": {"f1_tokenizer": "words"},
        "versions": {},
        **fields,
    }
    picture = Image.fromarray(np.zeros((20, 30), dtype=np.uint8))
    images = {row["image"]: picture for row in answers} if images is None else images
    write_question_report(path, results, answers=answers, images=images)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path, answers = tmp_path_factory.mktemp("report") / "report.html", answers_of(90)
    kinds = measure_kinds(answers, {row["name"]: HOSTILE if int(row["name"]) % 2 else "PRES" for row in answers}, 0)
    kinds[KIND]["PRES"]["few"] = True
    write(answers, path, subgroups=kinds)
    return path


def test_all_texts_are_escaped_and_nothing_is_loaded(page):
    text = page.read_text(encoding="utf-8")
    check_page(text)
    assert html.escape(HOSTILE) in text and html.escape(QUOTED) in text


def test_the_page_has_accuracy_by_type_with_intervals_and_baselines(page):
    words = words_of(page.read_text(encoding="utf-8"))
    for prefix, chance in (("", "0.25 0.727"), ("open ", "0.125 -"), ("closed ", "0.375 -")):
        assert f" {prefix}accuracy 0.6667 [" in words and f"] {chance}" in words
    assert f"{KIND} questions accuracy warning" in words and "PRES 45 0.667 [" in words and "few images" in words
    assert "yes as no 30" in words


def test_confident_wrong_answers_and_uncertain_answers_are_in_order(page):
    wrong, uncertain = page.read_text(encoding="utf-8").split("<h2>The least certain answers</h2>")
    wrong = wrong.split("<h2>The most confident wrong answers</h2>")[1]
    expected = [place for place in reversed(range(90)) if place % 3 == 0][:25]
    assert figures_in(wrong) == [f"{html.escape(HOSTILE)} {place}.png" for place in expected]
    assert figures_in(uncertain) == [f"{html.escape(HOSTILE)} {place}.png" for place in range(25)]
    assert 'true: <strong>Yes</strong>, <span class="wrong">wrong</span><ol><li>no: 0.870</li>' in wrong


def test_missing_images_and_missing_answers_are_no_errors(page, tmp_path):
    answers = answers_of(4)
    answers[1] |= {"given": None, "score": None, "right": None, "f1": None, "top_answers": []}
    images = {answers[0]["image"]: tmp_path / "gone.png"}
    text = write(answers, tmp_path / "report.html", images)
    assert text.count("no image") == 2 + 3 and "accuracy undefined" in words_of(text)
    nothing = [row | {"given": None, "score": None, "right": None, "f1": None, "top_answers": []} for row in answers]
    assert "There are no wrong answers." in write(nothing, tmp_path / "report.html", images)


def test_kinds_have_the_accuracy_of_their_questions_and_a_warning_for_few_images():
    answers = answers_of(90)
    names = {row["name"]: "" if int(row["name"]) < 80 else "SIZE" for row in answers}
    found = measure_kinds(answers, names, 0)[KIND]
    assert list(found) == ["(missing)", "SIZE"]
    assert (found["SIZE"]["questions"], found["SIZE"]["few"], found["(missing)"]["few"]) == (10, True, False)
    assert found["SIZE"]["accuracy"] == sum(row["right"] for row in answers[80:]) / 10
    assert measure_kinds(answers, dict.fromkeys(names, ""), 0) == {}


def test_the_command_writes_the_report_with_the_kinds_of_the_dataset(answerer, tmp_path):
    asked = [
        {"question": f"{HOSTILE} {number}?", "question_type": "PRES " if number % 2 else HOSTILE}
        | {"image_name": f"{number}.jpg", "phrase_type": "test_freeform" if number < 6 else "freeform"}
        for number in range(8)
    ]
    write_vqa_rad(tmp_path / "VQA_RAD", asked)
    command = ["vqa", "--model", answerer, "--benchmark", "vqa_rad", "--data", str(tmp_path / "VQA_RAD"), "--report"]
    assert main(["evaluate", *command, "--output-dir", str(tmp_path / "out")]) == 0
    results = read_results(tmp_path / "out")
    assert {kind: found["questions"] for kind, found in results["subgroups"][KIND].items()} == {HOSTILE: 3, "PRES": 3}
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    check_page(text)
    assert "images looks like a training image" in text or "test images are, or look like" in text
    assert len(figures_in(text)) >= 6 and "no image" not in text


@pytest.mark.slow
@needs_chromium
def test_chromium_shows_the_page_offline_on_a_phone_and_as_pdf(page, tmp_path):
    check_in_chromium(page, tmp_path)
