"""Run the stages of a build with datatrove: on this machine, on Ray or on Slurm.

Stages run one after the other. The tasks of a stage run in parallel. A failed task is retried and continues after the
last article in its journal.
"""

import contextlib
import logging
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from copy import copy, deepcopy
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger as datatrove_logger
from tqdm.auto import tqdm

from ..fields import option
from ..integrity import DamagedFile
from ..retries import lasting_error, with_retries
from .bucket import CredentialsRefused, SourceUnavailable


logger = logging.getLogger(__name__)

EXECUTORS = ("local", "slurm", "ray")
PAUSE = 20.0  # seconds before the first retry of a task, doubled before the second
_MAX_SOCKET_PATH = 107 if sys.platform == "linux" else 103  # bytes
_SHORTER = "Set {} to a folder with a shorter path, such as /tmp."


class TasksFailed(RuntimeError):
    """Raised if tasks failed in every attempt. The message contains the folder of the logs."""


@dataclass(frozen=True)
class Stage:
    """Steps that run in sequence in each task."""

    name: str
    steps: Sequence[PipelineStep]
    tasks: int
    memory_gb: int = 0  # per task, if the stage needs more than others
    cpus: int = 1  # cores to reserve for a task
    gpus: int = 0  # GPUs to reserve for a task
    count: Callable[[], int] = lambda: 0  # the amount of finished work, in any unit
    total: Callable[[], int] | None = None  # the final value of `count`, for a progress bar


