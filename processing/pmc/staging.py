"""The hidden folder in which a data set grows, and how it takes its place when all of it is there."""

import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Staging:
    """
    The folder of an unfinished build, `.build` beside the result.

    Args:
        output: The folder of the data set.
    """

    output: Path

    @property
    def root(self) -> Path:
        return self.output / ".build"

    @property
    def options(self) -> Path:
        return self.root / "options.json"

    @property
    def work_list(self) -> Path:
        return self.root / "work_list.parquet"

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
    def outdated(self) -> Path:
        """PMCIDs whose rows in the data set that is updated no longer count, one a line."""
        return self.root / "outdated.txt"

    def partial(self, name: str) -> Path:
        """Where a file is written that gets its name when it is whole; for each process another."""
        folder = self.root / "partial"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}.{socket.gethostname()}.{os.getpid()}"

    @property
    def _complete(self) -> Path:
        return self.root / "complete"

    def read_options(self) -> dict[str, Any] | None:
        """Options of the build that was interrupted here; none where there was none."""
        return json.loads(self.options.read_text()) if self.options.exists() else None

    def clear(self, *, keep_logs: bool = False) -> None:
        """Removes the folder, or all but the logs in it."""
        for path in self.root.iterdir() if self.root.exists() else ():
            if path != self.logs:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self.root.exists() and not keep_logs:
            shutil.rmtree(self.root)

    def take_place(self, *, keep_logs: bool = False) -> None:
        """Moves the result to its place; a move that was interrupted is finished by [`finish_move`]."""
        self._complete.touch()
        self.finish_move(keep_logs=keep_logs)

    def finish_move(self, *, keep_logs: bool = False) -> bool:
        """Finishes a move that was interrupted; returns whether there was one."""
        if not self._complete.exists():
            return False
        for path in sorted(self.result.iterdir()):
            target = self.output / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
        self.clear(keep_logs=keep_logs)
        return True


def write_whole(path: Path, content: str) -> None:
    """Writes a file, whole or not at all."""
    partial = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    partial.write_text(content, encoding="utf-8")
    os.replace(partial, path)
