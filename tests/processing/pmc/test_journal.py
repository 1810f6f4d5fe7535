"""What a task has finished survives its death, and nothing else does."""

import multiprocessing
import os
import signal
import time

import pyarrow as pa
import pytest

from biomedclip.processing.pmc.articles import Article
from biomedclip.processing.pmc.journal import (
    TaskJournal,
    count_articles,
    journal_path,
    read_journal,
    read_record,
    records_path,
)


SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("file_size", pa.int32()),
        ("image_md5", pa.string()),
        ("perceptual_hash", pa.string()),
        ("image", pa.binary()),
    ]
)


def article(number: int, pairs: int = 2) -> Article:
    rows = [
        {
            "pair_id": f"PMC{number}.1/F{pair}/g",
            "file_size": 100,
            "image_md5": f"{number:032x}",
            "perceptual_hash": "",
            "image": bytes([number]) * (100 + pair),
        }
        for pair in range(pairs)
    ]
    return Article(f"PMC{number}", [1], "1:a", 1, pairs=rows)


def write(folder, numbers) -> None:
    with TaskJournal(folder, 0, SCHEMA) as journal:
        for number in numbers:
            journal.add(article(number))


def names(folder) -> list[str]:
    return [entry["pmcid"] for entry in read_journal(journal_path(folder, 0))]


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pairs_are_read_back_from_where_the_journal_says(tmp_path):
    write(tmp_path, [1, 2])
    position = 0
    with records_path(journal_path(tmp_path, 0)).open("rb") as records:
        for entry in read_journal(journal_path(tmp_path, 0)):
            for pair_id, size, *_ in entry["pairs"]:
                row = read_record(records, position, size, SCHEMA).to_pylist()[0]
                assert row["pair_id"] == pair_id
                position += size
        assert row["image"] == bytes([2]) * 101
        assert records.read() == b""


@pytest.mark.parametrize("cut", [1, 7, 150])
def test_a_line_that_was_cut_off_does_not_count_and_is_written_again(tmp_path, cut):
    write(tmp_path / "whole", [1, 2, 3])
    write(tmp_path / "cut", [1, 2, 3])
    path = journal_path(tmp_path / "cut", 0)
    path.write_bytes(path.read_bytes()[:-cut])
    assert names(tmp_path / "cut") == ["PMC1", "PMC2"]
    write(tmp_path / "cut", [3])
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_records_without_their_line_are_cut_off(tmp_path):
    write(tmp_path / "whole", [1, 2])
    write(tmp_path / "torn", [1])
    with records_path(journal_path(tmp_path / "torn", 0)).open("ab") as records:
        records.write(b"half a record")
    write(tmp_path / "torn", [2])
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


def test_a_line_whose_records_the_disk_has_lost_does_not_count(tmp_path):
    write(tmp_path / "whole", [1, 2])
    write(tmp_path / "lost", [1, 2])
    path = records_path(journal_path(tmp_path / "lost", 0))
    path.write_bytes(path.read_bytes()[:-10])
    with TaskJournal(tmp_path / "lost", 0, SCHEMA):
        assert names(tmp_path / "lost") == ["PMC1"]
    write(tmp_path / "lost", [2])
    assert files(tmp_path / "lost") == files(tmp_path / "whole")


def test_articles_are_counted_without_reading_them(tmp_path):
    assert count_articles(tmp_path) == 0
    write(tmp_path, [1, 2, 3])
    assert count_articles(tmp_path) == 3


def _hold(folder, ready) -> None:
    with TaskJournal(folder, 0, SCHEMA) as journal:
        journal.add(article(1))
        ready.set()
        time.sleep(60)


def test_a_second_process_waits_until_the_first_is_gone(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(20)
    waiter = context.Process(target=write, args=(tmp_path, [2]))
    waiter.start()
    waiter.join(0.5)
    assert waiter.is_alive() and names(tmp_path) == ["PMC1"]
    os.kill(holder.pid, signal.SIGKILL)
    waiter.join(20)
    assert waiter.exitcode == 0 and names(tmp_path) == ["PMC1", "PMC2"]
