"""Files that record the finished articles of a task, so that a killed task can continue.

The records contain the pairs of each article in turn, as Arrow record batches of one row. The journal has a line of
JSON for each article, which is written after its records. A restarted task removes everything after the last complete
line and continues with the next article.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from .articles import KEPT, Article
from .staging import lock


logger = logging.getLogger(__name__)

RECORDS_SUFFIX = ".arrows"


def journal_path(folder: Path, rank: int) -> Path:
    """Return the path of the journal of a task."""
    return folder / f"{rank:05d}.jsonl"


def records_path(journal: Path) -> Path:
    """Return the path of the records of a journal."""
    return journal.with_suffix(RECORDS_SUFFIX)


def count_articles(folder: Path) -> int:
    """Return the number of articles that all tasks have finished. This is fast, because it only reads file sizes."""
    return sum(path.stat().st_size for path in folder.glob("*.progress"))


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the articles of a journal, as [`TaskJournal.add`] writes them, up to the first incomplete line."""
    with path.open("rb") as lines:
        for line in lines:
            entry = _parse(line)
            if entry is None:
                return
            yield entry


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


class TaskJournal:
    """The files of a task. Only one process at a time can write them."""

    def __init__(self, folder: Path, rank: int, schema: pa.Schema):
        self.path = journal_path(folder, rank)
        self.schema = schema
        self._files = ExitStack()

    def __enter__(self) -> "TaskJournal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = self._open(self.path)
        self._records = self._open(records_path(self.path))
        self._progress = self._open(self.path.with_suffix(".progress"))  # one byte per article
        lock(self._journal, wait=True)  # a process on another machine may still be running the same task
        self._recover()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._files:  # closes the files even after an error, because the lock would block the next attempt
            self.flush_to_disk()

    def flush_to_disk(self) -> None:
        """Flush the files to disk. The task then counts as complete."""
        for file in (self._records, self._journal):
            file.flush()
            os.fsync(file.fileno())

    def add(self, article: Article) -> None:
        """Write the pairs of an article, then its line in the journal."""
        columns = pa.struct(list(self.schema))
        sizes = []
        for row in article.pairs:
            record = pa.array([row], columns)  # twice as fast as creating one array per column
            sizes.append(self._records.write(pa.RecordBatch.from_struct_array(record).serialize()))
        self._records.flush()
        line = {
            "pmcid": article.pmcid,
            "version": article.version,
            "source_etag": article.source_etag,
            "outcome": article.outcome or KEPT,
            "figures": len(article.figures) + article.figures_cut,
            "skipped": article.skipped,
            **(article.panel_counts or {}),
            "pairs": [
                (row["pair_id"], size, row["file_size"], row["image_md5"], row["perceptual_hash"])
                for row, size in zip(article.pairs, sizes, strict=True)
            ],
        }
        self._journal.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._journal.flush()
        self._progress.write(b".")
        self._progress.flush()

    def _open(self, path: Path) -> IO[bytes]:
        path.touch()
        return self._files.enter_context(path.open("r+b"))

    def _recover(self) -> None:
        """Truncate the files after the last complete article."""
        articles = journal_end = records_end = 0
        available = os.fstat(self._records.fileno()).st_size
        for line in self._journal:
            entry = _parse(line)
            if entry is None or records_end + sum(pair[1] for pair in entry["pairs"]) > available:
                logger.warning("%s: truncated after article %d, where the task was interrupted", self.path, articles)
                break
            articles += 1
            journal_end += len(line)
            records_end += sum(pair[1] for pair in entry["pairs"])
        for file, end in ((self._journal, journal_end), (self._records, records_end), (self._progress, 0)):
            file.truncate(end)
            file.seek(end)
        self._progress.write(b"." * articles)
        self._progress.flush()


def read_record(file: IO[bytes], offset: int, size: int, schema: pa.Schema) -> pa.RecordBatch:
    """Read the record of a pair, which is a batch of one row."""
    file.seek(offset)
    return pa.ipc.read_record_batch(pa.py_buffer(file.read(size)), schema)
