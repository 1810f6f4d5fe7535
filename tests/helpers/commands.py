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

from helpers import forked_processes
from helpers.forked_processes import ENVIRONMENT


ROOT = Path(__file__).resolve().parents[2]
_MODULE = ["-m", "biomedclip.run_scripts.main"]
COMMAND = [sys.executable, *_MODULE]
QUESTION = "[y/N]"  # the end of transformers' question whether to run the code of a folder


def _checked(result: subprocess.CompletedProcess, check: bool = True) -> subprocess.CompletedProcess:
    assert QUESTION not in result.stdout + result.stderr
    assert not check or result.returncode == 0, result.stderr[-3000:]
    return result


def run_python(
    *command: str | Path,
    processes: int = 1,
    environment: dict[str, str] | None = None,
    folder: Path = ROOT,
    answers: str = "",
    transformers: bool = True,
) -> subprocess.CompletedProcess:
    """Run the arguments of `python`: a file, `-m` and a module, or `-c` and code.

    Libraries are already imported, also `transformers` unless excluded, see [`forked_processes`]. `environment` has
    further variables.
    """
    variables = ENVIRONMENT | (environment or {})
    port = free_port() if processes > 1 else 0
    words = list(map(str, command))
    options = {"processes": processes, "port": port, "answers": answers, "transformers": transformers}
    return forked_processes.run(words, variables, folder, **options)


def biomedclip(
    *arguments, check: bool = True, environment: dict[str, str] | None = None, answers: str = "", processes: int = 1
) -> subprocess.CompletedProcess:
    """Run a command with `answers` on stdin."""
    words = [*_MODULE, *arguments]
    return _checked(run_python(*words, environment=environment, answers=answers, processes=processes), check)


def python(code: str) -> str:
    """Return what some code prints."""
    return _checked(run_python("-c", code)).stdout


def new_python(code: str) -> str:
    """Return what some code prints in a new interpreter, which has imported nothing."""
    options = {"env": ENVIRONMENT, "cwd": ROOT, "capture_output": True, "text": True, "input": ""}
    return _checked(subprocess.run([sys.executable, "-c", code], **options)).stdout


def kill_when(condition: Callable[[], bool], *arguments) -> None:
    """Start a command, and kill it and its processes as soon as a condition holds."""
    nothing = Path(os.devnull)
    process = forked_processes.start([*_MODULE, *map(str, arguments)], ENVIRONMENT, ROOT, [nothing] * 3)
    while not condition():
        assert process.exitcode is None, "the command ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


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
