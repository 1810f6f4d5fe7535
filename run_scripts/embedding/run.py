"""Run `biomedclip embed`: plan the shards, and embed them in this process, in several, or in tasks of a cluster."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ..cli.progress import counting, no_bars_without_terminal
from ..cli.reporting import say
from ..evaluation.checks import check_writable
from ..evaluation.dual_encoders import DualEncoder
from .encoders import check_encoder, load_encoder, text_embeds
from .inputs import Inputs
from .job import Job, check_same, find_all
from .npy import EMBEDDINGS
from .options import EmbedOptions
from .plan import OutputFolder
from .shards import DATA, MODALITIES, shard_paths
from .texts import TEXT


_TRIAL = "image"  # text that is embedded to find the dimension
_SETTINGS = ("dtype", "batch_size", "shard_size")


def embed(options: EmbedOptions, arguments: Sequence[str] = ()) -> bool:
    """Embed the inputs, and write the shards that the output folder lacks. All processes share them.

    `arguments` are those of the command, for the record of the run. Return whether the work is finished. On Slurm, it
    is only submitted.
    """
    start = datetime.datetime.now(datetime.UTC)
    state, folder = PartialState(), Path(options.output)
    trust = options.trust_remote_code
    precision = check_encoder(options.model, options.precision, device=options.device, trust_remote_code=trust)
    output = OutputFolder(folder)
    settings = {name: getattr(options, name) for name in _SETTINGS} | {"precision": precision}
    output.check(settings)
    inputs = find_all(options)
    columns = {"image": options.image_column, "text": options.text_column or TEXT}
    output.check_columns({name: columns[name] for name in inputs})
    check_writable(folder, "--output")
    with no_bars_without_terminal():
        encoder = load_encoder(options.model, precision, trust_remote_code=trust)
    model: dict[str, Any] = {"model": output.content.get("model", options.model)}  # the folder may have moved
    model |= {"weights": encoder.weights, "processing": encoder.processing, "precision": precision}
    model["dimension"] = text_embeds(encoder, [_TRIAL], 1).shape[1]
    output.check(settings | model)
    job = Job(options, list(arguments), start, model)
    job.shards = {
        name: output.plan(
            found,
            job.writer(name, found),
            modality=name,
            column=columns[name],
            shard_size=options.shard_size,
            update=options.update,
            start=start,
        )
        for name, found in inputs.items()
    }
    job.fingerprints = {name: output.fingerprint(name) for name in inputs}
    # This also waits: all processes list the missing shards before the first one is written.
    check_same(*gather_object([job.fingerprints]))
    if state.is_main_process:
        output.begin(settings | model)
    state.wait_for_everyone()
    if options.executor == "local":
        _embed_here(job, encoder, inputs)
        state.wait_for_everyone()
        if not state.is_main_process:
            return True
        job.finish(encoder.model.device)
    else:
        from .tasks import LOGS, run_tasks  # datatrove takes time to import

        del encoder  # a single task of Ray runs in this process
        if not run_tasks(job):
            say(f"Submitted. The embeddings will be in {folder / DATA}, and the logs are in {folder / LOGS}.")
            return False
    items = " and ".join(f"{len(found):,} {MODALITIES[name]}" for name, found in inputs.items())
    say(f"Embeddings of {items} in {len(shard_paths(folder)):,} file(s) in {folder / DATA}")
    if options.format == "npy":
        say(f"All embeddings in {folder / EMBEDDINGS}")
    return True


def _embed_here(job: Job, encoder: DualEncoder, inputs: dict[str, Inputs]) -> None:
    """Embed the share of this process. With several processes, the progress shows the share of the first one."""
    state = PartialState()
    for name, found in inputs.items():
        mine = job.shards[name][state.process_index :: state.num_processes]
        todo = sum(len(shard.items) for shard in mine)
        done = max(len(found) - todo, 0) if state.num_processes == 1 else 0
        title = MODALITIES[name].capitalize()
        with counting(done + todo, title, name, done=done, shown=state.is_main_process) as advance:
            job.embed(encoder, name, found, mine, advance)
