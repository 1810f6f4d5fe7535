"""Data and checkpoints that the tests of training share."""

from pathlib import Path

import pytest
from helpers.pair_shards import write_shards


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """150 training pairs in six shards with five licenses and mentions, and 25 validation pairs."""
    folder = write_shards(tmp_path_factory.mktemp("shards"), image_size=(40, 30))
    return write_shards(folder, image_size=(40, 30), split="validation", shards=1)
