"""Text of data, results and reports in everything that people read: it stays text, whatever it holds."""

import copy
import json
import logging
import os
import re
import socket
import unicodedata
from pathlib import Path

import pytest
from helpers.build_reports import full_scale_report
from helpers.model_results import retrieval_result, zero_shot_result
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt
from matplotlib.text import Text
from PIL import Image

from biomedclip.model_cards.dataset_card import fill_dataset_card
from biomedclip.model_cards.escaping import code, latex, lines, markdown, one_line
from biomedclip.model_cards.model_card import fill_model_card
from biomedclip.run_scripts.cli import plots, reporting
from biomedclip.run_scripts.cli.plots import (
    Answer,
    Query,
    plot_answers,
    plot_comparison,
    plot_report,
    plot_retrieved_images,
)
from biomedclip.run_scripts.evaluation import comparison
from biomedclip.run_scripts.evaluation.comparison import Value, compare
from biomedclip.run_scripts.evaluation.suite import comparison as suite_comparison
from biomedclip.run_scripts.evaluation.suite.comparison import compare_suite
from biomedclip.run_scripts.evaluation.zero_shot import show_classification
from biomedclip.run_scripts.hub.card_facts import card_facts
from biomedclip.run_scripts.main import main


BENIGN = "plain"
HOSTILE = {
    "image": "![x](https://evil.example/a.png)",
    "link": "[click](javascript:alert(1))",
    "reference": "[x]: https://evil.example",
    "bare address": "https://evil.example www.evil.example a@evil.example",
    "angle brackets": "<https://evil.example>",
    "script": "<script>alert(1)</script>",
    "comment": "<!-- hidden",
    "entity": "&lt;img src=x onerror=alert(1)&gt;",
    "cells": "a | b | c",
    "escaped bar": "a \\| b",
    "backslash at the end": "a\\",
    "backticks": "`a` ``b ```",
    "fence": "```\nout of the block\n```",
    "new row": "a\n| b | c |\n|---|---|\n| d | e |",
    "heading": "# a\n\n## b",
    "rule": "---",
    "underline": "a\n===",
    "list": "- a\n- b",
    "numbers": "1. a",
    "quote": "> a",
    "emphasis": "**a** _b_ ~~c~~ __d__",
    "mathematics": "$\\frac{1}{$ $$x_1$$ \\(y\\)",
    "dollar": "a $ b",
    "yaml": "a: b\nlicense: mit\n---\n# out",
    "yaml tag": "!!python/object/apply:os.system ['true']",
    "quotes": "\"a\" 'b' \\",
    "template": "${title} {{ card }} $name {% x %}",
    "latex": "\\input{/etc/passwd} a & b % c # d _ e ^ f ~ g \\\\",
    "bidirectional": "a\u202eb\u2066c\u200fd",
    "zero width": "a\u200bb\ufeffc\u00ad",
    "escape sequence": "\x1b[31mred\x1b]8;;https://evil.example\x07link\x1b]8;;\x07\x9b31m",
    "other controls": "a\rb\x00c\x08d\u2028e\x85f",
    "rich markup": "[bold red]a[/] [link=https://evil.example]b[/link] [/nothing] :smile:",
}
every = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())


def structure(document: str) -> list:
    """What a renderer of Markdown makes of a document: blocks, cells, links and so on, without their text."""
    found = []
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(document):
        found.append((token.type, token.info))
        found += [child.type for child in token.children or []]
    return found


def body(card: str) -> str:
    """A card without its metadata."""
    return card.split("\n---\n", 1)[1]


