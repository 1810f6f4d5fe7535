"""Options out of recipes and off the command line."""

import io
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from biomedclip import ContrastiveTrainingArguments
from biomedclip.run_scripts import train
from biomedclip.run_scripts.cli.build_options import read_pmcids
from biomedclip.run_scripts.cli.errors import UsageError, name_options
from biomedclip.run_scripts.cli.options import RECIPES, is_true, option_value, parse_options, read_recipe, recipe_names
from biomedclip.run_scripts.cli.reporting import say
from biomedclip.run_scripts.main import main
from biomedclip.run_scripts.training.contrastive import ALTERNATIVES, ModelOptions, TrainData
from biomedclip.run_scripts.training.pairs import PairHandling


@dataclass
class Options:
    needed: str = field(metadata={"help": "Something."})
    max_steps: int = field(default=1)
    rate: float = field(default=0.1)
    names: list[str] = field(default_factory=lambda: ["a"])
    fast: bool = field(default=False)


def parse(*arguments: str) -> Options:
    (options,) = parse_options("train", [Options], arguments)
    return options


@pytest.fixture
def recipe(tmp_path):
    def write(content) -> str:
        (tmp_path / "recipe.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(tmp_path / "recipe.yaml")

    return write


def test_the_command_line_overrides_the_recipe(recipe):
    path = recipe({"needed": "of recipe", "max_steps": 5, "rate": 0.5})
    options = parse("--config", path, "--rate", "0.7", "--max_steps", "6")
    assert (options.needed, options.max_steps, options.rate) == ("of recipe", 6, 0.7)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"needed": "x", "max-steps": 3}, {"max_steps": 3}),
        ({"build": {"source": "s"}, "train": {"needed": "x", "max_steps": 9}}, {"max_steps": 9}),
        # YAML reads 5e-4, which has no point, as text.
        ("needed: 17\nrate: 5e-4\nnames: [b, c]\nfast: true\n", {"needed": "17", "rate": 5e-4, "fast": True}),
        ("needed: x\nnames: b\n", {"names": ["b"]}),
        ("needed: [PMC1, PMC2]\n", {"needed": "PMC1,PMC2"}),
        ("base: base.yaml\ntrain:\n  max-steps: 6\n", {"needed": "of base", "max_steps": 6, "rate": 0.5}),
        ("base: base.yaml\nmax_steps: 6\n", {"needed": "of base", "max_steps": 6, "rate": 0.5}),
        ("base: base.yaml\nbuild:\n  source: s\n", {"needed": "of base", "max_steps": 5}),
        ("base: second.yaml\n", {"needed": "of base", "max_steps": 7}),
        ("base: base.yaml\nmax_steps: null\nnames: null\n", {"max_steps": 1, "names": ["a"]}),
    ],
)
def test_a_recipe_sets_options_and_extends_its_base(recipe, tmp_path, content, expected):
    (tmp_path / "base.yaml").write_text("train:\n  needed: of base\n  max_steps: 5\n  rate: 0.5\n  names: [b]\n")
    (tmp_path / "second.yaml").write_text("base: base.yaml\nmax_steps: 7\n")
    options = parse("--config", recipe(content))
    assert {name: getattr(options, name) for name in expected} == expected


