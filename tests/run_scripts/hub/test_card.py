"""`biomedclip card` on the output of `biomedclip train`."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SMALL_CONFIG
from helpers.model_results import retrieval_result, write_result, zero_shot_result
from huggingface_hub import ModelCard
from transformers import AutoModel

from biomedclip.model_cards.checking import find_problems
from biomedclip.run_scripts.hub.fingerprints import evaluated_fingerprint
from biomedclip.run_scripts.main import main


@pytest.fixture(scope="module")
def run(built, tmp_path_factory) -> Path:
    """Output of a training run of three steps."""
    root = tmp_path_factory.mktemp("trained")
    text_config = {name: value for name, value in SMALL_CONFIG["text_config"].items() if name != "vocab_size"}
    options = {"model_config": SMALL_CONFIG | {"text_config": text_config}, "vocabulary_size": 200}
    options |= {"max_length": 32, "max_steps": 3}
    options |= {"batch_size": 32, "learning_rate": 1e-3, "save_strategy": "no", "report_to": "none"}
    options |= {"eval_strategy": "steps", "eval_steps": 3, "logging_steps": 1}
    (root / "small.yaml").write_text(yaml.safe_dump(options))
    command = ["train", "--config", root / "small.yaml", "--train-data", built, "--output-dir", root / "run"]
    assert main([str(word) for word in command]) == 0
    return root / "run"


@pytest.fixture
def model(run, tmp_path) -> Path:
    return shutil.copytree(run, tmp_path / "model")


@pytest.fixture
def dataset(built, tmp_path) -> Path:
    """The report that `biomedclip build` writes for the training data."""
    report = json.loads((built / "report.json").read_text())
    report |= {"synthetic": True, "versions": {"biomedclip": "0.1.0"}}
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "report.json").write_text(json.dumps(report))
    return tmp_path / "set"


def weights(folder: Path) -> str:
    return evaluated_fingerprint(AutoModel.from_pretrained(folder))


def card(*arguments) -> int:
    return main(["card", *map(str, arguments)])


def error_of(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_training_leaves_a_recipe_that_gives_the_same_model_again(run, built, tmp_path):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["batch_size"] == 32 and recipe["max_steps"] == 3 and recipe["learning_rate"] == 1e-3
    assert not {"train_data", "output_dir", "seed", "per_device_train_batch_size"} & set(recipe)
    assert str(run.parent) not in (run / "recipe.yaml").read_text()
    command = ["train", "--config", run / "recipe.yaml", "--train-data", built, "--output-dir", tmp_path / "again"]
    assert main([str(word) for word in command]) == 0
    assert weights(tmp_path / "again") == weights(run)
    assert (tmp_path / "again" / "recipe.yaml").read_text() == (run / "recipe.yaml").read_text()


def test_every_file_of_a_run_has_the_permissions_of_the_umask(run, tmp_path):
    (tmp_path / "plain").write_text("")
    files = [path for path in run.rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    expected = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert [path for path in files if stat.S_IMODE(path.stat().st_mode) != expected] == []


def test_the_card_states_the_facts_on_disk(model, dataset, tmp_path, capsys):
    here = weights(model)
    write_result(tmp_path / "results" / "pcam", zero_shot_result(here))
    write_result(tmp_path / "results" / "pairs", retrieval_result(here))
    assert card(model, "--results", tmp_path / "results", "--dataset", dataset, "--license", "mit") == 0
    output = capsys.readouterr().out
    assert here in output and "0.5123" in output and "not measured" in output
    assert max(map(len, output.splitlines())) <= 80
    text = (model / "README.md").read_text()
    for words in ("| steps | 3 |", "0.7341", "learning_rate: 0.001", "49,", "at the last evaluation", here):
        assert words in text, words
    assert str(tmp_path) not in text and "/home/someone" not in text
    assert find_problems(text.replace("ORG/NAME", "lab/model")) == []
    assert len(ModelCard(text).data.eval_results) == 9
    facts = json.loads((model / "card.json").read_text())
    assert facts["training"]["results"]["training_pairs"] == 152 == facts["dataset"]["splits"]["train"]["pairs"]
    assert str(tmp_path) not in json.dumps(facts)


def test_missing_facts_are_named_in_the_card(model, tmp_path):
    for name in ("train_results.json", "trainer_state.json", "recipe.yaml"):
        (model / name).unlink()
    assert card("--model", model, "--output", tmp_path / "elsewhere") == 0
    text = (tmp_path / "elsewhere" / "README.md").read_text()
    assert text.count("Not stated") == 3 and "Nothing was measured for this card" in text
    assert not (model / "README.md").exists()


def test_a_recipe_can_contain_the_options(model, tmp_path):
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({"card": {"license": "mit", "title": "Ours", "name": "lab/m"}}))
    assert card(model, "--config", tmp_path / "card.yaml") == 0
    text = (model / "README.md").read_text()
    assert "# Ours\n" in text and 'from_pretrained("lab/m")' in text


def test_results_of_other_weights_are_left_out_and_named(model, tmp_path, capsys):
    write_result(tmp_path / "results" / "ours", zero_shot_result(weights(model)))
    write_result(tmp_path / "results" / "theirs", retrieval_result())
    assert card(model, "--results", tmp_path / "results") == 0
    output = capsys.readouterr().out.replace("\n", "")
    assert "results of other weights" in output and "theirs" in output
    row = "Retrieval | PMC-15M pairs | none | image to text, recall at 1 | not measured"
    assert row in (model / "README.md").read_text()


def test_a_result_of_a_head_belongs_to_the_model_below_it(model, tmp_path):
    ours = zero_shot_result(benchmark="slake", task="visual-question-answering", metrics={"overall": {"accuracy": 0.4}})
    ours["model"]["base_weights"] = weights(model)
    write_result(tmp_path / "results", ours)
    assert card(model, "--results", tmp_path / "results") == 0
    assert "SLAKE, test | 32,768 | overall, accuracy | 0.4000" in (model / "README.md").read_text()


def test_results_are_used_only_for_the_weights_that_they_were_measured_with(model, tmp_path, capsys):
    write_result(tmp_path / "results", zero_shot_result(weights(model)))
    changed = AutoModel.from_pretrained(model)
    changed.logit_scale.data = torch.nextafter(changed.logit_scale.data, torch.tensor(9.0))
    changed.save_pretrained(model)
    assert card(model, "--results", tmp_path / "results") == 1
    assert "was measured with other weights" in error_of(capsys) and not (model / "README.md").exists()


def test_two_results_of_the_same_measurement_are_refused(model, tmp_path, capsys):
    ours = weights(model)
    write_result(tmp_path / "results" / "a", zero_shot_result(ours))
    write_result(tmp_path / "results" / "b", zero_shot_result(ours, date="2026-11-25"))
    assert card(model, "--results", tmp_path / "results") == 1
    assert "measure the same thing" in error_of(capsys)
    write_result(tmp_path / "results" / "b", zero_shot_result(ours, settings={"template_set": "other"}))
    assert card(model, "--results", tmp_path / "results") == 0


def test_a_dataset_that_the_model_was_not_trained_on_is_refused(model, dataset, capsys):
    report = json.loads((dataset / "report.json").read_text())
    (dataset / "report.json").write_text(json.dumps({"build": report, "seconds": 1.0}))
    assert card(model, "--dataset", dataset) == 0, "the report of the quickstart contains that of the build"
    assert "| CC BY | 200 |" in (model / "README.md").read_text()
    report["splits"]["train"]["pairs"] += 1
    (dataset / "report.json").write_text(json.dumps(report))
    assert card(model, "--dataset", dataset) == 1
    assert "has 153 training pairs, but the model was trained on 152" in error_of(capsys)


PLACES = ["model/train_results.json", "model/trainer_state.json", "model/recipe.yaml", "model/conversion.json"]


@pytest.mark.parametrize("place", [*PLACES, "results/a/results.json", "set/report.json"])
def test_links_that_point_outside_and_named_pipes_are_refused(model, dataset, tmp_path, capsys, place):
    write_result(tmp_path / "results" / "a", zero_shot_result(weights(model)))
    (tmp_path / "secret").write_text('{"secret": 1}')
    path = tmp_path / place
    for replace, message in ((path.symlink_to, "is a link that points outside"), (os.mkfifo, "is a named pipe")):
        path.unlink(missing_ok=True)
        replace(*[tmp_path / "secret"] if replace != os.mkfifo else [path])
        assert card(model, "--results", tmp_path / "results", "--dataset", dataset) == 1
        assert f"{path.name} {message}" in error_of(capsys)


def test_a_file_of_results_that_the_user_names_may_be_a_link(model, tmp_path):
    path = write_result(tmp_path / "elsewhere", zero_shot_result(weights(model)))
    (tmp_path / "results.json").symlink_to(path)
    assert card(model, "--results", tmp_path / "results.json") == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train_results.json", "[]", "the file must be an object"),
        ("train_results.json", '{"versions": {"biomedclip": "1"}}', "steps is missing"),
        ("train_results.json", '{"steps": "3", "versions": {"biomedclip": "1"}}', "steps must be int"),
        ("train_results.json", '{"steps": 3, "versions": {"biomedclip": 1}}', "versions.biomedclip must be str"),
        ("train_results.json", '{"steps": 3, "loss": "a", "versions": {}}', "loss must be int or float"),
        ("trainer_state.json", "{}", "log_history is missing"),
        ("trainer_state.json", '{"log_history": [3]}', "log_history[0] must be an object"),
        ("trainer_state.json", '{"log_history": [{"eval_loss": "x"}]}', "must be int or float"),
        ("conversion.json", '{"source": 3}', "source must be str"),
        ("recipe.yaml", "- a", "the file must be an object"),
        ("recipe.yaml", "a: [", "is damaged"),
        ("recipe.yaml", "base: /etc/passwd", "has a base recipe"),
        ("recipe.yaml", "a: !!python/name:os.system", "is damaged"),
    ],
)
def test_files_with_unexpected_content_are_refused(model, capsys, name, content, message):
    (model / name).write_text(content)
    assert card(model) == 1
    error = error_of(capsys)
    assert name in error and message in error and "Traceback" not in error
    assert not (model / "README.md").exists()


def test_a_link_in_the_place_of_the_card_is_replaced_and_not_written_through(model, tmp_path):
    (tmp_path / "mine").write_text("precious")
    for name in ("README.md", "card.json"):
        (model / name).symlink_to(tmp_path / "mine")
    assert card(model) == 0
    assert (tmp_path / "mine").read_text() == "precious" and not (model / "README.md").is_symlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere"], "--model /nowhere is not a folder"),
        (["{model}", "--results", "/nowhere"], "--results /nowhere contains no results.json"),
        (["{model}", "--train-run", "/nowhere"], "--train-run /nowhere contains no train_results.json"),
        (["{model}", "--dataset", "{model}"], "contains no report.json"),
        (["{model}", "--dataset", "nobody/nothing"], "--dataset nobody/nothing is neither a folder nor on the Hub"),
    ],
)
def test_missing_folders_are_reported(run, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert card(*[str(run) if argument == "{model}" else argument for argument in arguments]) == 1
    error = error_of(capsys)
    assert message in error and "Traceback" not in error


def test_a_folder_without_a_model_is_an_error_that_names_the_files_of_one(tmp_path, capsys):
    assert card(tmp_path) == 1
    assert "contains no model: it has none of config.json, open_clip_config.json" in error_of(capsys)
