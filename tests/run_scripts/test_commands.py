"""The commands on a small synthetic dataset, and their help and errors."""

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers.commands import biomedclip, kill_when, losses, new_python, python
from helpers.training_runs import assert_losses_of_one

from biomedclip.processing import load_pmc15m
from biomedclip.run_scripts.main import VERBS, main


RECIPE = """
base: quickstart
train:
  per_device_train_batch_size: 16
  eval_steps: 4
  save_steps: 4
  vocabulary_size: 600
  logging_steps: 1
  max_steps: 8
"""


def status_of(*arguments) -> int:
    try:
        return main(list(map(str, arguments)))
    except SystemExit as end:
        return end.code


def run_quickstart(folder: Path) -> subprocess.CompletedProcess:
    (folder / "small.yaml").write_text(RECIPE)
    small = ["--config", folder / "small.yaml", "--figures", 150, "--lora-steps", 2]
    return biomedclip("quickstart", *small, "--output-dir", folder / "out")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The output folder of a short quickstart, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart")
    result = run_quickstart(folder)
    return folder / "out", result


@pytest.fixture(scope="module")
def out(quickstart) -> Path:
    return quickstart[0]


@pytest.mark.slow
def test_the_quickstart_writes_a_dataset_a_model_an_adapter_plots_and_a_report(quickstart):
    out, printed = quickstart
    report = json.loads((out / "report.json").read_text())
    for direction in ("image_to_text", "text_to_image"):
        metrics = report["retrieval"][direction]
        assert all(metrics[name] >= 0 for name in ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank"))
        low, high = metrics["recall_at_10_interval"]
        assert low <= metrics["recall_at_10"] <= high
    pairs = report["retrieval"]["pairs"]
    assert report["retrieval"]["chance_at_1"] == 1 / pairs
    assert report["retrieval"]["oracle_of_kind_at_1"] * pairs == pytest.approx(len(report["zero_shot"]["classes"]))
    assert {"accuracy", "balanced_accuracy", "chance", "images"} <= set(report["zero_shot"])
    assert report["training"]["steps"] == 8 and report["training"]["samples"] == 8 * 16
    assert report["lora"]["steps"] == 2 and report["lora"]["loss_first"] != report["lora"]["loss_last"]
    assert report["build"]["articles"]["dropped"] == {"not open access": 1, "retracted": 1}
    names = ("curves.png", "answers.png", "README.md", "model/README.md")
    for name in (*names, "model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (out / name).stat().st_size > 0, name
    assert "$ biomedclip train" in printed.stderr and "Quickstart" in printed.stdout
    assert "biomedclip train" not in printed.stdout, "progress is on stderr"
    assert max(map(len, printed.stdout.splitlines())) <= 80
    card = (out / "README.md").read_text()
    assert "| train |" in card and "retracted" in card and str(out) not in card
    with (out / "labels.csv").open() as file:
        assert next(csv.reader(file)) == ["pair_id", "kind"]
    train, test = ([row["caption"] for row in load_pmc15m(out, split)] for split in ("train", "test"))
    assert len(set(test)) == len(test) and not set(train) & set(test)


@pytest.mark.slow
def test_two_runs_of_one_seed_give_the_same_numbers(out, tmp_path):
    run_quickstart(tmp_path)
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (out, tmp_path / "out"))
    for part in ("retrieval", "zero_shot", "lora"):
        assert first[part] == second[part]
    assert losses(out / "training") == losses(tmp_path / "out" / "training")


@pytest.mark.slow
def test_another_process_loads_the_folder_after_one_import(out):
    code = f"""
import biomedclip
import torch
from PIL import Image
from peft import PeftModel
from transformers import AutoModel, AutoProcessor, pipeline

model, processor = AutoModel.from_pretrained(r"{out}/model"), AutoProcessor.from_pretrained(r"{out}/model")
image = Image.new("RGB", (100, 80), "gray")
inputs = processor(text=["a chest X-ray", "a line chart"], images=image, return_tensors="pt")
expected = model(**inputs).logits_per_image.softmax(-1)[0].tolist()
classify = pipeline("zero-shot-image-classification", model=r"{out}/model", device="cpu")
answers = classify(image, candidate_labels=["chest X-ray", "line chart"], hypothesis_template="a {{}}")
scores = {{answer["label"]: answer["score"] for answer in answers}}
assert abs(scores["chest X-ray"] - expected[0]) < 1e-5
adapted = PeftModel.from_pretrained(model, r"{out}/adapter")
assert not torch.equal(adapted(**inputs).image_embeds, AutoModel.from_pretrained(r"{out}/model")(**inputs).image_embeds)
print(type(model).__name__, type(processor).__name__)
"""
    assert python(code).strip() == "BiomedCLIPModel BiomedCLIPProcessor"


@pytest.mark.slow
def test_train_gives_the_losses_of_the_quickstart_on_two_processes_and_killed_and_resumed(out, tmp_path):
    train = ["train", "--config", out.parent / "small.yaml", "--train-data", out, "--seed", "0"]
    expected = losses(out / "training")
    assert len(expected) == 8

    options = ["--per-device-train-batch-size", "8", "--output-dir", tmp_path / "two"]
    result = biomedclip(*train, *options, processes=2)
    assert json.loads((tmp_path / "two" / "train_results.json").read_text())["batch_size"] == 16
    assert result.stdout.count("trainable fraction") == 1, "one table, of the first process"
    assert_losses_of_one(losses(tmp_path / "two"), expected)

    killed = tmp_path / "killed"
    kill_when((killed / "checkpoint-4" / "trainer_state.json").exists, *train, "--output-dir", killed)
    refused = biomedclip(*train, "--output-dir", killed, check=False)
    assert refused.returncode == 1 and "--resume-from-checkpoint true" in refused.stderr
    biomedclip(*train, "--output-dir", killed, "--resume-from-checkpoint", "true")
    assert losses(killed) == expected
    assert json.loads((killed / "train_results.json").read_text())["resumed_from_step"] >= 4

    finished = biomedclip(*train, "--output-dir", killed, "--resume-from-checkpoint", "true", check=False)
    assert finished.returncode == 1 and "Raise --max-steps to continue" in finished.stderr
    assert not (killed / "checkpoint-9").exists()


@pytest.mark.slow
def test_the_card_of_real_articles_thanks_their_source(shared_data, tmp_path):
    articles = ["--source", shared_data / "pmc_mirror", "--pmcids", "PMC2803133,PMC3178181", "--workers", "1"]
    articles += ["--split-fractions", "1,0,0"]
    biomedclip("build", *articles, "--output-dir", tmp_path / "set")
    card = (tmp_path / "set" / "README.md").read_text()
    assert "National Library of Medicine" in card and "CC BY" in card


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_no_data_and_goes_on(out, tmp_path):
    build = ["build", "--source", out / "corpus", "--license", "all", "--tasks", "6", "--workers", "1", "--output-dir"]
    kill_when(lambda: any((tmp_path / "set").glob(".build/*/articles/*.jsonl")), *build, tmp_path / "set")
    assert not (tmp_path / "set" / "data").exists()
    for folder in ("set", "undisturbed"):
        biomedclip(*build, tmp_path / folder)
    rebuilt, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / folder / "data").iterdir()}
        for folder in ("set", "undisturbed")
    )
    assert rebuilt == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--source", "/nowhere", "--output-dir", "{tmp}"], "does not exist"),
        (["build", "--source", "{tmp}", "--output-dir", "{tmp}"], "no articles found"),
        (["train", "--train-data", "{tmp}", "--output-dir", "{tmp}/run"], "no image-text pairs in this folder"),
        (["train", "--output-dir", "{tmp}/run"], "--train-data is missing"),
        (["train", "--config", "nowhere", "--train-data", "x", "--output-dir", "y"], "the recipe 'nowhere'"),
        (["evaluate", "zero-shot", "--model", "x", "--data", "{built}", "--output-dir", "{tmp}"], "pair_id and label"),
        (["quickstart", "--output-dir", "{tmp}/old"], "--overwrite"),
        (["quickstart", "--output-dir", "{built}"], "Choose another `--output-dir`"),
        (["quickstart", "--output-dir", "{tmp}/a", "--figures", "0"], "`--figures` must be between 1 and"),
        (["quickstart", "--output-dir", "{tmp}/a", "--source", "/nowhere"], "does not exist"),
        (["dance"], "'dance' is not a verb"),
        (["evalute"], "Did you mean 'evaluate'?"),
        (["evaluate", "zeroshot"], "Did you mean 'zero-shot'?"),
        (["evaluate", "--model", "{tmp}/odl", "--data", "x", "--output-dir", "{tmp}/r"], "Did you mean '{tmp}/old'?"),
    ],
)
def test_errors_are_one_line_that_a_person_can_act_on(built, tmp_path, arguments, message, capsys):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / ".quickstart").touch()
    places = {"tmp": tmp_path, "built": built}
    assert status_of(*(argument.format(**places) for argument in arguments)) != 0
    error = capsys.readouterr().err
    assert message.format(**places) in error and "Traceback" not in error


