"""Export a panel detector, and measure how much its graphs differ from it."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from biomedclip import ExportedPanelDetector, PanelDetectionModel, export_panel_detector
from biomedclip.conversion.files import read_json
from biomedclip.panel_detector_export import check_detector_precisions
from biomedclip.processing import PanelDetectionImageProcessor
from biomedclip.processing.images.errors import ImageError
from biomedclip.processing.images.inputs import find_inputs
from biomedclip.processing.images.reading import read_row_image
from biomedclip.processing.panels.detection import LABEL_SCORE, OURS, SCORE, PanelDetector
from biomedclip.processing.panels.synthesis.drawn_singles import figures_without_data
from biomedclip.source_checks import check_source

from ..cli.reporting import refuse_filled, show_table, versions, write_json
from ..evaluation.checks import config_on_hub


logger = logging.getLogger(__name__)

REPORT = "export_report.json"
OWN_DETECTOR = "panel-detector"  # names the detector of the package, unless a folder has this name
# Numbers of drawn figures without --images.
CALIBRATION, MEASUREMENT = 64, 32


def is_panel_detector(name: str) -> bool:
    """Return whether the configuration in a folder or on the Hub is that of a [`PanelDetectionModel`]."""
    folder = _source(name)
    if folder.exists():
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    else:
        try:
            config = config_on_hub(name, name)
        except FileNotFoundError:  # the export says so
            return False
    return isinstance(config, dict) and config.get("model_type") == PanelDetectionModel.config_class.model_type


def _source(name: str) -> Path:
    return OURS if name == OWN_DETECTOR and not Path(name).exists() else Path(name)


def export_detector(
    name: str, output_dir: Path, *, format: str, precisions: Sequence[str], images: Sequence[str], overwrite: bool
) -> dict[str, Any]:
    """Export a panel detector with its image processor, measure its error, and return `export_report.json`.

    With int8, every second image is for the calibration, and the error is measured on the others.
    """
    check_detector_precisions(format, precisions)
    source = str(_source(name))
    check_source(source, trust_remote_code=False)
    refuse_filled(output_dir, overwrite=overwrite)
    started = time.monotonic()
    model = PanelDetectionModel.from_pretrained(source, dtype=torch.float32, trust_remote_code=False).eval()
    processor = PanelDetectionImageProcessor.from_pretrained(source, trust_remote_code=False)
    quantizes = "int8" in precisions
    calibration, measurement = _read_figures(images, quantizes) if images else _drawn_figures(quantizes)
    inputs = (processor(figure, return_tensors="pt")["pixel_values"] for figure in calibration)
    export_panel_detector(model, output_dir, precision=precisions, calibration=inputs if quantizes else None)
    processor.save_pretrained(output_dir)
    errors = measure_errors(
        PanelDetector(model, processor),
        {
            precision: PanelDetector(ExportedPanelDetector(output_dir, precision=precision), processor)
            for precision in precisions
        },
        measurement,
    )
    files = [file for file in output_dir.rglob("*") if file.is_file()]
    report = {
        "model": name,
        "format": format,
        "precision": precisions[0],
        "error": errors[precisions[0]],
        "errors": errors,
        "calibration_figures": len(calibration) if quantizes else 0,
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        "seconds": round(time.monotonic() - started, 1),
        "versions": versions(),
    }
    write_json(output_dir / REPORT, report)
    return report


def measure_errors(
    exact: PanelDetector, exported: Mapping[str, PanelDetector], figures: Sequence[Image.Image]
) -> dict[str, dict[str, Any]]:
    """Return the error of each exported detector on figures.

    Scores are those of panels and labels in all cells and of compound figures, between 0 and 1. Boxes are compared in
    the cells in which the exact detector finds a panel or a label, in parts of the width of the input. Their difference
    is None if there are none.
    """
    errors: dict[str, dict[str, Any]] = {
        name: {
            "largest_score_difference": 0.0,
            "largest_box_difference": None,
            "same_number_of_panels": 0,
            "figures": len(figures),
        }
        for name in exported
    }
    for figure in figures:
        expected, count = _run(exact, figure)
        for name, detector in exported.items():
            found, other = _run(detector, figure)
            error = errors[name]
            scores = [error["largest_score_difference"], *_score_differences(found, expected)]
            boxes = [error["largest_box_difference"], *_box_differences(found, expected)]
            error["largest_score_difference"] = max(scores)
            error["largest_box_difference"] = max((each for each in boxes if each is not None), default=None)
            error["same_number_of_panels"] += int(count == other)
    for error in errors.values():
        error["same_number_of_panels"] /= len(figures)
    return errors


def show_errors(report: Mapping[str, Any]) -> None:
    """Print the errors of all precisions."""
    rows = [
        (
            precision,
            f"{error['largest_score_difference']:.2g}",
            "-" if error["largest_box_difference"] is None else f"{error['largest_box_difference']:.2g}",
            error["same_number_of_panels"],
            error["figures"],
        )
        for precision, error in report["errors"].items()
    ]
    title = f"{report['format']}, {report['megabytes']:,} MB, in {report['seconds']} s: largest difference to float32"
    show_table(title, rows, ["precision", "scores", "boxes", "same number of panels", "figures"])


@torch.inference_mode()
def _run(detector: PanelDetector, figure: Image.Image) -> tuple[Any, int]:
    inputs = detector.image_processor(figure, return_tensors="pt")
    output = detector.model(inputs["pixel_values"])
    (panels,) = detector.figures_of(output, [figure])
    return output, len(panels.panels)


def _score_differences(found: Any, expected: Any) -> list[float]:
    names = ("logits", "label_logits", "compound_logits")
    return [float((found[name].sigmoid() - expected[name].sigmoid()).abs().max()) for name in names]


def _box_differences(found: Any, expected: Any) -> list[float]:
    differences = []
    for scores, boxes, least in (("logits", "pred_boxes", SCORE), ("label_logits", "label_boxes", LABEL_SCORE)):
        cells = expected[scores][..., 0].sigmoid() >= least
        if cells.any():
            differences.append(float((found[boxes] - expected[boxes])[cells].abs().max()))
    return differences


def _read_figures(values: Sequence[str], quantizes: bool) -> tuple[list[Image.Image], list[Image.Image]]:
    inputs = find_inputs(values)
    figures = []
    for row in inputs.rows(0, len(inputs)):
        try:
            figures.append(read_row_image(row.image))
        except (ImageError, ImportError) as error:  # DICOM without pydicom
            logger.warning("Skipped: %s", error)
    if not figures:
        raise ValueError(f"--images {' '.join(values)}: none of the {len(inputs)} images can be read.")
    if not quantizes:
        return [], figures
    return figures[::2], figures[1::2] or figures


def _drawn_figures(quantizes: bool) -> tuple[list[Image.Image], list[Image.Image]]:
    calibration, measurement = (
        [drawn.figure(number).image for number in range(len(drawn))]
        for drawn in (figures_without_data(CALIBRATION * quantizes), figures_without_data(MEASUREMENT, seed=1))
    )
    return calibration, measurement
