"""Pictures of single questions, as `biomedclip evaluate visual-question-answering --examples` writes them."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from markdown_it import MarkdownIt
from PIL import Image

from biomedclip.processing.benchmarks import VisualQuestion
from biomedclip.run_scripts.evaluation.question_examples import choose_examples, write_examples


def rows_of(right: list[bool | None]) -> list[dict]:
    return [
        {
            "name": f"{number}",
            "image": f"{number}.png",
            "question": f"Is this image {number}?",
            "answer": "Yes",
            "given": None if hit is None else "yes" if hit else "no",
            "score": None if hit is None else 0.75,
            "right": hit,
            "top_answers": [] if hit is None else [["yes" if hit else "no", 0.75], ["no" if hit else "yes", 0.5]],
        }
        for number, hit in enumerate(right)
    ]


def benchmark_of(rows: list[dict], image: Image.Image | None = None) -> SimpleNamespace:
    image = image or Image.new("RGB", (40, 30), (200, 30, 30))
    questions = [
        VisualQuestion(row["question"], row["answer"], "closed", image, row["image"], row["name"]) for row in rows
    ]
    return SimpleNamespace(name="vqa_rad", split="test", questions=questions)


@pytest.mark.parametrize(
    ("right", "wrong", "count", "of_right"),
    [(10, 10, 6, 3), (10, 10, 5, 3), (1, 10, 6, 1), (10, 1, 6, 5), (10, 0, 6, 6), (0, 10, 6, 0), (3, 4, 100, 3)]
    + [(3, 4, 7, 3), (1, 1, 1, 1), (0, 1, 1, 0)],
)
def test_half_of_the_examples_are_right_as_far_as_there_are_any(right, wrong, count, of_right):
    rows = rows_of([True] * right + [False] * wrong)
    chosen = choose_examples(rows, count, seed=0)
    assert len(chosen) == len(set(chosen)) == min(count, right + wrong) and chosen == sorted(chosen)
    assert sum(bool(rows[place]["right"]) for place in chosen) == of_right


def test_the_seed_alone_chooses_the_examples():
    rows = rows_of([True, False] * 50)
    assert choose_examples(rows, 6, seed=3) == choose_examples(rows, 6, seed=3) != choose_examples(rows, 6, seed=4)
    drawn = Counter(place for seed in range(300) for place in choose_examples(rows, 10, seed))
    assert len(drawn) == 100, "every question can be chosen"


def test_the_page_lists_every_picture_with_its_answers_and_states_the_choice(tmp_path):
    rows = rows_of([True, False, None, True])
    examples = write_examples(rows, benchmark_of(rows), 3, 0, tmp_path)
    page = (tmp_path / "examples.md").read_text()
    assert "3 of 4 questions, chosen at random with seed 0: 2 answered correctly, 1 not" in page
    assert [example["file"] for example in examples] == [f"examples/question_{n:03}.png" for n in (1, 2, 3)]
    for example in examples:
        with Image.open(tmp_path / example["file"]) as picture:
            assert picture.format == "PNG" and picture.width > 600
        assert f"]({example['file']})" in page and example["right"] == rows[int(example["name"])]["right"]
    assert "yes (0.75)" in page


def test_pictures_of_an_earlier_run_are_replaced_and_other_files_stay(tmp_path):
    rows = rows_of([True, False] * 4)
    write_examples(rows, benchmark_of(rows), 8, 0, tmp_path)
    (tmp_path / "examples" / "question_of_mine.png").write_bytes(b"")
    write_examples(rows, benchmark_of(rows), 2, 0, tmp_path)
    names = sorted(path.name for path in (tmp_path / "examples").iterdir())
    assert names == ["question_001.png", "question_002.png", "question_of_mine.png"]


IMAGES = {
    "gray": Image.new("L", (50, 40), 90),
    "16 bits": Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16),
    "float": Image.fromarray(np.linspace(-3, 900, 4096, dtype=np.float32).reshape(64, 64)),
    "palette": Image.new("P", (20, 20), 3),
    "transparent": Image.new("RGBA", (20, 20), (255, 0, 0, 90)),
    "one row": Image.new("L", (3000, 1), 200),
    "one column": Image.new("1", (1, 3000)),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_images_of_every_mode_and_shape_are_drawn(image, tmp_path):
    rows = rows_of([True])
    (example,) = write_examples(rows, benchmark_of(rows, image), 1, 0, tmp_path)
    assert Image.open(tmp_path / example["file"]).height > 300


def test_a_deep_gray_image_keeps_its_contrast(tmp_path):
    rows = rows_of([True])
    (example,) = write_examples(rows, benchmark_of(rows, IMAGES["16 bits"]), 1, 0, tmp_path)
    picture = np.asarray(Image.open(tmp_path / example["file"]).convert("L"))
    middle = picture[60:-60, 60:400]  # the image without its frame
    assert middle.min() < 60 and middle.max() > 200 and len(np.unique(middle)) > 100


TEXTS = {
    "empty": "",
    "long": "Which of the lobes is " * 200,
    "one long word": "x" * 100_000,
    "unbalanced mathematics": "$\\frac{1}{$ and $$",
    "markup": "<b>bold</b> | [link](https://evil.example) `code` ![x](y) {x} %s",
    "lines": "a\nb\r\nc\td\x00\x1b[31m",
    "Chinese": "检查图像中的肺部是否存在异常阴影以及心脏是否增大" * 3,
    "right to left": "هل الرئة اليسرى طبيعية؟",
    "emoji": "Lung 😀?",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_is_drawn_and_stays_text_in_the_page(text, tmp_path):
    rows = rows_of([False, False])
    rows[0] |= {"question": text, "answer": text, "given": text, "top_answers": [[text, 0.9], ["no", 0.1]]}
    benchmark = benchmark_of(rows)
    benchmark.name = text
    examples = write_examples(rows, benchmark, 5, 0, tmp_path)
    for example in examples:
        assert Image.open(tmp_path / example["file"]).size[0] > 600
    html = MarkdownIt("commonmark").enable("table").render((tmp_path / "examples.md").read_text())
    assert html.count("<tr>") == 3 and html.count("<img") == 2 and "<b>" not in html and "<a " not in html


def test_the_characters_that_no_font_has_are_named_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("biomedclip.run_scripts.cli.fonts._other_fonts", list)
    rows = rows_of([True, False])
    for row in rows:
        row["question"] = "肺?"
    write_examples(rows, benchmark_of(rows), 2, 0, tmp_path)
    output = " ".join(capsys.readouterr().out.split())
    assert output.count("No installed font has some characters of the examples (肺)") == 1


def test_the_bars_show_the_probabilities_and_the_right_answer_in_green(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    barh = Axes.barh
    monkeypatch.setattr(
        Axes,
        "barh",
        lambda self, *args, **kwargs: (drawn.append((args[1], kwargs["color"])), barh(self, *args, **kwargs)),
    )
    rows = rows_of([False])
    rows[0]["top_answers"] = [["no", 0.8], ["YES.", 0.4], ["left", 0.2]]
    write_examples(rows, benchmark_of(rows), 1, 0, tmp_path)
    widths = np.array([width for width, _ in drawn])
    assert widths / widths[0] == pytest.approx([1, 0.5, 0.25])
    assert [colour for _, colour in drawn] == ["tab:red", "tab:green", "0.6"]


def test_results_are_json(tmp_path):
    rows = rows_of([True, None])
    json.dumps(write_examples(rows, benchmark_of(rows), 2, 0, Path(tmp_path)), allow_nan=False)
