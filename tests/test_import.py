"""One import name: what `import biomedclip` costs, registers and does not collide with."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.commands import run_python


ROOT = Path(__file__).resolve().parents[1]


def run(code: str, cwd: Path = ROOT, **environment: str) -> str:
    """Return what a new process prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


@pytest.mark.parametrize(
    "statement, heavy",
    [
        ("import biomedclip", "torch transformers datasets datatrove lxml evaluate matplotlib numpy"),
        ("import biomedclip.processing", "torch transformers datasets datatrove lxml evaluate matplotlib"),
        ("import biomedclip.processing.pmc.jats", "torch transformers datasets datatrove"),
        ("import biomedclip.processing.pmc.build", "torch transformers"),
        ("import biomedclip.processing.pmc.panels", "torch transformers"),
        (
            "from contextlib import suppress; from biomedclip.run_scripts.main import main\n"
            "with suppress(SystemExit): main(['--help'])",
            "torch transformers datasets numpy",
        ),
    ],
)
def test_light_imports_load_no_heavy_libraries(statement, heavy):
    code = f"import sys\n{statement}\nprint(); print([name for name in {heavy.split()} if name in sys.modules])"
    assert run(code).splitlines()[-1] == "[]"


WATCHING = """
import sys

def watching(): return any(type(finder).__module__ == "biomedclip.registration" for finder in sys.meta_path)
"""
REGISTERED = """
from biomedclip.configuration_biomedclip import BiomedCLIPConfig
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, pipelines
assert type(AutoConfig.for_model("biomedclip")) is BiomedCLIPConfig
for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
    assert auto_class._model_mapping[BiomedCLIPConfig].__module__ == "biomedclip.modeling_biomedclip"
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.image_processing_auto import AutoImageProcessor, IMAGE_PROCESSOR_MAPPING
assert PROCESSOR_MAPPING[BiomedCLIPConfig].__module__ == "biomedclip.processing.processing_biomedclip"
assert BiomedCLIPConfig in IMAGE_PROCESSOR_MAPPING
assert "visual-question-answering" in pipelines.PIPELINE_REGISTRY.get_supported_tasks()
from transformers import AutoVideoProcessor
assert not watching(), "nothing is left to register"
print("registered")
"""


def assert_registered(first: str, **options: bool) -> None:
    """Check that the model is registered after some imports, and that imports are no longer watched."""
    result = run_python("-c", f"{WATCHING}{first}\n{REGISTERED}", **options)
    assert result.stdout.strip() == "registered", result.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "first",
    [
        "import biomedclip; assert watching(); from transformers import AutoModel",
        "from transformers import AutoModel; import biomedclip",
        "import biomedclip; from transformers import AutoProcessor",
        "import biomedclip; from transformers import pipeline",
        "import biomedclip; from transformers import Trainer",
        "from biomedclip import BiomedCLIPConfig",
        "from biomedclip.modeling_biomedclip import BiomedCLIPModel",
        "from biomedclip.processing import BiomedCLIPProcessor",
    ],
)
def test_the_model_is_registered_in_every_order_of_imports(first):
    assert_registered(first, transformers=False)


@pytest.mark.slow
def test_the_model_is_registered_when_all_auto_classes_and_pipelines_are_loaded_already():
    loaded = "'transformers.models.auto.processing_auto', 'transformers.pipelines'"
    assert_registered(f"assert {{{loaded}}} <= sys.modules.keys(); import biomedclip")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the unpacked wheel of a clean copy of the repository."""
    root = tmp_path_factory.mktemp("wheel")
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    files = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if not name.startswith("tests/") and (ROOT / name).exists():
            (root / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "copy" / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation"]
    result = subprocess.run([*command, "--wheel-dir", root, root / "copy"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "absent from" not in result.stdout + result.stderr, "setuptools takes a folder of data for a package"
    with zipfile.ZipFile(next(root.glob("*.whl"))) as archive:
        archive.extractall(root / "site")
    return root / "site"


@pytest.mark.slow
def test_the_wheel_contains_one_package_with_all_its_files(wheel):
    top = {path.name for path in wheel.iterdir()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"biomedclip"}
    folders = {name: name for name in ("processing", "run_scripts", "model_cards")} | {"modeling_biomedclip": ""}
    for folder, place in folders.items():
        for suffix in ("*.py", "*.yaml", "*.md", "*.json", "*.jsonl", "*.safetensors"):
            expected = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob(suffix)}
            missing = {path for path in expected if not (wheel / "biomedclip" / place / path).is_file()}
            assert not missing, folder


@pytest.mark.slow
@pytest.mark.parametrize("installed", ["editable", "wheel"])
@pytest.mark.parametrize("place", ["file", "folder", "clone"])
def test_the_working_directory_does_not_shadow_the_package(request, tmp_path, installed, place):
    """A user's own `processing.py`, or the folders of the clone, must not be taken for ours."""
    environment = {"PYTHONPATH": str(request.getfixturevalue("wheel"))} if installed == "wheel" else {}
    for name in ("processing", "run_scripts", "model_cards", "modeling_biomedclip"):
        if place == "file":
            (tmp_path / f"{name}.py").write_text("raise RuntimeError('not ours')\n", encoding="utf-8")
        elif place == "folder":
            (tmp_path / name).mkdir()
            (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not ours')\n", encoding="utf-8")
    code = (
        "import biomedclip, biomedclip.run_scripts.main\n"
        "from biomedclip.processing.pmc.jats import parse_figures\n"
        "from biomedclip.model_cards import escaping\n"
        "from biomedclip import BiomedCLIPConfig, read_image\n"
        "print(biomedclip.__file__)"
    )
    folder = ROOT if place == "clone" else tmp_path
    result = run_python("-c", code, environment=environment, folder=folder)
    found = Path(result.stdout.strip()).resolve()
    if installed == "editable":
        assert found.parent == ROOT / "modeling_biomedclip"
    else:
        assert found.parent == Path(environment["PYTHONPATH"], "biomedclip").resolve()
