"""A dataset that version 0.1 built: it can be read and verified, but not updated."""

import shutil
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.mirror_writer import build_set, dataset_files

from biomedclip import load_pmc15m
from biomedclip.processing.pmc.verify import verify_dataset
from biomedclip.run_scripts.main import main


ARCHIVE = Path(__file__).parents[2] / "data" / "version_0_1.tar.gz"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """A folder with the dataset `built` and the mirror that it was built from."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        names = ("built", "mirror")
        archive.extractall(folder, [m for m in archive if m.name.split("/")[0] in names], filter="data")
    return folder


def test_it_has_the_old_columns(earlier):
    names = pq.read_schema(earlier / "built" / "articles.parquet").names
    assert {"mark", "again"} < set(names) and "source_etag" not in names


def test_it_can_be_read(earlier):
    rows = [row for split in ("train", "validation", "test") for row in load_pmc15m(earlier / "built", split)]
    assert len(rows) == 6
    assert {row["caption"] for row in rows} >= {"Caption 0 of article 1000.", "Caption 1 of article 1002."}


def test_it_can_be_verified(earlier):
    result = verify_dataset(earlier / "built")
    assert result.faults == [] and result.verifiable
    assert result.checked["images"] == 6


def test_an_update_is_refused_and_states_what_to_do(earlier, capfd):
    before = dataset_files(earlier / "built")
    with pytest.raises(ValueError, match="built by an earlier version.*not updated.*Build it again.*`overwrite=True`"):
        build_set(earlier / "mirror", earlier / "built", update=True)
    command = ["build", "--source", str(earlier / "mirror"), "--output-dir", str(earlier / "built"), "--update"]
    assert main(command) == 1
    assert "Build it again with `--overwrite true`, or in another folder." in capfd.readouterr().err
    assert dataset_files(earlier / "built") == before


def test_overwriting_it_writes_the_new_columns_and_the_same_pairs(earlier, tmp_path):
    shutil.copytree(earlier / "built", tmp_path / "built")
    build_set(earlier / "mirror", tmp_path / "built", overwrite=True)
    assert {"source_etag", "retry"} < set(pq.read_schema(tmp_path / "built" / "articles.parquet").names)
    names = sorted(path.name for path in (earlier / "built" / "data").iterdir())
    for name in names:
        tables = [pq.read_table(folder / "built" / "data" / name) for folder in (earlier, tmp_path)]
        assert tables[0].equals(tables[1])