def test_overwrite_removes_only_what_a_quickstart_writes(tmp_path, monkeypatch):
    class Done(BaseException):
        pass

    def stop(*arguments, **options):
        raise Done

    monkeypatch.setattr("biomedclip.run_scripts.quickstart.write_synthetic_corpus", stop)
    for name in (".quickstart", "report.json", "mine.txt"):
        (tmp_path / name).write_text("")
    (tmp_path / "corpus").mkdir()
    with pytest.raises(Done):
        main(["quickstart", "--output-dir", str(tmp_path), "--overwrite"])
    assert {path.name for path in tmp_path.iterdir()} == {".quickstart", "mine.txt"}


@pytest.mark.parametrize(
    "verb", [*VERBS, "train --task image-classification", "train --task visual-question-answering"]
)
def test_help_shows_an_example_and_fits_80_columns(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert status_of(*verb.split(), "--help") == 0
    output = capsys.readouterr().out
    assert f"biomedclip {verb.split()[0]}" in output.split("example:")[1]
    assert "--config" in output
    assert verb.split()[0] not in ("train", "evaluate") or "--trust-remote-code" in output
    assert len(output.splitlines()) < 150 and max(map(len, output.splitlines())) <= 80


def test_help_shows_an_example_of_each_evaluation_and_what_a_negated_flag_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert status_of("evaluate", "--help") == 0
    _, examples = capsys.readouterr().out.split("example:")
    tasks = ("retrieval", "zero-shot", "linear-probe", "visual-question-answering")
    assert all(f"evaluate {task} --model" in examples for task in tasks)
    assert status_of("evaluate", "linear-probe", "--help") == 0
    assert "Opposite of --find-leaks." in capsys.readouterr().out


def test_the_command_lists_its_verbs_and_its_version(capsys):
    assert status_of("--help") == 0
    output = capsys.readouterr().out
    assert all(f"\n  {verb} " in output for verb in VERBS)
    assert max(map(len, output.splitlines())) <= 80
    assert status_of() == 2
    assert status_of("--version") == 0 and "biomedclip 0." in capsys.readouterr().out


IMPORT = """
import builtins

original = builtins.__import__

def import_as_on_windows(name, globals=None, *arguments, **options):
    ours = (globals or {}).get("__name__", "").startswith("biomedclip")
    if ours and name in ("fcntl", "grp", "pwd", "resource", "termios"):
        raise ModuleNotFoundError(f"No module named {name!r}")
    return original(name, globals, *arguments, **options)

builtins.__import__ = import_as_on_windows
"""


def test_all_verbs_except_build_are_imported_without_modules_of_unix():
    verbs = [verb for verb in VERBS if verb != "build"]
    python(IMPORT + "".join(f"import biomedclip.run_scripts.{verb}\n" for verb in verbs))
    with pytest.raises(AssertionError, match="No module named 'fcntl'"):
        python(f"{IMPORT}exec('import fcntl', {{'__name__': 'biomedclip.a_module', '__builtins__': builtins}})")
    check = "from biomedclip.run_scripts.cli.reporting import peak_memory_mib\nassert peak_memory_mib() is None"
    python(IMPORT + check)


def test_help_imports_neither_torch_nor_transformers():
    code = "import sys, biomedclip.run_scripts.main as main\ntry: main.main(['--help'])\nexcept SystemExit: pass\n"
    assert new_python(f"{code}print({{'torch', 'transformers', 'numpy'}} & sys.modules.keys())").endswith("set()\n")


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ({}, ("PASSIVE", "0")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None)),
        ({"GOMP_SPINCOUNT": "5"}, (None, None)),
    ],
)
def test_idle_threads_wait_passively_unless_the_user_chose(user, expected, monkeypatch, capsys):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in user.items():
        monkeypatch.setenv(name, value)
    status_of("--help")
    assert (os.environ.get("OMP_WAIT_POLICY"), os.environ.get("KMP_BLOCKTIME")) == expected
