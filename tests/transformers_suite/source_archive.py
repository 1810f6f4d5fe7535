"""transformers' own common tests, from the source archive of the installed version. The wheel does not contain them.

`python tests/transformers_suite/source_archive.py` downloads them, as `make test-all` does. `load` imports one of them.
The mixin of the pipelines is not used: its tests are not in the archive, and it loads models from the Hub.
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

# Modules that the common tests import from folders that are not in the archive.
STUBS = {
    # `tests/modeling_biomedclip/test_export.py` tests the export. Our models do not generate text.
    f"{PACKAGE}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    f"{PACKAGE}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    f"{PACKAGE}.utils.test_configuration_utils": {
        # Common fields of all configurations, with values other than the defaults.
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
    # Addresses of images, videos and sounds that no test of our classes opens.
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
}


def fetch() -> None:
    """Download the source archive and unpack its common tests next to the packages, unless they exist."""
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
                    # `extractall` needs a filter, which Python has since 3.11.4.
                    (tests / Path(member.name).name).write_bytes(files.extractfile(member).read())
        (tests / "__init__.py").touch()  # the configuration tests look for it
        tests.rename(FOLDER)  # after all files are complete


def load(name: str) -> ModuleType:
    """Import one of the common test modules, such as `test_modeling_common`."""
    if not FOLDER.is_dir():
        import pytest

        reason = f"transformers' own tests are not in {FOLDER}. `make test-all` downloads them"
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
