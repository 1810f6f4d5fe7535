"""`biomedclip evaluate` as a person runs it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from helpers.benchmark_files import add_spots_benchmark, write_rsna, write_tcga_til
from helpers.commands import ENVIRONMENT, ROOT
from PIL import Image

from biomedclip import BiomedCLIPModel
from biomedclip.run_scripts.evaluate import main as evaluate
from biomedclip.run_scripts.evaluation import retrieval_task, run
from biomedclip.run_scripts.evaluation.comparison import headline
from biomedclip.run_scripts.main import main


def draw_images(folder: Path, of_class: dict[str, int], seed: int = 0) -> Path:
    """Class folders of noise, darker in some classes than in others."""
    generator = np.random.default_rng(seed)
    for place, (name, count) in enumerate(of_class.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(120 * place, 120 * place + 100, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:04}.png")
    return folder


@pytest.fixture(scope="module")
def two_models(small_checkpoint, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("other") / "other"
    shutil.copytree(small_checkpoint, folder)
    model = BiomedCLIPModel.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.visual_projection.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(folder)
    return small_checkpoint, folder


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_retrieval_leaves_results_in_the_agreed_form(small_checkpoint, built, tmp_path, capsys):
    arguments = ["retrieval", "--model", small_checkpoint, "--benchmark", "pmc15m", "--data", built]
    evaluate([*map(str, arguments), "--output-dir", str(tmp_path)])
    results = results_of(tmp_path)
    assert set(results) == {
        *(
            "schema",
            "task",
            "benchmark",
            "command",
            "date",
            "model",
            "data",
            "metrics",
            "paper",
            "paper_source",
            "published",
        ),
        *("settings", "seconds", "versions"),
    }
    assert results["schema"] == 1 and results["benchmark"] == "pmc15m"
    assert results["command"].startswith("biomedclip evaluate retrieval --model ")
    assert results["model"]["type"] == "biomedclip" and len(results["model"]["weights"]) == 16
    pairs = results["metrics"]["pairs"]
    assert results["data"]["rows"] == pairs and results["data"]["damaged"] == [] and results["data"]["leaks"] is None
    assert results["metrics"]["chance_at_1"] == 1 / pairs
    assert results["paper"] == {} and results["paper_source"] == "", "the paper's pool is larger"
    assert any("725,739" in note for note in results["data"]["notes"]), "another size than the paper's"
    assert results["published"] == []
    output = capsys.readouterr().out
    assert "Published values" not in output and max(map(len, output.splitlines())) <= 80
    assert "articles, test split" in output
    assert "Note:" in output and "725,739" in output, "what a table does not say of itself stands below it"


def test_another_split_than_test_is_named(small_checkpoint, built, tmp_path, capsys):
    arguments = ["--model", small_checkpoint, "--data", built, "--split", "validation", "--output-dir", tmp_path]
    evaluate(["retrieval", *map(str, arguments)])
    output = capsys.readouterr().out
    assert "articles, validation split" in output and "held-out" not in output


def test_a_table_shows_what_the_most_frequent_class_would_score(small_checkpoint, tmp_path, capsys):
    data = draw_images(tmp_path / "data", {"dark": 24, "light": 6})
    arguments = ["zero-shot", "--model", str(small_checkpoint), "--data", str(data), "--output-dir", str(tmp_path)]
    evaluate(arguments)
    assert results_of(tmp_path)["metrics"]["most_frequent_class"] == 0.8
    output = capsys.readouterr().out
    assert "always the most frequent class" in output and "too narrow" not in output
    (data / "dark" / "0000.png").unlink()
    evaluate(arguments)
    assert "Only 29 images: the intervals are too narrow." in capsys.readouterr().out
    assert "Only 29 images: the intervals are too narrow." in results_of(tmp_path)["data"]["notes"]


def test_several_captions_of_an_image_are_all_right(small_checkpoint, built, tmp_path):
    """By article: two figures each, of which the first stands for both."""
    arguments = ["--model", small_checkpoint, "--data", built, "--image-id", "pmcid", "--output-dir", tmp_path]
    evaluate(["retrieval", *map(str, arguments)])
    metrics = results_of(tmp_path)["metrics"]
    assert metrics["images"] == metrics["articles"] < metrics["pairs"]
    assert metrics["captions_of_an_image"] == metrics["pairs"] / metrics["images"]
    with pytest.raises(ValueError, match="no column 'colour'"):
        evaluate(["retrieval", *map(str, arguments[:5]), "colour", *map(str, arguments[6:])])


def test_several_models_are_compared(two_models, tmp_path, capsys):
    data = draw_images(tmp_path / "data", {"dark_ones": 20, "light": 30})
    models = [option for model in two_models for option in ("--model", str(model))]
    evaluate(["zero-shot", *models, "--data", str(data), "--output-dir", str(tmp_path / "out")])
    out = tmp_path / "out"
    assert "other" in capsys.readouterr().out
    each = [results_of(out / name) for name in ("base", "other")]
    assert each[0]["model"]["weights"] != each[1]["model"]["weights"]
    comparison = json.loads((out / "comparison.json").read_text())["models"]
    for name, results in zip(("base", "other"), each, strict=True):
        assert comparison[name]["accuracy"]["value"] == results["metrics"]["accuracy"]
        assert comparison[name]["AUROC"]["interval"] == results["metrics"]["auroc_interval"]
    markdown, latex = (out / "comparison.md").read_text(), (out / "comparison.tex").read_text()
    assert "| base | " in markdown and "| other | " in markdown
    assert f"{each[0]['metrics']['accuracy']:.3f} [" in markdown and f"{each[0]['metrics']['accuracy']:.3f} [" in latex
    assert latex.count("\\\\") == 3 and r"\toprule" in latex and "accuracy_" not in latex.replace(r"\_", "")
    assert Image.open(out / "comparison.png").width > 500
    with pytest.raises(ValueError, match="the same model twice"):
        evaluate(["zero-shot", *models[:2], *models[:2], "--data", str(data), "--output-dir", str(out)])


def test_models_may_stand_with_commas(two_models, tmp_path):
    data = draw_images(tmp_path / "data", {"a": 3, "b": 3})
    evaluate(
        [
            "zero-shot",
            f"--model={two_models[0]},{two_models[1]}",
            "--data",
            str(data),
            "--output-dir",
            str(tmp_path / "o"),
        ]
    )
    assert (tmp_path / "o" / "comparison.md").is_file()


def test_published_values_stand_beside_the_measured_ones():
    assert {name: str(value) for name, value in headline("zero-shot", {"accuracy": 0.7341}).items()} == {
        "accuracy": "0.734"
    }
    published = headline("retrieval", {"text_to_image": {"recall_at_1": 0.696}})
    assert {name: value.value for name, value in published.items()} == {"text to image R@1": 0.696}


def test_damaged_images_are_left_out_counted_and_named(small_checkpoint, tmp_path, capsys):
    data = draw_images(tmp_path / "data", {"a": 6, "b": 6})
    evaluate(
        ["zero-shot", "--model", str(small_checkpoint), "--data", str(data), "--output-dir", str(tmp_path / "whole")]
    )
    (data / "a" / "0002.png").write_bytes(b"no image")
    (data / "b" / "0005.png").write_bytes(b"")
    evaluate(
        ["zero-shot", "--model", str(small_checkpoint), "--data", str(data), "--output-dir", str(tmp_path / "less")]
    )
    results = results_of(tmp_path / "less")
    assert [entry["name"] for entry in results["data"]["damaged"]] == ["a/0002.png", "b/0005.png"]
    assert results["metrics"]["images"] == results["data"]["rows"] == 10
    assert np.array(results["metrics"]["confusion_matrix"]).sum() == 10
    assert "2 damaged images are left out: a/0002.png" in capsys.readouterr().out.replace("\n", " ")
    assert results["data"]["fingerprint"] != results_of(tmp_path / "whole")["data"]["fingerprint"]


def test_a_benchmark_brings_its_prompts_and_values(small_checkpoint, tmp_path):
    data = draw_images(tmp_path / "data", {"normal": 5, "tumor": 4})
    arguments = ["zero-shot", "--benchmark", "pcam", "--model", str(small_checkpoint), "--data", str(data)]
    evaluate([*arguments, "--output-dir", str(tmp_path / "out")])
    results = results_of(tmp_path / "out")
    assert results["paper"] == {"accuracy": 0.7341}
    assert results["settings"]["templates"] == ["this is an image of {}", "{} presented in image"]
    assert results["settings"]["template_set"] == "paper" and results["settings"]["positive"] == "tumor"
    assert results["settings"]["class_names"]["tumor"] == "lymph node metastasis"
    evaluate([*arguments, "--templates", "a photo of {}", "--output-dir", str(tmp_path / "other")])
    assert results_of(tmp_path / "other")["settings"]["templates"] == ["a photo of {}"]


def test_the_study_of_tcga_til_is_chosen_by_an_option(small_checkpoint, tmp_path, capsys):
    write_tcga_til(tmp_path, ["luad", "pancancer"], {"train": (6, 6), "val": (2, 2), "test": (6, 2)})
    arguments = ["--benchmark", "tcga_til", "--model", str(small_checkpoint), "--data", str(tmp_path)]
    evaluate(["zero-shot", *arguments, "--output-dir", str(tmp_path / "luad")])
    results = results_of(tmp_path / "luad")
    assert results["data"]["selection"]["cancer"] == "luad" and results["data"]["selection"]["positive"] == 2
    assert results["paper"] == {"auroc": 0.6704} and results["published"]
    output = " ".join(capsys.readouterr().out.split())
    assert "Note: Cancer luad, folder test: 8 images, 25.0% positive." in output
    assert "2,480 images, 5.9% of them positive. Its value is for other images" in output
    for task in ("zero-shot", "linear-probe"):
        evaluate([task, *arguments, "--cancer", "all", "--output-dir", str(tmp_path / task)])
        results = results_of(tmp_path / task)
        assert results["data"]["selection"]["cancer"] == "all"
        assert results["paper"] == {} and results["published"] == []
    capsys.readouterr()
    with pytest.raises(FileNotFoundError, match="no folder of the cancer 'brca'; there are luad, all"):
        evaluate(["zero-shot", *arguments, "--cancer", "brca", "--output-dir", str(tmp_path / "none")])


def test_the_split_of_rsna_is_chosen_by_an_option(small_checkpoint, tmp_path, capsys):
    pytest.importorskip("pydicom")
    write_rsna(tmp_path / "rsna", {f"patient-{number}": [int(number % 3 == 0)] for number in range(30)})
    arguments = ["--benchmark", "rsna", "--model", str(small_checkpoint), "--data", str(tmp_path / "rsna")]
    found = {}
    for name, more in {"default": [], "fractions": ["--rsna-split", "paper-fractions"]}.items():
        for task in ("zero-shot", "linear-probe"):
            evaluate([task, *arguments, *more, "--output-dir", str(tmp_path / name / task)])
            found[name, task] = results_of(tmp_path / name / task)["data"]["selection"]["patients"]
    assert found["default", "zero-shot"] == {"train": 17, "test": 10, "validation": 3}
    assert found["fractions", "zero-shot"] == {"train": 21, "test": 5, "validation": 4}
    assert all(found[name, "linear-probe"] == found[name, "zero-shot"] for name in ("default", "fractions"))
    output = " ".join(capsys.readouterr().out.split())
    assert "train 18,678, validation 4,003, test 9,069, which is more than the 26,684 patients" in output
    assert "paper-fractions is inferred" in output


def test_the_probe_learns_what_light_is_and_reports_a_planted_leak(small_checkpoint, tmp_path, capsys):
    data = tmp_path / "data"
    for seed, (split, count) in enumerate({"train": 40, "val": 10, "test": 10}.items()):
        draw_images(data / split, {"dark": count, "light": count}, seed)
    shutil.copy(data / "train" / "dark" / "0003.png", data / "test" / "dark" / "0004.png")
    arguments = ["linear-probe", "--model", str(small_checkpoint), "--data", str(data), "--draws", "2"]
    evaluate([*arguments, "--output-dir", str(tmp_path / "out")])
    results = results_of(tmp_path / "out")
    assert results["metrics"]["accuracy"] == 1 and set(results["metrics"]["by_fraction"]) == {"0.01", "0.1", "1"}
    assert results["metrics"]["training_images"] == 80 and results["metrics"]["validation_images"] == 20
    assert results["data"]["leaks"]["same_bytes"] == 1
    assert "dark/0004.png" in json.dumps(results["data"]["leaks"]["examples"])
    assert "test images are, or look like, training images" in capsys.readouterr().out.replace("\n", " ")
    evaluate(
        [*arguments, "--probe-features", "hidden", "--find-leaks", "false", "--output-dir", str(tmp_path / "hidden")]
    )
    hidden = results_of(tmp_path / "hidden")
    assert hidden["settings"]["features"] == "hidden" and hidden["data"]["leaks"] is None


def test_the_probe_runs_elevaters_protocol_without_a_validation_split(small_checkpoint, tmp_path, capsys):
    data = tmp_path / "data"
    for seed, split in enumerate(("train", "test")):
        draw_images(data / split, {"normal": 20, "tumor": 20}, seed)
    arguments = ["linear-probe", "--model", str(small_checkpoint), "--data", str(data), "--benchmark", "pcam"]
    arguments += ["--fractions", "1.0"]
    evaluate([*arguments, "--protocol", "elevater", "--output-dir", str(tmp_path / "out")])
    results = results_of(tmp_path / "out")
    assert results["settings"]["protocol"] == "elevater" and results["metrics"]["accuracy"] >= 0.5
    (run,) = results["metrics"]["by_fraction"]["1"]["runs"]
    assert run["images"] == 32, "as many as the other protocol trains on"
    assert {"learning_rate", "weight_decay", "accuracy_of_best_test_epoch"} < set(run)
    assert "Protocol of ELEVATER" in results["data"]["notes"][-1] and "docs/evaluation.md" in capsys.readouterr().out
    evaluate([*arguments, "--output-dir", str(tmp_path / "logistic")])
    logistic = results_of(tmp_path / "logistic")
    assert logistic["settings"]["protocol"] == "logistic"
    assert any("--protocol elevater is closer" in note for note in logistic["data"]["notes"])


def test_images_without_splits_are_split_for_the_probe(small_checkpoint, tmp_path):
    data = draw_images(tmp_path / "data", {"dark": 30, "light": 30})
    arguments = ["--model", str(small_checkpoint), "--data", str(data), "--output-dir", str(tmp_path / "out")]
    evaluate(["linear-probe", *arguments, "--fractions", "1.0"])
    metrics = results_of(tmp_path / "out")["metrics"]
    assert (metrics["training_images"], metrics["validation_images"], metrics["images"]) == (36, 12, 12)


def test_a_set_of_the_datasets_library_names_its_columns(small_checkpoint, tmp_path, capsys):
    draw_images(tmp_path / "images", {"dark": 6, "light": 6})
    files = sorted((tmp_path / "images").glob("*/*.png"))
    rows = {"scan": [str(file) for file in files], "finding": [file.parent.name for file in files]}
    Dataset.from_dict(rows).cast_column("scan", ImageColumn()).save_to_disk(tmp_path / "set")
    arguments = ["evaluate", "zero-shot", "--model", small_checkpoint, "--benchmark", "imagefolder"]
    arguments = [*map(str, arguments), "--data", str(tmp_path / "set"), "--output-dir", str(tmp_path / "results")]
    assert main(arguments) == 1
    assert "Pass --image-column" in " ".join(capsys.readouterr().err.split())
    assert main([*arguments, "--image-column", "scan", "--label-column", "finding"]) == 0
    assert results_of(tmp_path / "results")["metrics"]["classes"] == ["dark", "light"]


def parts_of(folder: Path) -> Iterator[Path]:
    return folder.rglob("part-*.safetensors")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_stopped(small_checkpoint, tmp_path):
    data = draw_images(tmp_path / "data", {"dark": 1500, "light": 1700})
    command = [
        sys.executable,
        "-m",
        "biomedclip.run_scripts.main",
        "evaluate",
        "zero-shot",
        "--model",
        str(small_checkpoint),
    ]
    command += ["--data", str(data), "--output-dir"]
    killed = subprocess.Popen(
        [*command, str(tmp_path / "killed")],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(parts_of(tmp_path / "killed")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in parts_of(tmp_path / "killed")}
    assert 1 <= len(done) < 4 and not (tmp_path / "killed" / "results.json").exists()

    for name in ("killed", "whole"):
        main([*command[3:], str(tmp_path / name)])
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done is not done again"
    assert len(list(parts_of(tmp_path / "killed"))) == 4
    assert results_of(tmp_path / "killed")["metrics"] == results_of(tmp_path / "whole")["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["dance", "--model", "m", "--data", "d", "--output-dir", "o"],
            "Unknown task 'dance'. Choose one of retrieval, zero-shot",
        ),
        (
            ["zero-shot", "--model", "m", "--data", "{data}", "--output-dir", "{tmp}"],
            "--model m: no such folder",
        ),
        (
            ["zero-shot", "--benchmark", "pmc15m", "--model", "m", "--data", "{built}", "--output-dir", "{tmp}"],
            "--benchmark pmc15m is not for zero-shot. Choose one of pcam",
        ),
        (
            ["retrieval", "--benchmark", "pcam", "--model", "m", "--data", "{data}", "--output-dir", "{tmp}"],
            "--benchmark pcam is not for retrieval. Choose one of pmc15m",
        ),
        (["retrieval", "--benchmark", "chess", "--model", "m", "--data", "{data}", "--output-dir", "{tmp}"], "chess"),
        (
            ["retrieval", "--model", "m", "--data", "nowhere", "--output-dir", "{tmp}"],
            "nowhere: the folder does not exist",
        ),
        (
            ["zero-shot", "--model", "m", "--data", "nowhere", "--output-dir", "{tmp}"],
            "nowhere: there is no such folder",
        ),
        (
            ["retrieval", "--templates", "a {{}}", "--model", "m", "--data", "d", "--output-dir", "o"],
            "--templates has no effect on retrieval, only on zero-shot.",
        ),
        (
            ["zero-shot", "--no-find-leaks", "--model", "m", "--data", "d", "--output-dir", "o"],
            "--no-find-leaks has no effect on zero-shot, only on linear-probe, suite.",
        ),
        (
            [
                "visual-question-answering",
                "--precision",
                "bfloat16",
                "--model",
                "m",
                "--data",
                "d",
                "--output-dir",
                "o",
            ],
            "--precision has no effect on visual-question-answering",
        ),
        (
            [
                "zero-shot",
                "--benchmark",
                "pcam",
                "--label-column",
                "x",
                "--model",
                "m",
                "--data",
                "d",
                "--output-dir",
                "o",
            ],
            "--label-column has no effect on pcam, only on imagefolder",
        ),
        *(
            ([*task, "--model", "m", "--data", "d", "--output-dir", "o"], message)
            for task, message in (
                (
                    ["zero-shot", "--benchmark", "pcam", "--cancer", "luad"],
                    "--cancer has no effect on pcam, only on tcga_til",
                ),
                (["linear-probe", "--cancer", "brca"], "--cancer has no effect on imagefolder, only on tcga_til"),
                (["linear-probe", "--fractions", "1.0", "--draws", "3"], "--draws has no effect on --fractions 1"),
                (["zero-shot", "--protocol", "elevater"], "--protocol has no effect on zero-shot"),
                (["linear-probe", "--max-length", "5"], "--max-length has no effect on linear-probe"),
                (
                    ["visual-question-answering", "--benchmark", "slake", "--workers", "1"],
                    "--workers has no effect on visual-question-answering",
                ),
                (
                    ["visual-question-answering", "--benchmark", "slake", "--features-dir", "f"],
                    "--features-dir has no effect on visual-question-answering",
                ),
                (
                    ["zero-shot", "--benchmark", "rsna", "--prompts", "biovil", "--templates", "a {{}}"],
                    "--prompts and --templates both choose the prompts",
                ),
                (["retrieval", "--cancer", "luad"], "--cancer has no effect on retrieval"),
                (
                    ["visual-question-answering", "--benchmark", "slake", "--rsna-split", "paper-test"],
                    "--rsna-split has no effect on visual-question-answering",
                ),
                (
                    ["zero-shot", "--benchmark", "tcga_til", "--rsna-split", "paper-test"],
                    "--rsna-split has no effect on tcga_til, only on rsna",
                ),
            )
        ),
        (
            ["zero-shot", "--label-column", "x", "--model", "m", "--data", "{data}", "--output-dir", "{tmp}"],
            "--label-column x has no effect on class folders",
        ),
        (
            ["zero-shot", "--split", "validation", "--model", "m", "--data", "{data}", "--output-dir", "{tmp}"],
            "there is no validation split",
        ),
        (
            ["visual-question-answering", "--benchmark", "pcam", "--model", "m", "--data", "d", "--output-dir", "o"],
            "--benchmark pcam is not for visual-question-answering",
        ),
        (
            ["linear-probe", "--split", "train", "--model", "m", "--data", "d", "--output-dir", "o"],
            "--split train: the",
        ),
        (
            ["retrieval", "--batch-size", "0", "--model", "m", "--data", "d", "--output-dir", "o"],
            "--batch-size must be",
        ),
        (["retrieval", "--workers", "0", "--model", "m", "--data", "d", "--output-dir", "o"], "--workers must be 1 or"),
        (
            ["retrieval", "--max-length", "0", "--model", "m", "--data", "d", "--output-dir", "o"],
            "--max-length must be",
        ),
        (["retrieval", "--seed", "-1", "--model", "m", "--data", "d", "--output-dir", "o"], "--seed must be 0 or more"),
        (["linear-probe", "--draws", "0", "--model", "m", "--data", "d", "--output-dir", "o"], "--draws must be 1 or"),
        (["zero-shot", "--templates", "a", "--model", "m", "--data", "d", "--output-dir", "o"], "'a' has no {} for"),
        (
            ["linear-probe", "--fractions", "2", "--model", "m", "--data", "d", "--output-dir", "o"],
            "at most 1, not 2.0",
        ),
        (
            ["retrieval", "--split-name", "test", "--model", "m", "--data", "d", "--output-dir", "o"],
            "There is no option --split-name. Did you mean --split? See: biomedclip evaluate --help",
        ),
        (["retrieval", "again", "--model", "m", "--data", "d", "--output-dir", "o"], "'again' belongs to no option."),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(arguments, message, tmp_path, built, capsys):
    draw_images(tmp_path / "normal_and_not", {"normal": 1, "tumor": 1})
    filled = {"data": tmp_path / "normal_and_not", "built": built, "tmp": tmp_path / "out"}
    # The disk decides about these, not the command line.
    missing = any(
        text in message for text in ("no such folder", "does not exist", "class folders", "no validation split")
    )
    assert main(["evaluate", *(argument.format(**filled) for argument in arguments)]) == (1 if missing else 2)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.fixture
def no_model(monkeypatch):
    """Fails a test that loads a model."""
    monkeypatch.setattr(
        "biomedclip.run_scripts.evaluation.run.load_dual_encoder",
        lambda *args, **kwargs: pytest.fail("a model is loaded"),
    )


def refused(capsys, *arguments) -> str:
    assert main(["evaluate", *map(str, arguments)]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in error
    return error


def test_all_models_data_and_folders_are_checked_before_one_is_loaded(two_models, tmp_path, capsys, no_model):
    models = ["--model", *two_models, tmp_path / "gone", "nowhere", "--output-dir", tmp_path / "out"]
    error = refused(capsys, "zero-shot", *models, "--data", tmp_path / "no data")
    assert "gone: no such folder" in error and "--model nowhere: no such folder" in error
    assert "no data: there is no such folder" in error
    assert not (tmp_path / "out").exists()
    data = draw_images(tmp_path / "data", {"a": 2, "b": 2})
    (tmp_path / "out").write_text("")
    assert "out is a file" in refused(capsys, "zero-shot", *models[:3], *models[5:], "--data", data)
    arguments = ["zero-shot", "--model", two_models[0], "--data", data, "--output-dir", tmp_path / "results"]
    assert "--features-dir" in refused(capsys, *arguments, "--features-dir", tmp_path / "out")


def test_models_that_fail_during_a_run_are_named_and_the_others_are_compared(two_models, tmp_path, capsys, monkeypatch):
    broken = tmp_path / "broken"
    shutil.copytree(two_models[0], broken)
    load = run.load_dual_encoder

    def fail(name, *arguments, **options):
        if str(name) == str(broken):
            raise ValueError("it failed")
        return load(name, *arguments, **options)

    monkeypatch.setattr(run, "load_dual_encoder", fail)
    data = draw_images(tmp_path / "data", {"dark": 5, "light": 5})
    arguments = ["--model", two_models[0], broken, two_models[1], "--data", data, "--output-dir", tmp_path / "out"]
    error = refused(capsys, "zero-shot", *arguments)
    assert f"1 of 3 models could not be measured: {broken}: ValueError: " in error
    assert set(json.loads((tmp_path / "out" / "comparison.json").read_text())["models"]) == {"base", "other"}


def test_a_model_that_has_diverged_is_compared_as_undefined(two_models, tmp_path, capsys):
    diverged = tmp_path / "diverged"
    shutil.copytree(two_models[0], diverged)
    model = BiomedCLIPModel.from_pretrained(diverged)
    with torch.no_grad():
        model.visual_projection.weight.fill_(float("nan"))
    model.save_pretrained(diverged)
    data = draw_images(tmp_path / "data", {"dark": 5, "light": 5})
    arguments = ["zero-shot", "--model", two_models[0], diverged, "--data", data, "--output-dir", tmp_path / "out"]
    assert main(["evaluate", *map(str, arguments)]) == 0
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(), parse_constant=pytest.fail)["models"]
    assert found["diverged"]["accuracy"]["value"] is None and found["base"]["accuracy"]["value"] is not None
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert "| diverged | undefined | undefined | undefined |" in table
    assert "Undefined for diverged: accuracy: the scores of 10 of 10 images are NaN or infinite." in table


@pytest.mark.parametrize("benchmark", [[], ["--benchmark", "imagefolder"]])
@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_one_class_is_refused_before_a_model_is_loaded(small_checkpoint, tmp_path, capsys, no_model, task, benchmark):
    data = draw_images(tmp_path / "data", {"alone": 5})
    arguments = [task, *benchmark, "--model", small_checkpoint, "--data", data, "--output-dir", tmp_path / "out"]
    assert "needs at least two classes" in refused(capsys, *arguments)


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_a_class_without_readable_images_is_refused_before_a_model_is_loaded(
    small_checkpoint, tmp_path, capsys, no_model, task
):
    data = draw_images(tmp_path / "data", {"a": 10, "b": 10})
    for file in (data / "b").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    arguments = [task, "--model", small_checkpoint, "--data", data, "--output-dir", tmp_path / "out"]
    assert "none of the" in (error := refused(capsys, *arguments)) and "class 'b' can be read" in error


def test_a_class_that_training_lacks_is_refused_and_one_that_the_test_lacks_is_noted(
    small_checkpoint, tmp_path, capsys, monkeypatch
):
    data = tmp_path / "data"
    draw_images(data / "train", {"dark": 12, "light": 12})
    draw_images(data / "test", {"dark": 4, "light": 4})
    shutil.copytree(data / "test" / "dark", data / "test" / "new")
    arguments = ["linear-probe", "--model", small_checkpoint, "--data", data, "--output-dir", tmp_path / "out"]
    arguments += ["--fractions", "1.0", "--find-leaks", "false"]
    with monkeypatch.context() as patched:
        patched.setattr(
            "biomedclip.run_scripts.evaluation.run.load_dual_encoder", lambda *args, **kwargs: pytest.fail("loaded")
        )
        assert "the test split has images of 'new', but the training split has only dark, light" in refused(
            capsys, *arguments
        )
    (data / "test" / "new").rename(data / "train" / "new")
    assert main(["evaluate", *map(str, arguments)]) == 0
    results = results_of(tmp_path / "out")
    assert results["metrics"]["classes"] == ["dark", "light", "new"]
    assert results["metrics"]["recall_of_class"]["new"] is None
    assert "No image of the test split is of the class 'new'." in results["data"]["notes"]


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_own_images_are_the_benchmark_imagefolder(small_checkpoint, tmp_path, task):
    data = draw_images(tmp_path / "data", {"dark_ones": 12, "light": 12})
    found = []
    for benchmark in ([], ["--benchmark", "imagefolder"]):
        arguments = [task, *benchmark, "--model", small_checkpoint, "--data", data, "--output-dir"]
        evaluate([*map(str, arguments), str(tmp_path / str(len(benchmark)))])
        found.append(results_of(tmp_path / str(len(benchmark))))
    assert found[0]["metrics"] == found[1]["metrics"]
    assert found[0]["data"]["fingerprint"] == found[1]["data"]["fingerprint"]
    if task == "zero-shot":
        assert found[0]["settings"] == found[1]["settings"]
        assert found[0]["settings"]["class_names"] == {"dark_ones": "dark ones", "light": "light"}


def test_labels_of_a_built_dataset_are_read_by_the_probe(small_checkpoint, built, tmp_path):
    shutil.copytree(built / "data", tmp_path / "set" / "data")
    shards = sorted((built / "data").glob("*.parquet"))
    names = [name for shard in shards for name in pq.read_table(shard, columns=["pair_id"])["pair_id"].to_pylist()]
    lines = [f"{name},{'chart' if place % 2 else 'photo'}" for place, name in enumerate(names)]
    (tmp_path / "set" / "labels.csv").write_text("\n".join(["pair_id,label", *lines]))
    arguments = ["linear-probe", "--model", small_checkpoint, "--data", tmp_path / "set", "--fractions", "1.0"]
    evaluate([*map(str, arguments), "--find-leaks", "false", "--output-dir", str(tmp_path / "out")])
    metrics = results_of(tmp_path / "out")["metrics"]
    assert metrics["training_images"] + metrics["validation_images"] + metrics["images"] == len(names)


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_a_new_benchmark_is_evaluated_by_the_command(small_checkpoint, tmp_path, monkeypatch, task):
    add_spots_benchmark(monkeypatch, tmp_path / "registry")
    (tmp_path / "spots").mkdir()
    for number in range(8):
        draw_images(tmp_path / str(number), {"few": 1, "many": 1}, number)
        for label in ("few", "many"):
            (tmp_path / str(number) / label / "0000.png").rename(tmp_path / "spots" / f"{number}-{label}.png")
    arguments = [task, "--benchmark", "spots", "--model", small_checkpoint, "--data", tmp_path / "spots"]
    evaluate([*map(str, arguments), "--output-dir", str(tmp_path / "out")])
    results = results_of(tmp_path / "out")
    assert results["benchmark"] == "spots" and results["metrics"]["images"] == 16
    assert results["paper"] == ({"accuracy": 0.5} if task == "zero-shot" else {})


def test_a_metadata_file_is_measured_by_its_column_of_labels(small_checkpoint, tmp_path, capsys):
    data = draw_images(tmp_path / "data", {"dark": 6, "light": 6})
    lines = [f"{file.relative_to(data)},{file.parent.name}" for file in sorted(data.rglob("*.png"))]
    (data / "metadata.csv").write_text("\n".join(["file_name,shade", *lines]))
    arguments = ["zero-shot", "--model", small_checkpoint, "--data", data, "--output-dir", tmp_path / "out"]
    assert "Pass --label-column" in refused(capsys, *arguments)
    assert main(["evaluate", *map(str, arguments), "--label-column", "shade"]) == 0
    assert results_of(tmp_path / "out")["metrics"]["classes"] == ["dark", "light"]


def test_a_missing_package_is_named_before_a_model_is_loaded(small_checkpoint, tmp_path, capsys, no_model, monkeypatch):
    data = draw_images(tmp_path / "data", {"a": 1, "b": 1})
    (data / "a" / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(200))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    arguments = ["zero-shot", "--model", small_checkpoint, "--data", data, "--output-dir", tmp_path / "out"]
    assert 'pip install "biomedclip[dicom]"' in refused(capsys, *arguments)


def test_too_few_pairs_to_sample_from_are_refused(small_checkpoint, built, tmp_path, capsys, no_model, monkeypatch):
    read = retrieval_task.load_pmc15m
    monkeypatch.setattr(retrieval_task, "load_pmc15m", lambda *args, **options: read(*args, **options).select([0]))
    arguments = ["retrieval", "--model", small_checkpoint, "--data", built, "--output-dir", tmp_path / "out"]
    assert "needs at least two to choose from" in refused(capsys, *arguments)
