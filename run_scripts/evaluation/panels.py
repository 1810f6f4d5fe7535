"""Evaluate a detector of panels on annotated figures, and how captions are split by panels."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate import PartialState
from PIL import Image

from biomedclip.processing.benchmarks.fingerprint import fingerprint_of
from biomedclip.processing.images.inputs import InputImage
from biomedclip.processing.panels import split_caption
from biomedclip.processing.panels.annotations import (
    AnnotatedCaption,
    AnnotatedFigure,
    read_annotations,
    read_split_captions,
)
from biomedclip.processing.panels.detection import PanelDetector
from biomedclip.processing.panels.figure_panels import FigurePanels
from biomedclip.processing.panels.pairing import split_for
from biomedclip.processing.tables import read_text

from ..cli.errors import UsageError
from ..cli.output import write_rows
from ..cli.progress import counting, no_bars_without_terminal
from ..cli.reporting import say_undefined, show_table
from ..panel_rows.detectors import PACKAGED, X_Y_CUT, Detector, check_detector, load_detector, weights_of
from ..panel_rows.rows import COLUMNS, find_panels, row_of
from ..panel_rows.types import check_type_model, load_type_model, with_zero_shot_types
from .caption_metrics import MODES, SHOWN_METRICS, Similarity, caption_metrics, load_rouge_l
from .panel_metrics import MeasuredFigure, panel_metrics
from .predictions import PredictionTable
from .report.panels import write_panel_report
from .run import Run, note_if_few, with_interval
from .statistics.bootstrap import undefined_metrics


PANELS = "panels"
NO_DETECTOR = "captions alone"
PREDICTIONS = "panels.jsonl"
OF_IMAGES = (
    "model",
    "detector",
    "device",
    "batch_size",
    "workers",
    "report",
)  # options that have an effect with --images only
PREDICTED = pa.schema(
    [
        ("file", pa.string()),
        *((name, pa.int64()) for name in ("true", "predicted")),
        *((name, pa.bool_()) for name in ("true_compound", "predicted_compound")),
        ("compound_score", pa.float64()),
        ("group", pa.string()),
    ]
)


@dataclass(frozen=True)
class PanelData:
    """Annotated figures, or captions alone, with a fingerprint, and ROUGE-L if there are captions."""

    figures: Sequence[AnnotatedFigure]
    captions: Sequence[AnnotatedCaption]
    fingerprint: str
    rouge_l: Similarity | None


@dataclass(frozen=True)
class MeasuredDetector:
    """Description of the detector and of the model of image types in `results.json`."""

    name: str
    type: str
    weights: str = "none"
    model: Any = None
    precision: str = "float32"
    types: Mapping[str, str] | None = None


def check_panel_options(options: Any, given: set[str]) -> None:
    """Raise `UsageError` if `--data` is missing, or if an option has no effect without `--images`."""
    if not options.data:
        raise UsageError("panels requires --data, a table of annotated figures.")
    if options.images is None and (vain := [name for name in OF_IMAGES if name in given]):
        option = vain[0].replace("_", "-")
        raise UsageError(f"--{option} has no effect without --images: only captions are evaluated. Omit it.")
    if options.detector in (None, X_Y_CUT) and "trust_remote_code" in given:
        raise UsageError("--trust-remote-code has no effect without the folder or Hub id of a --detector. Omit it.")
    if len(options.model) > 1:
        raise UsageError(f"--model: panels takes one model that tells image types, not {len(options.model)}.")


def read_annotated(options: Any) -> PanelData:
    """Read the annotated figures, or the captions if there is no folder of pictures. Check the models.

    Raise `FileNotFoundError` if pictures or models are missing, `ValueError` if a row is faulty, and `ImportError` if
    there are captions and `rouge-score` is not installed.
    """
    check_detector(options.detector, device=options.device, trust_remote_code=options.trust_remote_code)
    for model in options.model:
        check_type_model(model, device=options.device)
    table = Path(options.data)
    figures = read_annotations(table, Path(options.images), strict=True) if options.images is not None else []
    captions = split_captions_of(figures) if figures else read_split_captions(table)
    fingerprint = fingerprint_of([[read_text(table)]], [figure.file for figure in figures])
    return PanelData(figures, captions, fingerprint, load_rouge_l() if captions else None)


def split_captions_of(figures: Sequence[AnnotatedFigure]) -> list[AnnotatedCaption]:
    """Return the captions of figures that were split by hand."""
    return [figure.split_caption for figure in figures if figure.split_caption is not None]


def evaluate_panels(run: Run) -> dict[str, Any] | None:
    """Evaluate panels, labels, types and captions. The first process writes and returns the results."""
    if not PartialState().is_main_process:
        return None
    data: PanelData = run.data
    captions, splits = data.captions, {}
    detector = MeasuredDetector(NO_DETECTOR, "grammar")
    metrics: dict[str, Any] = {}
    measured: list[MeasuredFigure] = []
    damaged: list[dict[str, str]] = []
    if data.figures:
        detector, found = find_all(data.figures, run.options, run.output_dir)
        measured, damaged = found.figures, found.damaged
        if not measured:
            raise ValueError(f"--images {run.options.images}: no picture can be read.")
        metrics = panel_metrics(measured, seed=run.options.seed)
        show_panels(metrics, detector.name)
        if found.differ:
            alone = panel_metrics(found.without_captions, seed=run.options.seed)
            show_captions_help(metrics, alone)
            metrics["without_captions"] = alone
        captions = split_captions_of([figure.gold for figure in measured])
        splits["read_labels"] = [
            split_for(figure.found, figure.gold.split_caption.text)[0]
            for figure in measured
            if figure.gold.split_caption is not None
        ]
    if captions and data.rouge_l is not None:
        splits["caption_alone"] = [split_caption(caption.text) for caption in captions]
        splits["gold_labels"] = [split_caption(caption.text, caption.labels or None) for caption in captions]
        of_modes = {
            mode: caption_metrics(captions, splits[mode], data.rouge_l, seed=run.options.seed)
            for mode in MODES
            if mode in splits
        }
        metrics["sub_captions"] = {"captions": len(captions), **of_modes}
        reasons = {
            f"sub_captions {mode} {name}": reason
            for mode, found in of_modes.items()
            for name, reason in undefined_metrics(found).items()
        }
        if reasons:
            metrics["undefined"] = metrics.get("undefined", {}) | reasons
        show_captions(metrics["sub_captions"])
    articles = {each.article for each in (data.figures or captions)}
    return run.write(
        detector,
        data={
            "split": "all",
            "fingerprint": data.fingerprint,
            "rows": len(data.figures or captions) - len(damaged),
            "damaged": damaged,
            "notes": note_if_few(len(articles), "articles"),
        },
        metrics=metrics,
        paper={},
        paper_source="",
        settings={"images": run.options.images, **({"type_model": detector.types} if detector.types else {})},
        predictions=PredictionTable([_prediction(figure) for figure in measured], PREDICTED) if measured else None,
        also=f", the panels of each figure in {run.output_dir / PREDICTIONS}" if data.figures else "",
        report=partial(write_panel_report, figures=measured),
    )


def _prediction(figure: MeasuredFigure) -> dict[str, Any]:
    """Return a figure as a row of `predictions.parquet`. Its boxes are in `panels.jsonl`."""
    return {
        "file": figure.gold.name,
        "true": len(figure.gold.panels),
        "predicted": len(figure.found.panels),
        "true_compound": figure.is_compound,
        "predicted_compound": figure.found.compound,
        "compound_score": figure.found.compound_score,
        "group": figure.gold.article,
    }


@dataclass(frozen=True)
class FoundPanels:
    """Figures with their panels, the same without the help of captions, and the figures that cannot be read."""

    figures: list[MeasuredFigure]
    without_captions: list[MeasuredFigure]
    damaged: list[dict[str, str]]

    @property
    def differ(self) -> bool:
        """Whether captions changed anything."""
        return self.figures != self.without_captions


def find_all(figures: Sequence[AnnotatedFigure], options: Any, folder: Path) -> tuple[MeasuredDetector, FoundPanels]:
    """Find the panels of all figures, with and without their captions, and write `panels.jsonl` with the former."""
    detect, detector = _load(options)
    measured: list[MeasuredFigure] = []
    damaged: list[dict[str, str]] = []
    alone: list[FigurePanels] = []
    captions = {figure.name: figure.caption for figure in figures if figure.caption is not None}
    images = (InputImage(figure.name, figure.file) for figure in figures)

    def detect_twice(images: Sequence[Image.Image], captions: Sequence[str | None] | None = None) -> list[FigurePanels]:
        without, found = _without_and_with(detect, images, captions)
        alone.extend(without)
        return found

    def rows(add: Callable[[int], None]) -> Iterator[dict[str, Any]]:
        results = find_panels(detect_twice, images, captions, batch_size=options.batch_size, workers=options.workers)
        for figure, found in zip(figures, results, strict=True):
            add(1)
            if found.figure is None:
                damaged.append({"name": figure.name, "reason": str(found.error)})
            else:
                measured.append(MeasuredFigure(figure, found.figure))
            yield row_of(found, captions)

    with counting(len(figures), "Searched", "figure") as add:
        write_rows(rows(add), COLUMNS, "jsonl", folder / PREDICTIONS)
    without = [replace(figure, found=panels) for figure, panels in zip(measured, alone, strict=True)]
    return detector, FoundPanels(measured, without, damaged)


def _without_and_with(
    detect: Detector, images: Sequence[Image.Image], captions: Sequence[str | None] | None
) -> tuple[list[FigurePanels], list[FigurePanels]]:
    """Return the panels of each figure without the help of captions, and with it."""
    if not any(caption is not None for caption in captions or ()):
        without = detect(images)
        return without, without
    if isinstance(detect, PanelDetector):  # its network does not see the captions
        outputs = detect.outputs_of(images)
        return detect.figures_of(outputs, images), detect.figures_of(outputs, images, captions)
    return detect(images), detect(images, captions)


def _load(options: Any) -> tuple[Detector, MeasuredDetector]:
    device = PartialState().device
    with no_bars_without_terminal():
        detect = load_detector(options.detector, device=device, trust_remote_code=options.trust_remote_code)
        model = getattr(detect, "model", None)
        detector = MeasuredDetector(X_Y_CUT, "recursive X-Y cut")
        if model is not None:
            precision = getattr(model, "precision", "float32")  # of an exported detector
            kind, weights = model.config.model_type, weights_of(model)
            detector = MeasuredDetector(options.detector or PACKAGED, kind, weights, model, precision)
        for name in options.model:
            precision = check_type_model(name, device=options.device)
            classifier = load_type_model(name, precision, device=device)
            detect = with_zero_shot_types(detect, classifier, batch_size=options.batch_size)
            detector = replace(detector, types={"name": classifier.name, "weights": classifier.weights})
    return detect, detector


def show_panels(metrics: dict[str, Any], detector: str) -> None:
    """Print the metrics of figures with their intervals, and those of the groups of image types."""
    compound, everything = metrics["panels_of_compound_figures"], metrics["panels_of_all_figures"]
    rows: list[tuple[Any, ...]] = [
        (f"{name} at IoU 0.5" if name != "ImageCLEF accuracy" else name, *(with_interval(part, key) for part in parts))
        for parts in [(compound, everything)]
        for name, key in (
            ("ImageCLEF accuracy", "imageclef_accuracy"),
            ("recall", "recall"),
            ("precision", "precision"),
            ("mAP", "average_precision"),
        )
    ]
    title = f"Panels of {metrics['figures']:,} figures of {metrics['articles']:,} articles, {detector}"
    show_table(
        f"{title} [95 % interval]",
        rows,
        ["", f"{metrics['compound_figures']:,} compound figures", "all figures"],
    )
    kinds, labels, types = (metrics[name] for name in ("single_or_compound", "printed_labels", "image_types"))
    rows = [
        *((f"compound: {name}".replace("f1", "F1"), with_interval(kinds, name)) for name in ("f1", "precision")),
        *((f"compound: {name}", with_interval(kinds, name)) for name in ("recall", "accuracy")),
        ("printed labels: right", with_interval(labels, "recall")),
        ("  among found panels", with_interval(labels, "accuracy_of_found_panels")),
        ("  of those that were read", with_interval(labels, "precision")),
        ("image group of found panels", with_interval(types, "group_accuracy")),
        ("image type of found panels", with_interval(types, "accuracy")),
        ("  macro F1", with_interval(types, "macro_f1")),
    ]
    show_table("Figures, labels and types [95 % interval]", rows, ["", "value"])
    if types["accuracy"] is not None:
        groups = [
            (name, each["panels"], each["precision"], each["recall"], each["f1"])
            for name, each in types["of_group"].items()
            if each["panels"]
        ]
        show_table("Groups of image types", groups, ["", "panels", "precision", "recall", "F1"])
        thresholds = [
            (name, *(types["unknown_below"][name][value] for value in ("threshold", "accepted", "accuracy")))
            for name in ("type", "group")
        ]
        title = f"Smallest --unknown-below with an accuracy of {types['unknown_below']['required_accuracy']}"
        show_table(title, thresholds, ["", "threshold", "accepted", "accuracy"])
    say_undefined(metrics)


def show_captions_help(metrics: dict[str, Any], alone: dict[str, Any]) -> None:
    """Print the main metrics with and without the help of captions."""
    names = {
        "compound figures: F1": ("single_or_compound", "f1"),
        "ImageCLEF accuracy": ("panels_of_compound_figures", "imageclef_accuracy"),
        "recall at IoU 0.5": ("panels_of_compound_figures", "recall"),
        "precision at IoU 0.5": ("panels_of_compound_figures", "precision"),
        "mAP at IoU 0.5": ("panels_of_compound_figures", "average_precision"),
        "printed labels: right": ("printed_labels", "recall"),
        "image group of found panels": ("image_types", "group_accuracy"),
        "image type of found panels": ("image_types", "accuracy"),
    }
    rows = [(name, metrics[part][key], alone[part][key]) for name, (part, key) in names.items()]
    show_table("With and without the help of captions", rows, ["", "image and caption", "image alone"])


def show_captions(metrics: dict[str, Any]) -> None:
    """Print how captions are split, without labels, with those of the annotation, and with those that were read."""
    modes = [mode for mode in MODES if mode in metrics]
    rows = [(label, *(metrics[mode][name] for mode in modes)) for name, label in SHOWN_METRICS.items()]
    show_table(
        f"Sub-captions of {metrics['captions']:,} captions (intervals are in results.json)",
        rows,
        ["", *(MODES[mode] for mode in modes)],
    )


__all__ = ["PANELS", "check_panel_options", "evaluate_panels", "read_annotated"]