def test_a_recipe_of_the_user_extends_a_shipped_one(recipe):
    path = recipe({"base": "context_77", "train": {"seed": 3}})
    ours, base = read_recipe(path, ["train"]), read_recipe("context_77", ["train"])
    assert ours == base | {"seed": 3} and base["max_length"] == 77 and base["learning_rate"] == 5e-4


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("other.yaml", "extends itself: recipe -> other -> recipe"),
        ("recipe.yaml", "extends itself: recipe -> recipe"),
        (
            "nowhere",
            r"recipe.yaml: the recipe 'nowhere' was not found. It is neither.*See: biomedclip recipes",
        ),
        ("folder", "It is a folder, not a file"),
    ],
)
def test_a_base_that_cannot_be_read_is_refused(recipe, tmp_path, monkeypatch, base, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.yaml").write_text("base: recipe.yaml\n")
    with pytest.raises(UsageError, match=message):
        parse("--config", recipe({"base": base, "needed": "x"}))


def test_one_option_can_be_read_before_the_others(recipe):
    path = recipe({"train": {"task": "of recipe", "dry_run": True}})
    assert option_value("train", "task", ["--config", path, "--other", "x"]) == "of recipe"
    assert option_value("train", "task", ["--config", path, "--task", "of line"]) == "of line"
    assert option_value("train", "task", []) is None
    for arguments in (["--config", "quickstart", "--dry-run", "--max-steps", "3"], ["--config", path]):
        assert is_true(option_value("train", "dry_run", arguments))
    for arguments in (["--dry_run", "false"], ["--output-dir", "dry"]):
        assert not is_true(option_value("train", "dry_run", arguments))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\nb: [\n", "recipe.yaml, line 3: invalid YAML"),
        ("a: 1\n\tb: 2\n", "recipe.yaml, line 2: invalid YAML"),
        ("needed: x\nmax_step: 5\n", "'max_step' is not an option of biomedclip train. Did you mean 'max_steps'"),
        ("- a\n", "contains a list. A recipe must contain"),
        ("three\n", "contains a str. A recipe must contain"),
        ("", "is empty. A recipe must contain"),
        (
            "max_steps: 1\nneeded: x\nmax_steps: 2\n",
            "recipe.yaml, line 3: invalid YAML: the key 'max_steps' is repeated",
        ),
        ("train:\n  needed: x\n  needed: y\n", "recipe.yaml, line 3: invalid YAML: the key 'needed' is repeated"),
        ("max_steps: 1\nmax-steps: 2\n", "the key 'max-steps' is repeated"),
        ("train:\n  base: quickstart\n  needed: x\n", "'base' is not an option of biomedclip train"),
        ("base: [a, b]\n", "base must be the name or file of one recipe"),
        ("trian:\n  needed: x\n", "'trian' is not an option of biomedclip train. Did you mean 'train'"),
        ("train:\n  needed: x\nbiuld:\n  source: s\n", "'biuld' is not a section.*Did you mean 'build'"),
        ("train:\n  needed: x\nmax_steps: 2\n", "'max_steps' is not a section.*Move it into a section"),
        ("build:\n  source: s\n", "has no section `train:`, so it would have no effect. Its sections are build"),
        ("train: [needed]\n", "the section 'train' must contain"),
        ("train:\n  train:\n    needed: x\n", "'train' is not an option of biomedclip train"),
        ("max_steps: [1, 2]\n", "invalid int value: '1,2'"),
        ("max_steps:\n  a: 1\n", "invalid int value: '{\"a\": 1}'"),
        ("trust-remote-code: true\n", "cannot set trust_remote_code. Pass --trust-remote-code to the command"),
    ],
)
def test_a_wrong_recipe_says_where_and_what_to_do(recipe, content, message):
    with pytest.raises(UsageError, match=message):
        parse("--config", recipe(content))


@pytest.mark.parametrize("value", ["many", "1.5", "true", "''"])
def test_a_value_of_the_wrong_type_names_the_recipe_and_the_option(recipe, value):
    path = recipe(f"needed: x\nmax_steps: {value}\n")
    with pytest.raises(UsageError, match=f"{path}: argument .*max-steps: invalid int value"):
        parse("--config", path)


def training_options(folder: Path, *arguments: str) -> tuple:
    """Parse some option classes of contrastive training."""
    classes = [TrainData, PairHandling, ModelOptions, ContrastiveTrainingArguments]
    return parse_options("train", classes, ["--output-dir", str(folder), *arguments], alternatives=ALTERNATIVES)


def test_an_unquoted_no_is_the_choice_no(recipe, tmp_path):
    *_, args = training_options(tmp_path, "--config", recipe("eval_strategy: no\n"))
    assert args.eval_strategy == "no"


