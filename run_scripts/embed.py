"""Embed images and texts, and write the embeddings as Parquet files. A run that was killed continues."""

import datetime
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from biomedclip.model_cards.escaping import one_line
from biomedclip.processing.images.inputs import IMAGE_COLUMN, find_inputs
from biomedclip.training_arguments import are_processes_on_cpu

from .cli.errors import IncompleteError, UsageError
from .cli.fields import REQUIRED, image_root_option, option
from .cli.options import parse_options
from .cli.progress import counting, no_bars_without_terminal
from .cli.reporting import say
from .embedding.embedding import embed_image_shards, embed_text_shards
from .embedding.encoders import PRECISIONS, check_encoder, load_encoder, text_embeds
from .embedding.npy import EMBEDDINGS, write_npy
from .embedding.plan import Inputs, OutputFolder
from .embedding.shards import DATA, DTYPES, MODALITIES, ShardWriter, count_rows, read_errors, shard_paths
from .embedding.texts import find_texts
from .evaluation.checks import check_writable
from .evaluation.features import WORKERS
from .training.runs import end_processes


EXAMPLE = """biomedclip embed scans --model run --output embeddings
  biomedclip embed scans --model run --output embeddings --update
  torchrun --nproc-per-node 8 --no-python biomedclip embed scans --model run \\
      --output embeddings"""
_SHOWN = 5
_TRIAL = "image"  # text that is embedded to find the dimension


@dataclass
class EmbedOptions:
    """Options of `biomedclip embed`."""

    model: str = option(REQUIRED, "Folder or Hub id of a dual encoder, or folder of an exported one.")
    output: str = option(REQUIRED, "Folder for the embeddings. A run that was killed continues in the same folder.")
    images: list[str] = option(
        [], "Images, folders, patterns, tables or datasets. - reads paths from stdin. Can be given without name."
    )
    texts: str | None = option(None, "Texts: a file with one per line, or CSV, JSON lines or Parquet.")
    text_column: str | None = option(None, "Column of the texts in CSV, JSON lines or Parquet.")
    image_column: str = option(IMAGE_COLUMN, "Column of the images, or of their paths in a table (default: image).")
    image_root: str | None = image_root_option()
    format: str = option("parquet", "npy also writes all embeddings as one NumPy file.", ["parquet", "npy"])
    dtype: str = option("float32", "Type of the stored numbers (default: float32).", DTYPES)
    precision: str | None = option(None, "Precision (default: float32, or that of the export).", PRECISIONS)
    batch_size: int = option(32, "Number of images per batch (default: 32).")
    shard_size: int = option(2048, "Number of items per file, a multiple of the batch size (default: 2048).")
    workers: int = option(WORKERS, "Number of threads that decode and resize images (default: cores, at most 8).")
    update: bool = option(False, "Add files for new inputs to a folder of embeddings. The others are not changed.")


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip embed`. The exit status is 1 if there are images or texts without an embedding."""
    (options,) = parse_options(
        "embed", [EmbedOptions], arguments, description=__doc__, example=EXAMPLE, positionals=["images"]
    )
    state = PartialState(cpu=are_processes_on_cpu(), timeout=datetime.timedelta(days=1))
    _check(options, state.num_processes)
    if not state.is_main_process:
        logging.getLogger().setLevel(logging.ERROR)  # each process finds the same inputs
    embed(options)
    folder = Path(options.output)
    failed = list(read_errors(folder)) if state.is_main_process else []
    end_processes()
    if failed:
        # The error of a file starts with its name.
        shown = "".join(
            f"\n  {one_line(name)}: {one_line(text.removeprefix(f'{name}: '))}" for name, text in failed[:_SHOWN]
        )
        more = "\n  ..." if len(failed) > _SHOWN else ""
        count = f"{len(failed):,} of {count_rows(folder):,} items could not be read"
        raise IncompleteError(f"{count}. Their rows have an error and no embedding:{shown}{more}")


def _check(options: EmbedOptions, processes: int) -> None:
    if not options.images and options.texts is None:
        raise UsageError("Pass images, --texts, or both.")
    if options.text_column is not None and options.texts is None:
        raise UsageError("--text-column requires --texts.")
    if options.batch_size < 1 or options.shard_size < 1 or options.shard_size % options.batch_size:
        raise UsageError("--shard-size must be a multiple of --batch-size, and both at least 1.")
    if options.workers < 1:
        raise UsageError("--workers must be at least 1.")
    if "-" in options.images and processes > 1:
        raise UsageError("Paths on stdin reach only one process. With several, pass files, folders or patterns.")


def embed(options: EmbedOptions) -> None:
    """Embed the inputs, and write the shards that the output folder lacks. All processes share them."""
    state, folder = PartialState(), Path(options.output)
    precision = check_encoder(options.model, options.precision)
    output = OutputFolder(folder)
    settings = {name: getattr(options, name) for name in ("image_column", "dtype", "batch_size", "shard_size")}
    settings["precision"] = precision
    output.check(settings)
    inputs: dict[str, Inputs] = {}
    if options.images:
        inputs["image"] = find_inputs(options.images, image_column=options.image_column, image_root=options.image_root)
    if options.texts is not None:
        inputs["text"] = find_texts(options.texts, options.text_column)
    check_writable(folder, "--output")
    with no_bars_without_terminal():
        encoder = load_encoder(options.model, precision)
    model: dict[str, Any] = {"model": output.content.get("model", options.model)}  # the folder may have moved
    model |= {"weights": encoder.weights, "processing": encoder.processing, "precision": precision}
    model["dimension"] = text_embeds(encoder, [_TRIAL], 1).shape[1]
    settings |= model
    output.check(settings)
    writers = {name: ShardWriter(folder, name, found.schema, options.dtype, model) for name, found in inputs.items()}
    shards = {
        name: output.plan(found, writers[name], modality=name, shard_size=options.shard_size, update=options.update)
        for name, found in inputs.items()
    }
    state.wait_for_everyone()  # all processes list the missing shards before the first one is written
    if state.is_main_process:
        output.begin(settings)
    state.wait_for_everyone()
    for name, found in inputs.items():
        mine = shards[name][state.process_index :: state.num_processes]
        # With several processes, the progress shows the share of the first one.
        todo = sum(len(shard.items) for shard in (mine if state.num_processes > 1 else shards[name]))
        done = len(found) - todo if state.num_processes == 1 else 0
        title = MODALITIES[name].capitalize()
        with counting(done + todo, title, name, done=done, shown=state.is_main_process) as advance:
            work: Any = {"batch_size": options.batch_size, "advance": advance}
            if name == "image":
                embed_image_shards(encoder, found, mine, writers[name], workers=options.workers, **work)
            else:
                embed_text_shards(encoder, found, mine, writers[name], **work)
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    for name, planned in shards.items():
        writers[name].check_written(shard.number for shard in planned)
    count = write_npy(folder) if options.format == "npy" else 0
    items = " and ".join(f"{len(found):,} {MODALITIES[name]}" for name, found in inputs.items())
    say(f"Embeddings of {items} in {len(shard_paths(folder)):,} files in {folder / DATA}")
    if count:
        say(f"{count:,} embeddings in {folder / EMBEDDINGS}")
