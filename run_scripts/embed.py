"""Embed images and texts, and write the embeddings as Parquet files. A run that was killed continues."""

import logging
from collections.abc import Sequence
from pathlib import Path

from biomedclip.model_cards.escaping import one_line

from .cli.devices import check_device_name, use_device
from .cli.errors import IncompleteError
from .cli.options import parse_options
from .embedding.options import GROUPS, EmbedOptions, check_processes
from .embedding.run import embed
from .embedding.shards import count_rows, read_errors
from .training.runs import end_processes


EXAMPLE = """biomedclip embed scans --model run --output embeddings
  biomedclip embed scans --model run --output embeddings --update
  biomedclip embed scans --model run --output vectors --executor ray --tasks 8
  torchrun --nproc-per-node 8 --no-python biomedclip embed scans --model run \\
      --output embeddings"""
_SHOWN = 5


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip embed`. The exit status is 1 if there are images or texts without an embedding."""
    (options,) = parse_options(
        "embed",
        [EmbedOptions],
        arguments,
        description=__doc__,
        example=EXAMPLE,
        groups=GROUPS,
        positionals=["images"],
    )
    check_device_name(options.device)
    # Tasks of Slurm and Ray run on other machines, which may have other devices.
    state = use_device(options.device if options.executor == "local" else "auto")
    check_processes(options, state.num_processes)
    if not state.is_main_process:
        logging.getLogger().setLevel(logging.ERROR)  # each process finds the same inputs
    is_finished = embed(options, arguments)
    folder = Path(options.output)
    failed = list(read_errors(folder)) if is_finished and state.is_main_process else []
    end_processes()
    if failed:
        # The error of a file starts with its name.
        shown = "".join(
            f"\n  {one_line(name)}: {one_line(text.removeprefix(f'{name}: '))}" for name, text in failed[:_SHOWN]
        )
        more = "\n  ..." if len(failed) > _SHOWN else ""
        count = f"{len(failed):,} of {count_rows(folder):,} items could not be read"
        raise IncompleteError(f"{count}. Their rows have an error and no embedding:{shown}{more}")
