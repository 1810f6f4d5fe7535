"""A small checkpoint in open_clip's layout."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an open_clip model of BiomedCLIP's architecture, which no test changes."""
    from helpers.open_clip_folders import write_open_clip_folder  # open_clip takes seconds to import

    return write_open_clip_folder(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture
def folder(original, tmp_path) -> Path:
    """A copy of the folder that a test can change."""
    return shutil.copytree(original, tmp_path / "source")
