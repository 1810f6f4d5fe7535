"""Run one model on one task."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..cli.reporting import say
from .dual_encoders import DualEncoder, load_dual_encoder
from .features import FEATURES, FeatureStore
from .results import write_results


SHOWN_DAMAGED = 5
FEW = 30  # with fewer articles or images, the bootstrap intervals are too narrow


@dataclass(frozen=True)
class Run:
    """One model on one task.

    `data` is read once for all models, `output_dir` is the folder of this model's results, `command` has the arguments
    of `biomedclip evaluate`, and `encoder` is the model if it is already loaded.
    """

    model: str
    data: Any
    options: Any
    output_dir: Path
    command: Sequence[str]
    encoder: DualEncoder | None = None
    started: float = field(default_factory=time.monotonic)

    def load(self) -> tuple[DualEncoder, FeatureStore]:
        """Return the model and the store of its features."""
        options = self.options
        encoder = self.encoder or load_dual_encoder(
            self.model, precision=options.precision, trust_remote_code=options.trust_remote_code
        )
        store = FeatureStore(
            encoder,
            Path(options.features_dir or Path(options.output_dir) / FEATURES),
            batch_size=options.batch_size,
            max_length=getattr(options, "max_length", None),
            workers=options.workers,
        )
        return encoder, store

    def write(
        self,
        encoder: DualEncoder,
        *,
        data: Mapping[str, Any],
        settings: Mapping[str, Any],
        damaged: str = "damaged images",
        also: str = "",
        **content: Any,
    ) -> dict[str, Any]:
        """Write `results.json`, print the notes and what was not measured, and return the content of the file.

        `data` has `fingerprint`, `rows`, `damaged` and `notes`. `damaged` is the plural noun for its entries. `also`
        names other files of the results. The settings of every task are added to `settings`. The rest goes to
        [`write_results`].
        """
        if data["damaged"]:
            names = ", ".join(f"{entry['name']} ({entry['reason']})" for entry in data["damaged"][:SHOWN_DAMAGED])
            rest = len(data["damaged"]) - SHOWN_DAMAGED
            more = f", and {rest:,} more" if rest > 0 else ""
            say(f"{len(data['damaged']):,} {damaged} are left out: {names}{more}.")
        for note in data["notes"]:
            say(f"Note: {note}")
        options = self.options
        results = write_results(
            self.output_dir,
            task=options.task,
            benchmark=options.benchmark,
            command=self.command,
            encoder=encoder,
            data={"path": options.data, "split": options.split, **data},
            settings={
                **{name: getattr(options, name, None) for name in ("batch_size", "max_length", "seed")},
                "processes": PartialState().num_processes,
                **settings,
            },
            seconds=time.monotonic() - self.started,
            **content,
        )
        say(f"Results in {self.output_dir / 'results.json'}{also}")
        return results


def note_if_few(count: int, what: str) -> list[str]:
    """Return a note if there are too few articles or images for the bootstrap."""
    return [f"Only {count} {what}: the intervals are too narrow."] if count < FEW else []