def assert_visible(text: str) -> None:
    """No control, bidirectional or zero-width character but the end of a line."""
    assert not [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs")]


def facts_with(text: str) -> dict:
    """Everything that a model's card is filled from, with a text at every place that holds one."""
    result = zero_shot_result()
    result |= {"benchmark": text, "command": f"biomedclip {text}", "date": text, "paper_source": text}
    result["data"] = copy.deepcopy(result["data"])
    result["data"] |= {"split": text, "fingerprint": text, "notes": [text], "selection": {"cancer": text}}
    result["published"] = published_with(text)
    result["data"]["damaged"] = [{"name": text, "reason": text}]
    result["metrics"] = result["metrics"] | {
        f"accuracy {text}": 0.5,
        "recall_of_class": {text: 0.25},
        f"chance {text}": 0.5,
        "auroc": None,
        "undefined": {f"auroc {text}": text},
    }
    result |= {"settings": {text: text}, "versions": {text: text}}
    own = retrieval_result(task=text, benchmark=None)
    own["data"] = own["data"] | {"path": text}
    tower = {"layers": 1, "width": 2, "heads": 3, "feed_forward": 4, "input": text}
    model = {
        **{"parameters": 1, "image_parameters": 2, "text_parameters": 3, "embedding": 4, "context_length": 5},
        **{"image_tower": tower, "text_tower": tower, "logit_scale": 1.0, "dtype": text, "layout": "transformers"},
        **{"open_clip_obstacle": None, "weights": text},
    }
    versions = {"biomedclip": text}
    verification = {"images": 1, "labels": 2, "same_best_label": 1, "bert_assumed": False}
    verification |= {"largest_difference": {text: 1e-7}}
    return card_facts(
        model,
        conversion={"source": text, "layout": text, "versions": versions, "verification": verification},
        training={
            "results": {"steps": 3, "versions": versions},
            "last": {text: 0.5},
            "recipe": {text: text, "a": [text]},
        },
        dataset={
            **{"source": text, "inventory_date": text, "built": text, "synthetic": False, "pairs": 4, "id": text},
            **{"splits": {"train": {"pairs": 3}}, "licenses": {text: 4}, "articles": {"kept": 2}, "versions": versions},
        },
        results=[result, own],
        license=text,
        title=text,
        name="lab/model",
    )


@every
def test_a_models_card_has_the_same_structure_with_any_text(text):
    card = fill_model_card(facts_with(text))
    assert structure(body(card)) == structure(body(fill_model_card(facts_with(BENIGN))))
    assert_visible(card)
    data = ModelCard(card).data
    assert set(data.to_dict()) == set(ModelCard(fill_model_card(facts_with(BENIGN))).data.to_dict())
    assert data.license == one_line(text) and data.model_name == one_line(text)


def report_with(text: str) -> dict:
    report = full_scale_report()
    report |= {"source": text, "inventory_date": text, "built": text, "license_choice": text}
    report["articles"] = report["articles"] | {"dropped": {text: 1}}
    report["figures"] = report["figures"] | {"skipped": {text: 2}}
    for name in ("licenses", "formats", "modes"):
        report[name] = {text: 3}
    report["versions"] = {"biomedclip": text, text: text}
    report["options"] = {"source": text, "caption_tokenizer": text}
    report["caption_length"] = report["caption_length"] | {"tokenizer": text, "unit": text}
    report["splits"] = {text: {"articles": 1, "pairs": 2, "shards": 3, "bytes": 4}}
    return report


@every
def test_a_data_sets_card_has_the_same_structure_with_any_text(text):
    card = fill_dataset_card(report_with(text))
    assert structure(body(card)) == structure(body(fill_dataset_card(report_with(BENIGN))))
    assert_visible(card)
    data = DatasetCard(card).data.to_dict()
    assert data["license"] == "other" and data["dataset_info"]["splits"][0]["name"] == one_line(text)
    assert data["configs"][0]["data_files"] == [{"split": one_line(text), "path": f"data/{one_line(text)}-*.parquet"}]


def published_with(text: str) -> list[dict]:
    return [{"model": text, "values": {"accuracy": 0.5}, "source": text, "read_from_figure": True}]


def results_with(text: str) -> list[dict]:
    """Of two models, with a text in every place that a comparison shows."""
    results = [zero_shot_result(benchmark=text, paper_source=text, published=published_with(text)) for _ in range(2)]
    for number, result in enumerate(results):
        result["model"] = {"name": f"{text.replace('/', ':')}{number}", "weights": "0"}
        result["data"] = result["data"] | {"split": text, "fingerprint": text, "path": text}
        result["data"]["selection"] = {"cancer": text}
        result["metrics"] = result["metrics"] | {"auroc": None, "undefined": {"auroc": text}}
    return results


def compare_as_suite(results: list[dict], output_dir: Path) -> None:
    text = results[0]["benchmark"]
    compare_suite(
        [("zero-shot", "pcam", text, {f"{text}{number}": result for number, result in enumerate(results)})],
        [f"{text}0", f"{text}1"],
        output_dir,
        remarks={"Missing": {}, "Failed": {text: text}},
    )


@pytest.mark.parametrize("compare", [compare, compare_as_suite])
@every
def test_a_comparison_has_the_same_structure_with_any_text(text, compare, tmp_path, capsys, monkeypatch):
    for module in (comparison, suite_comparison):
        monkeypatch.setattr(module, "plot_comparison", lambda *arguments, **options: None)
    for name, content in (("hostile", text), ("benign", BENIGN)):
        (tmp_path / name).mkdir()
        compare(results_with(content), tmp_path / name)
        assert_visible(capsys.readouterr().out)
    hostile, benign = ((tmp_path / name / "comparison.md").read_text() for name in ("hostile", "benign"))
    assert structure(hostile) == structure(benign)
    assert_visible(hostile)
    hostile, benign = ((tmp_path / name / "comparison.tex").read_text() for name in ("hostile", "benign"))
    assert_visible(hostile)
    assert len(hostile.splitlines()) == len(benign.splitlines())
    for one, other in zip(hostile.splitlines(), benign.splitlines(), strict=True):
        assert len(re.findall(r"(?<!\\)&", one)) == len(re.findall(r"(?<!\\)&", other))
        assert one.count(r"\begin") == other.count(r"\begin") and r"\input" not in one


@every
def test_a_terminal_shows_any_text_as_it_is(text, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    reporting.say(text)
    said = capsys.readouterr().out
    assert_visible(said)
    assert said.split() == lines(text).split()
    reporting.show_table(text, [(text, text, None)], ["", text, "b"])
    shown = capsys.readouterr().out
    assert_visible(shown)
    assert shown.count(one_line(text)) >= 3
    assert len([line for line in shown.splitlines() if line.startswith(("┃", "│"))]) == 2
    show_classification(
        results_with(text)[0]["metrics"] | {"most_frequent_class": 0.5, "recall_of_class": {text: None}}
    )
    assert_visible(capsys.readouterr().out)


def test_errors_and_warnings_reach_the_terminal_without_escape_sequences(capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    assert main(["card", "/nowhere\x1b]0;title\x07\u202e"]) == 1
    logging.getLogger("biomedclip.run_scripts").warning("file %s", "a\x1b[31mb")
    error = capsys.readouterr().err
    assert "/nowhere" in error and "file a\ufffd[31mb" in error
    assert_visible(error)


@pytest.fixture
def no_mathematics(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a text was read as mathematics")

    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", refuse)


@pytest.mark.parametrize("text", ["$x_1$", "$\\frac{1}{$", "_hidden", "a\u202eb\x1b[31m", "$\\alpha$ $\\beta$"])
def test_plots_show_any_text_as_it_is(text, tmp_path, monkeypatch, no_mathematics):
    shown = []
    save = plots._save

    def look(figure, path):
        save(figure, path)
        shown.append([found.get_text() for found in figure.findobj(Text)])

    monkeypatch.setattr(plots, "_save", look)
    plot_comparison(text, [text], {text: [Value(0.5, [0.4, 0.6])]}, 0.5, tmp_path / "a.png")
    assert sum(one_line(text) in found for found in shown[-1]) >= 3, "title, axis and legend"
    published = f"{text} paper"
    cells = {text: [Value(0.5), None], published: [None, Value(0.5)]}
    plot_comparison(text, [text, "b"], cells, None, tmp_path / "e.png", published=[published])
    assert sum(one_line(text) in found for found in shown[-1]) >= 4, "title, axis and both entries of the legend"
    image = Image.new("RGB", (8, 8))
    plot_answers([Query(image, [Answer(text, 0.5, True, text), Answer("b", 0.1, False)], text)], tmp_path / "b.png")
    assert sum(one_line(text) in found for found in shown[-1]) >= 2, "caption and source"
    plot_retrieved_images([Query(text, [Answer(image, 0.5, True, text, rank=7.5)], text)], tmp_path / "d.png")
    assert sum(one_line(text) in found for found in shown[-1]) >= 3, "caption and both sources"
    plot_report(report_with(text), tmp_path / "c.png")
    for found in shown:
        assert_visible("\n".join(found))


@every
def test_escaped_text_renders_as_that_text(text):
    for escaped, place in ((markdown(text), "paragraph"), (markdown(text), "cell"), (code(text), "paragraph")):
        document = f"{escaped}\n" if place == "paragraph" else f"| a |\n|---|\n| {escaped} |\n"
        (inline,) = [
            token
            for token in MarkdownIt("commonmark").enable("table").parse(document)
            if token.type == "inline" and (place == "paragraph" or token.map[0] == 2)
        ]
        rendered = "".join(child.content for child in inline.children)
        expected = one_line(text).replace("`", "'") if escaped.startswith("`") else one_line(text)
        assert rendered == expected


@every
def test_latex_shows_the_text(text):
    left = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]|\$\\pm\$", "", latex(text))
    assert not set(left) & set("\\{}$&%#_^~") and "\n" not in left


def test_json_output_is_strict_and_names_the_values_that_became_null(tmp_path, caplog):
    reporting.write_json(tmp_path / "x.json", {"loss": float("nan"), "a": {"b": [1.0, float("inf")]}, "c": (1, 2)})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"loss": None, "a": {"b": [1.0, None]}, "c": [1, 2]}
    assert "written as null: loss, a.b[1]" in caplog.text


def test_a_link_in_the_place_of_a_file_that_is_written_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").write_text("precious")
    for name in ("x.json", f"x.json.{socket.gethostname()}.{os.getpid()}.partial"):
        (tmp_path / name).symlink_to("mine")
    reporting.write_json(tmp_path / "x.json", {"a": 1})
    assert (tmp_path / "mine").read_text() == "precious"
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1} and not (tmp_path / "x.json").is_symlink()