@dataclass(frozen=True)
class Engine:
    """How to run tasks. The help text of each field describes it.

    Raises:
        ValueError: If a number is smaller than 1, or Slurm is used without a partition.
    """

    executor: str = option("local", "Where tasks run: this machine (the default), slurm or ray.", choices=EXECUTORS)
    workers: int = option(1, "Number of tasks that run in parallel (default: 1).")
    tasks: int | None = option(None, "Number of parts of the work list (default: one for every 50 articles).")
    connections: int | None = option(
        None, "Number of articles that a task reads in parallel (default: 16 over a network, otherwise 1)."
    )
    retries: int = option(2, "Maximum number of retries for a failed task (default: 2).")
    memory_gb: int = option(2, "Memory in GB to reserve for a task on Slurm or Ray (default: 2).")
    slurm_partition: str | None = option(None, "Partition for the jobs. Required on Slurm.")
    slurm_time: str = option("24:00:00", "Time limit of a job (default: 24:00:00).")
    slurm_args: str | None = option(None, "Other options of sbatch, such as account=lab,qos=long.")

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ValueError(f"`executor` must be one of {', '.join(EXECUTORS)}, not {self.executor!r}.")
        for name in ("workers", "tasks", "connections", "memory_gb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, not {value}.")
        if self.executor == "slurm" and not self.slurm_partition:
            raise ValueError("`slurm_partition` is required on Slurm. The command sinfo lists the partitions.")

    def run(self, stages: Sequence[Stage], logs: Path, *, progress: bool = False) -> None:
        """Run the stages in order, or only submit them on Slurm. Datatrove's completion markers are in `logs`.

        Raises:
            TasksFailed: If tasks failed in every attempt.
        """
        if self.executor == "slurm":
            self._submit(stages, logs)
            return
        for stage in stages:
            with _progress_bar(stage) if progress and stage.total else contextlib.nullcontext():
                self._run_stage(stage, logs / stage.name)

    def _run_stage(self, stage: Stage, logs: Path) -> None:
        attempts_without_progress = 0
        while True:
            before = stage.count()
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
            # A build of several days may see several outages, so only attempts without progress count.
            attempts_without_progress = 0 if stage.count() > before else attempts_without_progress + 1
            if attempts_without_progress > self.retries or not _is_transient(error):
                if error is not None and not isinstance(error, BrokenProcessPool):
                    raise error
                raise TasksFailed(
                    f"{stage.name}: {len(failed)} of {stage.tasks} tasks failed in every attempt, among them task "
                    f"{failed[0]}. The logs are in {logs}. Run the same command again: it continues from here."
                ) from error
            logger.warning("%s: %d task(s) failed and are retried. %s", stage.name, len(failed), error or "")
            time.sleep(PAUSE * (attempts_without_progress + 1))

    def _executor(self, stage: Stage, logs: Path) -> Any:
        steps = list(stage.steps)
        if self.executor == "ray" and (stage.tasks > 1 or stage.gpus):
            reserved = {"cpus": stage.cpus, "gpus": stage.gpus}
            return _ray_executor(steps, stage.tasks, self.workers, logs, self.memory_gb, **reserved)
        return _LocalExecutor(steps, tasks=stage.tasks, workers=min(self.workers, stage.tasks), logging_dir=str(logs))

    def _submit(self, stages: Sequence[Stage], logs: Path) -> None:
        arguments = (part.partition("=") for part in (self.slurm_args or "").split(",") if part.strip())
        sbatch_args = {name.strip(): value.strip() for name, _, value in arguments}
        last = None
        for stage in stages:
            last = _SlurmExecutor(
                list(stage.steps),
                tasks=stage.tasks,
                workers=self.workers if self.workers < stage.tasks else -1,
                job_name=f"biomedclip-{stage.name}",
                logging_dir=str(logs / stage.name),
                cpus_per_task=stage.cpus,
                gpus_per_task=stage.gpus,
                mem_per_cpu_gb=-(-max(self.memory_gb, stage.memory_gb) // stage.cpus),
                depends=last,
                partition=self.slurm_partition,
                time=self.slurm_time,
                qos=None,  # datatrove's default QOS does not exist on every cluster
                sbatch_args=sbatch_args,
            )
            last.retries = self.retries
        if last is not None:
            with _quiet():
                last.run()  # submits the stages that it depends on first


class _LocalExecutor(LocalPipelineExecutor):
    """datatrove's local executor, with a process pool of the standard library.

    datatrove's own pool waits forever if a worker was killed, for example because it ran out of memory.
    """

    def run(self) -> None:
        ranks = self.get_incomplete_ranks()
        self.save_executor_as_json()
        if self.workers == 1:
            for rank in ranks:
                self._run_copy(rank)
            return
        folder = tempfile.gettempdir()
        if len(os.fsencode(folder)) + len("/pymp-xxxxxxxx/listener-xxxxxxxx") > _MAX_SOCKET_PATH:
            raise ValueError(
                f"The path of the temporary folder {folder} is too long for sockets. {_SHORTER.format('TMPDIR')}"
            )
        with ProcessPoolExecutor(self.workers, get_context("forkserver"), initializer=_end_with_parent) as pool:
            errors = [future.exception() for future in [pool.submit(self._run_in_worker, rank) for rank in ranks]]
        for error in sorted(filter(None, errors), key=_is_transient):  # lasting errors first
            raise error

    def _run_copy(self, rank: int) -> None:
        executor = copy(self)
        executor.pipeline = deepcopy(self.pipeline)  # because steps keep statistics
        executor._run_for_rank(rank)

    def _run_in_worker(self, rank: int) -> None:
        with _quiet():
            self._run_copy(rank)


class _SlurmExecutor(SlurmPipelineExecutor):
    """datatrove's Slurm executor, which retries a failed task in the same job."""

    pipeline: list[Any]
    retries = 0

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        steps = list(self.pipeline)

        def run() -> Any:
            self.pipeline = deepcopy(steps)
            return super(_SlurmExecutor, self)._run_for_rank(rank, local_rank, node_rank)

        def check(error: Exception, attempt: int) -> None:
            if attempt > self.retries or not _is_transient(error):
                raise error

        return with_retries(run, check=check, pause=PAUSE)

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        """Start tasks with this Python, and quote values and paths so that sbatch and bash do not split them."""
        pickled = self.logging_dir.resolve_paths("executor.pik")
        command = [sys.executable, "-P", "-m", "datatrove.tools.launch_pickled_pipeline", pickled]
        return super().get_launch_file_contents(
            {name: shlex.quote(str(value)) if value else value for name, value in sbatch_args.items()},
            run_script.replace(f"launch_pickled_pipeline {pickled}", shlex.join(command)),
        )

    def launch_merge_stats(self) -> None:
        """Do nothing: the report contains all numbers, and datatrove would submit one more job per stage."""


class _RayExecutor(RayPipelineExecutor):
    """datatrove's Ray executor, which writes the log of each task to the folder of logs.

    datatrove first writes all logs to `/tmp/ray_logs`. If another user created this folder, every task fails.
    """

    _run_for_rank = PipelineExecutor._run_for_rank


def _ray_executor(
    steps: list[PipelineStep], tasks: int, workers: int, logs: Path, memory_gb: int, cpus: int = 1, gpus: int = 0
) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError(f"Ray cannot be imported: {error}. Run: pip install 'biomedclip[ray]'") from error

    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)  # RAY_ADDRESS contains the address of a cluster
        except OSError as error:
            if "AF_UNIX" not in str(error):
                raise
            raise ValueError(f"Ray cannot be started: {error}. {_SHORTER.format('RAY_TMPDIR')}") from error
    return _RayExecutor(
        steps,
        tasks=tasks,
        workers=workers,
        logging_dir=str(logs),
        cpus_per_task=cpus,
        gpus_per_task=gpus,
        mem_per_cpu_gb=memory_gb / cpus,
    )


def _end_with_parent() -> None:
    """End a worker when its parent dies, even by SIGKILL. Otherwise, it would continue with the queued tasks."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_transient(error: BaseException | None) -> bool:
    """Return whether a retry might succeed. Errors of Ray tasks are only in their logs, so they may be transient."""
    if lasting_error(error) is not None or isinstance(error, CredentialsRefused | DamagedFile):
        return False
    return error is None or isinstance(error, (OSError, SourceUnavailable, BrokenProcessPool))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep datatrove's log off the terminal, where the progress bar is. The log is also written to files."""
    datatrove_logger.remove()
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        datatrove_logger.remove()
        datatrove_logger.add(sys.stderr, level="ERROR")


@contextlib.contextmanager
def _progress_bar(stage: Stage) -> Iterator[None]:
    """Show a progress bar that is updated every second, whichever process or machine does the work."""
    assert stage.total is not None
    done = threading.Event()
    bar = tqdm(
        desc=stage.name.capitalize(),
        unit=stage.name[:-1],
        total=stage.total(),
        initial=stage.count(),
        file=sys.stderr,
        dynamic_ncols=True,
    )

    def watch() -> None:
        is_done = False
        while not is_done:
            is_done = done.wait(1)
            bar.update(stage.count() - bar.n)
            bar.refresh()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        bar.close()
