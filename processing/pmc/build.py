"""The build: a source in PMC's layout becomes shards of pairs, on datatrove.

Two passes. The first has one task for each slice of the work list and writes the pairs of its articles. The second has
one task for each shard and gathers its pairs from all of them. Everything happens in a hidden folder beside the result,
which gets its name in one step when all of it is there: a build that was killed, or ran out of disk, leaves no `data`
folder, and the same command takes it up where it stopped.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datatrove.data import DocumentsPipeline
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger as datatrove_logger
from tqdm.auto import tqdm

from .articles import parse_licenses
from .bucket import Bucket
from .shards import ShardPlan, plan_shards, write_shard
from .steps import PairFigures, ParseFigures, ReadMetadata, ReadWorkList, WritePairs


logger = logging.getLogger(__name__)

STAGING = ".build"


def build_dataset(
    source: str,
    output_dir: str | os.PathLike[str],
    *,
    pmcids: Sequence[str] | None = None,
    license: str = "noncommercial",
    split_fractions: Sequence[float] | None = None,
    rows_per_shard: int = 5000,
    seed: int = 0,
    tasks: int | None = None,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Builds `output_dir/data/{train,validation,test}-*.parquet` from a bucket in PMC's layout.

    The shards depend on the articles, `split_fractions`, `rows_per_shard` and `seed` alone, not on tasks or workers.

    Args:
        source: A mirror's folder, `s3://pmc-oa-opendata`, or any URL that fsspec opens.
        output_dir: Local folder; gets `data/` and `skipped.jsonl`, which lists all that was left out.
        pmcids: Articles to take; none for all of the source.
        license: `commercial`, `noncommercial` (every Creative Commons licence), `all`, or codes such as `CC BY,CC0`.
        split_fractions: Shares of train, validation and test; none for the paper's from 10,000 articles on, and
            80/10/10 below. Splits go by article.
        rows_per_shard: Pairs that a shard holds at most.
        seed: Seed of the order of pairs.
        tasks: Slices of the work list; none for one for each 50 articles, 16 at most.
        workers: Tasks at a time.
        overwrite: Replace a data set that is there.
        progress: Show a bar.

    Returns:
        The report: counts of articles, figures and pairs, what was left out and why, splits and licences.

    Raises:
        BucketError: The source is missing, empty or damaged.
        FileExistsError: There is a data set already, and `overwrite` is off.
        ValueError: An option that makes no sense, or too few articles for the splits.
    """
    started = time.monotonic()
    output = Path(output_dir)
    if (output / "data").exists() and not overwrite:
        raise FileExistsError(f"{output / 'data'} is there already. Choose another --output-dir, or pass --overwrite.")
    licenses = parse_licenses(license)
    if rows_per_shard < 1:
        raise ValueError(f"--rows-per-shard must be at least 1, not {rows_per_shard}.")
    bucket = Bucket(source)
    names = bucket.work_list(pmcids)
    if tasks is None:
        tasks = min(16, -(-len(names) // 50))

    staging = output / STAGING
    # An interrupted build is taken up again only by the same code on the same state of the source.
    _claim(staging, _fingerprint(version("biomedclip"), bucket.inventory_date(), source, names, license, tasks))
    (staging / "work_list.txt").write_text("\n".join(names))
    first_pass = [
        ReadWorkList(str(staging / "work_list.txt")),
        ReadMetadata(bucket, licenses),
        ParseFigures(bucket),
        PairFigures(bucket),
        WritePairs(str(staging)),
    ]
    with _bar(progress, "Articles", len(names), lambda: _progress_bytes(staging / "progress")):
        _run(first_pass, tasks, workers, staging / "logs-pairs")

    pair_files = sorted((staging / "pairs").iterdir())
    try:
        plan = plan_shards(pair_files, fractions=split_fractions, rows_per_shard=rows_per_shard, seed=seed)
    except ValueError:
        shutil.rmtree(staging)  # the source may be mended; what is kept here would hide that
        raise
    shards_folder = staging / f"data-{_fingerprint(plan)}"
    shards_folder.mkdir(exist_ok=True)
    with _bar(progress, "Shards", len(plan.shards()), lambda: len(list(shards_folder.glob("*.parquet")))):
        _run(
            [WriteShards(pair_files, plan, shards_folder)],
            len(plan.shards()),
            workers,
            staging / f"logs-{shards_folder.name}",
        )
    report = _report(staging, plan, bucket, started)
    _verify(shards_folder, plan)

    _concatenate(sorted((staging / "skipped").iterdir()), output / "skipped.jsonl")
    if (output / "data").exists():
        os.replace(output / "data", staging / "replaced")
    os.replace(shards_folder, output / "data")
    shutil.rmtree(staging)
    return report


class WriteShards(PipelineStep):
    """The second pass: task n writes the n-th shard."""

    name = "Write shards"
    type = "PMC"

    def __init__(self, pair_files: Sequence[Path], plan: ShardPlan, folder: Path):
        super().__init__()
        self.pair_files = pair_files
        self.plan = plan
        self.folder = folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        with self.track_time("shard"):
            write_shard(self.pair_files, self.plan, *self.plan.shards()[rank], self.folder)
        return
        yield  # a step is a generator, but this one has nothing to pass on


class _QuietExecutor(LocalPipelineExecutor):
    """datatrove's local executor, whose logs go to its log files alone."""

    def run(self) -> Any:
        datatrove_logger.remove()
        return super().run()

    def _launch_run_for_rank(self, *args: Any, **kwargs: Any) -> Any:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            try:
                return super()._launch_run_for_rank(*args, **kwargs)
            finally:
                datatrove_logger.remove()


def _run(pipeline: list[PipelineStep], tasks: int, workers: int, logging_dir: Path) -> None:
    _QuietExecutor(pipeline, tasks=tasks, workers=min(workers, tasks), logging_dir=str(logging_dir)).run()


def _fingerprint(*options: Any) -> str:
    return hashlib.blake2b(repr(options).encode(), digest_size=8).hexdigest()


def _claim(staging: Path, fingerprint: str) -> None:
    """Keeps what an interrupted build of the same options has left, and clears away any other."""
    mark = staging / "options"
    if staging.exists() and not (mark.exists() and mark.read_text() == fingerprint):
        shutil.rmtree(staging)
    staging.mkdir(parents=True, exist_ok=True)
    mark.write_text(fingerprint)


def _verify(folder: Path, plan: ShardPlan) -> None:
    """Counts the rows that are in the files: every pair must be there."""
    for split, expected in plan.pairs.items():
        written = sum(pq.read_metadata(path).num_rows for path in folder.glob(f"{split}-*.parquet"))
        if written != expected:
            raise RuntimeError(f"{folder}: the shards of {split} hold {written} pairs, not {expected}.")


def _report(staging: Path, plan: ShardPlan, bucket: Bucket, started: float) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    for path in (staging / "counts").iterdir():
        counts.update(json.loads(path.read_text()))
    articles_dropped: Counter[str] = Counter()
    items_skipped: Counter[str] = Counter()
    for path in sorted((staging / "skipped").iterdir()):
        with path.open() as lines:
            for row in map(json.loads, lines):
                (items_skipped if row["item"] else articles_dropped)[row["reason"]] += 1
    licenses: Counter[str] = Counter()
    for path in (staging / "pairs").iterdir():
        licenses.update(str(code) for code in pq.read_table(path, columns=["license"]).column("license").to_pylist())
    return {
        "source": bucket.source,
        "inventory_date": bucket.inventory_date(),
        "articles": {
            "seen": counts["articles"],
            "kept": counts["articles_kept"],
            "dropped": dict(articles_dropped.most_common()),
        },
        "figures": {"seen": counts["figures"], "skipped": dict(items_skipped.most_common())},
        "pairs": sum(plan.pairs.values()),
        "splits": {
            split: {
                "articles": plan.articles[split],
                "pairs": plan.pairs[split],
                "shards": len(plan.boundaries[split]) + 1,
            }
            for split in plan.pairs
        },
        "split_fractions": list(plan.fractions),
        "articles_moved_to_fill_a_split": plan.moved,
        "licenses": dict(licenses.most_common()),
        "seconds": round(time.monotonic() - started, 1),
    }


def _concatenate(paths: Sequence[Path], target: Path) -> None:
    with target.open("wb") as whole:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole)


def _progress_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir()) if folder.exists() else 0


@contextlib.contextmanager
def _bar(show: bool, name: str, total: int, count: Callable[[], int]) -> Iterator[None]:
    """A progress bar that looks at the folder: it works whatever process, or machine, writes there."""
    done = threading.Event()
    bar = tqdm(total=total, desc=name, unit=name.lower()[:-1], disable=not show, file=sys.stderr, dynamic_ncols=True)

    def update() -> None:
        bar.n = min(count(), total)
        bar.refresh()

    def watch() -> None:
        while not done.wait(0.5):
            update()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        update()
        bar.close()
