"""`biomedclip evaluate` as a person runs it."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageColumn
from helpers.benchmark_files import add_spots_benchmark, draw_images, write_rsna, write_tcga_til
from helpers.commands import kill_when
from helpers.model_results import read_results
from PIL import Image

from biomedclip import BiomedCLIPModel
from biomedclip.run_scripts.evaluate import main as evaluate
from biomedclip.run_scripts.evaluation import retrieval, run
from biomedclip.run_scripts.main import main


@pytest.fixture
def refused(small_checkpoint, tmp_path, capsys):
    """Run `biomedclip evaluate`, and return the error."""

    def run(task, data, *options, models=(small_checkpoint,), out="out"):
        arguments = [task, "--model", *models, "--data", data, *options, "--output-dir", tmp_path / out]
        assert main(["evaluate", *map(str, arguments)]) == 1
        error = " ".join(capsys.readouterr().err.split())
        assert "Traceback" not in error
        return error

    return run


def test_retrieval_writes_results_in_the_agreed_form(measure, built, capsys):
    results = measure("retrieval", built, "--benchmark", "pmc15m")
    keys = (
        "schema task benchmark command date model data metrics paper paper_source published settings seconds versions"
    )
    assert list(results) == keys.split()
    assert results["schema"] == 1 and results["benchmark"] == "pmc15m"
    assert results["command"].startswith("biomedclip evaluate retrieval --model ")
    assert results["model"]["type"] == "biomedclip" and len(results["model"]["weights"]) == 16
    pairs = results["metrics"]["pairs"]
    assert results["data"]["rows"] == pairs and results["data"]["damaged"] == [] and results["data"]["leaks"] is None
    assert results["metrics"]["chance_at_1"] == 1 / pairs
    assert results["paper"] == {} and results["paper_source"] == "" and results["published"] == []
    assert any("725,739" in note for note in results["data"]["notes"]), "the paper's pool is larger"
    output = capsys.readouterr().out
    assert "Published values" not in output and max(map(len, output.splitlines())) <= 80
    assert "articles, test split" in output and "Note:" in output and "725,739" in output
    measure("retrieval", built, "--split", "validation", out="validation")
    assert "articles, validation split" in capsys.readouterr().out


def test_a_table_shows_the_accuracy_of_the_majority_class(measure, tmp_path, capsys):
    data = draw_images(tmp_path / "data", {"dark": 24, "light": 6})
    assert measure("zero-shot", data)["metrics"]["most_frequent_class"] == 0.8
    output = capsys.readouterr().out
    assert "majority class" in output and "too narrow" not in output
    (data / "dark" / "0000.png").unlink()
    assert "Only 29 images: the intervals are too narrow." in measure("zero-shot", data)["data"]["notes"]
    assert "Only 29 images: the intervals are too narrow." in capsys.readouterr().out


def test_all_captions_of_an_image_are_right(measure, built):
    """The images of an article count as one image with several captions."""
    metrics = measure("retrieval", built, "--image-id", "pmcid")["metrics"]
    assert metrics["images"] == metrics["articles"] < metrics["pairs"]
    assert metrics["captions_of_an_image"] == metrics["pairs"] / metrics["images"]
    with pytest.raises(ValueError, match="no column 'color'"):
        measure("retrieval", built, "--image-id", "color")


def test_several_models_are_compared(two_models, tmp_path, capsys):
    data = draw_images(tmp_path / "data", {"dark_ones": 20, "light": 30})
    out = tmp_path / "out"
    others = ["--data", str(data), "--output-dir", str(out)]
    evaluate(["zero-shot", *[part for model in two_models for part in ("--model", str(model))], *others])
    assert "other" in capsys.readouterr().out
    each = [read_results(out / name) for name in ("base", "other")]
    assert each[0]["model"]["weights"] != each[1]["model"]["weights"]
    comparison = json.loads((out / "comparison.json").read_text())["models"]
    for name, results in zip(("base", "other"), each, strict=True):
        assert comparison[name]["accuracy"]["value"] == results["metrics"]["accuracy"]
        assert comparison[name]["AUROC"]["interval"] == results["metrics"]["auroc_interval"]
    markdown, latex = (out / "comparison.md").read_text(), (out / "comparison.tex").read_text()
    assert "| base | " in markdown and "| other | " in markdown
    assert all(f"{each[0]['metrics']['accuracy']:.3f} [" in text for text in (markdown, latex))
    assert latex.count("\\\\") == 3 and r"\toprule" in latex and "accuracy_" not in latex.replace(r"\_", "")
    assert Image.open(out / "comparison.png").width > 500
    evaluate(["zero-shot", f"--model={two_models[0]},{two_models[1]}", *others])
    assert json.loads((out / "comparison.json").read_text())["models"] == comparison
    with pytest.raises(ValueError, match="the same model twice"):
        evaluate(["zero-shot", "--model", str(two_models[0]), str(two_models[0]), *others])


def test_damaged_images_are_counted_and_named(measure, tmp_path, capsys):
    data = draw_images(tmp_path / "data", {"a": 6, "b": 6})
    whole = measure("zero-shot", data)
    (data / "a" / "0002.png").write_bytes(b"no image")
    (data / "b" / "0005.png").write_bytes(b"")
    results = measure("zero-shot", data)
    assert [entry["name"] for entry in results["data"]["damaged"]] == ["a/0002.png", "b/0005.png"]
    assert results["metrics"]["images"] == results["data"]["rows"] == 10
    assert np.array(results["metrics"]["confusion_matrix"]).sum() == 10
    assert "2 damaged images are excluded: a/0002.png" in capsys.readouterr().out.replace("\n", " ")
    assert results["data"]["fingerprint"] != whole["data"]["fingerprint"]


def test_a_benchmark_has_its_prompts_and_published_values(measure, tmp_path):
    data = draw_images(tmp_path / "data", {"normal": 5, "tumor": 4})
    results = measure("zero-shot", data, "--benchmark", "pcam")
    assert results["paper"] == {"accuracy": 0.7341}
    assert results["settings"]["templates"] == ["this is an image of {}", "{} presented in image"]
    assert results["settings"]["template_set"] == "paper" and results["settings"]["positive"] == "tumor"
    assert results["settings"]["class_names"]["tumor"] == "lymph node metastasis"
    other = measure("zero-shot", data, "--benchmark", "pcam", "--templates", "a photo of {}")
    assert other["settings"]["templates"] == ["a photo of {}"]


def test_the_study_of_tcga_til_is_an_option(measure, refused, tmp_path, capsys):
    write_tcga_til(tmp_path, ["luad", "pancancer"], {"train": (6, 6), "val": (2, 2), "test": (6, 2)})
    tcga_til = [tmp_path, "--benchmark", "tcga_til"]
    results = measure("zero-shot", *tcga_til)
    assert results["data"]["selection"]["cancer"] == "luad" and results["data"]["selection"]["positive"] == 2
    assert results["paper"] == {"auroc": 0.6704} and results["published"]
    output = " ".join(capsys.readouterr().out.split())
    assert "Note: Cancer luad, folder test: 8 images, 25.0% positive." in output
    assert "2,480 images, 5.9% of them positive. Its value was measured on different images" in output
    for task in ("zero-shot", "linear-probe"):
        results = measure(task, *tcga_til, "--cancer", "all", out=task)
        assert results["data"]["selection"]["cancer"] == "all"
        assert results["paper"] == {} and results["published"] == []
    assert "no folder of the cancer 'brca', only luad, all" in refused("zero-shot", *tcga_til, "--cancer", "brca")


def test_the_split_of_rsna_is_an_option(measure, tmp_path, capsys):
    pytest.importorskip("pydicom")
    write_rsna(tmp_path / "rsna", {f"patient-{number}": [int(number % 3 == 0)] for number in range(30)})
    sizes = {"paper-test": {"train": 17, "test": 10, "validation": 3}}
    sizes["paper-fractions"] = {"train": 21, "test": 5, "validation": 4}
    for rule, expected in sizes.items():
        for task in ("zero-shot", "linear-probe"):
            options = ["--benchmark", "rsna", "--rsna-split", rule]
            found = measure(task, tmp_path / "rsna", *options, out=f"{rule}/{task}")["data"]["selection"]
            assert found["patients"] == expected and found["rsna_split"] == rule
    output = " ".join(capsys.readouterr().out.split())
    assert "train 18,678, validation 4,003, test 9,069, which is more than the 26,684 patients" in output
    assert "paper-fractions is inferred" in output


def test_the_probe_separates_dark_from_light_and_reports_a_leak(measure, tmp_path, capsys):
    data = tmp_path / "data"
    for seed, (split, count) in enumerate({"train": 40, "val": 10, "test": 10}.items()):
        draw_images(data / split, {"dark": count, "light": count}, seed)
    shutil.copy(data / "train" / "dark" / "0003.png", data / "test" / "dark" / "0004.png")
    results = measure("linear-probe", data, "--draws", "2")
    assert results["metrics"]["accuracy"] == 1 and set(results["metrics"]["by_fraction"]) == {"0.01", "0.1", "1"}
    assert results["metrics"]["training_images"] == 80 and results["metrics"]["validation_images"] == 20
    assert results["data"]["leaks"]["same_bytes"] == 1
    assert "dark/0004.png" in json.dumps(results["data"]["leaks"]["examples"])
    assert "test images are, or look like, training images" in capsys.readouterr().out.replace("\n", " ")
    hidden = measure("linear-probe", data, "--probe-features", "hidden", "--find-leaks", "false", out="hidden")
    assert hidden["settings"]["features"] == "hidden" and hidden["data"]["leaks"] is None


def test_elevaters_protocol_needs_no_validation_split(measure, tmp_path, capsys):
    data = tmp_path / "data"
    for seed, split in enumerate(("train", "test")):
        draw_images(data / split, {"normal": 20, "tumor": 20}, seed)
    pcam = [data, "--benchmark", "pcam", "--fractions", "1.0"]
    results = measure("linear-probe", *pcam, "--protocol", "elevater")
    assert results["settings"]["protocol"] == "elevater" and results["metrics"]["accuracy"] >= 0.5
    (fit,) = results["metrics"]["by_fraction"]["1"]["runs"]
    assert fit["images"] == 32, "as many as the other protocol trains on"
    assert {"learning_rate", "weight_decay", "accuracy_of_best_test_epoch"} < set(fit)
    assert "Protocol of ELEVATER" in results["data"]["notes"][-1] and "docs/evaluation.md" in capsys.readouterr().out
    logistic = measure("linear-probe", *pcam, out="logistic")
    assert logistic["settings"]["protocol"] == "logistic"
    assert any("--protocol elevater is closer" in note for note in logistic["data"]["notes"])


def test_images_without_splits_are_split_for_the_probe(measure, tmp_path):
    data = draw_images(tmp_path / "data", {"dark": 30, "light": 30})
    metrics = measure("linear-probe", data, "--fractions", "1.0")["metrics"]
    assert (metrics["training_images"], metrics["validation_images"], metrics["images"]) == (36, 12, 12)


def test_the_columns_of_a_datasets_set_are_options(measure, refused, tmp_path):
    draw_images(tmp_path / "images", {"dark": 6, "light": 6})
    files = sorted((tmp_path / "images").glob("*/*.png"))
    rows = {"scan": [str(file) for file in files], "finding": [file.parent.name for file in files]}
    Dataset.from_dict(rows).cast_column("scan", ImageColumn()).save_to_disk(tmp_path / "set")
    assert "Pass --image-column" in refused("zero-shot", tmp_path / "set")
    results = measure("zero-shot", tmp_path / "set", "--image-column", "scan", "--label-column", "finding")
    assert results["metrics"]["classes"] == ["dark", "light"]


def parts_of(folder: Path) -> Iterator[Path]:
    return folder.rglob("part-*.safetensors")


@pytest.mark.slow
def test_a_killed_run_continues(small_checkpoint, tmp_path):
    data = draw_images(tmp_path / "data", {"dark": 1500, "light": 1700})
    command = ["evaluate", "zero-shot", "--model", str(small_checkpoint), "--data", str(data), "--output-dir"]
    kill_when(lambda: any(parts_of(tmp_path / "killed")), *command, tmp_path / "killed")
    done = {path: path.stat().st_mtime_ns for path in parts_of(tmp_path / "killed")}
    assert 1 <= len(done) < 4 and not (tmp_path / "killed" / "results.json").exists()

    for name in ("killed", "whole"):
        main([*command, str(tmp_path / name)])
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done is not done again"
    assert len(list(parts_of(tmp_path / "killed"))) == 4
    assert read_results(tmp_path / "killed")["metrics"] == read_results(tmp_path / "whole")["metrics"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("dance", "Unknown task 'dance'. Choose one of retrieval, zero-shot"),
        ("zero-shot --data=", "zero-shot requires --data,"),
        ("zero-shot --benchmark pmc15m", "--benchmark pmc15m is not for zero-shot. Choose one of pcam"),
        ("retrieval --benchmark pcam", "--benchmark pcam is not for retrieval. Choose one of pmc15m"),
        ("vqa --benchmark pcam", "--benchmark pcam is not for visual-question-answering"),
        ("retrieval --benchmark chess", "--benchmark chess is unknown. Choose one of pmc15m"),
        ("retrieval --templates a", "--templates applies only to zero-shot, few-shot, not to retrieval."),
        (
            "zero-shot --no-find-leaks",
            "--no-find-leaks applies only to linear-probe, few-shot, image-classification, suite, not to",
        ),
        ("zero-shot --protocol elevater", "--protocol applies only to linear-probe, suite, not to zero-shot"),
        ("suite --report", "--report applies only to retrieval, zero-shot, linear-probe, few-shot, "),
        ("vqa --subgroup-column sex", "--subgroup-column applies only to zero-shot, linear-probe, image-"),
        ("zero-shot --pool-size 8", "--pool-size applies only to retrieval, suite, not to zero-shot"),
        ("linear-probe --max-length 5", "--max-length applies only to retrieval, zero-shot, few-shot, visual-question"),
        (
            "retrieval --cancer luad",
            "--cancer applies only to zero-shot, linear-probe, few-shot, image-classification, suite, not to",
        ),
        ("vqa --precision bfloat16", "--precision applies only to retrieval, zero-shot, linear-probe, few-shot, image"),
        (
            "vqa --benchmark slake --workers 1",
            "--workers applies only to retrieval, zero-shot, linear-probe, few-shot, image",
        ),
        (
            "vqa --benchmark slake --features-dir f",
            "--features-dir applies only to retrieval, zero-shot, linear-probe, few-shot",
        ),
        (
            "vqa --benchmark slake --rsna-split paper-test",
            "--rsna-split applies only to zero-shot, linear-probe, few-shot",
        ),
        ("zero-shot --data-root r", "--data-root applies only to suite, not to zero-shot"),
        ("zero-shot --tasks vqa", "--tasks applies only to suite, not to zero-shot"),
        (
            "suite --split validation",
            "--split applies only to retrieval, zero-shot, linear-probe, few-shot, image-class",
        ),
        (
            "suite --data d",
            "--data applies only to retrieval, zero-shot, linear-probe, few-shot, image-classification",
        ),
        ("suite --prompts paper", "--prompts applies only to zero-shot, few-shot, not to suite"),
        ("zero-shot --benchmark pcam --label-column x", "--label-column has no effect on pcam, only on imagefolder"),
        ("zero-shot --benchmark pcam --cancer luad", "--cancer has no effect on pcam, only on tcga_til"),
        ("linear-probe --cancer brca", "--cancer has no effect on imagefolder, only on tcga_til"),
        ("zero-shot --benchmark tcga_til --rsna-split paper-test", "--rsna-split has no effect on tcga_til, only on"),
        ("suite --benchmarks pcam --cancer brca", "--cancer has no effect on pcam, only on tcga_til"),
        ("suite --tasks zero-shot --draws 3", "--draws has no effect on suite --tasks zero-shot, only on linear"),
        ("suite --benchmarks slake --image-id x", "--image-id has no effect on suite --tasks visual-question"),
        ("suite --tasks vqa --precision bfloat16", "--precision has no effect on suite --tasks visual-question"),
        ("suite --tasks vqa --workers 1", "--workers has no effect on suite --tasks visual-question-answering"),
        ("suite --tasks linear-probe --max-length 5", "--max-length has no effect on suite --tasks linear-probe"),
        ("suite", "suite requires --data-root"),
        ("suite --tasks dance", "--tasks: 'dance' is not part of the suite. Choose from zero-shot, linear-probe, "),
        ("suite --benchmarks imagefolder", "'imagefolder' is not part of the suite. Choose from pcam, "),
        ("suite --tasks vqa --benchmarks pcam", "--tasks visual-question-answering cannot be measured on pcam"),
        ("zero-shot --benchmark rsna --prompts biovil --templates {}", "--prompts and --templates both choose the"),
        ("zero-shot --templates a", "'a' has no {} for"),
        ("linear-probe --fractions 1.0 --draws 3", "--draws has no effect on --fractions 1"),
        ("linear-probe --fractions 2", "at most 1, not 2.0"),
        ("linear-probe --draws 0", "--draws must be 1 or more"),
        ("linear-probe --split train", "--split train: the probe would be tested on its training images"),
        ("retrieval --pool-size 1", "--pool-size must be 2 or more"),
        ("retrieval --pool-draws 3", "--pool-draws has no effect without --pool-size"),
        ("retrieval --pool-size 5 --pool-draws 0", "--pool-draws must be 1 or more"),
        ("retrieval --examples -1", "--examples must be 0 or more"),
        ("retrieval --batch-size 0", "--batch-size must be 1 or more"),
        ("retrieval --workers 0", "--workers must be 1 or more"),
        ("retrieval --max-length 0", "--max-length must be 1 or more"),
        ("retrieval --seed -1", "--seed must be 0 or more"),
        ("retrieval --split-name test", "The option --split-name does not exist. Did you mean '--split'? See: biomed"),
        ("retrieval again", "'again' does not belong to an option."),
    ],
)
def test_an_invalid_command_line_is_an_error_of_one_line(command, message, capsys):
    task, *options = command.split()
    data = ["--data-root", "r"] if task == "suite" and options else [] if task == "suite" else ["--data", "d"]
    assert main(["evaluate", task, *data, *options, "--model", "m", "--output-dir", "o"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("retrieval --data nowhere", "nowhere: the folder does not exist"),
        ("zero-shot --data ./nowhere", "nowhere: the folder does not exist. Pass the folder of the images"),
        ("zero-shot --data {data} --label-column x", "--label-column 'x' has no effect on class folders"),
        ("zero-shot --data {data} --split validation", "there is no validation split"),
    ],
)
def test_invalid_data_and_models_are_reported_together(command, message, tmp_path, capsys):
    data = draw_images(tmp_path / "data", {"normal": 1, "tumor": 1})
    command = command.format(data=data).split()
    assert main(["evaluate", *command, "--model", "m", "--output-dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert message in error and "--model m is neither a folder" in error and "Traceback" not in error


def test_models_data_and_folders_are_checked_before_a_model_is_loaded(two_models, refused, tmp_path, no_model):
    error = refused("zero-shot", tmp_path / "no data", models=[*two_models, tmp_path / "gone", "nowhere"])
    assert "gone is neither a folder" in error and "--model nowhere is neither a folder" in error
    assert "no data: the folder does not exist" in error and not (tmp_path / "out").exists()
    data = draw_images(tmp_path / "data", {"a": 2, "b": 2})
    (tmp_path / "out").write_text("")
    assert "out is a file" in refused("zero-shot", data, models=two_models)
    assert "--features-dir" in refused("zero-shot", data, "--features-dir", tmp_path / "out", out="results")


def test_other_models_are_compared_if_one_fails(two_models, refused, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    shutil.copytree(two_models[0], broken)
    load = run.load_dual_encoder

    def fail(name, *arguments, **options):
        if str(name) == str(broken):
            raise ValueError("it failed")
        return load(name, *arguments, **options)

    monkeypatch.setattr(run, "load_dual_encoder", fail)
    data = draw_images(tmp_path / "data", {"dark": 5, "light": 5})
    error = refused("zero-shot", data, models=[two_models[0], broken, two_models[1]])
    assert f"1 of 3 models could not be measured: {broken}: ValueError: " in error
    assert set(json.loads((tmp_path / "out" / "comparison.json").read_text())["models"]) == {"base", "other"}


def test_the_metrics_of_a_diverged_model_are_undefined(two_models, tmp_path):
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


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_classes_are_checked_before_a_model_is_loaded(refused, tmp_path, no_model, task):
    assert "at least two classes" in refused(task, draw_images(tmp_path / "one", {"alone": 5}))
    data = draw_images(tmp_path / "data", {"a": 10, "b": 10})
    for file in (data / "b").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    error = refused(task, data)
    assert "none of the" in error and "class 'b' can be read" in error


def test_a_class_may_be_missing_in_the_test_split_but_not_in_training(measure, refused, tmp_path):
    data = tmp_path / "data"
    draw_images(data / "train", {"dark": 12, "light": 12})
    draw_images(data / "test", {"dark": 4, "light": 4})
    shutil.copytree(data / "test" / "dark", data / "test" / "new")
    options = ["--fractions", "1.0", "--find-leaks", "false"]
    error = refused("linear-probe", data, *options)
    assert "the test split has images of 'new', but the training split has only dark, light" in error
    (data / "test" / "new").rename(data / "train" / "new")
    results = measure("linear-probe", data, *options)
    assert results["metrics"]["classes"] == ["dark", "light", "new"]
    assert results["metrics"]["recall_of_class"]["new"] is None
    assert "No image of the test split is of the class 'new'." in results["data"]["notes"]


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_own_images_are_the_benchmark_imagefolder(measure, tmp_path, task):
    data = draw_images(tmp_path / "data", {"dark_ones": 12, "light": 12})
    own, named = measure(task, data, out="own"), measure(task, data, "--benchmark", "imagefolder", out="named")
    assert own["metrics"] == named["metrics"] and own["settings"] == named["settings"]
    assert own["data"]["fingerprint"] == named["data"]["fingerprint"]
    if task == "zero-shot":
        assert own["settings"]["class_names"] == {"dark_ones": "dark ones", "light": "light"}


def test_the_probe_reads_the_labels_of_a_built_dataset(measure, built, tmp_path):
    shutil.copytree(built / "data", tmp_path / "set" / "data")
    shards = sorted((built / "data").glob("*.parquet"))
    names = [name for shard in shards for name in pq.read_table(shard, columns=["pair_id"])["pair_id"].to_pylist()]
    lines = [f"{name},{'chart' if place % 2 else 'photo'}" for place, name in enumerate(names)]
    (tmp_path / "set" / "labels.csv").write_text("\n".join(["pair_id,label", *lines]))
    metrics = measure("linear-probe", tmp_path / "set", "--fractions", "1.0", "--find-leaks", "false")["metrics"]
    assert metrics["training_images"] + metrics["validation_images"] + metrics["images"] == len(names)


@pytest.mark.parametrize("task", ["zero-shot", "linear-probe"])
def test_a_new_benchmark_is_one_reader_and_one_entry(measure, tmp_path, monkeypatch, task):
    add_spots_benchmark(monkeypatch, tmp_path / "registry")
    (tmp_path / "spots").mkdir()
    for number in range(8):
        draw_images(tmp_path / str(number), {"few": 1, "many": 1}, number)
        for label in ("few", "many"):
            (tmp_path / str(number) / label / "0000.png").rename(tmp_path / "spots" / f"{number}-{label}.png")
    results = measure(task, tmp_path / "spots", "--benchmark", "spots")
    assert results["benchmark"] == "spots" and results["metrics"]["images"] == 16
    assert results["paper"] == ({"accuracy": 0.5} if task == "zero-shot" else {})


def test_the_label_column_of_a_metadata_file_is_an_option(measure, refused, tmp_path):
    data = draw_images(tmp_path / "data", {"dark": 6, "light": 6})
    lines = [f"{file.relative_to(data)},{file.parent.name}" for file in sorted(data.rglob("*.png"))]
    (data / "metadata.csv").write_text("\n".join(["file_name,shade", *lines]))
    assert "Pass --label-column" in refused("zero-shot", data)
    assert measure("zero-shot", data, "--label-column", "shade")["metrics"]["classes"] == ["dark", "light"]


def test_a_missing_package_is_reported_before_a_model_is_loaded(refused, tmp_path, no_model, monkeypatch):
    data = draw_images(tmp_path / "data", {"a": 1, "b": 1})
    (data / "a" / "IM0001").write_bytes(bytes(128) + b"DICM" + bytes(200))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert 'pip install "biomedclip[dicom]"' in refused("zero-shot", data)


def test_retrieval_needs_two_pairs(refused, built, no_model, monkeypatch):
    read = retrieval.load_pmc15m
    monkeypatch.setattr(retrieval, "load_pmc15m", lambda *args, **options: read(*args, **options).select([0]))
    assert "needs at least two to choose from" in refused("retrieval", built)
