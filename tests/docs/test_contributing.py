"""The examples of CONTRIBUTING.md work when they are followed to the letter, in a copy of the repository."""

import os
import re
import shutil
from pathlib import Path

import pytest
from helpers.benchmark_files import save_drawn
from helpers.commands import ROOT, run_python
from helpers.pages import blocks_of


PAGE = ROOT / "CONTRIBUTING.md"
PACKAGES = ("processing", "run_scripts", "model_cards")


def copy_of_the_repository(folder: Path) -> Path:
    """Copy the package, and return a folder for PYTHONPATH in which the copy is `biomedclip`."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("modeling_biomedclip", *PACKAGES):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    package = folder / "importable" / "biomedclip"
    package.mkdir(parents=True)
    for path in [*(folder / "modeling_biomedclip").iterdir(), *(folder / name for name in PACKAGES)]:
        (package / path.name).symlink_to(path)
    return package.parent


def apply(note: str, code: str, copy: Path) -> None:
    """Write a block to the place that the comment before it names."""
    if match := re.fullmatch(r"file: (\S+)", note):
        assert not (copy / match[1]).exists()
        (copy / match[1]).write_text(code, encoding="utf-8")
    elif match := re.fullmatch(r"append to: (\S+)", note):
        text = (copy / match[1]).read_text(encoding="utf-8")
        (copy / match[1]).write_text(f"{text.rstrip()}\n\n{code}", encoding="utf-8")
    elif match := re.fullmatch(r"insert in: (\S+) after: (.+)", note):
        text = (copy / match[1]).read_text(encoding="utf-8")
        assert text.count(f"\n{match[2]}\n") == 1
        (copy / match[1]).write_text(text.replace(f"\n{match[2]}\n", f"\n{match[2]}\n{code}"), encoding="utf-8")
    else:
        raise ValueError(f"{PAGE}: comment {note!r}")


@pytest.mark.slow
def test_a_recipe_a_verb_and_a_benchmark_are_added_as_described(quickstart, tmp_path):
    copy, work = tmp_path / "copy", tmp_path / "work"
    importable = copy_of_the_repository(copy)
    shutil.copytree(quickstart, work, symlinks=True)
    for label in ("neutrophil", "lymphocyte"):
        for number in range(2):
            save_drawn(work / "blood_cells" / "test" / label / f"{number}.png", number, 64, label == "neutrophil")
    environment = {"PYTHONPATH": str(importable)}
    output, edits = "", 0
    for block in blocks_of(PAGE):
        if block.language in ("python", "yaml"):
            apply(block.note, block.code, copy)
            edits += 1
        elif block.language == "bash" and not block.not_run:
            for command in block.commands:
                words = f"{command} {block.test_options}".split()
                assert words.pop(0) == "biomedclip"
                module = ["-m", "biomedclip.run_scripts.main"]
                result = run_python(*module, *words, environment=environment, folder=work)
                assert result.returncode == 0, f"{command}\n{result.stderr[-3000:]}"
                output += result.stdout
    assert edits == 5
    assert os.path.exists(work / "run" / "recipe.yaml") and os.path.exists(work / "results" / "results.json")
    assert "Count the pairs of a dataset." in output and "validation" in output
