"""The rules of the house: which folder may import which, and where things belong."""

import ast
import re
import subprocess
import tomllib
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from transformers.dependency_versions_table import deps

from biomedclip.run_scripts.main import VERBS


ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "modeling_biomedclip": "biomedclip",
    "processing": "biomedclip.processing",
    "run_scripts": "biomedclip.run_scripts",
    "model_cards": "biomedclip.model_cards",
}
# Which of the other folders the files of a folder may import. Longer paths take precedence.
MAY_IMPORT = {
    "modeling_biomedclip": set(),
    "modeling_biomedclip/__init__.py": {"processing"},
    "modeling_biomedclip/registration.py": {"processing"},
    "modeling_biomedclip/conversion": {"processing"},
    "processing": set(),
    "model_cards": set(),
    "run_scripts": {"modeling_biomedclip", "processing", "model_cards"},
}


def imported_modules(path: Path, root: Path = ROOT) -> set[str]:
    """Return the absolute names of all modules that a file imports, relative imports resolved."""
    folder, *parts = path.relative_to(root).with_suffix("").parts
    package = [*FOLDERS[folder].split("."), *parts][:-1] if parts[-1:] != ["__init__"] else None
    package = package or [*FOLDERS[folder].split("."), *parts[:-1]]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            # `from . import name` may name a module.
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def folder_of(module: str) -> str | None:
    """Return the folder of the repository that holds a module, if it is one of ours."""
    dotted = sorted(FOLDERS.items(), key=lambda item: -len(item[1]))
    return next((folder for folder, name in dotted if f"{module}.".startswith(f"{name}.")), None)


def forbidden_imports(path: Path, root: Path = ROOT) -> set[str]:
    """Return the imports of a file that the rules forbid."""
    place = path.relative_to(root).as_posix()
    rule = max((rule for rule in MAY_IMPORT if f"{place}/".startswith(f"{rule}/")), key=len)
    allowed = {None, place.split("/")[0], *MAY_IMPORT[rule]}
    modules = imported_modules(path, root)
    return {module for module in modules if folder_of(module) not in allowed or module.split(".")[0] in FOLDERS}


def test_no_folder_imports_what_it_must_not_know():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    assert {path: found for path in files if (found := forbidden_imports(path))} == {}


@pytest.mark.parametrize(
    "file, line",
    [
        ("processing/images/reading.py", "from ...modeling_biomedclip import BiomedCLIPModel"),
        ("processing/images/reading.py", "from ...run_scripts.cli import options"),
        ("processing/pmc/jats.py", "from biomedclip import BiomedCLIPModel"),
        ("processing/pmc/jats.py", "import biomedclip.run_scripts.main"),
        ("modeling_biomedclip/embedding.py", "from .processing import read_image"),
        ("modeling_biomedclip/embedding.py", "from . import processing"),
        ("modeling_biomedclip/embedding.py", "from processing.pmc import jats"),
        ("model_cards/formatting.py", "from ..processing.files import leads_out"),
        ("run_scripts/main.py", "import modeling_biomedclip"),
        ("run_scripts/main.py", "from model_cards import escaping"),
        ("run_scripts/main.py", "import run_scripts"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"def late():\n    {line}\n", encoding="utf-8")
    assert forbidden_imports(path, tmp_path)


def test_tests_and_scripts_import_the_installed_package():
    """The folders' own names would be found in the clone's root, as second copies of every class."""
    pattern = re.compile(rf"^\s*(from|import) ({'|'.join(FOLDERS)})\b", re.MULTILINE)
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    assert [path for path in files if pattern.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("script", sorted((ROOT / "tests" / "performance").glob("*.py")), ids=lambda path: path.name)
def test_scripts_import_only_names_that_exist(script):
    # No other test runs most of them.
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "biomedclip":
            module = import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name) or import_module(f"{node.module}.{name.name}"), name.name


def test_the_package_list_agrees_with_the_folders():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert project["package-dir"] == {name: folder for folder, name in FOLDERS.items()}
    found = {
        ".".join([name, *path.parent.relative_to(ROOT / folder).parts])
        for folder, name in FOLDERS.items()
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.yaml")]
    }
    assert set(project["packages"]) == found


def test_verbs_are_short_and_what_they_share_lies_in_packages():
    verbs = [path for path in (ROOT / "run_scripts").glob("*.py") if path.name != "__init__.py"]
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in verbs}
    assert {name: lines for name, lines in lengths.items() if lines > 150} == {}
    folders = [path for path in (ROOT / "run_scripts").iterdir() if path.is_dir() and (path / "__init__.py").exists()]
    allowed = {"classification", "cli", "training", "embedding", "evaluation", "hub", "panel_rows", "serving"}
    assert {path.name for path in folders} <= allowed
    assert {path.stem for path in verbs} == {"main", *VERBS}


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


@pytest.mark.parametrize("folder", sorted(FOLDERS))
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