def test_options_of_a_recipe_that_no_longer_apply_with_the_command_line_are_dropped(recipe, tmp_path):
    path = recipe("eval_strategy: steps\neval_steps: 5\nsave_steps: 7\nmax_steps: 9\n")
    *_, args = training_options(tmp_path, "--config", path, "--eval-strategy", "no", "--num-train-epochs=2")
    assert (args.eval_strategy, args.eval_steps, args.save_steps) == ("no", None, 7)
    assert (args.max_steps, args.num_train_epochs) == (-1, 2)


@pytest.mark.parametrize("value", ["no", "'no'"])
def test_options_of_a_base_that_do_not_apply_to_the_recipe_are_dropped(recipe, value, tmp_path):
    (tmp_path / "base.yaml").write_text("eval_strategy: steps\neval_steps: 5\nmax_steps: 9\n")
    own = recipe(f"base: base.yaml\neval_strategy: {value}\n")
    assert set(read_recipe(own, ["train"])) == {"eval_strategy", "max_steps"}
    own = recipe(f"base: base.yaml\neval_strategy: {value}\neval_steps: 7\n")
    assert read_recipe(own, ["train"])["eval_steps"] == 7, "the recipe contradicts itself, which is an error later on"


def test_flags_and_values_without_a_name_can_be_in_any_order():
    def parse_words(*words: str) -> Options:
        return parse_options("train", [Options], words, positionals=["needed", "rate"])[0]

    for words in (["a", "0.5", "--fast"], ["--fast", "a", "0.5"], ["a", "--fast", "true", "0.5"]):
        options = parse_words(*words, "--max-steps", "3")
        assert (options.needed, options.rate, options.fast, options.max_steps) == ("a", 0.5, True, 3)
    assert parse_words("--names", "x", "y", "--needed", "a").names == ["x", "y"]
    with pytest.raises(UsageError, match="'c' does not belong to an option"):
        parse_words("a", "0.5", "c")


def test_a_list_without_a_name_takes_all_values(recipe, capsys):
    def parse_words(*words: str) -> Options:
        return parse_options("train", [Options], words, positionals=["needed", "names"])[0]

    for words in (
        ["a", "x", "-", "*.png", "--fast"],
        ["a", "x", "--fast", "-", "*.png"],
        ["--fast", "a", "x", "-", "*.png"],
    ):
        options = parse_words(*words)
        assert (options.needed, options.names, options.fast) == ("a", ["x", "-", "*.png"], True)
    assert parse_words("a").names == ["a"], "the default"
    assert parse_words("a", "--names", "x", "y").names == ["x", "y"]
    assert parse_words("a", "--config", recipe({"names": ["of recipe"]})).names == ["of recipe"]
    assert parse_words("a", "b", "--config", recipe({"names": ["of recipe"]})).names == ["b"]
    with pytest.raises(SystemExit):
        parse_words("--help")
    assert "usage: biomedclip train NEEDED NAMES ... [options]" in capsys.readouterr().out


def test_an_unknown_option_is_named_with_the_likely_one():
    with pytest.raises(UsageError, match="The option --max-step does not exist. Did you mean '--max-steps'"):
        parse("--needed", "x", "--max-step", "3")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`fast=True` requires `max_steps`.", "`--fast true` requires `--max-steps`."),
        ("max_steps must be 1 or more, not 0.", "--max-steps must be 1 or more, not 0."),
        ("The rate is too fast: `rate` is 3.", "The rate is too fast: `--rate` is 3."),
        ("/a/max_steps/b, 'max_steps', --max_steps, a.max_steps, my_rate", None),
    ],
)
def test_errors_name_options_instead_of_python_arguments(message, expected):
    parse("--needed", "x")
    assert name_options(message) == (expected or message)


def test_a_missing_option_is_named(capsys):
    with pytest.raises(SystemExit):
        parse()
    assert "--needed" in capsys.readouterr().err


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_fits_its_verbs(name, tmp_path):
    sections = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert set(sections) <= {"base", "build", "train", "evaluate", "quickstart"}
    module = train.TASKS[read_recipe(name, ["train"]).get("task", "contrastive")]
    named = ["--model-name-or-path", "x"] if module.TASK != "contrastive" else []
    arguments = ["--config", name, "--train-data", "x", "--output-dir", str(tmp_path), "--bf16", "false", *named]
    parse_options("train", module.OPTION_CLASSES, arguments)


