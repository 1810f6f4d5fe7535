"""Builds figure-caption pairs out of PubMed Central's bucket, or a mirror of it.

biomedclip build --source ../pmc_mirror --output-dir out
biomedclip build --source s3://pmc-oa-opendata --pmcids PMC2803133,PMC3178181,PMC6281068 --output-dir out
biomedclip build --source s3://pmc-oa-opendata --output-dir out --update --push-to my-lab/pmc-pairs
biomedclip build --verify out
"""

import dataclasses
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biomedclip.model_cards.dataset_card import fill_dataset_card
from biomedclip.model_cards.reading import find_file
from biomedclip.processing.files import require_regular
from biomedclip.processing.integrity import REPORT_FILE, DamagedFile
from biomedclip.processing.pmc.articles import FIGURES_PER_ARTICLE, parse_licenses
from biomedclip.processing.pmc.build import BuildOptions, build_dataset
from biomedclip.processing.pmc.dates import parse_published_until
from biomedclip.processing.pmc.executors import EXECUTORS, Engine
from biomedclip.processing.pmc.splits import parse_fractions
from biomedclip.processing.pmc.verify import verify_dataset

from .cli.build_report import show_report, show_verification
from .cli.errors import UsageError, usage_errors
from .cli.options import option_value, parse_options
from .cli.plots import plot_report
from .cli.reporting import say, versions, write_json, write_text
from .hub.dataset_upload import push_dataset
from .hub.publishing import check_write_access


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
    inventory: str | None = field(
        default=None, metadata={"help": "Inventory to take, such as 2026-01-18T01-00Z. The newest if left out."}
    )
    license: str = field(
        default="noncommercial",
        metadata={
            "help": "commercial, noncommercial (any Creative Commons; the default), all, or codes as 'CC BY,CC0'."
        },
    )
    decontaminate: str | None = field(
        default=None,
        metadata={"help": "Pictures of a benchmark, a folder or a built set: whatever looks like one is left out."},
    )
    split_fractions: str | None = field(
        default=None,
        metadata={"help": "Train,validation,test. 0.8,0.1,0.1 below 10,000 articles, the paper's from there on."},
    )
    max_figures_per_article: int = field(
        default=FIGURES_PER_ARTICLE,
        metadata={"help": f"Maximum number of figure images per article (default: {FIGURES_PER_ARTICLE})."},
    )
    published_until: str | None = field(
        default=None,
        metadata={
            "help": "Leave out articles released in PMC, else published, after this day, such as 2022-06-15, and those "
            "without a date (default: all). 2022-06 counts as 2022-06-30."
        },
    )
    first_image_only: bool = field(
        default=False, metadata={"help": "Use only the first image of each figure, as PMC-15M (default: all images)."}
    )
    max_shard_size: str = field(
        default="500MB",
        metadata={"help": "Size of a Parquet file, about; 500MB. Small sets have 16 all the same, to be shuffled."},
    )
    caption_tokenizer: str | None = field(
        default=None, metadata={"help": "Measures captions for the report. Words are counted if left out."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace results that are there."})
    update: bool = field(default=False, metadata={"help": "Take what is new or changed into the set that is there."})


@dataclass
class EngineOptions:
    """Where the work is done."""

    executor: str = field(
        default="local", metadata={"help": "This machine (the default), or a cluster.", "choices": EXECUTORS}
    )
    tasks: int | None = field(default=None, metadata={"help": "Slices of the work list. One for each 50 articles."})
    workers: int = field(default=os.cpu_count() or 1, metadata={"help": "Tasks at a time. One for each core."})
    retries: int = field(default=2, metadata={"help": "How often tasks that failed are run again in vain; 2."})
    connections: int | None = field(
        default=None, metadata={"help": "Articles that a task reads at a time. 16 over a network, 1 from a disk."}
    )
    memory_gb: int = field(default=2, metadata={"help": "Memory to reserve for a task on Slurm or Ray; 2."})
    slurm_partition: str | None = field(default=None, metadata={"help": "Needed for --executor slurm."})
    slurm_time: str = field(default="24:00:00", metadata={"help": "Limit of a job; 24:00:00."})
    slurm_args: str | None = field(
        default=None, metadata={"help": "Other options of sbatch, such as account=lab,qos=long."}
    )


@dataclass
class OutputOptions:
    """Where results go."""

    output_dir: str = field(
        metadata={"help": "Folder for data/, README.md, report.json and so on; shared by all machines of a cluster."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the order of pairs."})
    push_to: str | None = field(default=None, metadata={"help": "ORG/NAME of a data set on the Hub to publish it as."})
    private: bool = field(default=False, metadata={"help": "Make that one private."})
    verify: str | None = field(
        default=None,
        metadata={"help": "Folder of a built set to check: images, hashes and counts. No other option is needed."},
    )


@dataclass
class VerifyOptions:
    """The options of `--verify`, which builds nothing."""

    verify: str = field(metadata={"help": "Folder of a built set."})


@dataclass(frozen=True)
class Documents:
    """Writes the card and the picture that go with a finished data set; travels to the machine that finishes it.

    Args:
        options: Options of the command.
        drawn: Whether the articles are invented; the card says so.
    """

    options: dict[str, Any]
    drawn: bool = False

    def __call__(self, report: dict[str, Any], folder: Path) -> None:
        report |= {"drawn": self.drawn, "options": self.options, "versions": versions()}
        plot_report(report, folder / "report.png")
        write_text(folder / "README.md", fill_dataset_card(report))
        write_json(folder / REPORT_FILE, report)


@dataclass(frozen=True)
class Publish:
    """Publishes a data set on the Hub.

    Args:
        repo_id: `ORG/NAME`.
        private: As a private one.
    """

    repo_id: str
    private: bool = False

    def __call__(self, report: dict[str, Any], folder: Path) -> None:
        say(f"Published at {push_dataset(folder, self.repo_id, private=self.private, report=report)}")


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip build`.

    Args:
        arguments: The command line behind the verb.

    Raises:
        DamagedFile: If `--verify` finds a fault.
    """
    if option_value("build", "verify", arguments) is not None:
        (verify_options,) = parse_options(
            "build --verify",
            [VerifyOptions],
            arguments,
            description=__doc__.split("\n\n")[0],
            example="biomedclip build --verify out",
            sections=["build"],
        )
        verify(Path(verify_options.verify))
        return
    source, engine, output = parse_options(
        "build",
        [SourceOptions, EngineOptions, OutputOptions],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
    )
    if output.push_to:
        check_write_access(output.push_to)
        find_file(Path(output.output_dir), REPORT_FILE)  # a set that is there already is published as it is
    try:
        report = build(source, output, engine)
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on from here.")
        raise
    if report is None:
        say(
            f"Submitted. The data set appears in {output.output_dir}/data; logs are in {output.output_dir}/.build/logs."
        )
        return
    show_report(report)
    say(
        f"Data set in {output.output_dir}: data/, README.md, {REPORT_FILE}, report.png, articles.parquet, skipped.jsonl"
    )


def verify(folder: Path) -> None:
    """Verify a built set and print what was checked.

    Args:
        folder: What `biomedclip build` wrote.

    Raises:
        DamagedFile: If there is a fault. All faults are printed.
    """
    result = verify_dataset(folder, progress=True)
    show_verification(result, str(folder))
    if result.faults:
        raise DamagedFile(f"{folder}: {len(result.faults):,} fault(s), listed above. Build the data set again.")


def build(
    source: SourceOptions, output: OutputOptions, engine: EngineOptions | None = None, *, drawn: bool = False
) -> dict[str, Any] | None:
    """Builds the data set, its card and its report.

    Args:
        source: What is taken from where.
        output: Where it goes.
        engine: Where the work is done; all cores of this machine when left out.
        drawn: Whether the articles are invented; the card says so.

    Returns:
        The report; none where the work was submitted to Slurm.
    """
    engine = engine or EngineOptions()
    with usage_errors():
        how = read_engine(engine)
        build_options = read_build_options(source, seed=output.seed)
        parse_licenses(source.license)
        if source.published_until is not None:
            parse_published_until(source.published_until)
        if source.max_figures_per_article < 1:
            raise UsageError(f"--max-figures-per-article must be at least 1, not {source.max_figures_per_article}.")
        if source.overwrite and source.update:
            raise UsageError("--overwrite builds anew and --update keeps what is there: pass one of them.")
    if engine.executor == "slurm" and shutil.which("sbatch") is None:
        raise UsageError("--executor slurm: there is no sbatch on this machine. Run it where jobs are submitted.")
    options = {key: value for part in (source, engine, output) for key, value in dataclasses.asdict(part).items()}
    return build_dataset(
        build_options,
        output.output_dir,
        engine=how,
        tasks=engine.tasks,
        concurrency=engine.connections,
        overwrite=source.overwrite,
        update=source.update,
        finish=Documents(options, drawn),
        publish=Publish(output.push_to, output.private) if output.push_to else None,
        progress=True,
    )


def read_build_options(source: SourceOptions, *, seed: int) -> BuildOptions:
    """The options of the command as the build takes them."""
    from datasets.utils.py_utils import convert_file_size_to_int  # a second of imports, which --help does without

    try:
        max_shard_bytes = convert_file_size_to_int(source.max_shard_size)
    except ValueError:
        raise UsageError(f"--max-shard-size {source.max_shard_size!r}: a size is needed, such as 500MB.") from None
    return BuildOptions(
        source=source.source,
        pmcids=read_pmcids(source.pmcids),
        inventory=source.inventory,
        license=source.license,
        split_fractions=parse_fractions(source.split_fractions) if source.split_fractions else None,
        max_shard_bytes=max_shard_bytes,
        seed=seed,
        decontaminate=source.decontaminate,
        tokenizer=source.caption_tokenizer,
        max_figures_per_article=source.max_figures_per_article,
        published_until=source.published_until,
        first_image_only=source.first_image_only,
    )


def read_engine(options: EngineOptions) -> Engine:
    """The engine that was asked for.

    Raises:
        ValueError: Slurm without a partition, or options that cannot be.
    """
    for name in ("tasks", "workers", "connections", "memory_gb"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
    slurm: dict[str, Any] = {}
    if options.executor == "slurm":
        if not options.slurm_partition:
            raise UsageError("--executor slurm needs --slurm-partition: see sinfo for those of the cluster.")
        pairs = [part.partition("=") for part in (options.slurm_args or "").split(",") if part.strip()]
        slurm = {
            "partition": options.slurm_partition,
            "time": options.slurm_time,
            "qos": None,  # datatrove's default asks for one that not every cluster has
            "sbatch_args": {name.strip(): value.strip() for name, _, value in pairs},
        }
    return Engine(
        executor=options.executor,
        workers=options.workers,
        retries=options.retries,
        memory_gb=options.memory_gb,
        slurm=slurm,
    )


def read_pmcids(choice: str | list[str] | None) -> list[str] | None:
    """Reads `--pmcids`.

    Args:
        choice: Identifiers between commas or in a list, or a file with one a line; what follows a # is left aside.

    Raises:
        ValueError: A file that is not there, or nothing in it.
    """
    if choice is None:
        return None
    if isinstance(choice, list):  # as YAML has it
        choice = ",".join(map(str, choice))
    if re.fullmatch(r"PMC[\d.]+(\s*,\s*PMC[\d.]+)*", choice.strip()):
        pmcids = [part.strip() for part in choice.split(",")]
    else:
        lines = _read_lines_of(choice)
        pmcids = [word for line in lines for word in line.split("#")[0].split()]
    if not pmcids:
        raise UsageError(f"--pmcids {choice!r} holds no PMCID.")
    return pmcids


def _read_lines_of(choice: str) -> list[str]:
    """The lines of the file that `--pmcids` names."""
    try:
        require_regular(choice)
        return Path(choice).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--pmcids {choice}: not a text file in UTF-8 with one PMCID a line ({error}).") from error
    except (OSError, ValueError) as error:
        shown = choice if len(choice) <= 100 else f"{choice[:100]}..."
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"--pmcids {shown!r} is neither a list such as PMC1,PMC2 nor a file with one a line ({reason})."
        ) from error
