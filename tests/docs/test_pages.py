"""The examples of the README and the documentation run."""

import re
import shutil
from pathlib import Path

import pytest
from helpers.commands import ROOT, run_python
from helpers.pages import PAGES, RUN, blocks_of, run_page
from PIL import Image

from biomedclip.processing import load_pmc15m


SHOWN = ("text", "json", "yaml", "toml", "{figure}", "{include}", "{toctree}", "{image}")
REASONS = {"network", "GPU", "cluster", "hours", "server"}
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# OpenVINO can crash a process that forks later.
OWN_PROCESS = {"export.md"}
EXECUTED = [
    page
    for page in PAGES
    if page.name != "CONTRIBUTING.md" and any(block.language in RUN and not block.not_run for block in blocks_of(page))
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


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_files_that_a_page_mentions_exist(page):
    mentioned = re.findall(
        r"`((?:processing|modeling_biomedclip|run_scripts|model_cards|tests)/[\w./]+)`",
        page.read_text(encoding="utf-8"),
    )
    assert [name for name in mentioned if not (ROOT / name).exists()] == []


@pytest.mark.slow
def test_the_examples_use_real_images_where_they_exist(shared_data, quickstart):
    originals = {Image.open(file).tobytes() for file in (shared_data / "mednist" / "CXR").iterdir()}
    assert all(Image.open(file).tobytes() in originals for file in quickstart.glob("scans/*/chest/*.png"))
    articles = {path.stem for path in (shared_data / "pmc_mirror" / "metadata").iterdir()}
    used = {f"{row['pmcid']}.1" for row in load_pmc15m(quickstart / "out", split="test", columns=["pmcid"])}
    assert used and used <= articles


@pytest.mark.slow
@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page, quickstart, tmp_path, monkeypatch):
    shutil.copytree(quickstart, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    if page.name in OWN_PROCESS:
        code = f"from helpers.pages import PAGES, run_page; run_page(PAGES[{PAGES.index(page)}])"
        result = run_python("-c", code, environment={"PYTHONPATH": str(ROOT / "tests")}, folder=Path.cwd())
        assert result.returncode == 0, result.stderr[-3000:]
    else:
        run_page(page)
