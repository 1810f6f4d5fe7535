"""The report of a built dataset, `report.json`."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..files import require_regular
from ..integrity import HASHES, REPORT_FILE, hashes_of
from .dates import NO_DATE, published_after
from .options import BuildOptions
from .plan import ARTICLES_FILE, SKIPPED_FILE, Plan
from .staging import Staging
from .statistics import summarize
from .update import recorded_options


def read_report(output_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the report of the dataset in a folder.

    Raises:
        OSError: If the report does not exist or cannot be read.
        ValueError: If the report is damaged.
    """
    path = Path(output_dir) / REPORT_FILE
    require_regular(path)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(report, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Build the dataset again with `overwrite=True`.") from error
    return report


def make_report(options: BuildOptions, staging: Staging, begun: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the report of a build whose shards are written.

    `begun` contains the notes from the start of the build ([`Staging.find`]), and whether it was `resumed`.
    """
    statistics, hashes = {}, {}
    for name in plan.names():
        counted = json.loads((staging.statistics / f"{Path(name).stem}.json").read_text(encoding="utf-8"))
        statistics[name], hashes[f"data/{name}"] = counted["counts"], counted["hashes"]
    for name in (ARTICLES_FILE, SKIPPED_FILE):
        hashes[name] = hashes_of(staging.result / name, parquet=name == ARTICLES_FILE)
    now = datetime.now(UTC)
    seconds = round((now - datetime.fromisoformat(begun["started"])).total_seconds(), 1)
    splits = {
        split: {
            "articles": plan.articles[split],
            "pairs": sum(shards),
            "shards": len(shards),
            "bytes": sum(hashes[f"data/{name}"]["bytes"] for name in statistics if name.startswith(f"{split}-")),
        }
        for split, shards in plan.shards.items()
    }
    snapshot = {}
    if options.published_until is not None:
        dropped = plan.counts["articles"]["dropped"]
        snapshot["snapshot"] = {
            "published_until": options.published_until,
            "articles_published_later": dropped.get(published_after(options.published_until), 0),
            "articles_without_date": dropped.get(NO_DATE, 0),
        }
    return {
        "source": options.source,
        "inventory_date": begun["inventory_date"],
        "built": f"{now:%Y-%m-%d}",
        **plan.counts,
        **summarize(statistics.values(), options.caption_tokenizer),
        "splits": splits,
        "license_choice": options.license,
        **snapshot,
        "split_fractions": list(plan.fractions),
        "articles_moved_to_fill_a_split": plan.moved,
        "update": begun["update"],
        "built_with": recorded_options(options),
        HASHES: hashes,
        "seconds": None if begun["resumed"] else seconds,  # unknown if the build was interrupted
    }
