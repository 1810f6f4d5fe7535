"""What a task of the build has finished, on disk in a form that survives the death of the task.

Files grow side by side: records, which hold the pairs of one article after the other as Arrow record batches of
one row, and a journal with a line of JSON for each article, written after its records. What stands in the journal is
done. A task that starts again cuts off what came after the last whole line and goes on with the next article.
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
    """The journal of a task."""
    return folder / f"{rank:05d}.jsonl"


def records_path(journal: Path) -> Path:
    """The records that go with a journal."""
    return journal.with_suffix(RECORDS_SUFFIX)


def count_articles(folder: Path) -> int:
    """Articles that all tasks have finished so far: a look at sizes, cheap enough for a progress bar."""
    return sum(path.stat().st_size for path in folder.glob("*.progress"))


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The articles of a journal, as far as its lines are whole.

    Returns:
        `pmcid`, `version`, `mark`, `outcome`, `figures` (their number), `skipped` (as in [`Article`]) and `pairs`
        (pair id, bytes of its record, bytes, MD5 and perceptual hash of its picture) of one article after the other.
    """
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                return


class TaskJournal:
    """The files of a task, open for writing by one process at a time.

    Args:
        folder: Where the files of all tasks lie.
        rank: Number of the task.
        schema: Columns of the records.
    """

    def __init__(self, folder: Path, rank: int, schema: pa.Schema):
        self.path = journal_path(folder, rank)
        self.schema = schema
        self._files = ExitStack()

    def __enter__(self) -> "TaskJournal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = self._open(self.path)
        self._records = self._open(records_path(self.path))
        self._progress = self._open(self.path.with_suffix(".progress"))  # a byte an article
        # A task that was given up may still be at it, on another machine perhaps: one writes at a time.
        lock(self._journal, wait=True)
        self._recover()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._files:  # closed in any case: a lock that stays would stop the next run of the task for ever
            self.flush_to_disk()

    def add(self, article: Article) -> None:
        """Writes the article's pairs, then its line."""
        sizes = [self._records.write(_serialize(row, self.schema)) for row in article.pairs]
        self._records.flush()
        line = {
            "pmcid": article.pmcid,
            "version": article.version,
            "mark": article.mark,
            "outcome": article.outcome or KEPT,
            "figures": len(article.figures) + article.figures_cut,
            "skipped": article.skipped,
            "pairs": [
                (row["pair_id"], size, row["file_size"], row["image_md5"], row["perceptual_hash"])
                for row, size in zip(article.pairs, sizes, strict=True)
            ],
        }
        self._journal.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._journal.flush()
        self._progress.write(b".")
        self._progress.flush()

    def flush_to_disk(self) -> None:
        """Waits until the disk has it: the task counts as complete afterwards."""
        for file in (self._records, self._journal):
            file.flush()
            os.fsync(file.fileno())

    def _open(self, path: Path) -> IO[bytes]:
        path.touch()
        return self._files.enter_context(path.open("r+b"))

    def _recover(self) -> None:
        """Cuts the files back to the last article that stands in them whole."""
        articles = journal_end = records_end = 0
        available = os.fstat(self._records.fileno()).st_size
        for line in self._journal:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if entry is None or records_end + sum(pair[1] for pair in entry["pairs"]) > available:
                logger.warning("%s: cut off behind article %d, where the task was interrupted", self.path, articles)
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
    """The record of one pair, a batch of one row."""
    file.seek(offset)
    return pa.ipc.read_record_batch(pa.py_buffer(file.read(size)), schema)


def _serialize(row: dict[str, Any], schema: pa.Schema) -> pa.Buffer:
    # As one struct: to convert each column by itself takes twice as long.
    record = pa.array([row], pa.struct(list(schema)))
    return pa.RecordBatch.from_struct_array(record).serialize()
