"""Find the articles that an update of a built dataset must read again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..integrity import open_parquet
from .options import BuildOptions, describe_differences
from .plan import ARTICLES_FILE, read_articles
from .staging import Staging


DATASET_FORMAT = 3  # incremented if the rows or columns of an article change. An update must not mix them
# If a larger fraction of the articles is missing, the source is probably incomplete.
MAX_REMOVED_FRACTION = 0.05
MAX_REMOVED = 20
# Options that determine rows and splits.
_FIXED_OPTIONS = (
    *("format", "source", "pmcids", "license", "decontaminate"),
    *("max_figures_per_article", "published_until", "first_image_only", "panels", "keep_types", "detector"),
)


def check_update(options: BuildOptions, output: Path, report: Mapping[str, Any] | None) -> None:
    """Check that the dataset in a folder can be updated with these options.

    Raises:
        FileNotFoundError: If the folder contains no dataset.
        ValueError: If the dataset was built by an earlier version or with other options.
    """
    if not ((output / "data").exists() and (output / ARTICLES_FILE).exists()):
        raise nothing_to_update(output)
    if "source_etag" not in open_parquet(output / ARTICLES_FILE).schema_arrow.names:
        raise ValueError(
            f"{output} was built by an earlier version of biomedclip, whose {ARTICLES_FILE} has other columns. It can "
            "be read and verified, but not updated. Build it again with `overwrite=True`, or in another folder."
        )
    differences = "no report" if report is None else changed_options(options, report)
    if differences:
        raise ValueError(
            f"`update=True`: the options differ from those of the dataset in {output} ({differences}). Pass the same "
            "options, or build it again with `overwrite=True`."
        )


def nothing_to_update(output: Path) -> FileNotFoundError:
    """Return the error for a folder without a dataset."""
    return FileNotFoundError(f"{output}: no dataset to update. It must contain {ARTICLES_FILE} and data/.")


def changed_options(options: BuildOptions, report: Mapping[str, Any]) -> str:
    """Describe the options that would change the rows or splits of a dataset. The text is empty if none do."""
    names = [*_FIXED_OPTIONS, *(["split_fractions"] if options.split_fractions is not None else [])]
    return describe_differences(report.get("built_with") or {}, recorded_options(options), names)


def recorded_options(options: BuildOptions) -> dict[str, Any]:
    """Return the section `built_with` of the report."""
    return {**options.identity(), "format": DATASET_FORMAT}


def find_changes(
    work_list: pa.Table, inventory: str | None, report: Mapping[str, Any], staging: Staging
) -> tuple[pa.Table, dict[str, int]]:
    """Compare all articles of the source with the dataset and write the list of articles whose rows are outdated.

    Returns:
        The articles to read, and the number of new, changed, removed, retried and unchanged articles.

    Raises:
        ValueError: If the inventory is older than the dataset, or too many articles are missing from the source.
    """
    built_from = report["inventory_date"]
    if inventory and built_from and inventory < built_from:
        raise ValueError(
            f"`update=True`: the inventory {inventory} is older than {built_from}, from which the dataset was built. "
            "Articles added in between would be removed. Do not pass `inventory`, or build it again with "
            "`overwrite=True`."
        )
    before = read_articles(staging.output, ["pmcid", "source_etag", "retry"])
    before = before.rename_columns(["pmcid", "old_etag", "retry"])
    joined = work_list.select(["pmcid", "source_etag"]).join(before, "pmcid", join_type="full outer")
    old_etag, etag = joined.column("old_etag"), joined.column("source_etag")
    new, removed = pc.is_null(old_etag), pc.is_null(etag)
    changed = pc.fill_null(pc.not_equal(old_etag, etag), False)
    retried = pc.and_(pc.fill_null(joined.column("retry"), False), pc.invert(pc.or_(changed, removed)))
    kinds = {"new": new, "changed": changed, "retried": retried, "removed": removed}
    counts = {name: pc.sum(column).as_py() or 0 for name, column in kinds.items()}
    counts["unchanged"] = joined.num_rows - sum(counts.values())
    if counts["removed"] > max(MAX_REMOVED, before.num_rows * MAX_REMOVED_FRACTION):
        raise ValueError(
            f"`update=True`: {counts['removed']:,} of the {before.num_rows:,} articles of the dataset are missing from "
            "the source, which may be incomplete. If it is complete, build again with `overwrite=True`."
        )
    read_again = pc.or_(changed, retried)
    outdated = joined.filter(pc.or_(removed, read_again)).column("pmcid")
    wanted = joined.filter(pc.or_(new, read_again)).column("pmcid")
    staging.outdated.write_text("\n".join(outdated.to_pylist()), encoding="utf-8")
    return work_list.filter(pc.is_in(work_list.column("pmcid"), wanted.combine_chunks())), counts
