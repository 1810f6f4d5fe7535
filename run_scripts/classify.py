"""Classify images with labels in words, or with a fine-tuned classifier.

biomedclip classify scans --model out/model --labels "chest X-ray" "brain MRI"
"""

import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomedclip.processing.images.folders import first_names
from biomedclip.processing.images.inputs import find_inputs

from .classification.calibrations import load_calibration
from .classification.classifiers import check_classifier, load_fine_tuned, load_zero_shot
from .classification.labels import notes_on_numbers, read_labels
from .classification.options import TOP_K, ClassifyOptions
from .classification.overlays import OverlayWriter
from .classification.predictions import LONG, long_rows, predict, wide_rows, wide_schema
from .classification.tally import Tally
from .classification.true_labels import Measurement, read_true_labels, show_metrics
from .cli.devices import choose_device
from .cli.errors import IncompleteError, UsageError
from .cli.options import parse_options
from .cli.output import check_output_file, choose_format, run_record, write_record, write_rows
from .cli.progress import counting, no_bars_without_terminal
from .cli.reporting import show_stage
from .embedding.encoders import is_exported
from .evaluation.checks import check_empty_folder


EXAMPLE = """biomedclip classify scans --model out/model \\
      --labels "chest X-ray" "brain MRI" --output predictions.csv
  biomedclip classify figures --model out/model --labels taxonomy:imagetypes
  biomedclip classify scans --model out/model --saliency overlays \\
      --labels "chest X-ray" "brain MRI"
  biomedclip classify scans --model classifier --true-labels labels.csv"""


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
    calibration = load_calibration(options.calibration, options.model)
    prompts = read_labels(options.labels, options.template) if options.labels else calibration.prompts or {}
    device = choose_device(options.device)
    own_labels, precision = check_classifier(
        options.model, has_labels=bool(prompts), precision=options.precision, device=options.device
    )
    if options.saliency and (own_labels or is_exported(options.model)):
        kind = "a fine-tuned classifier without prompts" if own_labels else "exported and computes no gradients"
        raise UsageError(f"--model {options.model} is {kind}. Omit --saliency, or pass a dual encoder.")
    labels = own_labels or list(prompts)
    in_prompts = [label for label, texts in prompts.items() if not own_labels and any(label in text for text in texts)]
    for note in notes_on_numbers(in_prompts, "Pass --labels FILE, a YAML file with lines such as '0: healthy knee'."):
        show_stage(f"Note: {note}")
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
        classifier = load(
            options.model, own_labels or prompts, precision=precision, device=device, calibration=calibration
        )
        calibration.check(labels, prompts, classifier.weights)
        calibration.show()
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
        also |= {"calibration": calibration.as_record()}
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
