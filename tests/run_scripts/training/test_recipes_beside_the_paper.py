"""Each shipped recipe has the published settings, or states where it differs."""

import dataclasses
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml

from biomedclip.run_scripts import build, evaluate
from biomedclip.run_scripts.cli.options import RECIPES, parse_options, read_recipe, recipe_names
from biomedclip.run_scripts.training import contrastive, visual_question_answering


FILE = Path(__file__).resolve().parents[2] / "data" / "paper_settings.yaml"
PAPER = yaml.safe_load(FILE.read_text())
SECTIONS, KINDS = ("train", "build", "evaluate"), ("paper", "differs", "ours")
# Options that the test sets, or that follow from others.
IGNORED = {"output_dir", "use_cpu", "train_data", "source", "do_eval", "activation_checkpointing"}
Settings = dict[str, Any]
Entries = dict[str, tuple[str, Any, str]]  # setting -> (kind, value, source or reason)


def entries_of(name: str, section: str) -> Entries:
    """Return the entries of the file for a recipe and its bases."""
    recipe = PAPER["recipes"][name]
    entries = entries_of(recipe["base"], section) if "base" in recipe else {}
    for kind, settings in (recipe.get(section) or {}).items():
        assert kind in KINDS, f"{name}: {kind}"
        entries |= {setting: (kind, *entry) for setting, entry in settings.items()}
    return entries


def option_classes(section: str, task: str | None) -> list[type]:
    if section == "build":
        return [build.SourceOptions, build.EngineOptions, build.OutputOptions]
    if section == "evaluate":
        return [evaluate.AllOptions]
    return (visual_question_answering if task == visual_question_answering.TASK else contrastive).OPTION_CLASSES


def resolved(section: str, task: str | None, options: Mapping[str, str]) -> Settings:
    """Return all settings of a section."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    alternatives = contrastive.ALTERNATIVES if section == "train" else ()
    parts = parse_options(section, option_classes(section, task), arguments, alternatives=alternatives)
    values = {field.name: getattr(part, field.name) for part in parts for field in dataclasses.fields(part)}
    return {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}


def settings_of(name: str, section: str, tmp_path: Path) -> tuple[Settings, Settings]:
    """Return the settings with and without a recipe."""
    task = read_recipe(name, ["train"]).get("task") if section == "train" else None
    # A GPU and data are not needed to read the options.
    given = {
        "train": {"use_cpu": "true", "train_data": "data"},
        "build": {"source": "data"},
        "evaluate": {"model": "model", "data": "data"},
    }[section] | {"output_dir": str(tmp_path)}
    without = {"task": "retrieval"} if section == "evaluate" else {}
    if task == visual_question_answering.TASK:
        given["model_name_or_path"] = "model"
        without = {"task": task, "benchmark": "vqa_rad"}
    return resolved(section, task, given | {"config": name}), resolved(section, task, given | without)


def faults(name: str, section: str, found: Settings, defaults: Settings) -> list[str]:
    """Return the settings of a recipe that are missing in the file, or differ."""
    entries = entries_of(name, section)
    changed = {setting for setting, value in found.items() if value != defaults[setting]} - IGNORED
    missing = [f"{name}: {section}: {key} is {found[key]!r}, and not in the file" for key in changed - entries.keys()]
    other = [
        f"{name}: {section}: {setting} is {found[setting]!r}, and {value!r} in the file ({kind}: {why})"
        for setting, (kind, value, why) in entries.items()
        if found[setting] != value
    ]
    return sorted(missing + other)


def sections_of(name: str) -> list[str]:
    """Return the sections of a recipe and its bases in the file."""
    recipe = PAPER["recipes"][name]
    inherited = sections_of(recipe["base"]) if "base" in recipe else []
    return [section for section in SECTIONS if section in recipe or section in inherited]


def test_every_shipped_recipe_is_in_the_file():
    assert sorted([*PAPER["recipes"], *PAPER["not_of_the_paper"]]) == recipe_names()
    for name in PAPER["recipes"]:
        content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        assert set(content) - {"base"} <= set(sections_of(name)), "each section of the recipe is compared"


@pytest.mark.parametrize("name", PAPER["recipes"])
def test_a_recipe_has_the_settings_of_the_paper_or_says_where_it_differs(name, tmp_path):
    for section in sections_of(name):
        assert faults(name, section, *settings_of(name, section, tmp_path)) == []
    text = " ".join((RECIPES / f"{name}.yaml").read_text().replace("#", " ").split())
    for words in PAPER["recipes"][name]["says"]:
        assert words in text, words


def test_every_value_names_its_source_or_a_reason():
    for name in PAPER["recipes"]:
        for section in sections_of(name):
            for setting, (kind, _, why) in entries_of(name, section).items():
                assert why in PAPER["sources"] if kind == "paper" else why, f"{name}: {setting}"


def test_a_setting_that_differs_from_the_file_or_is_not_in_it_is_found(tmp_path):
    found, defaults = settings_of("context_77", "train", tmp_path)
    for setting, value in (("max_grad_norm", 1.0), ("learning_rate", 1e-3), ("save_steps", 7), ("patch_dropout", 0.1)):
        assert len(faults("context_77", "train", found | {setting: value}, defaults)) == 1
    (fault,) = faults("context_77", "train", found | {"torch_compile": True}, defaults)
    assert "torch_compile is True, and not in the file" in fault
