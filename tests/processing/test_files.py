"""Checks of local files before reading, and complete writes."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from biomedclip.processing.files import leads_out, replacing, require_regular, special_kind, write_text
from biomedclip.processing.integrity import open_parquet
from biomedclip.processing.pmc15m import load_pmc15m
from biomedclip.processing.tables import read_table


@pytest.fixture
def fifo(tmp_path) -> str:
    os.mkfifo(tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


def test_the_kind_of_a_file_is_named(tmp_path, fifo, impatient):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    kinds = {path: special_kind(path) for path in (tmp_path / "file", tmp_path / "link", tmp_path, fifo, os.devnull)}
    assert list(kinds.values()) == [None, None, "a folder", "a FIFO", "a device"]
    require_regular(tmp_path / "file")
    with pytest.raises(OSError, match="a.parquet is a FIFO, not a file"):
        require_regular(fifo)
    with pytest.raises(FileNotFoundError):
        require_regular(tmp_path / "nothing")


def test_links_are_resolved_before_a_path_is_compared_with_a_folder(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "insider").mkdir()
    (tmp_path / "inside" / "up").symlink_to("..")
    (tmp_path / "inside" / "round").symlink_to("../inside")
    root = tmp_path / "inside"
    assert not leads_out(root, root) and not leads_out(root / "file", root) and not leads_out(root / "round/file", root)
    assert leads_out(root / "up/file", root) and leads_out(tmp_path / "insider", root) and leads_out("/", root)


def test_readers_of_parquet_files_refuse_a_fifo(tmp_path, fifo, impatient):
    with pytest.raises(OSError, match="is a FIFO, not a file"):
        open_parquet(fifo)
    (tmp_path / "set" / "data").mkdir(parents=True)
    os.rename(fifo, tmp_path / "set" / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(OSError, match="is a FIFO, not a file"):
        load_pmc15m(tmp_path / "set")


def test_readers_of_parquet_files_do_not_retry_an_error_of_this_machine(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "data" / "train-00000-of-00001.parquet")
    calls = []

    def fail(*arguments, **options):
        calls.append(arguments)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("biomedclip.processing.shard_reader.open_parquet", fail)
    with pytest.raises(OSError, match="Too many open files"):
        load_pmc15m(tmp_path)
    assert len(calls) == 1


def test_the_reader_of_tables_refuses_a_fifo(fifo, impatient):
    with pytest.raises(OSError, match="is a FIFO, not a file"):
        read_table(Path(fifo), ["label"])


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old\n")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("ne")
        raise ZeroDivisionError
    assert path.read_text() == "old\n" and list(tmp_path.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
