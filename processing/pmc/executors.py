"""Where the tasks of the build run: on this machine, on Ray or under Slurm, by datatrove's executors.

The stages of a build run one after the other, the tasks of a stage at the same time. A task that fails is run again,
as often as `retries` says; what it had finished stands in its journal and is not done again.
"""

import contextlib
import logging
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from copy import copy, deepcopy
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Protocol

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger as datatrove_logger

from ..integrity import DamagedFile
from ..retries import lasting_error, with_retries
from .bucket import CredentialsRefused, SourceUnavailable


logger = logging.getLogger(__name__)

EXECUTORS = ("local", "slurm", "ray")
_LONGEST_SOCKET_PATH = 107 if sys.platform == "linux" else 103  # bytes
_SHORTER = "Set {} to a folder with a shorter path, such as /tmp."
PAUSE = 20.0  # seconds before a task is run again; twice as many before the next time


class TasksFailed(RuntimeError):
    """Tasks that failed each time they were run; the message names a log."""


@dataclass(frozen=True)
class Stage:
    """Steps that each task runs one after the other.

    Args:
        name: Name of the stage, and of its logs.
        steps: datatrove's pipeline.
        tasks: Number of tasks.
        memory_gb: Memory that a task needs, where it is more than the engine's.
    """

    name: str
    steps: Sequence[PipelineStep]
    tasks: int
    memory_gb: int = 0


@dataclass(frozen=True)
class Engine:
    """How the stages are run.

    Args:
        executor: `local`, `slurm` or `ray`.
        workers: Tasks at a time.
        retries: How often tasks that failed are run again without any getting further.
        slurm: For `slurm`: `partition`, `time`, and what else `sbatch` takes; `mem_per_cpu_gb` and `cpus_per_task` as
            datatrove has them.
        memory_gb: Memory that a task may use, where the executor reserves it.
    """

    executor: str = "local"
    workers: int = 1
    retries: int = 2
    memory_gb: int = 2
    slurm: dict[str, Any] = field(default_factory=dict)

    def run(self, stages: Sequence[Stage], logs: Path, watch: "Watch") -> None:
        """Runs the stages; under Slurm they are only submitted.

        Args:
            stages: In their order.
            logs: Folder for datatrove's logs and marks of completion.
            watch: Sees how far they are.

        Raises:
            TasksFailed: Some tasks failed each time.
        """
        if self.executor == "slurm":
            self._submit(stages, logs)
            return
        for stage in stages:
            with watch.bar(stage.name):
                self._run_stage(stage, logs / stage.name, watch)

    def _run_stage(self, stage: Stage, logs: Path, watch: "Watch") -> None:
        in_vain = 0
        while True:
            before = watch.count(stage.name)
            executor = self._executor(stage, logs)
            error: Exception | None = None
            try:
                with _quiet():
                    executor.run()
            except Exception as failure:
                error = failure
            failed = executor.get_incomplete_ranks()
            if not failed:
                return
            # A run that got on is not in vain: over days of work there is an outage now and then.
            in_vain = 0 if watch.count(stage.name) > before else in_vain + 1
            if in_vain > self.retries or not _may_pass(error):
                raise _cause(error, stage, failed, logs) from error
            logger.warning("%s: %d task(s) failed and are run again. %s", stage.name, len(failed), error or "")
            time.sleep(PAUSE * (in_vain + 1))

    def _executor(self, stage: Stage, logs: Path) -> Any:
        steps = list(stage.steps)
        if self.executor == "ray" and stage.tasks > 1:
            return _ray_executor(steps, stage.tasks, self.workers, logs, self.memory_gb)
        return _LocalExecutor(steps, tasks=stage.tasks, workers=min(self.workers, stage.tasks), logging_dir=str(logs))

    def _submit(self, stages: Sequence[Stage], logs: Path) -> None:
        before = None
        for stage in stages:
            before = _SlurmExecutor(
                list(stage.steps),
                tasks=stage.tasks,
                workers=self.workers if self.workers < stage.tasks else -1,
                job_name=f"biomedclip-{stage.name}",
                logging_dir=str(logs / stage.name),
                mem_per_cpu_gb=max(self.memory_gb, stage.memory_gb),
                depends=before,
                **self.slurm,
            )
            before.retries = self.retries
        if before is not None:
            with _quiet():
                before.run()  # submits those that it depends on first


class Watch(Protocol):
    """What sees how far a build is."""

    def bar(self, stage: str) -> AbstractContextManager[None]:
        """What surrounds a stage: a progress bar."""

    def count(self, stage: str) -> int:
        """Work of a stage that is done so far, in whatever unit."""


