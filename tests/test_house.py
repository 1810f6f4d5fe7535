"""The rules of the house: which folder may know which, and what an import must not cost."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from transformers.dependency_versions_table import deps


ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("modeling_biomedclip", "processing", "run_scripts", "model_cards")
MUST_NOT_KNOW = {
    "modeling_biomedclip": {"processing", "run_scripts", "model_cards"},
    "processing": {"modeling_biomedclip", "run_scripts", "model_cards"},
    "model_cards": {"modeling_biomedclip", "processing", "run_scripts"},
    "run_scripts": set(),
}
THE_DOOR = ROOT / "modeling_biomedclip" / "__init__.py"


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_imports_what_it_must_not_know(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        allowed = {"processing"} if path == THE_DOOR else set()
        assert not imported_packages(path) & MUST_NOT_KNOW[folder] - allowed, path


def test_the_top_level_holds_nothing_else():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # Git refuses a checkout that belongs to another user unless it is told that this one is safe.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    top = {name.split("/")[0] for name in tracked if name}
    small_files = {
        ".ci",
        ".gitignore",
        ".pre-commit-config.yaml",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "docs",
    }
    assert top <= {*FOLDERS, "docs", "tests", "pyproject.toml", "README.md", *small_files}


@pytest.mark.parametrize("package", ["biomedclip", "biomedclip.processing"])
def test_importing_is_lazy(package):
    heavy = ["datatrove", "datasets", "lxml", "evaluate", "matplotlib"]
    code = f"import {package}, sys; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


def test_processing_alone_does_not_import_torch():
    code = "import biomedclip.processing, biomedclip.processing.pmc.jats, sys; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "False"


@pytest.mark.parametrize("package", ["biomedclip", "biomedclip.processing"])
def test_every_public_name_can_be_had_and_is_documented(package):
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


def test_relative_imports_of_files_that_travel_as_remote_code_are_siblings():
    """transformers flattens such files into one folder: two dots, or a package below, would not be found."""
    for path in [*ROOT.glob("modeling_biomedclip/*_biomedclip.py"), *ROOT.glob("processing/*_biomedclip.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and "." not in node.module, path


def reads_or_writes_text_without_an_encoding(call: ast.Call) -> bool:
    """Whether a call leaves the encoding of a file or of a program's output to the locale."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    literals = {value.value for value in [*call.args, *named.values()] if isinstance(value, ast.Constant)}
    if "encoding" in named:
        return False
    if name == "open":
        # `PIL.Image.open` and a file system's `open` read bytes; a text mode has no "b", and is the default of `open`.
        modes = {value for value in literals if isinstance(value, str) and set(value) <= set("rwaxbt+")}
        return not any("b" in mode for mode in modes) and (isinstance(call.func, ast.Name) or bool(modes))
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)  # a function of ours knows its encoding
    return getattr(named.get("text"), "value", False) is True


@pytest.mark.parametrize("folder", FOLDERS)
def test_text_is_read_and_written_in_an_encoding_that_the_code_names(folder):
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and reads_or_writes_text_without_an_encoding(node)
    ]
    assert not found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def floor(requirement: Requirement) -> Version:
    return max(Version(part.version) for part in requirement.specifier if part.operator in (">=", "=="))


def test_the_lowest_versions_satisfy_the_checks_of_transformers():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for lines in project["optional-dependencies"].values() for line in lines)]
    ours = {normalized(Requirement(line).name): Requirement(line) for line in lines}
    # pip sees to what transformers itself requires. Of PEFT, 5.24 asks for a version that is not published for methods
    # which this project does not call: `test_lora.py` has a test that adapters need none of them.
    elsewhere = {normalized(Requirement(line).name) for line in requires("transformers") if "extra ==" not in line}
    theirs = {normalized(name): Requirement(line) for name, line in deps.items() if ">=" in line or "==" in line}
    compared = (set(ours) & set(theirs)) - elsewhere - {"peft", "ruff"}
    assert {"torch", "accelerate", "datasets", "pillow", "timm"} <= compared
    for name in compared:
        assert floor(ours[name]) >= floor(theirs[name]), f"{ours[name]} is below {theirs[name]}"
    assert floor(ours["peft"]) >= Version("0.19.1"), "what the lowest supported transformers checks for"
