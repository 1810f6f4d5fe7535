"""The build: a source in PMC's layout becomes shards of pairs, on datatrove.

Four stages. `articles` has one task for each run of the work list and leaves journals of pairs. `plan` decides which
pair goes where, `shards` gathers the pairs of each shard, and `finish` counts, reports and puts everything in its
place. All of it happens in a hidden folder beside the result: a build that was killed, or ran out of disk, leaves no
`data` folder, and the same command goes on with the very next article.
"""

import contextlib
import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from tqdm.auto import tqdm

from ..files import require_regular, write_text
from ..integrity import HASHES, REPORT_FILE, WRITE_OPTIONS, hashes_of, open_parquet
from ..retries import explained
from .articles import FIGURES_PER_ARTICLE, parse_licenses
from .bucket import Bucket
from .dates import NO_DATE, parse_published_until, published_after
from .executors import Engine, Stage
from .inventory import read_work_list
from .journal import count_articles
from .pictures import PictureIndex
from .plan import ARTICLES_FILE, SKIPPED_FILE, Plan, make_plan, read_articles
from .shards import write_shard
from .splits import TooFewArticles
from .staging import HIDDEN, Staging, discard, finish_interrupted, only_one
from .statistics import load_tokenizer, summarize
from .steps import FetchPictures, PairFigures, ParseFigures, ReadArticles, ReadWorkList, WriteArticles


logger = logging.getLogger(__name__)

DATASET_FORMAT = 2  # rises when the same article gives other rows, so that an update does not mix two kinds
# The list of skipped articles of a failed build, if the folder already contains a dataset with its own list.
FAILED_FILE = "skipped-failed.jsonl"
ARTICLES_PER_TASK = 50  # at least, by default
SHARD_TASKS = 512  # at most: a task writes several shards
REMOTE_CONCURRENCY = 16
PLAN_MEMORY_GB = 8  # 90 bytes a pair and 280 an article: 4.4 GiB for all of PMC

# An update that finds more of its articles gone than this has been given half a source.
REMOVED_SHARE = 0.05
FEW_REMOVED = 20

Callback = Callable[[dict[str, Any], Path], None]


@dataclass(frozen=True)
class BuildOptions:
    """What is built out of what; together with the source it decides every byte of the shards.

    Args:
        source: A mirror's folder, `s3://pmc-oa-opendata`, or any URL that fsspec opens.
        pmcids: Articles (`PMC123`) or versions (`PMC123.2`) to take; none for all of the source.
        inventory: Name of the inventory to take, such as `2026-01-18T01-00Z`; none for the newest.
        license: `commercial`, `noncommercial` (every Creative Commons licence), `all`, or codes such as `CC BY,CC0`.
        split_fractions: Shares of train, validation and test; none for the paper's from 10,000 articles on, and
            80/10/10 below. Splits go by article.
        max_shard_bytes: Size of a shard, about.
        seed: Seed of the order of pairs.
        decontaminate: Pictures of a benchmark, a folder or a built data set; what looks like one of them is left out.
        tokenizer: Name or folder of the tokenizer that measures captions for the report; none to count words.
        max_figures_per_article: Maximum number of figure images that one article contributes. The rest is listed as
            skipped.
        published_until: Last day of publication, as `2022-06-15`. Later articles, and articles whose XML states no
            date, are skipped. The module `dates` describes which date counts. None for no limit.
        first_image_only: Whether to use only the first image of each figure, as PMC-15M does.
    """

    source: str
    pmcids: Sequence[str] | None = None
    inventory: str | None = None
    license: str = "noncommercial"
    split_fractions: Sequence[float] | None = None
    max_shard_bytes: int = 500_000_000
    seed: int = 0
    decontaminate: str | None = None
    tokenizer: str | None = None
    max_figures_per_article: int = FIGURES_PER_ARTICLE
    published_until: str | None = None
    first_image_only: bool = False

    def absolute(self) -> "BuildOptions":
        """The same options with folders of this machine by their whole paths."""

        def whole(place: str | None) -> str | None:
            return str(Path(place).absolute()) if place and "://" not in place and Path(place).exists() else place

        return replace(
            self,
            source=whole(self.source) or self.source,
            decontaminate=whole(self.decontaminate),
            tokenizer=whole(self.tokenizer),
        )

    def identity(self) -> dict[str, Any]:
        """The options as they are remembered: equal where the same data set is meant."""
        pmcids = None if self.pmcids is None else sorted(self.pmcids)
        digest = hashlib.md5(json.dumps(pmcids).encode(), usedforsecurity=False).hexdigest()
        # Options of later versions are only included if they are set, so that older datasets can be updated.
        later = {"published_until": self.published_until, "first_image_only": self.first_image_only}
        return {
            "source": self.source,
            "pmcids": None if pmcids is None else f"{len(pmcids)}, MD5 {digest}",
            "inventory": self.inventory,
            "license": self.license,
            "split_fractions": None if self.split_fractions is None else list(self.split_fractions),
            "max_shard_bytes": self.max_shard_bytes,
            "seed": self.seed,
            "decontaminate": self.decontaminate,
            "tokenizer": self.tokenizer,
            "max_figures_per_article": self.max_figures_per_article,
            **{name: value for name, value in later.items() if value},
        }


