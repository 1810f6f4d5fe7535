"""Fixtures for tests of the build."""

import pytest
from helpers.fake_slurm import install_fake_slurm

from biomedclip.processing.pmc import bucket, executors


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the pauses before retries."""
    monkeypatch.setattr(bucket, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(executors, "PAUSE", 0.01)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Install a fake Slurm that runs jobs at once, and return its folder."""
    for name, value in install_fake_slurm(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "slurm"
