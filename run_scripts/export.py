"""Export a model as graphs that run without PyTorch, and measure their error.

biomedclip export published exported --precision float32 float16 int8
biomedclip export published exported --format openvino --precision int8 --images my_scans
biomedclip export panel-detector exported --precision int8 --images my_figures
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from biomedclip import ExportedModel, embed_images, embed_texts, export_model
from biomedclip.conversion import load_any_layout, local_checkpoint
from biomedclip.export import FORMATS, check_precisions

from .cli.errors import UsageError
from .cli.fields import REQUIRED, option
from .cli.options import parse_options
from .cli.reporting import refuse_filled, say, show_table, versions, write_json
from .evaluation.verification import LABELS, TEMPLATE, pictures_to_compare
from .hub.export_files import write_files_for_others
from .panel_rows.exports import REPORT, export_detector, is_panel_detector, show_errors


EXAMPLE = """biomedclip export published exported --format openvino --precision int8
  biomedclip export panel-detector exported --precision int8 --images figures"""


@dataclass
class ExportOptions:
    """Options of `biomedclip export`."""

    model: str = option(
        REQUIRED,
        "Folder or Hub id of a BiomedCLIP model in any layout, or of a panel detector; panel-detector "
        "names the one of this package. Can be the first positional argument.",
    )
    output_dir: str = option(REQUIRED, "Folder for the graphs. Can be the second positional argument.")
    format: str = option("onnx", "ONNX Runtime or OpenVINO (default: onnx).", list(FORMATS))
    precision: list[str] = option(
        ["float32"],
        "Precision of the graphs (default: float32). onnx: float32, float16, int8, also several. openvino: "
        "float32, bfloat16, int8. Panel detectors: float32, int8.",
        ["float32", "float16", "bfloat16", "int8"],
    )
    images: list[str] = option(
        [],
        "Images to measure the error on, as for biomedclip embed (default: synthetic figures). Every second one "
        "calibrates int8 of a panel detector.",
    )
    texts: str | None = option(
        None, "File with one text per line to measure the error on (default: labels of the model card)."
    )
    overwrite: bool = option(False, "Write into a folder that is not empty.")


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip export`."""
    (options,) = parse_options(
        "export",
        [ExportOptions],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        positionals=["model", "output_dir"],
    )
    if is_panel_detector(options.model):
        show_errors(_export_detector(options))
        say(f"Graphs, processor and {REPORT} in {options.output_dir}")
        return
    report = export(options)
    rows = [
        (precision, f"{name}s", f"{error['smallest_cosine']:.6f}", f"{error['mean_cosine']:.6f}", error["count"])
        for precision, errors in report["errors"].items()
        for name, error in errors.items()
    ]
    title = f"{options.format}, {report['megabytes']:,} MB, in {report['seconds']} s"
    show_table(f"{title}: cosine to float32", rows, ["precision", "", "smallest", "mean", "measured on"])
    say(f"Graphs, processor and {REPORT} in {options.output_dir}")


def _export_detector(options: ExportOptions) -> dict[str, Any]:
    if options.texts is not None:
        raise UsageError(f"--model {options.model} is a panel detector, for which --texts has no effect. Omit it.")
    return export_detector(
        options.model,
        Path(options.output_dir),
        format=options.format,
        precisions=options.precision,
        images=options.images,
        overwrite=options.overwrite,
    )


def export(options: ExportOptions) -> dict[str, Any]:
    """Export a model with its processor, measure the error of its embeddings, and return `export_report.json`."""
    check_precisions(options.format, options.precision)
    output_dir = Path(options.output_dir)
    refuse_filled(output_dir, overwrite=options.overwrite)
    started = time.monotonic()
    pictures, texts = pictures_to_compare(options.images), _read_texts(options.texts)
    with local_checkpoint(options.model) as source:
        model, processor = load_any_layout(source)
    model.float()
    export_model(model, output_dir, format=options.format, precision=options.precision)
    processor.save_pretrained(output_dir)
    if options.format == "onnx":
        write_files_for_others(output_dir, processor, options.precision, options.model)
    exact = {"image": embed_images(model, processor, pictures), "text": embed_texts(model, processor, texts)}
    errors = {}
    for precision in options.precision:
        exported = ExportedModel(output_dir, precision=precision)
        errors[precision] = {
            "image": _error(embed_images(exported, processor, pictures), exact["image"]),
            "text": _error(embed_texts(exported, processor, texts), exact["text"]),
        }
    files = [file for file in output_dir.rglob("*") if file.is_file()]
    report = {
        "model": options.model,
        "format": options.format,
        "precision": options.precision[0],
        "error": errors[options.precision[0]],
        "errors": errors,
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6),
        "seconds": round(time.monotonic() - started, 1),
        "versions": versions(),
    }
    write_json(output_dir / REPORT, report)
    return report


def _error(embeds: torch.Tensor, exact: torch.Tensor) -> dict[str, float | int]:
    cosines = (embeds.double() * exact.double()).sum(dim=1)
    return {"smallest_cosine": cosines.min().item(), "mean_cosine": cosines.mean().item(), "count": len(cosines)}


def _read_texts(path: str | None) -> list[str]:
    if path is None:
        return [TEMPLATE.format(label) for label in LABELS]
    if not Path(path).is_file():
        raise FileNotFoundError(f"--texts {path}: the file does not exist.")
    texts = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"--texts {path}: the file contains no text.")
    return texts
