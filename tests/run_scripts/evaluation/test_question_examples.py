"""Plots of single questions with the answers of a model."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.axes import Axes
from PIL import Image

from biomedclip.processing.benchmarks import VisualQuestion
from biomedclip.run_scripts.evaluation.question_examples import choose_examples, write_examples


def rows_of(right: list[bool | None]) -> list[dict]:
    return [
        {"name": f"{number}", "image": f"{number}.png", "question": f"Is this image {number}?", "answer": "Yes"}
        | {"given": None if hit is None else "yes" if hit else "no", "score": None if hit is None else 0.75}
        | {"right": hit}
        | {"top_answers": [] if hit is None else [["yes" if hit else "no", 0.75], ["no" if hit else "yes", 0.5]]}
        for number, hit in enumerate(right)
    ]


def write(rows: list[dict], count: int, folder, image=None, name="vqa_rad") -> list[dict]:
    image = image or Image.new("RGB", (40, 30), (200, 30, 30))
    questions = [
        VisualQuestion(row["question"], row["answer"], "closed", image, row["image"], row["name"]) for row in rows
    ]
    return write_examples(rows, SimpleNamespace(name=name, split="test", questions=questions), count, 0, folder)


@pytest.mark.parametrize(
    ("right", "wrong", "count", "of_right"),
    [(10, 10, 6, 3), (10, 10, 5, 3), (1, 10, 6, 1), (10, 1, 6, 5), (10, 0, 6, 6), (0, 10, 6, 0), (3, 4, 100, 3)]
    + [(3, 4, 7, 3), (1, 1, 1, 1), (0, 1, 1, 0)],
)
def test_half_of_the_examples_have_a_right_answer_if_there_are_enough(right, wrong, count, of_right):
    rows = rows_of([True] * right + [False] * wrong)
    chosen = choose_examples(rows, count, seed=0)
    assert len(chosen) == len(set(chosen)) == min(count, right + wrong) and chosen == sorted(chosen)
    assert sum(bool(rows[place]["right"]) for place in chosen) == of_right


def test_the_seed_chooses_the_examples():
    rows = rows_of([True, False] * 50)
    assert choose_examples(rows, 6, seed=3) == choose_examples(rows, 6, seed=3) != choose_examples(rows, 6, seed=4)
    drawn = Counter(place for seed in range(300) for place in choose_examples(rows, 10, seed))
    assert len(drawn) == 100, "every question can be chosen"


def test_the_page_lists_every_plot_with_its_answers(tmp_path):
    rows = rows_of([True, False, None, True])
    examples = write(rows, 3, tmp_path)
    page = (tmp_path / "examples.md").read_text()
    assert "3 of 4 questions, chosen at random with seed 0: 2 answered correctly, 1 not" in page
    assert [example["file"] for example in examples] == [f"examples/question_{n:03}.png" for n in (1, 2, 3)]
    for example in examples:
        with Image.open(tmp_path / example["file"]) as plot:
            assert plot.format == "PNG" and plot.width > 600
        assert f"]({example['file']})" in page and example["right"] == rows[int(example["name"])]["right"]
    assert "yes (0.75)" in page
    json.dumps(examples, allow_nan=False)


def test_plots_of_an_earlier_run_are_replaced_and_other_files_stay(tmp_path):
    rows = rows_of([True, False] * 2)
    write(rows, 4, tmp_path)
    (tmp_path / "examples" / "question_of_mine.png").write_bytes(b"")
    write(rows, 2, tmp_path)
    names = sorted(path.name for path in (tmp_path / "examples").iterdir())
    assert names == ["question_001.png", "question_002.png", "question_of_mine.png"]


IMAGES = {
    "gray": Image.new("L", (50, 40), 90),
    "float": Image.fromarray(np.linspace(-3, 900, 4096, dtype=np.float32).reshape(64, 64)),
    "palette": Image.new("P", (20, 20), 3),
    "transparent": Image.new("RGBA", (20, 20), (255, 0, 0, 90)),
    "one row": Image.new("L", (3000, 1), 200),
    "one column": Image.new("1", (1, 3000)),
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_images_of_every_mode_and_shape_are_drawn(image, tmp_path):
    (example,) = write(rows_of([True]), 1, tmp_path, image)
    assert Image.open(tmp_path / example["file"]).height > 300


def test_a_gray_image_of_16_bits_keeps_its_contrast(tmp_path):
    image = Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16)
    (example,) = write(rows_of([True]), 1, tmp_path, image)
    plot = np.asarray(Image.open(tmp_path / example["file"]).convert("L"))
    middle = plot[60:-60, 60:400]  # the image without its frame
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
    for example in write(rows, 5, tmp_path, name=text):
        assert Image.open(tmp_path / example["file"]).size[0] > 600
    html = MarkdownIt("commonmark").enable("table").render((tmp_path / "examples.md").read_text())
    assert html.count("<tr>") == 3 and html.count("<img") == 2 and "<b>" not in html and "<a " not in html


def test_characters_without_a_font_are_named_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("biomedclip.run_scripts.cli.fonts._other_fonts", list)
    monkeypatch.setattr("biomedclip.run_scripts.cli.fonts._reported", set())
    rows = [row | {"question": "肺?"} for row in rows_of([True, False])]
    write(rows, 2, tmp_path)
    assert caplog.text.count("No installed font has these characters, which are drawn as boxes: 肺") == 1


def test_bars_show_the_probabilities_with_the_right_answer_in_green(tmp_path, monkeypatch):
    drawn, barh = [], Axes.barh

    def record(self, *args, **kwargs):
        drawn.append((args[1], kwargs["color"]))
        return barh(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "barh", record)
    rows = rows_of([False])
    rows[0]["top_answers"] = [["no", 0.8], ["YES.", 0.4], ["left", 0.2]]
    write(rows, 1, tmp_path)
    widths = np.array([width for width, _ in drawn])
    assert widths / widths[0] == pytest.approx([1, 0.5, 0.25])
    assert [color for _, color in drawn] == ["tab:red", "tab:green", "0.6"]