def build_dataset(
    options: BuildOptions,
    output_dir: str | os.PathLike[str],
    *,
    engine: Engine | None = None,
    tasks: int | None = None,
    concurrency: int | None = None,
    overwrite: bool = False,
    update: bool = False,
    finish: Callback | None = None,
    publish: Callback | None = None,
    progress: bool = False,
) -> dict[str, Any] | None:
    """Builds `output_dir/data/{train,validation,test}-*.parquet` from a bucket in PMC's layout.

    The shards depend on the articles and the options alone, not on the engine or the number of tasks. Beside them come
    `articles.parquet` (what became of each article), `skipped.jsonl` (all that was left out, and why) and
    `report.json`.

    Args:
        options: What is built out of what.
        output_dir: Local folder, or one that all machines of the engine share.
        engine: Where the tasks run; one at a time on this machine when left out.
        tasks: Runs of the work list; none for some of 50 articles or more. A build that is taken up keeps its own.
        concurrency: Articles that a task reads at a time; none for 16 where each read is a request, else 1.
        overwrite: Replace a data set that is there.
        update: Take what is new or changed into the data set that is there, and leave out what is gone. An article
            never changes its split.
        finish: Called at the end with the report and the folder of the finished result, before it takes its place.
        publish: Called with the report and `output_dir` once all is in its place; a set that is there already, of the
            same options, is published as it is.
        progress: Show bars.

    Returns:
        The report; none where the stages were only submitted.

    Raises:
        BucketError: The source is missing, empty or damaged.
        FileExistsError: There is a data set already, and neither `overwrite` nor `update` is on.
        FileNotFoundError: `update` is on, and there is none.
        ValueError: An option that makes no sense, too few articles for the splits, or other options than those of
            the data set or of the interrupted build that is there.
        OSError: If the disk is full or read-only, or a limit of the operating system is reached.
        AtWork: Another build is at work in the folder.
    """
    output = Path(output_dir).absolute()  # tasks may run on machines that stand in other folders
    options = options.absolute()
    engine = engine or Engine()
    _check_options(options, output, overwrite=overwrite, update=update)
    with explained(output), only_one(output) as killed:
        finished = finish_interrupted(output)
        report: dict[str, Any] | None
        if finished == {**options.identity(), "update": update}:
            report = read_report(output)  # this very build, killed while it took its place or cleared up
        elif _is_ready(options, output, overwrite=overwrite, update=update, publish=publish is not None, killed=killed):
            discard(output)
            report = read_report(output)  # what is left to do is to publish it
        else:
            report = _build(options, output, engine, tasks, concurrency, overwrite, update, finish, publish, progress)
        if report is not None and publish is not None:
            publish(report, output)
    return report


