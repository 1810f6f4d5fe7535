"""Find the panels of compound figures, and split their captions.

biomedclip panels figures --output panels.jsonl
"""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biomedclip.processing.images.folders import first_names
from biomedclip.processing.images.inputs import IMAGE_COLUMN, find_inputs

from .cli.devices import DEVICE_HELP, choose_device
from .cli.errors import IncompleteError, UsageError
from .cli.fields import REQUIRED, WORKERS, image_root_option, option, trust_option
from .cli.options import parse_options
from .cli.output import check_output_file, run_record, write_record, write_rows
from .cli.progress import counting, no_bars_without_terminal
from .cli.reporting import show_stage
from .evaluation.checks import check_empty_folder
from .panel_rows.captions import read_captions
from .panel_rows.detectors import DETECTOR_HELP, PACKAGED, X_Y_CUT, Detector, check_detector, load_detector
from .panel_rows.overlays import save_overlay
from .panel_rows.rows import COLUMNS, Found, find_panels, row_of
from .panel_rows.types import check_type_model, load_type_model, with_unknown_types, with_zero_shot_types


EXAMPLE = """biomedclip panels figures --output panels.jsonl
  biomedclip panels figures --captions captions.csv --overlay overlays
  biomedclip panels figures --model out/model --unknown-below 0.5"""


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
    detector: str | None = option(None, DETECTOR_HELP)
    model: str | None = option(None, "Folder or Hub id of a dual encoder that tells the types of images by prompts.")
    unknown_below: float | None = option(None, "Least probability of a type or group; below, it is 'unknown'.")
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
        if self.detector in (None, X_Y_CUT) and self.trust_remote_code:
            raise ValueError("--trust-remote-code has no effect without the folder or Hub id of a --detector.")
        if self.detector == X_Y_CUT and self.model is None:
            for name in ("device", "unknown_below"):
                if getattr(self, name) not in ("auto", None):
                    raise ValueError(f"--{name.replace('_', '-')} has no effect with --detector {X_Y_CUT}.")
        if self.unknown_below is not None and not 0 < self.unknown_below <= 1:
            raise ValueError(f"--unknown-below is {self.unknown_below}. It must be above 0 and at most 1.")


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
    check_detector(options.detector, device=options.device, trust_remote_code=trust)
    precision = check_type_model(options.model, device=options.device) if options.model else ""
    device = choose_device("cpu" if options.detector == X_Y_CUT and not options.model else options.device)
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
        detect, types = _tell_types(detect, options, precision, device)
    unreadable: list[str] = []
    with counting(len(inputs), "Searched", "figure", bar_in_terminal=output is not None) as add:

        def rows() -> Iterator[dict[str, Any]]:
            found: Found
            for number, found in enumerate(
                find_panels(
                    detect,
                    inputs.rows(0, len(inputs)),
                    captions,
                    batch_size=options.batch_size,
                    workers=options.workers,
                )
            ):
                add(1)
                if found.figure is None or found.image is None:
                    unreadable.append(found.input.id)
                elif overlay is not None:
                    save_overlay(found.image, found.figure, overlay, number, found.input.id)
                yield row_of(found, captions)

        write_rows(rows(), COLUMNS, "jsonl", output)
    if output is not None:
        model = {"name": options.detector or PACKAGED}
        also = {"image_types": types, "figures": len(inputs), "unreadable": len(unreadable)}
        path = write_record(output, run_record("panels", arguments, model=model, device=device, start=start, **also))
        show_stage(f"Panels in {output}, how they were found in {path}")
    if overlay is not None:
        show_stage(f"Pictures in {overlay}")
    if unreadable:
        names, count = first_names(unreadable), len(unreadable)
        raise IncompleteError(f"{count:,} of {len(inputs):,} images cannot be read (column error): {names}.")


def _tell_types(
    detect: Detector, options: PanelOptions, precision: str, device: torch.device
) -> tuple[Detector, dict[str, Any]]:
    """Return the detector with the types of images that the options ask for, and their description for the record."""
    record: dict[str, Any] = {"unknown_below": options.unknown_below}
    if options.model:
        classifier = load_type_model(options.model, precision, device=device)
        detect = with_zero_shot_types(detect, classifier, batch_size=options.batch_size)
        record |= {"model": classifier.name, "weights": classifier.weights, "precision": precision}
    elif options.unknown_below is not None and not getattr(detect, "image_types", ()):
        raise UsageError(f"--detector {options.detector} tells no image types. Omit --unknown-below, or pass --model.")
    return detect if options.unknown_below is None else with_unknown_types(detect, options.unknown_below), record
