"""The commands as a person runs them: one process each, on a corpus small enough for tests."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import ENVIRONMENT, ROOT, biomedclip, losses, on_two_processes, python

from biomedclip.run_scripts.main import main


SMALL = ["--config", "quickstart", "--per-device-train-batch-size", "32", "--eval-steps", "4", "--save-steps", "4"]
SMALL += ["--vocabulary-size", "600", "--logging-steps", "1"]


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """What a quickstart of a few steps leaves, on a drawn corpus of 300 figures."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    biomedclip("quickstart", *SMALL, "--output-dir", folder, "--figures", 300, "--max-steps", 8, "--lora-steps", 2)
    return folder


def test_the_quickstart_leaves_what_it_promises(out):
    report = json.loads((out / "report.json").read_text())
    for direction in ("image_to_text", "text_to_image"):
        for name in ("recall_at_1", "recall_at_5", "recall_at_10", "median_rank"):
            assert report["retrieval"][direction][name] >= 0
        low, high = report["retrieval"][direction]["recall_at_10_interval"]
        assert low <= report["retrieval"][direction]["recall_at_10"] <= high
    assert report["retrieval"]["chance_at_1"] == 1 / report["retrieval"]["pairs"]
    assert report["retrieval"]["oracle_of_kind_at_1"] == pytest.approx(13 / report["retrieval"]["pairs"], rel=0.3)
    assert {"accuracy", "balanced_accuracy", "chance", "images"} <= set(report["zero_shot"])
    assert report["training"]["steps"] == 8 and report["training"]["samples"] == 8 * 32
    assert report["training"]["seconds"] > 0 and report["versions"]["transformers"]
    assert report["build"]["articles"]["dropped"] == {"not open access": 1, "retracted": 1}
    for name in (
        "report.md",
        "curves.png",
        "answers.png",
        "README.md",
        "model/config.json",
        "adapter/adapter_model.safetensors",
    ):
        assert (out / name).stat().st_size > 0, name


def test_two_runs_of_one_seed_give_the_same_numbers(out, tmp_path):
    again = tmp_path / "again"
    biomedclip("quickstart", *SMALL, "--output-dir", again, "--figures", 300, "--max-steps", 8, "--lora-steps", 2)
    first, second = (json.loads((folder / "report.json").read_text()) for folder in (out, again))
    for part in ("retrieval", "zero_shot", "lora"):
        assert first[part] == second[part]
    assert losses(out / "training") == losses(again / "training")


def test_held_out_captions_are_distinct_and_not_in_training(out):
    code = (
        "from biomedclip.processing import load_pmc15m\n"
        f"read = lambda split: [row['caption'] for row in load_pmc15m(r'{out}', split, columns=['caption'])]\n"
        "splits = {split: read(split) for split in ('train', 'test')}\n"
        "assert len(set(splits['test'])) == len(splits['test'])\n"
        "assert not set(splits['train']) & set(splits['test'])\n"
    )
    python(code)


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


def test_evaluate_gives_the_numbers_of_the_quickstart(out, tmp_path):
    report = json.loads((out / "report.json").read_text())
    for task, key in (("retrieval", "retrieval"), ("zero-shot", "zero_shot")):
        folder = tmp_path / task
        output = biomedclip("evaluate", task, "--model", out / "model", "--data", out, "--output-dir", folder).stdout
        results = json.loads((folder / "results.json").read_text())
        assert results["task"] == task and results["data"]["fingerprint"]
        if task == "retrieval":
            ours = {k: v for k, v in results["metrics"]["image_to_text"].items() if not k.endswith("interval")}
            assert ours == pytest.approx({k: report[key]["image_to_text"][k] for k in ours})
            assert "recall at 10" in output
        else:
            assert results["metrics"]["accuracy"] == report[key]["accuracy"]
        assert max(map(len, output.splitlines())) <= 80, "tables fit a terminal of 80 columns"


def test_zero_shot_takes_a_folder_of_classes(out, shared_data, tmp_path):
    for kind in ("Hand", "ChestCT"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for path in sorted((shared_data / "mednist").rglob(f"{kind}/*"))[:5]:
            (tmp_path / "set" / kind / path.name).write_bytes(path.read_bytes())
    biomedclip("evaluate", "zero-shot", "--model", out / "model", "--data", tmp_path / "set", "--output-dir", tmp_path)
    metrics = json.loads((tmp_path / "results.json").read_text())["metrics"]
    assert metrics["images"] == 10 and metrics["classes"] == ["ChestCT", "Hand"] and metrics["chance"] == 0.5


def test_train_gives_the_same_losses_alone_on_two_processes_and_killed_and_resumed(out, tmp_path):
    train = ["train", *SMALL, "--train-data", out, "--max-steps", 8]
    biomedclip(*train, "--output-dir", tmp_path / "alone")
    expected = losses(tmp_path / "alone")
    assert len(expected) == 8

    command = ["--no-python", Path(sys.executable).parent / "biomedclip", *train]
    result = on_two_processes(*command, "--per-device-train-batch-size", "16", "--output-dir", tmp_path / "two")
    assert json.loads((tmp_path / "two" / "train_results.json").read_text())["batch_size"] == 32
    assert result.stdout.count("trainable share") == 1, "one table, of the first process"
    # Float32: sums over two processes in another order, and an optimizer that divides by small ones.
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=2e-3)
    assert losses(tmp_path / "two")[0] == pytest.approx(expected[0], rel=1e-5)

    killed = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "biomedclip.run_scripts.main",
            *map(str, train),
            "--output-dir",
            str(tmp_path / "killed"),
        ],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not (tmp_path / "killed" / "checkpoint-4" / "trainer_state.json").exists():
        assert killed.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    refused = biomedclip(*train, "--output-dir", tmp_path / "killed", check=False)
    assert refused.returncode == 1 and "--resume-from-checkpoint true" in refused.stderr
    biomedclip(*train, "--output-dir", tmp_path / "killed", "--resume-from-checkpoint", "true")
    assert losses(tmp_path / "killed") == expected
    results = json.loads((tmp_path / "killed" / "train_results.json").read_text())
    assert results["resumed_from_step"] >= 4


