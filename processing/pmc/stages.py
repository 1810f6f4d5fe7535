"""The stages of a build.

`articles` reads the articles and writes journals of pairs. `plan` assigns every pair to a shard. `shards` writes the
shards. `finish` checks them and writes the report.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from ..files import write_text
from ..integrity import REPORT_FILE, open_parquet
from .articles import parse_licenses
from .bucket import Bucket
from .dates import parse_published_until
from .executors import Engine, Stage
from .images import ImageIndex
from .journal import count_articles
from .options import BuildOptions
from .panels import FindPanels
from .plan import SKIPPED_FILE, Plan, make_plan
from .report import make_report, read_report
from .shards import write_shard
from .splits import TooFewArticles
from .staging import Staging
from .steps import FetchImages, PairFigures, ParseFigures, ReadArticles, ReadWorkList, WriteArticles


# The list of skipped items of a failed build, if the folder already contains a dataset with its own list.
FAILED_FILE = "skipped-failed.jsonl"
MAX_SHARD_TASKS = 512
REMOTE_CONNECTIONS = 16
PLAN_MEMORY_GB = 8  # for all of PMC, at 90 bytes per pair and 280 per article

Callback = Callable[[dict[str, Any], Path], None]


def build_stages(
    options: BuildOptions,
    staging: Staging,
    begun: Mapping[str, Any],
    engine: Engine,
    benchmark: ImageIndex | None,
    finish: Callback | None,
    publish: Callback | None,
) -> list[Stage]:
    """Return the stages of a build.

    `begun` contains the notes from the start of the build ([`Staging.find`]), and whether it was `resumed`. The
    callbacks are those of [`build_dataset`]. The stages call `publish` only on Slurm.
    """
    bucket = Bucket(options.source)
    connections = engine.connections or (REMOTE_CONNECTIONS if bucket.is_remote else 1)
    until = None if options.published_until is None else parse_published_until(options.published_until)
    has_panels = options.panels is not None
    article_steps: list[PipelineStep] = [
        ReadWorkList(str(staging.work_list), str(staging.journals)),
        ReadArticles(bucket, parse_licenses(options.license), connections),
        ParseFigures(options.max_figures_per_article, until, options.first_image_only),
        FetchImages(bucket, connections),
        PairFigures(benchmark),
    ]
    if options.panels is not None and options.detector is not None:
        article_steps.append(FindPanels(options.detector, options.panels, options.kept_types(), benchmark))
    article_steps.append(WriteArticles(str(staging.journals), panels=has_panels))
    tasks = begun["tasks"]
    previous = None if begun["update"] is None else read_report(staging.output)
    plan = partial(_plan_shards, options, staging, previous)
    write = partial(_write_shards, staging, options.caption_tokenizer, has_panels)
    last = partial(_finish_dataset, options, staging, begun, finish, publish, engine.executor == "slurm")
    return [
        Stage(
            "articles",
            article_steps,
            tasks,
            count=lambda: count_articles(staging.journals),
            total=lambda: begun["articles"],
        ),
        Stage("plan", [BuildStep("Plan shards", plan)], 1, memory_gb=PLAN_MEMORY_GB),
        Stage(
            "shards",
            [BuildStep("Write shards", write)],
            min(tasks, MAX_SHARD_TASKS),
            count=lambda: sum(1 for _ in (staging.result / "data").glob("*.parquet")),
            total=lambda: len(Plan.load(staging).names()),
        ),
        Stage("finish", [BuildStep("Finish", last)], 1),
    ]


class BuildStep(PipelineStep):
    """A step that works on files instead of on documents. `work` takes the rank of the task and the number of tasks."""

    type = "PMC"

    def __init__(self, name: str, work: Callable[[int, int], None]):
        self.name = name
        super().__init__()
        self.work = work

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        """Run a task with the interface that datatrove requires, and yield nothing."""
        with self.track_time("task"):
            self.work(rank, world_size)
        return
        yield  # datatrove requires a generator


def _plan_shards(
    options: BuildOptions, staging: Staging, previous: Mapping[str, Any] | None, rank: int, world_size: int
) -> None:
    """Assign articles to splits and pairs to shards."""
    try:
        make_plan(
            staging,
            seed=options.seed,
            fractions=options.split_fractions,
            max_shard_bytes=options.max_shard_bytes,
            previous=previous,
            panels=options.panels is not None,
        )
    except TooFewArticles as error:
        reasons = staging.output / (FAILED_FILE if (staging.output / "data").exists() else SKIPPED_FILE)
        os.replace(staging.result / SKIPPED_FILE, reasons)
        raise TooFewArticles(f"{error} {reasons} lists all reasons.") from error


def _write_shards(staging: Staging, tokenizer: str | None, panels: bool, rank: int, world_size: int) -> None:
    """Write shards. Task n of m writes the shards n, n + m, n + 2 m, and so on."""
    plan = Plan.load(staging)
    for number in range(rank, len(plan.names()), world_size):
        write_shard(staging, plan, number, tokenizer, panels=panels)


def _finish_dataset(
    options: BuildOptions,
    staging: Staging,
    begun: Mapping[str, Any],
    finish: Callback | None,
    publish: Callback | None,
    in_background: bool,
    rank: int,
    world_size: int,
) -> None:
    """Check that every pair was written, and write the report. On Slurm, also move and publish the dataset."""
    if not staging.finish_move():  # an earlier attempt of this job may have moved the result
        plan = Plan.load(staging)
        check_rows(staging.result / "data", plan)
        report = make_report(options, staging, begun, plan)
        write_text(staging.result / REPORT_FILE, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        if finish is not None:
            finish(report, staging.result)
        if in_background:
            staging.take_place()
    if in_background:
        if publish is not None:
            publish(read_report(staging.output), staging.output)
        staging.clear(keep_logs=True)


def check_rows(folder: Path, plan: Plan) -> None:
    """Check that every shard contains the planned number of pairs."""
    planned = [rows for shards in plan.shards.values() for rows in shards]
    for name, rows in zip(plan.names(), planned, strict=True):
        written = open_parquet(folder / name).metadata.num_rows
        if written != rows:
            raise RuntimeError(f"{folder / name} contains {written} pairs, not {rows}.")
