"""Run the commands as a user does, each in a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
# One thread: the tests share their cores, and the order of sums must not depend on the number of threads.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}
COMMAND = [sys.executable, "-m", "biomedclip.run_scripts.main"]
QUESTION = "[y/N]"  # the end of transformers' question whether to run the code of a folder
ON_TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def _run(command: list, check: bool = True, answers: str = "", **options) -> subprocess.CompletedProcess:
    options = {"env": ENVIRONMENT, "cwd": ROOT, "capture_output": True, "text": True, "input": answers} | options
    result = subprocess.run(list(map(str, command)), **options)
    assert QUESTION not in result.stdout + result.stderr
    assert not check or result.returncode == 0, result.stderr[-3000:]
    return result


def biomedclip(
    *arguments, check: bool = True, environment: dict[str, str] | None = None, answers: str = ""
) -> subprocess.CompletedProcess:
    """Run a command with `answers` on stdin."""
    return _run([*COMMAND, *arguments], check, answers, env=ENVIRONMENT | (environment or {}))


def on_two_processes(*command: str | Path) -> subprocess.CompletedProcess:
    """Run the arguments of `python` (a file, or `-m` and a module) on two processes."""
    return _run([sys.executable, *ON_TWO_PROCESSES, *command], timeout=300)


def python(code: str) -> str:
    """Return what some code prints."""
    return _run([sys.executable, "-c", code]).stdout


def kill_when(condition: Callable[[], bool], *arguments) -> None:
    """Start a command, and kill it and its processes as soon as a condition holds."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not condition():
        assert process.poll() is None, "the command ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def logged(folder: Path, name: str) -> list[float]:
    """Return the values of a metric that a run logged."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def losses(folder: Path) -> list[float]:
    return logged(folder, "loss")


def free_port() -> int:
    """Return a port of loopback for a server that starts within the next minute.

    A port that was only bound and released may be given to another program before the server binds it. A connection
    that was closed on this side keeps the port for a minute: the system gives it to no other program, and a server that
    asks for this port gets it.
    """
    with socket.socket() as server, socket.socket() as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.connect(server.getsockname())
        server.accept()[0].close()
        return server.getsockname()[1]
