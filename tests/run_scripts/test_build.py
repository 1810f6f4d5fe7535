"""The command `biomedclip build`."""

import io
import json
import shutil
from collections.abc import Iterator

import pytest
import torch
from helpers.fake_slurm import install_fake_slurm
from helpers.hub_server import HubServer, log_in
from helpers.mirror_writer import figure_xml, png_bytes, rows_of
from PIL import Image

from biomedclip import PanelDetectionConfig, PanelDetectionImageProcessor, PanelDetectionModel
from biomedclip.run_scripts.build import EngineOptions, SourceOptions, read_build_options
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.panel_rows import detectors, lazy_detector


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
        (["--keep-types", "PET"], 2, "--keep-types has no effect without --panels"),
        (["--detector", "x"], 2, "--detector has no effect without --panels"),
        (["--panels", "--trust-remote-code"], 2, "--trust-remote-code has no effect without --detector"),
        (
            ["--panels", "--keep-types", "pets"],
            2,
            "'pets' is neither a type nor a group of images. Did you mean 'PET'?",
        ),
        (["--panels", "--detector", "/nowhere/at/all"], 1, "/nowhere/at/all"),
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


@pytest.fixture(autouse=True)
def no_loaded_detector():
    """Detectors that other tests have loaded are not reused."""
    lazy_detector._load.cache_clear()
    yield
    lazy_detector._load.cache_clear()


@pytest.fixture
def compounds(mirror):
    """A mirror of four articles, each with a figure of two squares and a single one."""
    for number in range(1, 5):
        figure = Image.new("RGB", (220, 100), "white")
        for left in (0, 120):
            figure.paste(Image.open(io.BytesIO(png_bytes(number + left, (100, 100)))), (left, 0))
        buffer = io.BytesIO()
        figure.save(buffer, "PNG")
        figures = figure_xml("F1", "Scans. (A) Before. (B) After.", "wide") + figure_xml("F2", "Cells.", "small")
        mirror.article(number, figures=figures, media={"wide.png": buffer.getvalue(), "small.png": png_bytes(number)})
    return mirror


def test_an_unknown_choice_of_panels_is_an_error(articles, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(articles, tmp_path / "out", "--panels", "both")
    assert "--panels: invalid choice: 'both'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "rows"), [(["--panels"], 16), (["--panels", "also"], 16), (["--panels", "only"], 12)]
)
def test_panels_become_rows(compounds, tmp_path, options, rows):
    assert run(compounds, tmp_path / "out", "--detector", str(detector(tmp_path, compound=True)), *options) == 0
    report = report_of(tmp_path / "out")
    assert report["panel_detection"]["compound_figures"] == 4 and report["pairs"] == rows
    assert [report["built_with"]["panels"], report["options"]["panels"]] == (options[1:] or ["also"]) * 2
    assert {row["caption"] for row in rows_of(tmp_path / "out")} >= {"Before.", "After.", "Cells."}
    assert main(["build", "--verify", str(tmp_path / "out")]) == 0
    command = ["--detector", str(tmp_path / "detector"), *options]
    assert run(compounds, tmp_path / "out", "--update", *command) == 0


def detector(folder, *, compound: bool, seed: int = 0):
    """Save a small detector. If it calls all figures compound and finds no panels, they are cut at empty stripes."""
    torch.manual_seed(seed)
    small = {"image_size": 64, "widths": [4, 8, 8, 8, 8, 8], "depths": [0] * 6, "neck_width": 8}
    model = PanelDetectionModel(PanelDetectionConfig(printed_labels=["a"], image_types=["PET", "Ultrasound"], **small))
    torch.nn.init.constant_(model.compound_head.bias, 20.0 if compound else -20.0)
    model.save_pretrained(folder / "detector")
    PanelDetectionImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder / "detector")
    return folder / "detector"


