"""Builds figure-caption pairs out of PubMed Central's bucket, or a mirror of it.

biomedclip build --source ../pmc_mirror --output-dir out
biomedclip build --source s3://pmc-oa-opendata --pmcids PMC3178181,PMC6281068 --output-dir out
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_cards.fill import fill_dataset_card
from processing.pmc.build import build_dataset
from processing.pmc.shards import parse_fractions

from .options import parse_options
from .reporting import say, show_table, versions, write_json


EXAMPLE = "biomedclip build --source path/of/a/mirror --output-dir out"


@dataclass
class SourceOptions:
    """What is taken from where."""

    source: str = field(
        metadata={"help": "Mirror of PMC's bucket: a folder, s3://pmc-oa-opendata, or any URL that fsspec opens."}
    )
    pmcids: str | None = field(
        default=None, metadata={"help": "Articles to take: PMC1,PMC2,... or a file with one a line. All if left out."}
    )
    license: str = field(
        default="noncommercial",
        metadata={"help": "commercial, noncommercial (any Creative Commons), all, or codes such as 'CC BY,CC0'."},
    )
    split_fractions: str | None = field(
        default=None,
        metadata={"help": "Train,validation,test. 0.8,0.1,0.1 below 10,000 articles, the paper's from there on."},
    )
    rows_per_shard: int = field(default=5000, metadata={"help": "Pairs in a Parquet file, at most."})
    tasks: int | None = field(default=None, metadata={"help": "Slices of the work list. One for each 50 articles."})
    workers: int = field(default=os.cpu_count() or 1, metadata={"help": "Tasks at a time. One for each core."})
    overwrite: bool = field(default=False, metadata={"help": "Replace results that are there."})


@dataclass
class OutputOptions:
    """Where results go."""

    output_dir: str = field(metadata={"help": "Folder for data/, README.md, report.json and skipped.jsonl."})
    seed: int = field(default=0, metadata={"help": "Seed of the order of pairs."})


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip build`."""
    source, output = parse_options(
        "build", [SourceOptions, OutputOptions], arguments, description=__doc__.split("\n\n")[0], example=EXAMPLE
    )
    report = build(source, output)
    show_report(report)
    say(f"Data set in {output.output_dir}: data/, README.md, report.json, skipped.jsonl")


def build(source: SourceOptions, output: OutputOptions, *, drawn: bool = False) -> dict[str, Any]:
    """
    Builds the data set, its card and its report.

    Args:
        source: What is taken from where.
        output: Where it goes.
        drawn: Whether the articles are invented; the card says so.

    Returns:
        The report.
    """
    output_dir = Path(output.output_dir)
    report = build_dataset(
        source.source,
        output_dir,
        pmcids=read_pmcids(source.pmcids),
        license=source.license,
        split_fractions=parse_fractions(source.split_fractions) if source.split_fractions else None,
        rows_per_shard=source.rows_per_shard,
        seed=output.seed,
        tasks=source.tasks,
        workers=source.workers,
        overwrite=source.overwrite,
        progress=True,
    )
    report |= {
        "drawn": drawn,
        "options": dataclasses.asdict(source) | dataclasses.asdict(output),
        "versions": versions(),
    }
    (output_dir / "README.md").write_text(fill_dataset_card(report))
    write_json(output_dir / "report.json", report)
    return report


def read_pmcids(choice: str | None) -> list[str] | None:
    """
    Reads `--pmcids`.

    Args:
        choice: Identifiers between commas, or a file with one a line.

    Raises:
        ValueError: A file that is not there, or nothing in it.
    """
    if choice is None:
        return None
    if re.fullmatch(r"PMC[\d.]+(\s*,\s*PMC[\d.]+)*", choice.strip()):
        pmcids = [part.strip() for part in choice.split(",")]
    elif Path(choice).is_file():
        pmcids = Path(choice).read_text().split()
    else:
        raise ValueError(f"--pmcids {choice!r} is neither a list such as PMC1,PMC2 nor a file with one a line.")
    if not pmcids:
        raise ValueError(f"--pmcids {choice!r} holds no PMCID.")
    return pmcids


def show_report(report: dict[str, Any]) -> None:
    """Prints what was built and what was left out."""
    articles, figures = report["articles"], report["figures"]
    rows = [("articles seen", articles["seen"]), ("articles kept", articles["kept"])]
    rows += [(f"  dropped: {reason}", count) for reason, count in articles["dropped"].items()]
    rows += [("figures seen", figures["seen"])]
    rows += [(f"  skipped: {reason}", count) for reason, count in figures["skipped"].items()]
    rows += [("pairs", report["pairs"])]
    rows += [
        (f"  {split}, of {count['articles']:,} articles", count["pairs"]) for split, count in report["splits"].items()
    ]
    rows += [(f"  {license}", count) for license, count in report["licenses"].items()]
    show_table(f"Built from {report['source']} in {report['seconds']} s", rows, ["", "count"])
