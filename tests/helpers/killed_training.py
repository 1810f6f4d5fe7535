"""Run `biomedclip train` in processes that can be killed at a chosen moment.

As a program, it imports the command once and forks each run. It reads requests from its input and answers with exit
statuses, as lines of JSON, until it is asked to end.
"""

import gc
import json
import os
import signal
import sys
import tempfile
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from helpers import forked_processes
from helpers.commands import ENVIRONMENT, ROOT, free_port


TIMEOUT = 120  # seconds after which a run is ended
SURVIVAL = 0.3  # seconds until the other processes are killed too
FILE_EVENTS = {"open", "os.mkdir", "os.remove", "os.rmdir", "os.rename"}


class KillableRuns:
    """Client of the program."""

    def __enter__(self) -> "KillableRuns":
        self.folder = tempfile.TemporaryDirectory()
        requests, answers, errors = (Path(self.folder.name) / name for name in ("requests", "answers", "errors"))
        os.mkfifo(requests)
        os.mkfifo(answers)
        errors.touch()
        environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        self.program = forked_processes.start([__file__], environment, ROOT, [requests, answers, errors])
        # Opened for both directions, neither end waits for the other.
        self.requests, self.answers = (open(os.open(pipe, os.O_RDWR), "r+b", 0) for pipe in (requests, answers))
        return self

    def __exit__(self, *error: object) -> None:
        self._ask({})
        self.program.join()
        self.requests.close()
        self.answers.close()
        self.folder.cleanup()

    def _ask(self, request: dict[str, Any]) -> None:
        self.requests.write(json.dumps(request).encode() + b"\n")

    def run(
        self,
        arguments: list[str],
        log: Path,
        *,
        processes: int = 1,
        kill_at_event: int | None = None,
        rank: int = 0,
        kill_after: float | None = None,
    ) -> list[int]:
        """Train, and return the exit statuses when all processes have ended: -9 for a killed process.

        `log` gets the rows that each process reads (`reads.RANK`) and its output (`output.RANK`). With `kill_at_event`,
        process `rank` is killed at its nth event: reading rows, or accessing a file of a checkpoint. The others are
        killed soon after. With `kill_after`, all are killed that many seconds after the first one has read rows.
        """
        log.mkdir(parents=True, exist_ok=True)
        request = {name: value for name, value in locals().items() if name != "self"} | {"log": str(log)}
        self._ask(request)
        if self.answers not in wait([self.answers, self.program.sentinel]):
            raise RuntimeError((Path(self.folder.name) / "errors").read_text())
        return json.loads(self.answers.readline())


def reads(log: Path, rank: int = 0) -> list[list[int]]:
    """Return epoch, first row and last row of each read of a process."""
    path = log / f"reads.{rank}"
    return [list(map(int, line.split())) for line in path.read_text().splitlines()] if path.exists() else []


def train(arguments: list[str], log: Path, process: int, processes: int, kill_at_event: int | None, port: int) -> int:
    """Run one process."""
    from biomedclip.processing.streaming import PairStream
    from biomedclip.run_scripts.main import main

    output = os.open(log / f"output.{process}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if processes > 1:
        names = {"RANK": process, "LOCAL_RANK": process, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    rows, events = PairStream.rows, 0

    def happen() -> None:
        nonlocal events
        events += 1
        if events == kill_at_event:
            os.kill(os.getpid(), signal.SIGKILL)

    def logged(self: PairStream, epoch: int, low: int, high: int) -> list[dict[str, Any]]:
        if "image" in self.columns:  # excludes reading captions for the vocabulary
            with (log / f"reads.{process}").open("a") as file:
                file.write(f"{epoch} {low} {high}\n")
            happen()
        return rows(self, epoch, low, high)

    def watch(event: str, details: tuple[Any, ...]) -> None:
        # Files in a folder that is being removed have relative names.
        if events and event in FILE_EVENTS and (event != "open" or "checkpoint-" in str(details[0])):
            happen()

    PairStream.rows = logged
    sys.addaudithook(watch)
    return main(arguments)


def serve() -> None:
    import biomedclip.run_scripts.train  # noqa: F401

    gc.freeze()  # as `helpers.frozen_objects`
    while request := json.loads(sys.stdin.readline()):
        log, processes, kill_after = Path(request["log"]), request["processes"], request["kill_after"]
        port = free_port()
        running = {}
        for process in range(processes):
            pid = os.fork()
            if pid == 0:
                status = 70
                try:
                    event = request["kill_at_event"] if process == request["rank"] else None
                    status = train(request["arguments"], log, process, processes, event, port)
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            running[pid] = process
        statuses = [0] * processes
        deadline = time.monotonic() + TIMEOUT
        timed = kill_after is None
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                statuses[running.pop(pid)] = os.waitstatus_to_exitcode(status)
            if not timed and (log / "reads.0").exists():
                timed, deadline = True, time.monotonic() + kill_after
            if pid and statuses != [0] * processes:
                timed, deadline = True, min(deadline, time.monotonic() + SURVIVAL)
            if time.monotonic() > deadline:
                for other in running:
                    os.kill(other, signal.SIGKILL)
            time.sleep(0.005)
        sys.stdout.write(json.dumps(statuses) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