class _LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor on the standard library's pool.

    The pool that datatrove takes waits for ever for a worker that was killed, as by the system when memory is short.
    """

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        self.save_executor_as_json()
        if self.workers == 1:
            for rank in ranks:
                self._run_copy(rank)
            return
        _check_temporary_folder()
        with ProcessPoolExecutor(self.workers, get_context("forkserver"), initializer=_end_with_parent) as pool:
            errors = [future.exception() for future in [pool.submit(self._run_copy, rank) for rank in ranks]]
        for error in sorted(filter(None, errors), key=_may_pass):  # first one that is not worth another run
            raise error

    def _run_copy(self, rank: int) -> None:
        """A task on steps of its own: they count what they do."""
        executor = copy(self)
        executor.pipeline = deepcopy(self.pipeline)
        with _quiet():
            executor._run_for_rank(rank)


class _SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's Slurm executor; a task that fails is run again in the same job."""

    pipeline: list[Any]
    retries = 0

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        steps = list(self.pipeline)

        def run() -> Any:
            self.pipeline = deepcopy(steps)
            return super(_SlurmExecutor, self)._run_for_rank(rank, local_rank, node_rank)

        def check(error: Exception, attempt: int) -> None:
            if attempt > self.retries or not _may_pass(error):
                raise error

        return with_retries(run, check=check, pause=PAUSE)

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        """Starts tasks with this Python, and quotes values and paths: `sbatch` and bash would split them at spaces."""
        pickled = self.logging_dir.resolve_paths("executor.pik")
        command = [sys.executable, "-P", "-m", "datatrove.tools.launch_pickled_pipeline", pickled]
        return super().get_launch_file_contents(
            {name: shlex.quote(str(value)) if value else value for name, value in sbatch_args.items()},
            run_script.replace(f"launch_pickled_pipeline {pickled}", shlex.join(command)),
        )

    def launch_merge_stats(self) -> None:
        """The report has all numbers; datatrove's own would be one more job for each stage."""


class _RayExecutor(RayPipelineExecutor):
    """datatrove's Ray executor with the log of each task in the folder of logs.

    datatrove first writes all logs to one folder of the system, `/tmp/ray_logs`. If another user created it, every task
    fails; two builds at the same time mix their logs.
    """

    _run_for_rank = PipelineExecutor._run_for_rank


def _check_temporary_folder() -> None:
    """Raises `ValueError` if the sockets of worker processes do not fit into the path that the system allows."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) + len("/pymp-xxxxxxxx/listener-xxxxxxxx") > _LONGEST_SOCKET_PATH:
        raise ValueError(
            f"The path of the temporary folder {folder} is too long for sockets. {_SHORTER.format('TMPDIR')}"
        )


def _end_with_parent() -> None:
    """Lets a worker die when its parent does, even by -9: it would take the next tasks of the queue, and then wait."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cause(error: Exception | None, stage: Stage, failed: Sequence[int], logs: Path) -> Exception:
    """What is told of a stage that failed: the error that is known, or where to look for it."""
    if error is not None and not isinstance(error, BrokenProcessPool):
        return error
    return TasksFailed(
        f"{stage.name}: {len(failed)} of {stage.tasks} tasks failed each time, among them task {failed[0]}. The logs "
        f"are in {logs}. The same command goes on from here."
    )


def _may_pass(error: BaseException | None) -> bool:
    """Whether a task that died of this may do better another time. What Ray's tasks died of is known to their logs."""
    if lasting_error(error) is not None or isinstance(error, CredentialsRefused | DamagedFile):
        return False
    return error is None or isinstance(error, (OSError, SourceUnavailable, BrokenProcessPool))


def _ray_executor(steps: list[PipelineStep], tasks: int, workers: int, logs: Path, memory_gb: int) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"--executor ray: {error}. Run: pip install 'biomedclip[ray]'") from error

    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)  # a cluster's address is read from RAY_ADDRESS
        except OSError as error:
            if "AF_UNIX" not in str(error):
                raise
            raise ValueError(f"--executor ray: {error}. {_SHORTER.format('RAY_TMPDIR')}") from error
    return _RayExecutor(
        steps, tasks=tasks, workers=workers, logging_dir=str(logs), cpus_per_task=1, mem_per_cpu_gb=memory_gb
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Datatrove logs to the terminal as well as to its files; the terminal belongs to the progress bar."""
    datatrove_logger.remove()
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        datatrove_logger.remove()
        datatrove_logger.add(sys.stderr, level="ERROR")
