"""Embed shards in tasks on Slurm or Ray, with the executors of `biomedclip build`.

All machines must share the output folder, the inputs and the model. A task loads the model and finds the inputs again,
and compares their fingerprints with those of the command. Task r of n embeds the shards r, r + n, r + 2n, and so on.
"""

import contextlib
import datetime
import os
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from biomedclip.processing.files import write_text
from biomedclip.processing.pmc.executors import Engine, Stage, TasksFailed
from biomedclip.processing.pmc.stages import BuildStep

from ..cli.devices import use_device
from .encoders import load_encoder
from .job import Job, check_same, find_all
from .options import MOST_TASKS
from .plan import Shard, fingerprint
from .shards import shard_path


LOGS = ".embed"  # hidden, so that `datasets` does not read its files
_DEVICE = "device-"  # prefix of a file of each task, with the device on which it ran


def run_tasks(job: Job) -> bool:
    """Embed the shards of a job in tasks, or submit the tasks to Slurm. Return whether they have finished.

    Raises:
        ChildProcessError: If tasks failed in every attempt. The message has the folder of the logs.
    """
    options = job.options
    shards = [(name, shard) for name, planned in job.shards.items() for shard in planned]
    if not shards:
        job.finish(options.device)
        return True
    tasks = max(1, min(options.tasks or MOST_TASKS, len(shards)))
    engine = Engine(
        executor=options.executor,
        workers=tasks,
        retries=options.retries,
        memory_gb=options.memory_gb,
        slurm_partition=options.slurm_partition,
        slurm_time=options.slurm_time,
        slurm_args=options.slurm_args,
    )
    # Each run has other shards, so it must not see which tasks of an earlier run are complete.
    logs = job.folder.absolute() / LOGS / datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
    work = _Share(job, shards, os.getcwd(), logs)
    paths = [shard_path(job.folder, name, shard.number) for name, shard in shards]
    stages = [
        Stage(
            "shards",
            [BuildStep("Embed shards", work)],
            tasks,
            cpus=options.workers,
            gpus=1 if options.device.startswith("cuda") else 0,
            count=lambda: sum(path.exists() for path in paths),
            total=lambda: len(paths),
        )
    ]
    if options.executor == "slurm":
        stages.append(Stage("finish", [BuildStep("Finish", partial(_finish, job, os.getcwd(), logs, tasks))], 1))
    try:
        engine.run(stages, logs, progress=True)
    except TasksFailed as error:
        raise ChildProcessError(str(error)) from error
    if options.executor == "slurm":
        return False
    job.finish(_devices(logs), tasks)
    shutil.rmtree(logs)
    with contextlib.suppress(OSError):
        logs.parent.rmdir()  # unless it has the logs of another run
    return True


@dataclass
class _Share:
    """Embed the share of a task. Relative paths belong to the working directory of the command."""

    job: Job
    shards: list[tuple[str, Shard]]
    directory: str
    logs: Path

    def __call__(self, rank: int, tasks: int) -> None:
        job, options = self.job, self.job.options
        with contextlib.chdir(self.directory):
            use_device(options.device)
            encoder = load_encoder(options.model, job.model["precision"], trust_remote_code=options.trust_remote_code)
            self.logs.mkdir(parents=True, exist_ok=True)
            write_text(self.logs / f"{_DEVICE}{rank}", str(encoder.model.device))
            for kind in ("weights", "processing"):
                if getattr(encoder, kind) != job.model[kind]:
                    raise ValueError(
                        f"--model {options.model}: its {kind} differs from that where the command was started. Use "
                        "a folder that all machines share."
                    )
            inputs = find_all(options)
            check_same(job.fingerprints, {name: fingerprint(found, name) for name, found in inputs.items()})
            for name, found in inputs.items():
                mine = [shard for modality, shard in self.shards[rank::tasks] if modality == name]
                writer = job.writer(name, found)  # an earlier attempt of the task may have written shards
                missing = [shard for shard in mine if shard.replaces or not writer.is_complete(shard.number)]
                job.embed(encoder, name, found, missing, lambda count: None)


def _devices(logs: Path) -> str:
    """Return the devices on which the tasks of a run have embedded."""
    return ", ".join(sorted({path.read_text(encoding="utf-8") for path in logs.glob(f"{_DEVICE}*[0-9]")}))


def _finish(job: Job, directory: str, logs: Path, tasks: int, *task: Any) -> None:
    with contextlib.chdir(directory):
        job.finish(_devices(logs), tasks)
