"""`biomedclip build` as a person runs it."""

import json

import pytest
from helpers.commands import biomedclip
from helpers.fake_slurm import install_fake_slurm
from helpers.hub_server import HubServer
from helpers.mirror_writer import figure_xml, png_bytes

from biomedclip.run_scripts.build import EngineOptions, SourceOptions, read_build_options, read_engine
from biomedclip.run_scripts.main import main


RESULTS = {"README.md", "articles.parquet", "data", "report.json", "report.png", "skipped.jsonl"}


@pytest.fixture
def articles(mirror):
    """Twelve articles in a mirror."""
    mirror.plain_articles(12)
    return mirror


def test_a_build_leaves_the_card_the_report_and_the_picture(articles, tmp_path):
    result = biomedclip("build", "--source", articles.root, "--output-dir", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == RESULTS
    assert "24" in result.stdout and max(map(len, result.stdout.splitlines())) <= 80
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pairs"] == 24 and report["options"]["license"] == "noncommercial"
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_it_is_updated_and_published_by_the_same_command(articles, tmp_path):
    command = ["build", "--source", articles.root, "--output-dir", tmp_path / "out"]
    biomedclip(*command)
    articles.plain_articles(3, first=2000)
    with HubServer() as hub:
        environment = hub.environment(token="hf_writer")
        result = biomedclip(*command, "--update", "--push-to", "lab/pairs", environment=environment)
        files = hub.repositories["dataset", "lab/pairs"].files
    assert "15 articles" in result.stdout.replace(",", "") or "30" in result.stdout
    assert "lab/pairs" in result.stdout
    assert {name.split("/")[0] for name in files} - {".gitattributes"} == RESULTS
    assert json.loads(files["report.json"])["update"] == {
        "new": 3, "changed": 0, "again": 0, "removed": 0, "unchanged": 12
    }  # fmt: skip
    assert str(tmp_path).encode() not in files["report.json"] + files["README.md"]


def test_without_a_token_nothing_is_begun(articles, tmp_path):
    result = biomedclip(
        *["build", "--source", articles.root, "--output-dir", tmp_path / "out", "--push-to", "lab/pairs"],
        environment={"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": ""},
        check=False,
    )
    assert result.returncode == 1 and "hf auth login" in result.stderr
    assert not (tmp_path / "out").exists()


def test_slurm_finishes_the_set_with_its_card_and_publishes_it(articles, tmp_path):
    with HubServer() as hub:
        environment = {
            **install_fake_slurm(tmp_path / "slurm"),
            **hub.environment(token="hf_writer"),
        }
        result = biomedclip(
            *["build", "--source", articles.root, "--output-dir", tmp_path / "out", "--tasks", "2"],
            *["--executor", "slurm", "--slurm-partition", "cpu", "--push-to", "lab/pairs"],
            environment=environment,
        )
        assert "Submitted" in result.stdout
        assert RESULTS <= {path.name for path in (tmp_path / "out").iterdir()}, "".join(
            path.read_text() for path in (tmp_path / "slurm").glob("*.out")
        )
        assert "README.md" in hub.repositories["dataset", "lab/pairs"].files


def test_a_recipe_holds_the_options(articles, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"source: {articles.root}\nlicense: CC0\nsplit_fractions: 1,0,0\nmax_shard_size: 1MB\n")
    biomedclip("build", "--config", recipe, "--license", "CC BY", "--output-dir", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["license_choice"] == "CC BY" and list(report["splits"]) == ["train"]


def test_the_recipe_of_the_paper_leaves_out_later_articles_and_says_how_many(articles, tmp_path):
    for number, date in enumerate(["<year>2021</year>"] * 4 + ["<year>2022</year>"] * 3, start=1):
        figures = figure_xml("F1", f"Caption {number}.", "g").replace("/></fig>", '/><graphic xlink:href="h"/></fig>')
        media = {"g.png": png_bytes(number), "h.png": png_bytes(-number % 99)}
        dates = f"<pub-date>{date}</pub-date>"
        articles.article(number, figures=figures, media=media, dates=dates, license_code="TDM")
    options = ["build", "--config", "pmc15m_2022", "--source", articles.root]
    result = biomedclip(*options, "--output-dir", tmp_path / "out")
    assert "Published until 2022-06-15. Left out: 3 later articles, 12 without a date." in result.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["pairs"] == 4 and report["licenses"] == {"TDM": 4}
    assert report["figures"]["skipped"] == {"not the first image of its figure": 4}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| published until | 2022-06-15, by the dates in the XML; 3 later articles and 12 without a date" in card
    assert "--published-until 2022-06-15 \\\n  --first-image-only \\\n" in card
    assert biomedclip(*options, "--output-dir", tmp_path / "out", "--update").returncode == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--executor", "slurm"], "--slurm-partition"),
        (["--max-figures-per-article", "0"], "--max-figures-per-article must be at least 1"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--max-shard-size", "large"], "--max-shard-size 'large'"),
        (["--license", "CC-BY"], "Did you mean 'CC BY'"),
        (["--published-until", "15.6.2022"], "--published-until '15.6.2022' is not a date such as 2022-06-15"),
        (["--published-until", "2022-02-30"], "--published-until '2022-02-30' is not a date"),
        (["--published-until", "2999-01-01"], "--published-until 2999-01-01 is in the future"),
        (["--push-to", "pairs"], "an organisation or user and a name"),
        (["--overwrite", "--update"], "pass one of them"),
        (["--split-fractions", "0.5"], ""),
        (["--pmcids", "nowhere"], "--pmcids 'nowhere' is neither a list"),
        (["--update"], "no data set to update"),
        (["--caption-tokenizer", "/nowhere"], "--caption-tokenizer /nowhere"),
    ],
)
def test_options_that_make_no_sense_are_told_before_anything_is_begun(
    articles, tmp_path, options, message, capsys, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = ["build", "--source", str(articles.root), "--output-dir", str(tmp_path / "out"), *options]
    assert main(command) == (1 if options[0] in ("--caption-tokenizer", "--update") else 2)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_of_the_command_reach_the_engine():
    options = EngineOptions(executor="slurm", slurm_partition="cpu", slurm_args="account=lab, qos=long", workers=7)
    engine = read_engine(options)
    assert engine.workers == 7 and engine.slurm["partition"] == "cpu"
    assert engine.slurm["sbatch_args"] == {"account": "lab", "qos": "long"}
    assert read_build_options(SourceOptions("x", max_shard_size="2GB"), seed=3).max_shard_bytes == 2_000_000_000
    assert read_build_options(SourceOptions("x"), seed=0).max_figures_per_article == 1000
    assert read_build_options(SourceOptions("x", max_figures_per_article=7), seed=0).max_figures_per_article == 7
