"""Classify images with labels in words, or with a fine-tuned classifier.

biomedclip classify scans --model out/model --labels "chest X-ray" "brain MRI"
"""

import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedclip.processing.images.folders import first_names
from biomedclip.processing.images.inputs import IMAGE_COLUMN, find_inputs

from .classification.classifiers import check_classifier, load_fine_tuned, load_zero_shot
from .classification.labels import DEFAULT_TEMPLATE, read_labels
from .classification.overlays import OverlayWriter
from .classification.predictions import LONG, long_rows, predict, wide_rows, wide_schema
from .classification.tally import Tally
from .classification.true_labels import Measurement, read_true_labels, show_metrics
from .cli.devices import DEVICE_HELP, choose_device
from .cli.errors import IncompleteError, UsageError
from .cli.fields import REQUIRED, WORKERS, image_root_option, option
from .cli.options import parse_options
from .cli.output import FORMAT_HELP, FORMATS, check_output_file, choose_format, run_record, write_record, write_rows
from .cli.progress import counting, no_bars_without_terminal
from .cli.reporting import show_stage
from .embedding.encoders import PRECISIONS, is_exported
from .evaluation.checks import check_empty_folder


EXAMPLE = """biomedclip classify scans --model out/model \\
      --labels "chest X-ray" "brain MRI" --output predictions.csv
  biomedclip classify figures --model out/model --labels taxonomy:imagetypes
  biomedclip classify scans --model out/model --saliency overlays \\
      --labels "chest X-ray" "brain MRI"
  biomedclip classify scans --model classifier --true-labels labels.csv"""
TOP_K = 5


@dataclass(kw_only=True)
class ClassifyOptions:
    """Options of `biomedclip classify`."""

    images: list[str] = option(
        REQUIRED,
        "Files, folders, patterns, - for paths on stdin, tables or datasets. Can be given without --images.",
    )
    model: str = option(REQUIRED, "Folder or Hub id of a dual encoder or a fine-tuned classifier, or an adapter.")
    labels: list[str] = option(
        [], "Labels, a text file with one per line, a YAML file with prompts, or taxonomy:imagetypes."
    )
    template: list[str] = option(
        [], f"Prompt with {{}} for the label; may be repeated (default: {DEFAULT_TEMPLATE!r})."
    )
    top_k: int | None = option(None, f"Number of labels for each image (default: {TOP_K}).")
    wide: bool = option(False, "Write one row for each image, with one column of probabilities for each label.")
    format: str | None = option(None, FORMAT_HELP, FORMATS)
    output: str | None = option(None, "File for the predictions (default: stdout).")
    true_labels: str | None = option(None, "CSV file with the columns file and label, to measure the accuracy.")
    image_column: str = option(IMAGE_COLUMN, "Column of the images, or of their paths in a table (default: image).")
    image_root: str | None = image_root_option()
    batch_size: int = option(32, "Batch size (default: 32).")
    workers: int = option(WORKERS, f"Number of threads that read images (default: {WORKERS}).")
    saliency: str | None = option(None, "Folder for images that show which parts speak for the listed labels.")
    precision: str | None = option(
        None, "Precision of the model, also as bf16 (default: float32, or that of the export).", PRECISIONS
    )
    device: str = option("auto", DEVICE_HELP)

    def __post_init__(self):
        for name in ("top_k", "batch_size", "workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}.")
        if self.wide and self.top_k is not None:
            raise ValueError("--wide has a column for every label. Omit --top-k.")
        if self.template and not self.labels:
            raise ValueError("--template has no effect without --labels.")


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip classify`."""
    (options,) = parse_options(
        "classify",
        [ClassifyOptions],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        positionals=["images"],
    )
    classify(options, arguments)


def classify(options: ClassifyOptions, arguments: Sequence[str]) -> None:
    """Classify images and write the predictions. Raise `IncompleteError` at the end if an image cannot be read."""
    start = datetime.datetime.now(datetime.UTC)
    output = Path(options.output) if options.output else None
    form = choose_format(options.format, output)
    prompts = read_labels(options.labels, options.template) if options.labels else {}
    device = choose_device(options.device)
    own_labels, precision = check_classifier(
        options.model, has_labels=bool(prompts), precision=options.precision, device=options.device
    )
    if options.saliency and (own_labels or is_exported(options.model)):
        kind = "a fine-tuned classifier without prompts" if own_labels else "exported and computes no gradients"
        raise UsageError(f"--model {options.model} is {kind}. Omit --saliency, or pass a dual encoder.")
    labels = own_labels or list(prompts)
    schema = wide_schema(labels) if options.wide else LONG
    if options.wide and {"file", "error"} & set(labels):
        raise UsageError("--wide cannot have a label named file or error, which are columns. Omit --wide.")
    inputs = find_inputs(options.images, image_column=options.image_column, image_root=options.image_root)
    ids = list(inputs.ids()) if options.true_labels else []
    truth = read_true_labels(Path(options.true_labels), ids, labels) if options.true_labels else {}
    check_output_file(output)
    if options.saliency:
        check_empty_folder(Path(options.saliency), "--saliency")

    show_stage(f"Classifying {len(inputs):,} images with {len(labels)} labels")
    load: Any = load_fine_tuned if own_labels else load_zero_shot
    with no_bars_without_terminal():
        classifier = load(options.model, own_labels or prompts, precision=precision, device=device)
        overlays = OverlayWriter(Path(options.saliency), classifier.encoder, prompts) if options.saliency else None
    rows_in_terminal = output is None and form != "table" and sys.stdout.isatty()
    with counting(len(inputs), "Classified", bar_in_terminal=not rows_in_terminal) as add:
        tally = Tally(Measurement(truth, labels) if truth else None, add)
        found = predict(classifier, inputs, batch_size=options.batch_size, workers=options.workers)
        if overlays is not None:
            found = overlays.write_all(found, labels, options.top_k or TOP_K)
        found = tally.count(found, labels)
        rows = wide_rows(found, labels) if options.wide else long_rows(found, labels, options.top_k or TOP_K)
        write_rows(rows, schema, form, output)
    metrics = tally.measurement.metrics() if tally.measurement else None
    if metrics:
        show_metrics(metrics)
    if output is not None:
        also: dict[str, Any] = {"precision": precision, "prompts": prompts, "labels": labels}
        also |= {"images": len(inputs), "unreadable": len(tally.unreadable), "predicted": dict(tally.predicted)}
        model = {"name": classifier.name, "type": classifier.type, "weights": classifier.weights}
        record = run_record("classify", arguments, model=model, device=classifier.device, start=start, **also)
        path = write_record(output, record | ({"metrics": metrics} if metrics else {}))
        show_stage(f"Predictions in {output}, how they were made in {path}")
    if options.saliency:
        show_stage(f"Saliency maps in {options.saliency}")
    if tally.unreadable:
        names, count = first_names(tally.unreadable), len(tally.unreadable)
        raise IncompleteError(f"{count:,} of {len(inputs):,} images cannot be read (column error): {names}.")
