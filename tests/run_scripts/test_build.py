"""The command `biomedclip build`."""

import json
from collections.abc import Iterator

import pytest
from helpers.fake_slurm import install_fake_slurm
from helpers.hub_server import HubServer, log_in
from helpers.mirror_writer import figure_xml, png_bytes

from biomedclip.run_scripts.build import EngineOptions, SourceOptions, read_build_options
from biomedclip.run_scripts.main import main


RESULTS = {"README.md", "articles.parquet", "data", "report.json", "report.png", "skipped.jsonl"}


@pytest.fixture
def articles(mirror):
    """A mirror of twelve articles."""
    mirror.plain_articles(12)
    return mirror


def report_of(folder) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_a_build_writes_the_dataset_the_card_the_report_and_the_plot(articles, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["build", "--source", str(articles.root), "--output-dir", str(tmp_path / "out"), "--workers", "1"]) == 0
    output = capfd.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == RESULTS
    assert "24" in output and max(map(len, output.splitlines())) <= 80
    report = report_of(tmp_path / "out")
    assert report["pairs"] == 24 and report["options"]["license"] == "noncommercial" and not report["synthetic"]
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")


def run(articles, output, *options) -> int:
    return main(["build", "--source", str(articles.root), "--output-dir", str(output), "--workers", "1", *options])


@pytest.fixture
def hub(monkeypatch) -> Iterator[HubServer]:
    """A Hub to which this process and the processes that it starts publish."""
    with HubServer() as server:
        log_in(monkeypatch, server)
        for name, value in {"HF_ENDPOINT": server.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}.items():
            monkeypatch.setenv(name, value)
        yield server


def test_the_same_command_updates_and_publishes(articles, hub, tmp_path, capsys):
    assert run(articles, tmp_path / "out") == 0
    articles.plain_articles(3, first=2000)
    assert run(articles, tmp_path / "out", "--update", "--push-to", "lab/pairs") == 0
    files = hub.repositories["dataset", "lab/pairs"].files
    assert "lab/pairs" in capsys.readouterr().out
    assert {name.split("/")[0] for name in files} - {".gitattributes"} == RESULTS
    counts = {"new": 3, "changed": 0, "retried": 0, "removed": 0, "unchanged": 12}
    assert json.loads(files["report.json"])["update"] == counts
    assert str(tmp_path).encode() not in files["report.json"] + files["README.md"]


def test_without_a_token_nothing_is_built(articles, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    assert run(articles, tmp_path / "out", "--push-to", "lab/pairs") == 1
    assert "hf auth login" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_on_slurm_the_last_job_writes_the_card_and_publishes(articles, hub, tmp_path, monkeypatch, capsys):
    for name, value in (install_fake_slurm(tmp_path / "slurm") | {"OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    slurm = ["--tasks", "1", "--executor", "slurm", "--slurm-partition", "cpu", "--push-to", "lab/pairs"]
    assert run(articles, tmp_path / "out", *slurm) == 0
    assert "Submitted" in capsys.readouterr().out
    logs = "".join(path.read_text() for path in (tmp_path / "slurm").glob("*.out"))
    assert RESULTS <= {path.name for path in (tmp_path / "out").iterdir()}, logs
    assert "README.md" in hub.repositories["dataset", "lab/pairs"].files


def test_options_are_read_from_a_recipe(articles, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("license: CC0\nsplit_fractions: 1,0,0\nmax_shard_size: 1MB\n")
    assert run(articles, tmp_path / "out", "--config", str(recipe), "--license", "CC BY") == 0
    report = report_of(tmp_path / "out")
    assert report["license_choice"] == "CC BY" and list(report["splits"]) == ["train"]


def test_the_recipe_of_the_paper_skips_later_articles_and_reports_their_number(articles, tmp_path, capfd):
    for number, date in enumerate(["<year>2021</year>"] * 4 + ["<year>2022</year>"] * 3, start=1):
        figures = figure_xml("F1", f"Caption {number}.", "g", "h")
        media = {"g.png": png_bytes(number), "h.png": png_bytes(-number % 99)}
        dates = f"<pub-date>{date}</pub-date>"
        articles.article(number, figures=figures, media=media, dates=dates, license_code="TDM")
    assert run(articles, tmp_path / "out", "--config", "pmc15m_2022") == 0
    text = "Published until 2022-06-15. Skipped: 3 later articles, 12 without a date."
    assert text in capfd.readouterr().out
    report = report_of(tmp_path / "out")
    assert report["pairs"] == 4 and report["licenses"] == {"TDM": 4}
    assert report["figures"]["skipped"] == {"not the first image of its figure": 4}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "--published-until 2022-06-15 \\\n  --first-image-only \\\n" in card
    assert run(articles, tmp_path / "out", "--config", "pmc15m_2022", "--update") == 0


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--executor", "slurm"], 2, "--slurm-partition is required"),
        (["--max-figures-per-article", "0"], 2, "--max-figures-per-article must be at least 1"),
        (["--workers", "0"], 2, "--workers must be at least 1"),
        (["--max-shard-size", "large"], 2, "--max-shard-size must be a size such as 500MB, not 'large'"),
        (["--license", "CC-BY"], 2, "Did you mean 'CC BY'"),
        (["--published-until", "15.6.2022"], 2, "--published-until must be a date such as 2022-06-15, not '15.6.2022'"),
        (["--push-to", "pairs"], 2, "Use a form such as my-lab"),
        (["--overwrite", "--update"], 2, "--overwrite and --update exclude each other"),
        (["--split-fractions", "0.5"], 2, "--split-fractions must be three numbers"),
        (["--pmcids", "nowhere"], 2, "--pmcids 'nowhere' is neither a list"),
        (["--update"], 1, "no dataset to update"),
        (["--caption-tokenizer", "/nowhere"], 1, "--caption-tokenizer: the folder /nowhere does not exist"),
    ],
)
def test_invalid_options_are_refused_before_anything_is_written(
    articles, tmp_path, options, status, message, capsys, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = ["build", "--source", str(articles.root), "--output-dir", str(tmp_path / "out"), *options]
    assert main(command) == status
    assert message in capsys.readouterr().err.replace("`", "")
    assert not (tmp_path / "out").exists()


def test_the_options_of_the_command_are_those_of_the_library():
    assert EngineOptions(slurm_partition="cpu", executor="slurm").workers >= 1
    options = read_build_options(SourceOptions("x", max_shard_size="2GB", split_fractions="1,0,0"), seed=3)
    assert (options.max_shard_bytes, options.seed, options.split_fractions) == (2_000_000_000, 3, (1, 0, 0))
    assert options.max_figures_per_article == 1000