def read_report(output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the report of a data set that was built.

    Args:
        output_dir: Folder of the data set.

    Raises:
        OSError: If there is no report.
        ValueError: If it is damaged.
    """
    path = Path(output_dir) / REPORT_FILE
    require_regular(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Build the data set again with --overwrite.") from error
    if not isinstance(report, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON object. Build the data set again with --overwrite.")
    return report


def _build(
    options: BuildOptions,
    output: Path,
    engine: Engine,
    tasks: int | None,
    concurrency: int | None,
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
            raise ValueError(_other_options(found[1]["options"], identity, output / HIDDEN))
        found = None
    benchmark = PictureIndex.from_path(options.decontaminate, progress=progress) if options.decontaminate else None
    resumed = found is not None
    staging, begun = found or _begin(options, output, engine, tasks, update=update, progress=progress)
    if update and not _is_news(begun["update"]):
        discard(output)
        return read_report(output) | {"update": begun["update"], "seconds": None}
    in_background = engine.executor == "slurm"
    afterwards = _Afterwards(finish, publish if in_background else None, in_background)
    stages = _stages(options, staging, begun | {"resumed": resumed}, benchmark, concurrency, afterwards)
    try:
        engine.run(stages, staging.logs, _Watch(staging, begun["articles"], progress))
    except TooFewArticles:
        discard(output)  # the source may be mended; what is kept here would hide that
        raise
    if in_background:
        return None
    staging.take_place()
    (output / FAILED_FILE).unlink(missing_ok=True)
    staging.clear()
    return read_report(output)


def _check_options(options: BuildOptions, output: Path, *, overwrite: bool, update: bool) -> None:
    """Refuses what makes no sense before anything is read or written."""
    parse_licenses(options.license)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"--output-dir {output} is a file; a folder is needed.")
    if options.max_shard_bytes < 1:
        raise ValueError(f"--max-shard-size must be positive, not {options.max_shard_bytes}.")
    if options.max_figures_per_article < 1:
        raise ValueError(f"--max-figures-per-article must be at least 1, not {options.max_figures_per_article}.")
    if options.published_until is not None:
        parse_published_until(options.published_until)
    if options.tokenizer:
        load_tokenizer(options.tokenizer)
    if overwrite and update:
        raise ValueError("--overwrite builds anew and --update keeps what is there: pass one of them.")
    if update and not output.exists():
        raise _nothing_to_update(output)


def _nothing_to_update(output: Path) -> FileNotFoundError:
    return FileNotFoundError(f"{output}: no data set to update, {ARTICLES_FILE} and data/ belong to it.")


def _is_ready(
    options: BuildOptions, output: Path, *, overwrite: bool, update: bool, publish: bool, killed: bool
) -> bool:
    """Whether the data set that is there is what was asked for.

    Args:
        options: The options of the command.
        output: Folder of the data set.
        overwrite: Replace a data set that is there.
        update: Update it.
        publish: Publish it.
        killed: An earlier command was killed here. If it had these options, all that it had left to do was to clear up.

    Raises:
        FileExistsError: If there is another data set, or this one and nothing to do with it.
        FileNotFoundError: If there is nothing to update.
        ValueError: If the data set cannot be updated with these options.
    """
    data = output / "data"
    if Staging.find(output) is not None:
        return False  # an interrupted build, which decides for itself
    if update and not (data.exists() and (output / ARTICLES_FILE).exists()):
        raise _nothing_to_update(output)
    if not data.exists() or overwrite:
        return False
    report = read_report(output) if (output / REPORT_FILE).exists() else None
    differences = _differences(options, report) if report is not None else ["no report"]
    if update and differences:
        raise ValueError(
            f"--update: the data set that is there has {'; '.join(differences)}. Its rows would not fit new ones. Pass "
            "the same options, or build anew with --overwrite."
        )
    if update:
        return False
    same = report is not None and report.get("built_with") == {**options.identity(), "format": DATASET_FORMAT}
    if (differences or not publish) and not (killed and same):
        raise FileExistsError(
            f"{data} is there already. Pass --update to take what is new, --overwrite to build it anew, or another "
            "--output-dir."
        )
    return True


def _differences(options: BuildOptions, report: Mapping[str, Any]) -> list[str]:
    """What of the options decides on rows and splits, and is not what the data set was built with."""
    now = {"format": DATASET_FORMAT, **options.identity()}
    before = report.get("built_with") or {}
    names = ["format", "source", "pmcids", "license", "decontaminate", "max_figures_per_article"]
    names += ["published_until", "first_image_only"]
    if options.split_fractions is not None:
        names.append("split_fractions")
    return [
        f"{name.replace('_', ' ')} {before.get(name)!r}, not {now.get(name)!r}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _begin(
    options: BuildOptions, output: Path, engine: Engine, tasks: int | None, *, update: bool, progress: bool
) -> tuple[Staging, dict[str, Any]]:
    """Reads the work list and notes what is to be done."""
    started = datetime.now(UTC)
    bucket = Bucket(options.source)
    work_list, inventory = read_work_list(bucket, options.pmcids, inventory=options.inventory, progress=progress)
    staging = Staging.begin(output)
    changes = None
    if update:
        _refuse_older(inventory, read_report(output)["inventory_date"])
        work_list, changes = _changes(work_list, staging)
    missing = work_list.filter(pc.equal(pc.list_value_length(work_list.column("versions")), 0)).column("pmcid")
    if len(missing):
        shown = ", ".join(missing.to_pylist()[:5]) + (", ..." if len(missing) > 5 else "")
        logger.warning("%s: %d article(s) that were asked for are not there: %s", options.source, len(missing), shown)
    articles = work_list.num_rows
    if tasks is None:
        tasks = min(-(-articles // ARTICLES_PER_TASK), max(16, 4 * engine.workers))
    tasks = max(1, min(tasks, articles))
    with pq.ParquetWriter(staging.work_list, work_list.schema, **WRITE_OPTIONS) as writer:
        for task in range(tasks):  # a row group each
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


def _is_news(changes: Mapping[str, int]) -> bool:
    return any(changes[name] for name in ("new", "changed", "removed", "again"))


def _refuse_older(inventory: str | None, before: str | None) -> None:
    if inventory and before and inventory < before:
        raise ValueError(
            f"--update: the inventory {inventory} is older than {before}, with which the data set was built: what came "
            "in between would be taken for removed. Leave --inventory out, or build anew with --overwrite."
        )


def _changes(work_list: pa.Table, staging: Staging) -> tuple[pa.Table, dict[str, int]]:
    """What of the work list is new, changed or to be tried again, and the list of articles whose rows are outdated."""
    before = read_articles(staging.output, ["pmcid", "mark", "again"])
    before = before.append_column("old", before.column("mark")).drop_columns(["mark"])
    joined = work_list.select(["pmcid", "mark"]).join(before, "pmcid", join_type="full outer")
    old, mark = joined.column("old"), joined.column("mark")
    new, removed = pc.is_null(old), pc.is_null(mark)
    changed = pc.fill_null(pc.not_equal(old, mark), False)
    again = pc.and_(pc.fill_null(joined.column("again"), False), pc.invert(pc.or_(changed, removed)))
    kinds = {"new": new, "changed": changed, "again": again, "removed": removed}
    counts = {name: pc.sum(column).as_py() or 0 for name, column in kinds.items()}
    counts["unchanged"] = joined.num_rows - sum(counts.values())
    if counts["removed"] > max(FEW_REMOVED, before.num_rows * REMOVED_SHARE):
        raise ValueError(
            f"--update: {counts['removed']:,} of the {before.num_rows:,} articles of the data set are no more in the "
            "source. PMC removes few; the source may be incomplete. Build anew with --overwrite if it is right."
        )
    outdated = joined.filter(pc.or_(pc.or_(removed, changed), again)).column("pmcid")
    wanted = joined.filter(pc.or_(pc.or_(new, changed), again)).column("pmcid")
    staging.outdated.write_text("\n".join(outdated.to_pylist()), encoding="utf-8")
    return work_list.filter(pc.is_in(work_list.column("pmcid"), wanted.combine_chunks())), counts


def _stages(
    options: BuildOptions,
    staging: Staging,
    begun: Mapping[str, Any],
    benchmark: PictureIndex | None,
    concurrency: int | None,
    afterwards: "_Afterwards",
) -> list[Stage]:
    bucket = Bucket(options.source)
    if concurrency is None:
        concurrency = REMOTE_CONCURRENCY if bucket.is_remote else 1
    until = None if options.published_until is None else parse_published_until(options.published_until)
    articles = [
        ReadWorkList(str(staging.work_list), str(staging.journals)),
        ReadArticles(bucket, parse_licenses(options.license), concurrency),
        ParseFigures(options.max_figures_per_article, until, options.first_image_only),
        FetchPictures(bucket, concurrency),
        PairFigures(benchmark),
        WriteArticles(str(staging.journals)),
    ]
    tasks = begun["tasks"]
    previous = read_report(staging.output) if begun["update"] is not None else None
    return [
        Stage("articles", articles, tasks),
        Stage("plan", [PlanShards(options, staging, previous)], 1, memory_gb=PLAN_MEMORY_GB),
        Stage("shards", [WriteShards(staging, options.tokenizer)], min(tasks, SHARD_TASKS)),
        Stage("finish", [FinishDataset(options, staging, begun, afterwards)], 1),
    ]


@dataclass(frozen=True)
class _Afterwards:
    """What the last stage does beside the report: documents and, where nobody waits for it, the move and the rest."""

    finish: Callback | None
    publish: Callback | None
    in_background: bool


class BuildStep(PipelineStep):
    """A step that works on files of the staging folder, not on documents."""

    type = "PMC"

    def __init__(self, staging: Staging):
        super().__init__()
        self.staging = staging

    def work(self, rank: int, world_size: int) -> None:
        """Does the work of one task."""
        raise NotImplementedError

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        with self.track_time("task"):
            self.work(rank, world_size)
        return
        yield  # a step is a generator, but this one has nothing to pass on


class PlanShards(BuildStep):
    """Decides on splits and shards."""

    name = "Plan shards"

    def __init__(self, options: BuildOptions, staging: Staging, previous: Mapping[str, Any] | None):
        super().__init__(staging)
        self.options = options
        self.previous = previous

    def work(self, rank: int, world_size: int) -> None:
        fractions = self.options.split_fractions
        if self.previous is None:
            update: dict[str, Any] = {}
        else:
            # An article never changes its split because the set has grown.
            fractions = self.previous["split_fractions"]
            update = {
                "previous": self.staging.output,
                "outdated": self.staging.outdated,
                "moved_before": self.previous["articles_moved_to_fill_a_split"],
            }
        try:
            make_plan(
                self.staging,
                seed=self.options.seed,
                fractions=fractions,
                max_shard_bytes=self.options.max_shard_bytes,
                **update,
            )
        except TooFewArticles as error:
            output = self.staging.output
            causes = output / (FAILED_FILE if (output / "data").exists() else SKIPPED_FILE)
            os.replace(self.staging.result / SKIPPED_FILE, causes)
            raise TooFewArticles(f"{error} All causes are listed in {causes}.") from error


class WriteShards(BuildStep):
    """The second pass: task n of m writes the shards n, n + m, n + 2 m, ..."""

    name = "Write shards"

    def __init__(self, staging: Staging, tokenizer: str | None):
        super().__init__(staging)
        self.tokenizer = tokenizer

    def work(self, rank: int, world_size: int) -> None:
        plan = Plan.load(self.staging)
        for number in range(rank, len(plan.names()), world_size):
            write_shard(self.staging, plan, number, self.tokenizer)


class FinishDataset(BuildStep):
    """Verifies that every pair is there, writes the report and, where nobody waits for it, puts all in its place."""

    name = "Finish"

    def __init__(self, options: BuildOptions, staging: Staging, begun: Mapping[str, Any], afterwards: _Afterwards):
        super().__init__(staging)
        self.options = options
        self.begun = begun
        self.afterwards = afterwards

    def work(self, rank: int, world_size: int) -> None:
        if not self.staging.finish_move():  # a job that was taken up again may have moved it before
            report = self._report(Plan.load(self.staging))
            write_text(self.staging.result / REPORT_FILE, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
            if self.afterwards.finish is not None:
                self.afterwards.finish(report, self.staging.result)
            if self.afterwards.in_background:
                self.staging.take_place()
        if self.afterwards.publish is not None:
            self.afterwards.publish(read_report(self.staging.output), self.staging.output)
        if self.afterwards.in_background:
            self.staging.clear(keep_logs=True)

    def _report(self, plan: Plan) -> dict[str, Any]:
        statistics, hashes = {}, {}
        for name in plan.names():
            counted = json.loads((self.staging.statistics / f"{Path(name).stem}.json").read_text(encoding="utf-8"))
            statistics[name], hashes[f"data/{name}"] = counted["counts"], counted["hashes"]
        for name in (ARTICLES_FILE, SKIPPED_FILE):
            hashes[name] = hashes_of(self.staging.result / name, parquet=name == ARTICLES_FILE)
        _verify(self.staging.result / "data", plan)
        now = datetime.now(UTC)
        return {
            "source": self.options.source,
            "inventory_date": self.begun["inventory_date"],
            "built": f"{now:%Y-%m-%d}",
            **plan.counts,
            **summarize(statistics.values(), self.options.tokenizer),
            "splits": {
                split: {
                    "articles": plan.articles[split],
                    "pairs": sum(shards),
                    "shards": len(shards),
                    "bytes": sum(
                        counts["file"]["bytes"] for name, counts in statistics.items() if name.startswith(f"{split}-")
                    ),
                }
                for split, shards in plan.shards.items()
            },
            "license_choice": self.options.license,
            **self._snapshot(plan.counts["articles"]["dropped"]),
            "split_fractions": list(plan.fractions),
            "articles_moved_to_fill_a_split": plan.moved,
            "update": self.begun["update"],
            "built_with": {**self.options.identity(), "format": DATASET_FORMAT},
            HASHES: hashes,
            # Of a build that was interrupted nobody knows how long it was at work.
            "seconds": None
            if self.begun["resumed"]
            else round((now - datetime.fromisoformat(self.begun["started"])).total_seconds(), 1),
        }

    def _snapshot(self, dropped: Mapping[str, int]) -> dict[str, Any]:
        """Return the part of the report on `published_until`, if it is set."""
        until = self.options.published_until
        if until is None:
            return {}
        return {
            "snapshot": {
                "published_until": until,
                "articles_published_later": dropped.get(published_after(until), 0),
                "articles_without_date": dropped.get(NO_DATE, 0),
            }
        }


def _verify(folder: Path, plan: Plan) -> None:
    """Counts the rows that are in the files: every pair must be there."""
    expected = [rows for shards in plan.shards.values() for rows in shards]
    for name, rows in zip(plan.names(), expected, strict=True):
        written = open_parquet(folder / name).metadata.num_rows
        if written != rows:
            raise RuntimeError(f"{folder / name} holds {written} pairs, not {rows}.")


def _other_options(begun: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> str:
    differences = "; ".join(
        f"{name} {begun.get(name)!r}, not {now.get(name)!r}"
        for name in dict.fromkeys((*now, *begun))
        if begun.get(name) != now.get(name)
    )
    return (
        f"A build with other options was interrupted here ({differences}). Repeat it as it was to go "
        f"on, pass --overwrite, or remove {folder} to start again."
    )


class _Watch:
    """Looks at the folder to see how far a build is: it works whatever process, or machine, writes there."""

    def __init__(self, staging: Staging, articles: int, show: bool):
        self.staging = staging
        self.articles = articles
        self.show = show

    def count(self, stage: str) -> int:
        if stage == "articles":
            return count_articles(self.staging.journals)
        return sum(1 for _ in (self.staging.result / "data").glob("*.parquet")) if stage == "shards" else 0

    def bar(self, stage: str) -> AbstractContextManager[None]:
        if not self.show or stage not in ("articles", "shards"):
            return contextlib.nullcontext()
        total = self.articles if stage == "articles" else len(Plan.load(self.staging).names())
        return _watch(stage.capitalize(), total, lambda: self.count(stage))


@contextlib.contextmanager
def _watch(name: str, total: int, count: Callable[[], int]) -> Iterator[None]:
    """A bar that counts again each second."""
    done = threading.Event()
    bar = tqdm(total=total, initial=count(), desc=name, unit=name.lower()[:-1], file=sys.stderr, dynamic_ncols=True)

    def watch() -> None:
        while not done.wait(1):
            bar.update(count() - bar.n)
            bar.refresh()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        bar.update(count() - bar.n)
        bar.close()