def test_a_shipped_recipe_is_found_by_its_name_and_path_beside_a_folder_of_the_same_name(tmp_path, monkeypatch):
    (tmp_path / "biomedclip").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_recipe("recipes/biomedclip.yaml", ["train"]) == read_recipe("biomedclip", ["train"])
    assert read_recipe("biomedclip", ["train"])["max_length"] == 256
    with pytest.raises(ValueError, match="the recipe 'recipes/nowhere.yaml'"):
        read_recipe("recipes/nowhere.yaml", ["train"])


def test_the_batch_and_the_model_of_the_command_line_replace_those_of_the_recipe(tmp_path):
    arguments = ["--config", "quickstart", "--train-data", "x", "--eval-strategy", "no"]
    data, _, model, args = training_options(tmp_path, *arguments, "--batch-size", "64", "--model-name-or-path", "mine")
    assert data.batch_size == 64 and args.per_device_train_batch_size == 8, "transformers' default, soon replaced"
    assert model.model_name_or_path == "mine" and model.model_config is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name_or_path": "a", "text_model": "b"}, "cannot be combined with"),
        ({"vision_model": "a", "model_config": {"vision_config": {"hidden_size": 8}}}, "Remove vision_config"),
        ({"text_model": "a", "model_config": '{"text_config": {"hidden_size": 8}}'}, "Remove text_config"),
        ({"lock_image_tower": True, "text_model": "a"}, "would freeze random weights"),
        ({"lock_image_tower": True, "model_name_or_path": "a", "patch_dropout": 0.5}, "has no effect on a locked"),
        ({"model_name_or_path": "a", "model_config": {}}, "cannot be combined with"),
        ({"model_config": "{"}, "not JSON"),
        ({"model_config": "[1]"}, "must be a mapping"),
    ],
)
def test_models_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelOptions(**options)


def test_a_recipe_cannot_set_a_value_that_is_not_a_choice(recipe):
    with pytest.raises(UsageError, match="on-bad-row: invalid choice: 'ignore'"):
        parse_options("train", [PairHandling], ["--config", recipe({"on_bad_row": "ignore"})])


def test_pmcids_are_read_from_the_command_line_or_a_file(tmp_path):
    many = [f"PMC{number}" for number in range(500)]
    assert read_pmcids("PMC1") == ["PMC1"] and read_pmcids(",".join(many)) == many
    for content, encoding in (("PMC1\nPMC2.1\n", "utf-8"), ("PMC1\nPMC2.1 # two\n", "utf-8-sig")):
        (tmp_path / "ids.txt").write_text(content, encoding=encoding)
        assert read_pmcids(str(tmp_path / "ids.txt")) == ["PMC1", "PMC2.1"]
    with pytest.raises(ValueError, match="neither a list"):
        read_pmcids("ids")


def test_a_name_that_the_terminal_cannot_show_does_not_end_a_command(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr("biomedclip.run_scripts.convert.main", lambda arguments: say("größe 大小"))
    assert main(["convert"]) == 0
    terminal.flush()
    assert "größe \\u5927\\u5c0f" in terminal.buffer.getvalue().decode("latin-1")


@pytest.mark.parametrize("kind", ["FIFO", "folder", "UTF-16", "missing", "too long", "null"])
def test_a_file_of_pmcids_that_cannot_be_read_is_a_clear_error(tmp_path, impatient, kind):
    path = tmp_path / "ids.txt"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "UTF-16":
        path.write_text("PMC1\n", encoding="utf-16")
    choice = {"too long": "PMC" * 2000, "null": "ids\0"}.get(kind, str(path))
    with pytest.raises(ValueError, match="^--pmcids .*one PMCID per line") as raised:
        read_pmcids(choice)
    assert len(str(raised.value)) < 600
