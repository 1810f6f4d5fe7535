"""The hidden folder in which a dataset is built and from which the result replaces an existing dataset."""

import contextlib
import errno
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from ..files import write_text
from ..integrity import REPORT_FILE


HIDDEN = ".build"


class AtWork(OSError):
    """Raised if another build is running in the folder."""


class Staging:
    """The folder of an unfinished build: `.build/<name>` in the output folder.

    Each build has its own name, so that processes that survive a killed build do not write into the next one.
    """

    def __init__(self, output: Path, name: str):
        self.output = output  # folder of the dataset
        self.name = name
        self.root = output / HIDDEN / name
        self.work_list = self.root / "work_list.parquet"  # the articles to read, with one row group per task
        self.outdated = (
            self.root / "outdated.txt"
        )  # PMCIDs whose rows in the updated dataset are outdated, one per line
        self.journals = self.root / "articles"  # journals and records of the tasks that read articles
        self.plan = self.root / "plan.parquet"  # the place of every pair, with one row group per shard
        self.statistics = self.root / "statistics"  # of each shard
        self.logs = self.root / "logs"  # of datatrove
        self.result = self.root / "result"  # the finished dataset before it is moved to the output folder
        self._complete = self.root / "complete"

    @classmethod
    def begin(cls, output: Path) -> "Staging":
        """Create a folder for a new build and remove those of earlier builds."""
        discard(output)
        staging = cls(output, uuid.uuid4().hex[:12])
        staging.root.mkdir(parents=True)
        return staging

    @classmethod
    def find(cls, output: Path) -> "tuple[Staging, dict[str, Any]] | None":
        """Return the unfinished build in a folder and the notes from its start, or None if there is no such build."""
        path = output / HIDDEN / "options.json"
        if not path.exists():
            return None
        begun = json.loads(path.read_text(encoding="utf-8"))
        return cls(output, begun["name"]), begun

    def note(self, begun: Mapping[str, Any]) -> None:
        """Write the notes with which a build can be resumed."""
        write_text(self.output / HIDDEN / "options.json", json.dumps({"name": self.name, **begun}, indent=2))

    def partial(self, name: str) -> Path:
        """Return a path for writing a file that is renamed when it is complete. It differs between processes."""
        folder = self.root / "partial"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.{socket.gethostname()}.{os.getpid()}"

    def take_place(self) -> None:
        """Move the result to the output folder. [`finish_move`] continues an interrupted move."""
        self._complete.touch()
        self.finish_move()

    def finish_move(self) -> bool:
        """Continue an interrupted move, and return whether the result was complete."""
        if not self._complete.exists():
            return False
        if (self.result / REPORT_FILE).exists():
            self._set_aside(REPORT_FILE)  # first, because readers would otherwise compare new files with the old report
        paths = list(self.result.iterdir()) if self.result.exists() else []
        for path in sorted(paths, key=lambda path: (path.name == REPORT_FILE, path.name)):
            if path.is_dir():  # a rename is atomic, while readers would see a partial folder during a removal
                self._set_aside(path.name)
            os.replace(path, self.output / path.name)
        return True

    def _set_aside(self, name: str) -> None:
        """Move a file or folder of the replaced dataset to the staging folder, which is removed later."""
        if (self.output / name).exists():
            replaced = self.root / "replaced"
            replaced.mkdir(exist_ok=True)
            os.replace(self.output / name, replaced / name)

    def clear(self, *, keep_logs: bool = False) -> None:
        """Remove the staging folder of a build whose result has been moved.

        The notes and the completion marker are removed last. If the removal is interrupted, running the same command
        again still detects that the build is complete. `keep_logs` is for an executor that is still writing to them.
        """
        for path in self.root.iterdir():
            if path != self._complete and not (keep_logs and path == self.logs):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        if keep_logs:
            (self.output / HIDDEN / "options.json").unlink(missing_ok=True)
            self._complete.unlink(missing_ok=True)
        else:
            discard(self.output)


def discard(output: Path) -> None:
    """Remove the staging folders in a folder. They are renamed first, so that a partial one is never resumed."""
    hidden = output / HIDDEN
    if hidden.exists():
        os.replace(hidden, output / f"{HIDDEN}-{uuid.uuid4().hex[:12]}")
    for path in output.glob(f"{HIDDEN}-*"):
        shutil.rmtree(path, ignore_errors=True)


def finish_interrupted(output: Path) -> dict[str, Any] | None:
    """Finish a build that was interrupted after the result was complete, and return its options, if there is one."""
    found = Staging.find(output)
    if found is None or not found[0].finish_move():
        return None
    found[0].clear()
    return found[1]["options"]


@contextlib.contextmanager
def only_one(output: Path) -> Iterator[bool]:
    """Lock a folder against other builds, and yield whether an earlier command was killed in it.

    Raises:
        AtWork: If another build is running in the folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{HIDDEN}.lock"
    killed = path.exists() or any(output.glob(f"{HIDDEN}-*"))
    with path.open("w", encoding="utf-8") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            raise AtWork(f"{output}: another build is running here. Wait for it, or stop it.") from None
        try:
            yield killed
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                output.rmdir()  # if it is empty


def lock(file: IO[Any], *, wait: bool) -> None:
    """Lock an open file until it is closed. If another process has locked it, wait or raise `BlockingIOError`."""
    import fcntl  # not available on Windows, where other commands import this module

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            message = f"this disk does not support locks ({error.strerror}). Mount it with flock"
            raise OSError(error.errno, message, file.name) from error
        raise
