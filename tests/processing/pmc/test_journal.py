"""The journal keeps finished articles, and nothing else, if its task is killed."""

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


def article(number: int) -> Article:
    row = {"file_size": 100, "image_md5": f"{number:032x}", "perceptual_hash": ""}
    rows = [row | {"pair_id": f"PMC{number}.1/F{pair}/g", "image": bytes([number]) * (100 + pair)} for pair in range(2)]
    return Article(f"PMC{number}", [1], "1:a", 1, pairs=rows)


def write(folder, numbers) -> None:
    with TaskJournal(folder, 0, SCHEMA) as journal:
        for number in numbers:
            journal.add(article(number))


def names(folder) -> list[str]:
    return [entry["pmcid"] for entry in read_journal(journal_path(folder, 0))]


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_journal_states_where_each_pair_is(tmp_path):
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
    assert count_articles(tmp_path) == 2 and count_articles(tmp_path / "empty") == 0


def truncate(path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize(
    ("damage", "articles"),
    [
        (lambda journal: truncate(journal, 1), 2),
        (lambda journal: truncate(journal, 7), 2),
        (lambda journal: truncate(journal, 150), 2),
        (lambda journal: truncate(records_path(journal), 10), 2),
        (lambda journal: records_path(journal).open("ab").write(b"half a record"), 3),
    ],
    ids=["end of line", "end of journal", "half a line", "lost record", "record without line"],
)
def test_an_incomplete_article_is_removed_and_written_again(tmp_path, damage, articles):
    write(tmp_path / "complete", [1, 2, 3, 4])
    write(tmp_path / "damaged", [1, 2, 3])
    damage(journal_path(tmp_path / "damaged", 0))
    with TaskJournal(tmp_path / "damaged", 0, SCHEMA):
        assert names(tmp_path / "damaged") == [f"PMC{number}" for number in range(1, articles + 1)]
    write(tmp_path / "damaged", range(articles + 1, 5))
    assert files(tmp_path / "damaged") == files(tmp_path / "complete")


def _hold(folder, ready) -> None:
    with TaskJournal(folder, 0, SCHEMA) as journal:
        journal.add(article(1))
        ready.set()
        time.sleep(60)


@pytest.mark.slow
def test_a_second_process_waits_until_the_first_has_ended(tmp_path):
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
