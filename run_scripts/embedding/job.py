"""The work of a run of `biomedclip embed`, which this process or tasks on other machines do."""

import datetime
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biomedclip.processing.images.inputs import find_inputs

from ..cli.output import record_path, run_record
from ..cli.reporting import write_json
from ..evaluation.dual_encoders import DualEncoder
from .embedding import embed_image_shards, embed_text_shards
from .inputs import Inputs
from .npy import write_npy
from .options import EmbedOptions
from .plan import Shard
from .shards import MODALITIES, ShardWriter, check_written, count_rows, read_errors
from .texts import find_texts


RECORD = "embedding"  # `embedding.run.json`


@dataclass
class Job:
    """The shards that a run writes. It can be pickled.

    Args:
        options: Options of the command.
        arguments: Its arguments, for the record.
        start: Time in UTC at which it started.
        model: Metadata of the shards: the model, its fingerprints, precision and dimension.
        fingerprints: Fingerprint of the inputs of each modality.
        shards: Shards to write of each modality.
    """

    options: EmbedOptions
    arguments: Sequence[str]
    start: datetime.datetime
    model: Mapping[str, Any]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    shards: Mapping[str, Sequence[Shard]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Return the output folder."""
        return Path(self.options.output)

    def writer(self, modality: str, inputs: Inputs) -> ShardWriter:
        """Return the writer of the shards of a modality."""
        return ShardWriter(self.folder, modality, inputs.schema, self.options.dtype, self.model)

    def embed(
        self,
        encoder: DualEncoder,
        modality: str,
        inputs: Inputs,
        shards: Sequence[Shard],
        advance: Callable[[int], None],
    ) -> None:
        """Embed shards in this process. Call `advance` with the number of items that were embedded."""
        work: Any = {"batch_size": self.options.batch_size, "advance": advance}
        if modality == "image":
            work["workers"] = self.options.workers
        embed = embed_image_shards if modality == "image" else embed_text_shards
        embed(encoder, inputs, shards, self.writer(modality, inputs), **work)

    def finish(self, device: Any, processes: int | None = None) -> None:
        """Check that all shards were written, write the NumPy file if it was requested, and record the run.

        `processes` is the number of processes that embedded (default: those of torchrun). A run that wrote no shard has
        no record.

        Raises:
            FileNotFoundError: If this process cannot see a shard that another one has written.
        """
        for modality, planned in self.shards.items():
            check_written(self.folder, modality, [shard.number for shard in planned])
        if self.options.format == "npy":
            write_npy(self.folder)
        if not any(self.shards.values()):
            return
        path = record_path(self.folder / RECORD)
        try:
            runs = list(json.loads(path.read_text(encoding="utf-8"))["runs"])
        except (OSError, ValueError, KeyError, TypeError):
            runs = []
        also = {
            "executor": self.options.executor,
            "processes": processes or int(os.environ.get("WORLD_SIZE", "1")),
            "embedded": {
                MODALITIES[modality]: sum(len(shard.items) for shard in planned)
                for modality, planned in self.shards.items()
            },
            "files_written": sum(map(len, self.shards.values())),
            "rows": count_rows(self.folder),
            "errors": sum(1 for _ in read_errors(self.folder)),
        }
        model = {"name": self.model["model"]} | {name: self.model[name] for name in self.model if name != "model"}
        run = run_record("embed", self.arguments, model=model, device=device, start=self.start, **also)
        write_json(path, {"runs": [*runs, run]})


def find_all(options: EmbedOptions) -> dict[str, Inputs]:
    """Return the inputs of each modality."""
    inputs: dict[str, Inputs] = {}
    if options.images:
        inputs["image"] = find_inputs(options.images, image_column=options.image_column, image_root=options.image_root)
    if options.texts is not None:
        inputs["text"] = find_texts(options.texts, options.text_column)
    return inputs


def check_same(*fingerprints: Mapping[str, str]) -> None:
    """Raise `ValueError` if processes found other inputs. Each mapping has the fingerprints of a process."""
    for name in fingerprints[0]:
        if len({found[name] for found in fingerprints}) > 1:
            raise ValueError(
                f"The {name}s differ between the processes. Use a folder that all machines share, and do not change it "
                "during the run."
            )
