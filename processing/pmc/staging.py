"""The hidden folder in which a data set grows, and how it takes its place when all of it is there."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..files import write_text
from ..integrity import REPORT_FILE


HIDDEN = ".build"


class AtWork(OSError):
    """Another build is at work in the folder."""


@dataclass(frozen=True)
class Staging:
    """The folder of an unfinished build: `.build/<name>` beside the result.

    Each build has a folder of its own name, so that what a killed one has left running writes nowhere else.

    Args:
        output: The folder of the data set.
        name: The build's.
    """

    output: Path
    name: str

    @classmethod
    def begin(cls, output: Path) -> "Staging":
        """A folder for a new build; what an earlier one has left is cleared away."""
        discard(output)
        staging = cls(output, uuid.uuid4().hex[:12])
        staging.root.mkdir(parents=True)
        return staging

    @classmethod
    def find(cls, output: Path) -> "tuple[Staging, dict[str, Any]] | None":
        """The build that was begun here and is not finished, and what was noted of it; none where there is none."""
        path = output / HIDDEN / "options.json"
        if not path.exists():
            return None
        begun = json.loads(path.read_text(encoding="utf-8"))
        return cls(output, begun["name"]), begun

    def note(self, begun: Mapping[str, Any]) -> None:
        """Notes what is to be done: from now on the build can be taken up."""
        content = json.dumps({"name": self.name, **begun}, indent=2)
        write_text(self.output / HIDDEN / "options.json", content)

    @property
    def root(self) -> Path:
        return self.output / HIDDEN / self.name

    @property
    def work_list(self) -> Path:
        return self.root / "work_list.parquet"

    @property
    def outdated(self) -> Path:
        """PMCIDs whose rows in the data set that is updated no longer count, one a line."""
        return self.root / "outdated.txt"

    @property
    def journals(self) -> Path:
        """Journals and records of the tasks of the first pass."""
        return self.root / "articles"

    @property
    def plan(self) -> Path:
        return self.root / "plan.parquet"

    @property
    def statistics(self) -> Path:
        """What each shard holds, in numbers."""
        return self.root / "statistics"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def result(self) -> Path:
        """The data set as it will be."""
        return self.root / "result"

    @property
    def _complete(self) -> Path:
        return self.root / "complete"

    @property
    def _replaced(self) -> Path:
        """The data set before, until it is removed."""
        return self.root / "replaced"

    def partial(self, name: str) -> Path:
        """Where a file is written that gets its name when it is whole; for each process another."""
        folder = self.root / "partial"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.{socket.gethostname()}.{os.getpid()}"

    def take_place(self) -> None:
        """Moves the result to its place; a move that was interrupted is finished by [`finish_move`]."""
        self._complete.touch()
        self.finish_move()

    def finish_move(self) -> bool:
        """Finishes a move that was interrupted; returns whether the result was complete."""
        if not self._complete.exists():
            return False
        if (self.result / REPORT_FILE).exists():
            self._set_aside(REPORT_FILE)  # first: readers would hold the new files against the old report
        paths = list(self.result.iterdir()) if self.result.exists() else []
        for path in sorted(paths, key=lambda path: (path.name == REPORT_FILE, path.name)):
            if path.is_dir():  # in one step: removing it takes time, in which readers would see a part
                self._set_aside(path.name)
            os.replace(path, self.output / path.name)
        return True

    def _set_aside(self, name: str) -> None:
        """Moves what the data set before has under a name out of the way, to be removed with the rest."""
        if (self.output / name).exists():
            self._replaced.mkdir(exist_ok=True)
            os.replace(self.output / name, self._replaced / name)

    def clear(self, *, keep_logs: bool = False) -> None:
        """Removes what is left of a build whose result is in its place.

        The note and the mark of completion go last. If this is interrupted, the same command still knows that the build
        is complete.

        Args:
            keep_logs: Keep the logs, for an executor that has still to write there.
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
    """Removes what builds have left in a folder: out of the way in one step, so that no half of it is ever taken up."""
    hidden = output / HIDDEN
    if hidden.exists():
        os.replace(hidden, output / f"{HIDDEN}-{uuid.uuid4().hex[:12]}")
    for path in _discarded(output):
        shutil.rmtree(path, ignore_errors=True)


def _discarded(output: Path) -> list[Path]:
    """Folders that [`discard`] has not finished removing."""
    return list(output.glob(f"{HIDDEN}-*"))


def finish_interrupted(output: Path) -> dict[str, Any] | None:
    """Finish a build that was interrupted after its result was complete: while it took its place, or cleared up.

    Args:
        output: Folder of the data set.

    Returns:
        The options of that build; none if there was no such build.
    """
    found = Staging.find(output)
    if found is None or not found[0].finish_move():
        return None
    found[0].clear()
    return found[1]["options"]


@contextlib.contextmanager
def only_one(output: Path) -> Iterator[bool]:
    """Keeps other builds out of a folder for as long as this one is at it.

    Yields:
        Whether a command that was at work here before has been killed.

    Raises:
        AtWork: There is one.
    """
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{HIDDEN}.lock"
    killed = path.exists() or bool(_discarded(output))
    with path.open("w", encoding="utf-8") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            raise AtWork(f"{output}: another build is at work here. Wait for it, or end it.") from None
        try:
            yield killed
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                output.rmdir()  # if nothing came of it


def lock(file: IO[Any], *, wait: bool) -> None:
    """Takes the lock of an open file for this process, until it is closed.

    Raises:
        BlockingIOError: Another process has it, and this one is not to wait.
        OSError: The disk does not know locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise OSError(
                error.errno, f"this disk does not support locks ({error.strerror}); mount it with flock", file.name
            ) from error
        raise
