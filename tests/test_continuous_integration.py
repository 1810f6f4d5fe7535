"""`.ci/run` calls the right targets, in a clone. A fake `make` records its calls."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
MAKE = """#!/bin/bash
{ echo "$@"; pwd; ls ..; id -u; python3 -c 'import os; print(os.environ["LANG"], "LC_ALL" in os.environ)'; } >> "$CALLS"
read -r line && echo "input: $line" >> "$CALLS"
[[ -f pyproject.toml && $1 != "$FAILING" ]]
"""


@pytest.fixture
def run_ci(tmp_path):
    """Runs a copy of the script in a repository of its own; returns the exit status and the lines of each call."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")

    def run(failing: str = "", pythons: tuple[str, ...] = ()) -> tuple[int, list[list[str]]]:
        checkout, calls = tmp_path / "work" / "checkout", tmp_path / "calls"
        (checkout / ".ci").mkdir(parents=True)
        (tmp_path / "work" / "shared" / "data").mkdir(parents=True)
        shutil.copy(ROOT / ".ci" / "run", checkout / ".ci")
        (checkout / "pyproject.toml").touch()
        identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
        for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "Start"]):
            subprocess.run(["git", *command], cwd=checkout, check=True)
        make = tmp_path / "bin" / "make"
        make.parent.mkdir()
        make.write_text(MAKE)
        make.chmod(0o755)
        for version in {"3.11", "3.12", "3.13"} - {".".join(platform.python_version_tuple()[:2])}:
            python = make.with_name(f"python{version}")
            python.write_text(f"#!/bin/sh\nexit {0 if version in pythons else 1}\n")
            python.chmod(0o755)
        apt_get = make.with_name("apt-get")  # the script installs Chromium where it is missing
        apt_get.write_text("#!/bin/sh\nexit 1\n")
        apt_get.chmod(0o755)
        calls.touch()
        calls.chmod(0o666)
        environment = os.environ | {"CALLS": str(calls), "FAILING": failing, "LC_ALL": "C.UTF-8"}
        environment["PATH"] = f"{make.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(["bash", ".ci/run"], cwd=checkout, env=environment, input=b"typed\n")
        assert [path.name for path in (checkout / ".ci").iterdir()] == ["run"], "the clone is removed"
        lines = calls.read_text().splitlines()
        return done.returncode, [lines[start : start + 6] for start in range(0, len(lines), 6)]

    return run


def test_the_checks_run_in_a_clone_under_a_long_path_with_spaces_in_the_c_locale(run_ci, tmp_path):
    status, calls = run_ci()
    assert status == 0
    assert [call[0] for call in calls] == ["install-all", "--jobs=2 lint docs", "test-all", "test-lowest"]
    for _, folder, *beside, user, locale in calls:
        assert folder.startswith(str(tmp_path / "work" / "checkout")) and folder.count(" ") > 5 and len(folder) > 140
        assert beside == ["biomedclip", "shared"]
        assert user != "0" or os.getuid() == 0
        assert locale == "C False"


@pytest.mark.skipif(not shutil.which("unshare"), reason="user namespaces are made with unshare")
def test_root_runs_the_checks_as_another_user(run_ci):
    command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "true"]
    if os.getuid() != 0 or subprocess.run(command).returncode:
        pytest.skip("not root, or user namespaces are not allowed")
    assert {call[4] for call in run_ci()[1]} == {"1000"}


def test_a_check_that_fails_ends_the_run_with_its_status(run_ci):
    status, calls = run_ci(failing="test-all")
    assert status != 0
    assert [call[0] for call in calls] == ["install-all", "--jobs=2 lint docs", "test-all"]


def test_the_fast_tests_run_again_with_every_other_python(run_ci):
    default = ".".join(platform.python_version_tuple()[:2])
    others = tuple(version for version in ("3.11", "3.12", "3.13") if version != default)
    _, calls = run_ci(pythons=others[-1:])
    assert [call[0] for call in calls[4:]] == [f"test PYTHON=python{others[-1]} VENV=.venv-{others[-1]}"]
