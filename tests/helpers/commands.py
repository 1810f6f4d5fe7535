"""Running the commands as a person does: one process each."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
# One thread: the tests may share their cores, and sums do not depend on how many there are.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}


QUESTION = "[y/N]"  # the end of transformers' question whether to run the code of a folder
# torchrun, which finds a free port of its own.
ON_TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def biomedclip(
    *arguments, check: bool = True, environment: dict[str, str] | None = None, answers: str = ""
) -> subprocess.CompletedProcess:
    """Runs a command with `answers` on stdin; the test fails where transformers asks whether to run code."""
    result = subprocess.run(
        [sys.executable, "-m", "biomedclip.run_scripts.main", *map(str, arguments)],
        input=answers,
        capture_output=True,
        text=True,
        env=ENVIRONMENT | (environment or {}),
        cwd=ROOT,
    )
    assert QUESTION not in result.stdout + result.stderr
    assert not check or result.returncode == 0, result.stderr[-3000:]
    return result


def on_two_processes(*command: str | Path) -> subprocess.CompletedProcess:
    """Runs what stands behind `python` (a file, or `-m` and a module) on two processes."""
    result = subprocess.run(
        [sys.executable, *ON_TWO_PROCESSES, *map(str, command)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
    )
    assert QUESTION not in result.stdout + result.stderr
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def losses(folder: Path) -> list[float]:
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def free_port() -> int:
    """
    Returns a port of loopback for a server that starts within the next minute.

    A port that was only bound and released may be given to any other program before the server binds it. A connection
    that was closed on this side keeps the port for a minute: the system gives it to no one, and a server that asks for
    this port gets it.
    """
    with socket.socket() as server, socket.socket() as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        client.connect(server.getsockname())
        server.accept()[0].close()
        return server.getsockname()[1]
