"""Build a dataset of figure-caption pairs from a source in PMC's layout.

All work happens in a hidden folder inside the output folder. A build that was killed or ran out of disk space leaves no
`data` folder. Running the same command again continues with the next article.
"""

import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..integrity import REPORT_FILE, WRITE_OPTIONS
from ..retries import explained
from .bucket import Bucket
from .executors import Engine
from .images import ImageIndex
from .inventory import read_work_list
from .options import BuildOptions, describe_differences
from .report import read_report
from .splits import TooFewArticles
from .stages import FAILED_FILE, Callback, build_stages
from .staging import HIDDEN, Staging, discard, finish_interrupted, only_one
from .statistics import load_tokenizer
from .update import changed_options, check_update, find_changes, nothing_to_update, recorded_options


logger = logging.getLogger(__name__)

ARTICLES_PER_TASK = 50


def build_dataset(
    options: BuildOptions,
    output_dir: str | os.PathLike[str],
    *,
    engine: Engine | None = None,
    overwrite: bool = False,
    update: bool = False,
    finish: Callback | None = None,
    publish: Callback | None = None,
    progress: bool = False,
) -> dict[str, Any] | None:
    """Build `output_dir/data/{train,validation,test}-*.parquet` from a bucket in PMC's layout.

    The shards depend only on the articles and the options, not on the engine. The build also writes `articles.parquet`
    (the outcome of each article), `skipped.jsonl` (all skipped items, with reasons) and `report.json`.

    Args:
        options: Options that determine the contents of the dataset.
        output_dir: A local folder, or a folder that all machines of the engine share.
        engine: How to run tasks (default: one at a time on this machine).
        overwrite: Whether to replace an existing dataset.
        update: Whether to add new and changed articles to an existing dataset and to remove articles that the source
            no longer contains. An article never changes its split.
        finish: Called with the report and the folder of the finished result before the result is moved.
        publish: Called with the report and `output_dir` at the end. An existing dataset with the same options is
            published without a build.
        progress: Whether to show progress bars.

    Returns:
        The report. None if the stages were only submitted to Slurm.

    Raises:
        BucketError: If the source is missing, empty or damaged.
        FileExistsError: If `output_dir` contains a dataset, and neither `overwrite` nor `update` is set.
        FileNotFoundError: If `update` is set and `output_dir` contains no dataset.
        ValueError: If the options contradict each other or those of the existing dataset or interrupted build, or if
            there are too few articles for the splits.
        OSError: If the disk is full or read-only, or a limit of the operating system is reached.
        AtWork: If another build is running in the folder.

    Example:
    ```python
    >>> from biomedclip.processing.pmc.build import BuildOptions, build_dataset

    >>> report = build_dataset(BuildOptions("path/of/a/mirror", license="commercial"), "out")
    ```
    """
    output = Path(output_dir).absolute()  # tasks may run in other working directories
    options = options.absolute()
    engine = engine or Engine()
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"{output} is a file. `output_dir` must be a folder.")
    if overwrite and update:
        raise ValueError("`overwrite=True` and `update=True` exclude each other. Pass one of them.")
    if update and not output.exists():
        raise nothing_to_update(output)
    if options.caption_tokenizer:
        load_tokenizer(options.caption_tokenizer)
    with explained(output), only_one(output) as killed:
        finished = finish_interrupted(output)
        report: dict[str, Any] | None
        if finished == {**options.identity(), "update": update}:
            report = read_report(output)  # this build was killed while it moved its result or cleaned up
        elif _is_complete(options, output, overwrite, update, publish=publish is not None, killed=killed):
            discard(output)
            report = read_report(output)  # only publishing remains
        else:
            report = _build(options, output, engine, overwrite, update, finish, publish, progress)
        if report is not None and publish is not None:
            publish(report, output)
    return report


