"""
transformers' own common tests, out of the source archive of the installed version: the wheel does not hold them.

`python tests/transformers_suite/source_archive.py` fetches them, as `make test` does; `load` imports one of them.
The pipelines' mixin is not used: its tests are not in the archive, and it loads small models from the Hub.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType


VERSION = version("transformers")
FOLDER = Path(sys.prefix) / f"transformers-{VERSION}-tests"
PACKAGE = "transformers_own_tests"

# What the common tests import from folders that the archive leaves out.
STUBS = {
    # What can be exported is tested in `tests/modeling_biomedclip/test_citizenship.py`; nothing here generates text.
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{PACKAGE}.utils.test_configuration_utils": {
        # Fields that every configuration takes, with values that are not their defaults.
        "config_common_kwargs": {
            "architectures": ["BiomedCLIPModel"],
            "chunk_size_feed_forward": 5,
            "dtype": "float16",
            "id2label": {0: "label"},
            "is_encoder_decoder": True,
            "label2id": {"label": 0},
            "output_attentions": True,
            "output_hidden_states": True,
            "problem_type": "regression",
            "return_dict": False,
        }
    },
    # Addresses of pictures, films and sounds, which no test of our classes opens.
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
}


def fetch() -> None:
    """
    Downloads the source archive of the installed transformers and unpacks its common tests beside the environment's
    packages. Does nothing when they are there.

    Raises:
        subprocess.CalledProcessError: pip could not download the archive.
    """
    if FOLDER.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*pip, "--dest", scratch, f"transformers=={VERSION}"], check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        tests = Path(scratch) / "tests"
        tests.mkdir()
        with tarfile.open(archive) as files:
            for member in files:
                if member.isfile() and member.name.startswith(f"transformers-{VERSION}/tests/test_"):
                    # One by one: `extractall` needs a filter, which Python has since 3.11.4.
                    (tests / Path(member.name).name).write_bytes(files.extractfile(member).read())
        (tests / "__init__.py").touch()  # the configuration tests look for it
        tests.rename(FOLDER)  # under its name only when all of it is there


def load(name: str) -> ModuleType:
    """
    Imports one of the common test modules.

    Args:
        name: Its file's name without `.py`, such as `test_modeling_common`.
    """
    if not FOLDER.is_dir():
        import pytest

        reason = f"transformers' own tests are not at {FOLDER}: `make test` fetches them"
        pytest.skip(reason, allow_module_level=True)
    if PACKAGE not in sys.modules:
        _add_package(PACKAGE, {"__path__": [str(FOLDER)]})
        for stub, contents in STUBS.items():
            parent, _, _ = stub.rpartition(".")
            if parent:
                _add_package(parent, {"__path__": []})
            _add_package(stub, contents)
    return import_module(f"{PACKAGE}.{name}")


def _add_package(name: str, contents: dict) -> None:
    module = module_from_spec(ModuleSpec(name, loader=None))
    vars(module).update(contents)
    sys.modules[name] = module


if __name__ == "__main__":
    fetch()