def test_resuming_a_run_that_is_done_does_not_train_on(out, tmp_path):
    train = ["train", *SMALL, "--train-data", out, "--output-dir", tmp_path / "run", "--max-steps", 4]
    biomedclip(*train)
    result = biomedclip(*train, "--resume-from-checkpoint", "true", check=False)
    assert result.returncode == 1 and "nothing is left to do" in result.stderr
    assert not (tmp_path / "run" / "checkpoint-5").exists()


def test_the_card_of_real_articles_thanks_their_source(shared_data, tmp_path):
    biomedclip("build", "--source", shared_data / "pmc_mirror", "--output-dir", tmp_path / "set")
    card = (tmp_path / "set" / "README.md").read_text()
    assert "National Library of Medicine" in card and "CC BY" in card and "invented" not in card


def test_a_build_that_is_killed_leaves_no_data_and_goes_on(out, tmp_path):
    command = ["build", "--source", str(out / "corpus"), "--output-dir", str(tmp_path / "set"), "--license", "all"]
    process = subprocess.Popen(
        [sys.executable, "-m", "biomedclip.run_scripts.main", *command, "--tasks", "6", "--workers", "1"],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list((tmp_path / "set").glob(".build/*/articles/*.jsonl")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # with the processes it has started, which would outlive it
    process.wait()
    assert not (tmp_path / "set" / "data").exists()
    biomedclip(*command, "--tasks", "6", "--workers", "1")
    biomedclip(*command[:-3], str(tmp_path / "undisturbed"), "--license", "all")
    rebuilt = {path.name: path.read_bytes() for path in (tmp_path / "set" / "data").iterdir()}
    assert rebuilt == {path.name: path.read_bytes() for path in (tmp_path / "undisturbed" / "data").iterdir()}


def test_the_dataset_card_and_report_tell_what_was_built(out):
    card = (out / "README.md").read_text()
    assert "Every article here is invented" in card and "| train |" in card and "retracted" in card
    assert str(out) not in card, "no path of the machine"
    with (out / "labels.csv").open() as file:
        assert next(csv.reader(file)) == ["pair_id", "kind"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--source", "/nowhere", "--output-dir", "{tmp}"], "no such folder"),
        (["build", "--source", "{tmp}", "--output-dir", "{tmp}"], "no articles there"),
        (["train", "--train-data", "{tmp}", "--output-dir", "{tmp}/run"], "Build a data set with"),
        (["train", "--output-dir", "{tmp}/run"], "--train-data is missing"),
        (["train", "--config", "nowhere", "--train-data", "x", "--output-dir", "y"], "no recipe 'nowhere'"),
        (["train", "--train-data", "x", "--output-dir", "y", "--model-config", '{"depth": 1}'], "x: there is no such"),
        (
            ["evaluate", "zero-shot", "--model", "{out}/model", "--data", "{tmp}", "--output-dir", "{tmp}"],
            "no class folders",
        ),
        (["quickstart", "--output-dir", "{out}"], "--overwrite"),
        (["quickstart", "--output-dir", "{tmp}/a", "--source", "/nowhere"], "no such folder"),
        (["dance"], "no verb 'dance'"),
    ],
)
def test_errors_are_one_line_that_a_person_can_act_on(out, tmp_path, arguments, message, capsys):
    filled = [argument.replace("{tmp}", str(tmp_path)).replace("{out}", str(out)) for argument in arguments]
    assert main(filled) != 0
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    "verb", ["quickstart", "build", "train", "train --task image-classification", "evaluate", "convert", "export"]
)
def test_help_shows_an_example_and_fits_80_columns(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    verb, *task = verb.split()
    with pytest.raises(SystemExit) as end:
        main([verb, *task, "--help"])
    output = capsys.readouterr().out
    assert end.value.code == 0
    assert f"biomedclip {verb}" in output.split("example:")[1]
    assert "--config" in output
    assert len(output.splitlines()) < 130 and max(map(len, output.splitlines())) <= 80


def test_help_shows_an_example_of_each_evaluation_and_what_a_negated_flag_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    options, examples = capsys.readouterr().out.split("example:")
    assert all(
        f"evaluate {task} --model" in examples
        for task in ("retrieval", "zero-shot", "linear-probe", "visual-question-answering")
    )
    assert "The opposite of --find-leaks." in options and options.count("look for test images") == 1


def test_the_command_lists_its_verbs(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(verb in output for verb in ("quickstart", "build", "train", "evaluate"))
    assert max(map(len, output.splitlines())) <= 80
    assert main([]) == 2