def _is_complete(
    options: BuildOptions, output: Path, overwrite: bool, update: bool, *, publish: bool, killed: bool
) -> bool:
    """Return whether the existing dataset is the requested one. Raise an error if it must not be changed.

    `killed` means that an earlier command was killed in this folder. If it had the same options, only the cleanup
    remains.
    """
    data = output / "data"
    if Staging.find(output) is not None:
        return False  # an interrupted build, which is resumed
    if not update and (overwrite or not data.exists()):
        return False
    report = read_report(output) if data.exists() and (output / REPORT_FILE).exists() else None
    if update:
        check_update(options, output, report)
        return False
    is_publishable = publish and report is not None and not changed_options(options, report)
    is_same = report is not None and report.get("built_with") == recorded_options(options)
    if not is_publishable and not (killed and is_same):
        raise FileExistsError(
            f"{data} already exists. Pass `update=True` to add new articles, `overwrite=True` to build it again, or "
            "another `output_dir`."
        )
    return True


def _build(
    options: BuildOptions,
    output: Path,
    engine: Engine,
    overwrite: bool,
    update: bool,
    finish: Callback | None,
    publish: Callback | None,
    progress: bool,
) -> dict[str, Any] | None:
    identity = {**options.identity(), "update": update}
    found = Staging.find(output)
    if found is not None and found[1]["options"] != identity:
        if not overwrite:
            raise ValueError(
                "A build with other options was interrupted here "
                f"({describe_differences(found[1]['options'], identity)}). Pass the same options to continue. To "
                f"start again, pass `overwrite=True` or delete {output / HIDDEN}."
            )
        found = None
    benchmark = ImageIndex.from_path(options.decontaminate, progress=progress) if options.decontaminate else None
    staging, begun = found or _begin(options, output, engine, update, progress)
    if update and not any(begun["update"][kind] for kind in ("new", "changed", "removed", "retried")):
        discard(output)
        return read_report(output) | {"update": begun["update"], "seconds": None}
    stages = build_stages(options, staging, begun | {"resumed": bool(found)}, engine, benchmark, finish, publish)
    try:
        engine.run(stages, staging.logs, progress=progress)
    except TooFewArticles:
        discard(output)  # so that the next build reads the source again
        raise
    if engine.executor == "slurm":
        return None
    staging.take_place()
    (output / FAILED_FILE).unlink(missing_ok=True)
    staging.clear()
    return read_report(output)


def _begin(
    options: BuildOptions, output: Path, engine: Engine, update: bool, progress: bool
) -> tuple[Staging, dict[str, Any]]:
    """Read the work list, and record the options and the articles to read."""
    started = datetime.now(UTC)
    work_list, inventory = read_work_list(
        Bucket(options.source), options.pmcids, inventory=options.inventory, progress=progress
    )
    staging = Staging.begin(output)
    changes = None
    if update:
        work_list, changes = find_changes(work_list, inventory, read_report(output), staging)
    missing = work_list.filter(pc.equal(pc.list_value_length(work_list.column("versions")), 0)).column("pmcid")
    if len(missing):
        shown = ", ".join(missing.to_pylist()[:5]) + (", ..." if len(missing) > 5 else "")
        logger.warning("%s: %d requested article(s) are missing: %s", options.source, len(missing), shown)
    articles = work_list.num_rows
    tasks = engine.tasks or min(-(-articles // ARTICLES_PER_TASK), max(16, 4 * engine.workers))
    tasks = max(1, min(tasks, articles))
    with pq.ParquetWriter(staging.work_list, work_list.schema, **WRITE_OPTIONS) as writer:
        for task in range(tasks):  # one row group each
            start, end = task * articles // tasks, (task + 1) * articles // tasks
            writer.write_table(work_list.slice(start, end - start), row_group_size=max(end - start, 1))
    begun = {
        "options": {**options.identity(), "update": update},
        "inventory_date": inventory,
        "started": started.isoformat(),
        "tasks": tasks,
        "articles": articles,
        "update": changes,
    }
    staging.note(begun)
    return staging, begun
