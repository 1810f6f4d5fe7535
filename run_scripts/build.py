"""Build a dataset of figure-caption pairs from PubMed Central's bucket or a mirror of it.

biomedclip build --source ../pmc_mirror --output-dir out
biomedclip build --source s3://pmc-oa-opendata --pmcids PMC2803133,PMC3178181,PMC6281068 --output-dir out
biomedclip build --source s3://pmc-oa-opendata --output-dir out --update --push-to my-lab/pmc-pairs
biomedclip build --verify out
"""

import dataclasses
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from biomedclip.model_cards.dataset_card import fill_dataset_card
from biomedclip.model_cards.reading import find_file
from biomedclip.processing.integrity import REPORT_FILE, DamagedFile
from biomedclip.processing.pmc.build import build_dataset
from biomedclip.processing.pmc.verify import verify_dataset

from .cli.build_options import EngineOptions, OutputOptions, SourceOptions, VerifyOptions, read_build_options
from .cli.build_report import show_report, show_verification
from .cli.errors import UsageError, usage_errors
from .cli.options import option_value, parse_options
from .cli.plots import plot_report
from .cli.reporting import say, versions, write_json, write_text
from .hub.dataset_upload import push_dataset
from .hub.publishing import check_write_access


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip build` with the command line after the verb.

    Raises:
        DamagedFile: If `--verify` finds a fault.
    """
    description = __doc__.split("\n\n")[0]
    if option_value("build", "verify", arguments) is not None:
        example = "biomedclip build --verify out"
        (verify_options,) = parse_options(
            "build --verify", [VerifyOptions], arguments, description=description, example=example, sections=["build"]
        )
        verify(Path(verify_options.verify))
        return
    classes = (SourceOptions, EngineOptions, OutputOptions)
    example = "biomedclip build --source path/of/a/mirror --output-dir out"
    source, engine, output = parse_options("build", classes, arguments, description=description, example=example)
    if output.push_to:
        check_write_access(output.push_to)
        find_file(Path(output.output_dir), REPORT_FILE)  # an existing dataset is published as it is
    try:
        report = build(source, output, engine)
    except KeyboardInterrupt:
        say("Interrupted. Run the same command again: it continues from here.")
        raise
    folder = output.output_dir
    if report is None:
        say(f"Submitted. The dataset will be in {folder}/data, and the logs are in {folder}/.build/logs.")
        return
    show_report(report)
    say(f"Dataset in {folder}: data/, README.md, {REPORT_FILE}, report.png, articles.parquet, skipped.jsonl")


def verify(folder: Path) -> None:
    """Verify the dataset in a folder and print the result.

    Raises:
        DamagedFile: If there is a fault. All faults are printed.
    """
    result = verify_dataset(folder, progress=True)
    show_verification(result, str(folder))
    if result.faults:
        raise DamagedFile(f"{folder}: {len(result.faults):,} fault(s), listed above. Build the dataset again.")


def build(
    source: SourceOptions, output: OutputOptions, engine: EngineOptions | None = None, *, synthetic: bool = False
) -> dict[str, Any] | None:
    """Build a dataset with its card and report. Return the report, or None if the work was submitted to Slurm.

    By default, the build runs on all cores of this machine. The card states whether the articles are synthetic.
    """
    engine = engine or EngineOptions()
    with usage_errors():
        build_options = read_build_options(source, seed=output.seed)
        if source.overwrite and source.update:
            raise UsageError("`overwrite` and `update` exclude each other. Pass one of them.")
    if engine.executor == "slurm" and shutil.which("sbatch") is None:
        raise UsageError("--executor slurm: sbatch was not found. Run the command on a machine that submits jobs.")
    options = {key: value for part in (source, engine, output) for key, value in dataclasses.asdict(part).items()}
    return build_dataset(
        build_options,
        output.output_dir,
        engine=engine,
        overwrite=source.overwrite,
        update=source.update,
        # Both are pickled for the machine that runs them.
        finish=partial(write_documents, options, synthetic),
        publish=partial(publish, output.push_to, output.private) if output.push_to else None,
        progress=True,
    )


def write_documents(options: dict[str, Any], synthetic: bool, report: dict[str, Any], folder: Path) -> None:
    """Write the card, the plot and the report to the folder of a finished dataset."""
    report |= {"synthetic": synthetic, "options": options, "versions": versions()}
    plot_report(report, folder / "report.png")
    write_text(folder / "README.md", fill_dataset_card(report))
    write_json(folder / REPORT_FILE, report)


def publish(repo_id: str, private: bool, report: dict[str, Any], folder: Path) -> None:
    """Publish the folder of a dataset on the Hub."""
    say(f"Published at {push_dataset(folder, repo_id, private=private, report=report)}")
