"""The examples of the README and the documentation run."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.benchmark_files import save_drawn, write_pcam, write_rsna, write_tcga_til, write_vqa_rad
from helpers.commands import ENVIRONMENT, ROOT
from helpers.pages import PAGES, Block, blocks_of

from biomedclip.run_scripts.main import main


RUN = ("bash", "python")
SHOWN = ("text", "json", "yaml", "toml", "{figure}", "{include}", "{toctree}", "{image}")
REASONS = {"network", "GPU", "cluster", "hours"}
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_CODE = [
    page for page in PAGES if page.name != "CONTRIBUTING.md" and any(b.language in RUN for b in blocks_of(page))
]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_block_has_a_language_and_a_valid_note(page):
    for block in blocks_of(page):
        where = f"{page.name}:{block.line}"
        language = block.language.split()[0] if block.language else ""
        assert language in (*RUN, *SHOWN), f"{where}: language {language!r}"
        assert not block.not_run or block.not_run in REASONS, f"{where}: reason {block.not_run!r}"
        if page.name != "CONTRIBUTING.md":
            assert not block.note or block.not_run or block.test_options, f"{where}: comment {block.note!r}"
    comments = re.findall(r"^<!-- (?:not run|test with): .* -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(comments) == sum(bool(block.not_run or block.test_options) for block in blocks_of(page))


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent != ROOT], ids=lambda page: page.name)
def test_a_page_starts_with_a_block_to_paste(page):
    if page.name in ("contributing.md", "changelog.md", "training_arguments.md"):
        return  # generated, or included from the root
    first = blocks_of(page)[0]
    assert first.language in RUN and first.line < 15


def test_the_readme_has_at_most_150_lines():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_pages_that_are_mentioned_exist():
    files = [
        *PAGES,
        *(
            p
            for folder in ("modeling_biomedclip", "processing", "run_scripts", "model_cards")
            for pattern in ("*.py", "*.yaml", "*.md")
            for p in (ROOT / folder).rglob(pattern)
        ),
    ]
    for file in files:
        for mentioned in re.findall(r"\bdocs/\w+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / mentioned).exists(), f"{file}: {mentioned}"


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory) -> Path:
    """Return a folder with a small quickstart model in `out/`, an image, labeled images and small benchmarks."""
    folder = tmp_path_factory.mktemp("documentation")
    out = str(folder / "out")
    arguments = ["--figures", "300", "--max-steps", "20", "--per-device-train-batch-size", "32", "--lora-steps", "2"]
    assert main(["quickstart", "--output-dir", out, *arguments]) == 0
    save_drawn(folder / "figure.png", 0, 80)
    for split, count in {"train": 8, "validation": 4, "test": 4}.items():
        for label in ("cells", "tissue"):
            for number in range(count):
                save_drawn(folder / "scans" / split / label / f"{number}.png", [number, count], 64, label == "cells")
    for part in ("train", "valid", "test"):
        write_pcam(folder / "benchmarks" / "pcam", part, 32, distinct=32)
    patients = {f"patient-{number}": [number % 3 // 2] for number in range(60)}
    write_rsna(folder / "benchmarks" / "rsna", patients)
    write_tcga_til(
        folder / "benchmarks" / "tcga_til", ["luad", "brca"], {"train": (4, 2), "val": (2, 1), "test": (8, 2)}
    )
    write_vqa_rad(
        folder / "VQA_RAD",
        [
            {"phrase_type": kind, "image_name": f"synpic{kind}{number // 2}.jpg", "answer": ["Yes", "No"][number % 2]}
            for kind, count in {"freeform": 16, "test_freeform": 8}.items()
            for number in range(count)
        ],
    )
    return folder


def run_python(block: Block, namespace: dict) -> None:
    code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")  # tracebacks show the page's line
    exec(code, namespace)


def run_command(block: Block, command: str) -> None:
    words = shlex.split(command)
    if words[0] == "biomedclip" and words[1] != "--version":
        assert main([*words[1:], *shlex.split(block.test_options)]) == 0, f"{block.page.name}:{block.line}: {command}"
        return
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = f"{command} {block.test_options}"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT | {"PATH": path}, timeout=600
    )
    assert result.returncode == 0, f"{block.page.name}:{block.line}: {command}\n{result.stderr[-3000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, quickstart, tmp_path, monkeypatch):
    shutil.copytree(quickstart, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    importlib.import_module("biomedclip")
    namespace = {"__name__": "__example__"}
    for block in blocks_of(page):
        if block.not_run or block.language not in RUN:
            continue
        if block.language == "python":
            run_python(block, namespace)
            continue
        for command in block.commands:
            run_command(block, command)
