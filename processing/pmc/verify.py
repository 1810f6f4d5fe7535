"""Verify a built dataset: check every image, page, file and count against the report and the rows."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from tqdm.auto import tqdm

from ..files import require_regular
from ..integrity import REPORT_FILE, check_file, open_parquet, read_hashes, report_of_build
from ..panels.image_types import UNKNOWN
from .articles import KEPT, LICENSES_KEY, PANEL_COUNTS
from .bucket import md5_of
from .dates import NO_DATE, published_after
from .plan import ARTICLES_FILE, SKIPPED_FILE, read_articles
from .report import read_report
from .statistics import PANEL, SINGLE, kind_of_row


BATCH_ROWS = 16
PAGE_BUFFER_BYTES = 8_000_000
MAX_LISTED_FAULTS = 20  # per shard


@dataclass
class Verification:
    """The result of verifying a built dataset."""

    checked: Counter[str] = field(default_factory=Counter)  # number of checked items, by kind
    faults: list[str] = field(default_factory=list)  # each with its file or row
    verifiable: bool = True  # without hashes in the report, only damage to images and counts is detected

    def compare(self, what: str, found: Any, stated: Any) -> None:
        """Add a fault if a value found in the files differs from the report."""
        self.checked["counts"] += 1
        if found != stated:
            self.faults.append(f"{what}: {REPORT_FILE} states {_shown(stated)}, but there are {_shown(found)}")


def verify_dataset(folder: Path, *, progress: bool = False) -> Verification:
    """Verify a built dataset.

    Args:
        folder: Folder that `biomedclip build` wrote. It is not modified.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The counts and the faults.

    Raises:
        FileNotFoundError: If the folder does not contain a dataset.

    Example:
    ```python
    >>> from pathlib import Path

    >>> from biomedclip.processing.pmc.verify import verify_dataset

    >>> verify_dataset(Path("out")).faults
    []
    ```
    """
    shards = sorted((folder / "data").glob("*.parquet"))
    if not shards:
        raise FileNotFoundError(f"{folder}: no dataset found, because it has no data/*.parquet.")
    result = Verification()
    report: dict[str, Any] = {}
    hashes: dict[str, dict[str, Any]] = {}
    try:
        report = report_of_build(read_report(folder))
    except (OSError, ValueError, RecursionError) as error:
        result.faults.append(f"{folder / REPORT_FILE}: cannot be read ({error})")
    try:
        hashes = read_hashes(str(folder)) or {}
    except OSError as error:
        result.faults.append(str(error))
    result.verifiable = bool(hashes)
    counts = _Counts()
    for path in tqdm(shards, desc="Verifying", unit="shard", file=sys.stderr, disable=not progress, dynamic_ncols=True):
        stated = hashes.get(f"data/{path.name}")
        if hashes and stated is None:
            result.faults.append(f"{path}: not in {REPORT_FILE}, so it does not belong to this dataset")
        _attempt(result, path, partial(_verify_shard, path, stated, counts, result))
    for name in sorted(set(hashes) - {f"data/{path.name}" for path in shards}):
        path = folder / name
        if not path.is_file():
            result.faults.append(f"{path}: missing")
            continue
        result.checked["files"] += 1
        _attempt(result, path, partial(check_file, path, hashes[name]))
    if report:
        _attempt(result, folder / REPORT_FILE, partial(_compare_counts, report, counts, result))
        _attempt(result, folder / ARTICLES_FILE, partial(_verify_articles, folder, report, counts, result))
        _attempt(result, folder / SKIPPED_FILE, partial(_verify_skipped, folder, report, result))
    return result


@dataclass
class _Counts:
    """Counts over the rows of all shards."""

    pairs: Counter[str] = field(default_factory=Counter)
    shards: Counter[str] = field(default_factory=Counter)
    file_bytes: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)  # of rows, in a dataset with panels
    image_types: Counter[str] = field(default_factory=Counter)  # of images that are not compound
    splits_of_article: dict[str, set[str]] = field(default_factory=dict)
    pair_ids: set[bytes] = field(default_factory=set)


def _attempt(result: Verification, path: Path, work: Callable[[], None]) -> None:
    """Run a part of the verification. Any error is recorded as a fault of the file."""
    try:
        work()
    except MemoryError:
        raise
    except Exception as error:
        message = str(error) if str(path) in str(error) else f"{path}: {type(error).__name__}: {error}"
        result.faults.append(message.rstrip("."))


def _verify_shard(path: Path, stated: Mapping[str, Any] | None, counts: _Counts, result: Verification) -> None:
    split = path.name.split("-")[0]
    counts.shards[split] += 1
    counts.file_bytes[split] += path.stat().st_size
    result.checked["shards"] += 1
    if stated is not None:
        _attempt(result, path, partial(check_file, path, stated))
    footer = None if stated is None else stated["footer_sha256"]
    # With a buffer, a row group is not loaded into memory as a whole.
    file = open_parquet(path, footer_sha256=footer, pre_buffer=False, buffer_size=PAGE_BUFFER_BYTES)
    rows = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    if stated is not None and stated.get("rows", rows) != rows:
        result.faults.append(f"{path}: its row groups are not those in {REPORT_FILE}")
    stated_licenses = json.loads((file.metadata.metadata or {}).get(LICENSES_KEY.encode(), b"[]"))
    faults: list[str] = []
    for group in range(file.num_row_groups):
        licenses: Counter[str] = Counter()
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group]):
            for row in batch.to_pylist():
                licenses[str(row["license"])] += 1
                faults += _faults_of_row(row, split, counts)
            result.checked["images"] += batch.num_rows
        if stated_licenses and stated_licenses[group] != licenses:
            faults.append(f"the licenses in the footer differ from those in row group {group}")
        counts.licenses.update(licenses)
        counts.pairs[split] += licenses.total()
    result.faults += [f"{path}: {fault}" for fault in faults[:MAX_LISTED_FAULTS]]
    if len(faults) > MAX_LISTED_FAULTS:
        result.faults.append(f"{path}: {len(faults) - MAX_LISTED_FAULTS:,} more faults in its rows")


def _faults_of_row(row: Mapping[str, Any], split: str, counts: _Counts) -> list[str]:
    name, content = row["pair_id"], (row["image"] or {}).get("bytes")
    counts.splits_of_article.setdefault(row["pmcid"], set()).add(split)
    digest = hashlib.blake2b(str(name).encode(), digest_size=12).digest()
    faults = [f"row {name}: the pair_id occurs twice"] if digest in counts.pair_ids else []
    counts.pair_ids.add(digest)
    if "compound" in row:
        kind = kind_of_row(row["compound"], name, row["figure_pair_id"])
        counts.kinds[kind] += 1
        counts.image_types[row["image_type"] or UNKNOWN] += kind in (SINGLE, PANEL)
    if content is None:
        return [*faults, f"row {name}: the image has no bytes"]
    if md5_of(content) != row["image_md5"]:
        faults.append(f"row {name}: the MD5 of the image differs from image_md5")
    if len(content) != row["file_size"]:
        faults.append(f"row {name}: the image has {len(content):,} bytes, but file_size is {row['file_size']:,}")
    if row["split"] != split:
        faults.append(f"row {name}: the split is {row['split']!r}, not {split!r}")
    return faults


def _compare_counts(report: Mapping[str, Any], counts: _Counts, result: Verification) -> None:
    result.compare("pairs", counts.pairs.total(), report["pairs"])
    result.compare("pairs by license", dict(counts.licenses), report["licenses"])
    if composition := report.get("composition"):
        result.compare("rows by kind", dict(counts.kinds), composition["rows"])
        result.compare("images by type", dict(+counts.image_types), composition["image_types"])
    for split in sorted({*report["splits"], *counts.shards}):
        stated = report["splits"].get(split, {})
        result.compare(f"{split}: pairs", counts.pairs[split], stated.get("pairs"))
        result.compare(f"{split}: shards", counts.shards[split], stated.get("shards"))
        result.compare(f"{split}: bytes", counts.file_bytes[split], stated.get("bytes"))
        articles = sum(split in splits for splits in counts.splits_of_article.values())
        result.compare(f"{split}: articles", articles, stated.get("articles"))
    several = sorted(name for name, splits in counts.splits_of_article.items() if len(splits) > 1)
    if several:
        result.faults.append(f"{several[0]} and {len(several) - 1} other article(s) are in several splits")


def _verify_articles(folder: Path, report: Mapping[str, Any], counts: _Counts, result: Verification) -> None:
    table = read_articles(folder)
    outcomes = {row["values"]: row["counts"] for row in pc.value_counts(table.column("outcome")).to_pylist()}
    result.compare(f"{ARTICLES_FILE}: articles", table.num_rows, report["articles"]["seen"])
    result.compare(f"{ARTICLES_FILE}: articles kept", outcomes.pop(KEPT, 0), report["articles"]["kept"])
    result.compare(f"{ARTICLES_FILE}: articles dropped", outcomes, report["articles"]["dropped"])
    if snapshot := report.get("snapshot"):
        stated = {
            published_after(snapshot["published_until"]): snapshot["articles_published_later"],
            NO_DATE: snapshot["articles_without_date"],
        }
        result.compare(f"{ARTICLES_FILE}: snapshot", {name: outcomes.get(name, 0) for name in stated}, stated)
    sums = {"figures": report["figures"]["seen"], "pairs": counts.pairs.total()}
    if found := report.get("panel_detection"):
        sums |= {name: found[name] for name in PANEL_COUNTS}
    for column, stated_sum in sums.items():
        result.compare(f"{ARTICLES_FILE}: {column}", pc.sum(table.column(column)).as_py() or 0, stated_sum)


def _verify_skipped(folder: Path, report: Mapping[str, Any], result: Verification) -> None:
    reasons: Counter[str] = Counter()
    require_regular(folder / SKIPPED_FILE)
    with (folder / SKIPPED_FILE).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["item"]:
                reasons[row["reason"]] += row.get("count", 1)
    result.compare(f"{SKIPPED_FILE}: figures", dict(reasons), report["figures"]["skipped"])


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(count)}" for name, count in sorted(value.items())) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