def test_a_dataset_of_panels_states_its_detector_and_is_not_updated_with_another(compounds, tmp_path, capfd):
    options = ["--panels", "only", "--keep-types", "PET", "Ultrasound", "--detector"]
    assert run(compounds, tmp_path / "out", *options, str(detector(tmp_path, compound=False))) == 0
    report = report_of(tmp_path / "out")
    assert report["pairs"] == 8 and report["panel_detection"]["compound_figures"] == 0
    before = report["built_with"]["detector"]
    assert before.startswith("biomedclip_panel_detection ") and str(tmp_path) not in before
    assert {row["image_type"] for row in rows_of(tmp_path / "out")} <= {"PET", "Ultrasound"}
    shutil.move(tmp_path / "detector", tmp_path / "moved")
    compounds.plain_articles(1)
    assert run(compounds, tmp_path / "out", *options, str(tmp_path / "moved"), "--update") == 0
    capfd.readouterr()
    other = detector(tmp_path, compound=False, seed=1)
    assert run(compounds, tmp_path / "out", *options, str(other), "--update") == 1
    assert f"detector '{before}', not 'biomedclip_panel_detection " in capfd.readouterr().err


@pytest.mark.slow
def test_an_exported_detector_builds_the_same_rows_with_every_number_of_workers(compounds, tmp_path):
    folder = detector(tmp_path, compound=True)
    figure = tmp_path / "figure.png"
    figure.write_bytes(png_bytes(1))
    assert main(["export", str(folder), str(tmp_path / "exported"), "--images", str(figure)]) == 0
    assert run(compounds, tmp_path / "torch", "--panels", "--detector", str(folder)) == 0
    options = ["--panels", "--detector", str(tmp_path / "exported")]
    assert run(compounds, tmp_path / "one", *options) == 0
    assert run(compounds, tmp_path / "two", *options, "--workers", "2") == 0
    one, two = (sorted((tmp_path / name / "data").iterdir()) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    ours, theirs = ({row["pair_id"]: row for row in rows_of(tmp_path / name)} for name in ("one", "torch"))
    assert len(ours) == 16 and ours.keys() == theirs.keys()
    for name, row in ours.items():
        same = ("image", "caption", "panel", "panel_box", "image_type", "compound")
        assert {key: row[key] for key in same} == {key: theirs[name][key] for key in same}
    detectors_of = [report_of(tmp_path / name)["built_with"]["detector"] for name in ("one", "two", "torch")]
    assert detectors_of[0] == detectors_of[1] != detectors_of[2]


def test_a_detector_without_types_cannot_keep_some_types(compounds, tmp_path, capfd):
    options = ["--panels", "--detector", "x-y-cut"]
    assert run(compounds, tmp_path / "out", *options, "--keep-types", "PET") == 2
    assert "--keep-types`: the detector x-y-cut tells no types of images" in capfd.readouterr().err
    assert run(compounds, tmp_path / "out", *options) == 0
    assert report_of(tmp_path / "out")["built_with"]["detector"] == "x-y-cut"


def test_weights_that_changed_during_a_build_are_an_error(tmp_path):
    loaded = lazy_detector.load_lazy_detector(str(detector(tmp_path, compound=False)))
    loaded.prepare()
    detector(tmp_path, compound=False, seed=1)
    lazy_detector._load.cache_clear()  # as in another process
    with pytest.raises(ValueError, match="the weights have changed since the build started.*--overwrite"):
        loaded.prepare()


def test_a_detector_reads_each_figure_alone_and_with_one_thread(tmp_path, monkeypatch):
    batches = []

    def watched(images, captions):
        batches.append((len(images), captions, torch.get_num_threads()))
        return detectors.cut_figures(images)

    monkeypatch.setattr(lazy_detector, "load_detector", lambda name, **options: watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert len(lazy_detector.load_lazy_detector(None)([Image.new("L", (40, 40))] * 3)) == 3
    assert batches == [(1, [None], 1)] * 3 and torch.get_num_threads() == 2
    torch.set_num_threads(threads)


def test_the_options_of_the_command_are_those_of_the_library():
    assert EngineOptions(slurm_partition="cpu", executor="slurm").workers >= 1
    options = read_build_options(SourceOptions("x", max_shard_size="2GB", split_fractions="1,0,0"), seed=3)
    assert (options.max_shard_bytes, options.seed, options.split_fractions) == (2_000_000_000, 3, (1, 0, 0))
    assert options.max_figures_per_article == 1000
