"""Run commands in new processes that have already imported other libraries, but not the package.

A new interpreter imports PyTorch and transformers for several seconds. Here, processes are forked from one that has
imported them, by the fork server of `multiprocessing`. Several processes of a run get the environment variables that
torchrun sets.
"""

import atexit
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from unittest import mock

import torch


_LIBRARIES = """
ftfy lxml.etree matplotlib.pyplot pandas pyarrow.dataset pyarrow.parquet scipy.linalg scipy.optimize scipy.stats
sklearn.linear_model sklearn.metrics sympy torch torch._dynamo torch.distributed.tensor torchvision.transforms
""".split()
# They read some environment variables when they are imported.
_HUGGING_FACE = """
accelerate datasets evaluate peft transformers.modeling_layers transformers.models.auto.modeling_auto
transformers.models.auto.processing_auto transformers.pipelines transformers.trainer
""".split()
_LAST = "helpers.frozen_objects"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__, *_LIBRARIES, *_HUGGING_FACE, _LAST])
_WITHOUT_HUGGING_FACE = forkserver.ForkServer()
_WITHOUT_HUGGING_FACE.set_forkserver_preload([__name__, *_LIBRARIES, _LAST])
# transformers also reads this one when it is imported, but its folder can be changed later.
_CODE_CACHE = "HF_MODULES_CACHE"
# One thread: the tests share their cores, and the order of sums must not depend on the number of threads.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80", "HF_HUB_OFFLINE": "1"}


@contextmanager
def _server(environment: Mapping[str, str], transformers: bool = True) -> Iterator[None]:
    """Use the server whose libraries fit the environment variables. Start it if it is not running.

    Without `transformers`, the server has not imported the libraries of Hugging Face.
    """
    names = {name for name in environment.keys() | ENVIRONMENT.keys() if environment.get(name) != ENVIRONMENT.get(name)}
    replaced = any(name.startswith(("HF_", "TRANSFORMERS_")) for name in names - {_CODE_CACHE})
    server = _WITHOUT_HUGGING_FACE if replaced or not transformers else forkserver._forkserver
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        server.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    with mock.patch.object(forkserver, "connect_to_new_process", server.connect_to_new_process):
        yield


def spawn(function: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> None:
    """Call a function with the number of the process and arguments in several processes, as `torch.multiprocessing`."""
    with _server(ENVIRONMENT):
        torch.multiprocessing.start_processes(function, arguments, nprocs=processes, start_method="forkserver")


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    files: Sequence[Path],
    *,
    transformers: bool = True,
) -> multiprocessing.Process:
    """Start a command in a session of its own.

    Args:
        command: Arguments of `python`: a file, `-m` and a module, or `-c` and code, and their arguments.
        environment: All environment variables.
        folder: Working directory.
        files: Files for stdin, stdout and stderr. The command appends to the last two.
        transformers: Whether transformers may be imported already.
    """
    arguments: Any = (list(map(str, command)), dict(environment), _search_path(), str(folder), list(map(str, files)))
    process = _CONTEXT.Process(target=_run, args=arguments)
    with _server(environment, transformers):
        process.start()
    return process


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    processes: int = 1,
    port: int = 0,
    answers: str = "",
    timeout: float = 300,
    transformers: bool = True,
) -> subprocess.CompletedProcess:
    """Run a command on one or several processes. If one of them fails, the others are killed.

    See [`start`] for the first arguments. `port` is that of the first of several processes, and `answers` is on stdin.
    """
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / name for name in ("stdin", "stdout", "stderr")]
        for file in files:
            file.write_text(answers if file.name == "stdin" else "", encoding="utf-8")
        running = []
        for rank in range(processes):
            variables = dict(environment)
            if processes > 1:
                variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                variables |= {"LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            running.append(start(command, variables, folder, files, transformers=transformers))
        _wait(running, time.monotonic() + timeout)
        status = next((process.exitcode for process in running if process.exitcode), 0)
        output, error = (file.read_text(encoding="utf-8", errors="replace") for file in files[1:])
    return subprocess.CompletedProcess(list(command), status, output, error)


def _wait(running: Sequence[multiprocessing.Process], deadline: float) -> None:
    while alive := [process for process in running if process.exitcode is None]:
        wait([process.sentinel for process in alive], timeout=1)
        failed = any(process.exitcode for process in running)
        if failed or time.monotonic() > deadline:
            for process in running:
                if process.exitcode is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.join()
    if time.monotonic() > deadline:
        raise TimeoutError("the processes did not end in time")


@cache
def _search_path() -> list[str]:
    """Return `sys.path` of a new interpreter. That of this process has more entries, which a server would inherit."""
    code = "import json, sys; print(json.dumps(sys.path[1:]))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def _run(command: list[str], environment: dict[str, str], path: list[str], folder: str, files: list[str]) -> None:
    """Become the process of a command."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR | os.O_APPEND), number)
    sys.stdin = open(0, closefd=False)
    if _CODE_CACHE in environment and "transformers.dynamic_module_utils" in sys.modules:
        sys.modules["transformers.dynamic_module_utils"].HF_MODULES_CACHE = environment[_CODE_CACHE]
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *path]
    try:
        if command[0] == "-m":
            sys.argv = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        elif command[0] == "-c":
            sys.argv = ["-c", *command[2:]]
            sys.path.insert(0, folder)
            exec(compile(command[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = command
            sys.path.insert(0, str(Path(command[0]).parent))
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them
