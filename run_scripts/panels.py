"""Find the panels of compound figures, and split their captions.

biomedclip panels figures --output panels.jsonl
"""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedclip.processing.images.folders import first_names
from biomedclip.processing.images.inputs import IMAGE_COLUMN, find_inputs

from .cli.devices import DEVICE_HELP, choose_device
from .cli.errors import IncompleteError
from .cli.fields import REQUIRED, WORKERS, image_root_option, option, trust_option
from .cli.options import parse_options
from .cli.output import check_output_file, run_record, write_record, write_rows
from .cli.progress import counting, no_bars_without_terminal
from .cli.reporting import show_stage
from .evaluation.checks import check_empty_folder
from .panel_rows.captions import read_captions
from .panel_rows.detectors import check_detector, load_detector
from .panel_rows.overlays import save_overlay
from .panel_rows.rows import COLUMNS, Found, find_panels, row_of


EXAMPLE = """biomedclip panels figures --output panels.jsonl
  biomedclip panels figures --captions captions.csv --overlay overlays"""


@dataclass(kw_only=True)
class PanelOptions:
    """Options of `biomedclip panels`."""

    images: list[str] = option(
        REQUIRED,
        "Files, folders, patterns, - for paths on stdin, tables or datasets. Can be given without --images.",
    )
    output: str | None = option(None, "File for one JSON object per figure and line (default: stdout).")
    captions: str | None = option(None, "CSV or JSON Lines file with the columns file and caption.")
    overlay: str | None = option(None, "Folder for pictures that show the panels.")
    detector: str | None = option(
        None, "Folder or Hub id of an object detector of transformers (default: cuts at empty stripes)."
    )
    image_column: str = option(IMAGE_COLUMN, "Column of the images, or of their paths in a table (default: image).")
    image_root: str | None = image_root_option()
    batch_size: int = option(8, "Batch size (default: 8).")
    workers: int = option(WORKERS, f"Number of threads that read images (default: {WORKERS}).")
    device: str = option("auto", DEVICE_HELP)
    trust_remote_code: bool = trust_option()

    def __post_init__(self):
        for name in ("batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        if self.detector is None and (self.trust_remote_code or self.device != "auto"):
            raise ValueError("--trust-remote-code and --device have no effect without --detector.")


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip panels`."""
    (options,) = parse_options(
        "panels",
        [PanelOptions],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        positionals=["images"],
    )
    panels(options, arguments)


def panels(options: PanelOptions, arguments: Sequence[str]) -> None:
    """Write the panels of figures. Raise `IncompleteError` at the end if an image cannot be read."""
    start = datetime.datetime.now(datetime.UTC)
    trust = options.trust_remote_code
    check_detector(options.detector, trust_remote_code=trust)
    device = choose_device(options.device) if options.detector else "cpu"
    inputs = find_inputs(options.images, image_column=options.image_column, image_root=options.image_root)
    captions = read_captions(Path(options.captions), list(inputs.ids())) if options.captions else {}
    output = Path(options.output) if options.output else None
    check_output_file(output)
    overlay = Path(options.overlay) if options.overlay else None
    if overlay is not None:
        check_empty_folder(overlay, "--overlay")

    show_stage(f"Finding the panels of {len(inputs):,} figures")
    with no_bars_without_terminal():
        detect = load_detector(options.detector, device=device, trust_remote_code=trust)
    unreadable: list[str] = []
    with counting(len(inputs), "Searched", "figure", bar_in_terminal=output is not None) as add:

        def rows() -> Iterator[dict[str, Any]]:
            found: Found
            for number, found in enumerate(
                find_panels(detect, inputs, batch_size=options.batch_size, workers=options.workers)
            ):
                add(1)
                if found.figure is None or found.image is None:
                    unreadable.append(found.input.id)
                elif overlay is not None:
                    save_overlay(found.image, found.figure, overlay, number, found.input.id)
                yield row_of(found, captions)

        write_rows(rows(), COLUMNS, "jsonl", output)
    if output is not None:
        model = {"name": options.detector or "X-Y cut"}
        also = {"figures": len(inputs), "unreadable": len(unreadable)}
        path = write_record(output, run_record("panels", arguments, model=model, device=device, start=start, **also))
        show_stage(f"Panels in {output}, how they were found in {path}")
    if overlay is not None:
        show_stage(f"Pictures in {overlay}")
    if unreadable:
        names, count = first_names(unreadable), len(unreadable)
        raise IncompleteError(f"{count:,} of {len(inputs):,} images cannot be read (column error): {names}.")
