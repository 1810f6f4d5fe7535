"""Comparisons of measured and published values: table, Markdown, LaTeX, JSON and plot."""

import json
from types import SimpleNamespace

import matplotlib
import pytest
from helpers.model_results import retrieval_result, zero_shot_result
from PIL import Image

from biomedclip.processing.benchmarks.facts import published_models
from biomedclip.run_scripts.cli import plots
from biomedclip.run_scripts.evaluation.comparison import compare, show_published
from biomedclip.run_scripts.evaluation.run import Run


def results(*names: str, **other) -> list[dict]:
    return [
        zero_shot_result(**other) | {"model": {"name": name, "weights": str(number)}}
        for number, name in enumerate(names)
    ]


def test_published_rows_follow_the_measured_ones_and_are_marked(tmp_path, capsys):
    compare(results("a", "b"), tmp_path)
    markdown = (tmp_path / "comparison.md").read_text()
    rows = [line.split("|")[1].strip() for line in markdown.splitlines() if line.startswith("| ")]
    assert rows[1:] == ["a", "b", "BiomedCLIP (published)", "Other (published, read off a figure)"]
    assert "| Other (published, read off a figure) | 0.701 |" in markdown
    assert "They were not measured here." in markdown and "- Other: its figure" in markdown
    latex = (tmp_path / "comparison.tex").read_text()
    assert latex.count(r"\midrule") == 2
    assert latex.index("Other (published, read off a figure)") > latex.rindex(r"\midrule") > latex.index("\nb &")
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert list(saved["models"]) == ["a", "b"], "measured models only"
    assert saved["published"] == [
        {"model": "BiomedCLIP", "source": "a paper", "read_from_figure": False, "values": {"accuracy": 0.7341}},
        {"model": "Other", "source": "its figure", "read_from_figure": True, "values": {"accuracy": 0.7007}},
    ]
    output = capsys.readouterr().out
    assert "Published values, not measured here (*: read off a figure)" in output
    assert "Other *" in output and "BiomedCLIP *" not in output and "0.7007" in output


def test_a_model_with_the_name_of_a_published_one_is_renamed(tmp_path):
    compare(results("BiomedCLIP (published)", "b"), tmp_path)
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert list(saved["models"]) == ["BiomedCLIP (published) (model)", "b"]
    assert saved["models"]["BiomedCLIP (published) (model)"]["accuracy"]["value"] == 0.5123


def test_the_title_names_the_chosen_study(tmp_path):
    data = zero_shot_result()["data"] | {"selection": {"cancer": "brca", "images": 3}}
    compare(results("a", "b", benchmark="tcga_til", data=data), tmp_path)
    assert (tmp_path / "comparison.md").read_text().startswith("# zero-shot on tcga\\_til (brca), test split")


def test_notes_of_the_results_are_listed_once(tmp_path):
    data = zero_shot_result()["data"] | {"notes": ["12 images, *not* 32,768.", "Other images."]}
    compare(results("a", "b", data=data), tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert "\n## Notes\n\n- 12 images, \\*not\\* 32,768.\n- Other images.\n" in text and text.count("12 images") == 1


def test_a_comparison_without_published_values_does_not_mention_them(tmp_path, capsys):
    compare(results("a", "b", published=[]), tmp_path)
    assert "measured here" not in (tmp_path / "comparison.md").read_text() + capsys.readouterr().out
    assert (tmp_path / "comparison.tex").read_text().count(r"\midrule") == 1
    show_published("zero-shot", [])
    assert capsys.readouterr().out == ""


def test_points_of_published_models_are_hollow_and_differ(tmp_path, monkeypatch):
    drawn = {}

    def keep(figure, path):
        for container in figure.axes[0].containers:
            line = container.lines[0]
            drawn[container.get_label()] = line.get_marker(), line.get_markerfacecolor()
        figure.savefig(path)

    monkeypatch.setattr(plots, "_save", keep)
    compare(results("a", "b"), tmp_path)
    assert Image.open(tmp_path / "comparison.png").width > 500
    published = {name: point for name, point in drawn.items() if "published" in name}
    assert len(published) == 2 and {color for _, color in published.values()} == {"white"}
    assert len({marker for marker, _ in published.values()}) == 2
    assert {drawn[name][0] for name in ("a", "b")} == {"o"}
    assert all(matplotlib.colors.to_hex(drawn[name][1]) != "#ffffff" for name in ("a", "b"))


@pytest.mark.parametrize(
    ("benchmark", "task", "models"),
    [
        ("pcam", "zero-shot", ["BiomedCLIP", "GPT variant of BiomedCLIP"]),
        ("rsna", "linear-probe", ["BiomedCLIP", "BioViL", "GLoRIA"]),
        ("pmc15m", "retrieval", ["BiomedCLIP", "GPT variant of BiomedCLIP", "OpenAI CLIP", "PubMedCLIP"]),
    ],
)
def test_a_terminal_of_80_columns_shows_every_published_model(benchmark, task, models, capsys):
    entries = [vars(entry) for entry in published_models(benchmark, task)]
    show_published(task, entries)
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    for model in models:
        assert model.split()[0] in output


@pytest.mark.parametrize(("paper", "models"), [({"accuracy": 0.7895}, 5), ({}, 0)])
def test_results_contain_published_values_only_if_the_data_are_the_same(paper, models, tmp_path):
    """The paper's values are empty for other data."""
    encoder = SimpleNamespace(name="m", type="biomedclip", weights="0", precision="float32")
    encoder.model = SimpleNamespace(config=None)
    options = SimpleNamespace(task="zero-shot", benchmark="rsna", split="test", data="rsna")
    data = {"fingerprint": "0", "rows": 1, "damaged": [], "notes": []}
    run = Run("m", None, options, tmp_path, [])
    written = run.write(encoder, data=data, metrics={}, paper=paper, paper_source="", settings={})
    assert len(written["published"]) == models
    assert written["published"] == json.loads((tmp_path / "results.json").read_text())["published"]


def test_both_directions_of_retrieval_are_compared_with_published_models(tmp_path):
    entries = [vars(entry) for entry in published_models("pmc15m", "retrieval")]
    measured = [retrieval_result(published=entries) | {"model": {"name": name, "weights": name}} for name in ("a", "b")]
    compare(measured, tmp_path)
    saved = json.loads((tmp_path / "comparison.json").read_text())["published"]
    clip = next(entry for entry in saved if entry["model"] == "OpenAI CLIP")
    assert clip["values"]["image to text R@1"] == 0.0791 and clip["values"]["text to image R@10"] == 0.201
