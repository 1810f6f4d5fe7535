"""Exports the towers of a model as graphs that run without PyTorch, and measures their error.

biomedclip export biomedclip exported
biomedclip export biomedclip exported --format openvino --precision int8 --images my_scans
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from biomedclip import ExportedModel, embed_images, embed_texts, export_model
from biomedclip.conversion import load_any_layout, local_checkpoint
from biomedclip.export import FORMATS, check_export

from .cli.options import parse_options
from .cli.reporting import refuse_filled, say, show_table, versions, write_json
from .evaluation.verification import LABELS, TEMPLATE, pictures_to_compare


EXAMPLE = "biomedclip export biomedclip exported --format openvino --precision int8"
REPORT = "export_report.json"


@dataclass
class ExportOptions:
    """What is exported to what."""

    model: str = field(
        metadata={"help": "Folder or Hub id of BiomedCLIP, open_clip's layout included. May stand without its name."}
    )
    output_dir: str = field(metadata={"help": "Folder for the graphs. May stand without its name."})
    format: str = field(
        default="onnx", metadata={"help": "For ONNX Runtime, or for OpenVINO.", "choices": list(FORMATS)}
    )
    precision: str = field(
        default="float32",
        metadata={
            "help": "Precision of the work; bfloat16 for OpenVINO alone.",
            "choices": ["float32", "bfloat16", "int8"],
        },
    )
    images: list[str] = field(
        default_factory=list,
        metadata={"help": "Images, or folders of them, to measure the error on. Drawn figures if left out."},
    )
    texts: str | None = field(
        default=None,
        metadata={"help": "File with a text a line to measure the error on. The published card's labels if left out."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Write into a folder that is not empty."})


def main(arguments: Sequence[str]) -> None:
    """Runs `biomedclip export`."""
    (options,) = parse_options(
        "export",
        [ExportOptions],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        positionals=["model", "output_dir"],
    )
    # The exporter tells its steps in full on the root logger's levels below a warning, and deprecations above.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    report = export(options)
    rows = [
        (f"{name}s, cosine to float32", measured["smallest_cosine"], measured["mean_cosine"], measured["count"])
        for name, measured in report["error"].items()
    ]
    show_table(
        f"{options.format}, {options.precision}, {report['megabytes']:,} MB, in {report['seconds']} s",
        [(name, f"{smallest:.6f}", f"{mean:.6f}", count) for name, smallest, mean, count in rows],
        ["", "smallest", "mean", "measured on"],
    )
    say(f"Graphs and processor in {options.output_dir}, with {REPORT}")


def export(options: ExportOptions) -> dict[str, Any]:
    """Exports a model with its processor and measures the error of its embeddings.

    Args:
        options: What is exported to what.

    Returns:
        The report that `export_report.json` holds.

    Raises:
        FileExistsError: `output_dir` is not empty, and no word of overwriting.
        FileNotFoundError: The model, or something to measure on, is missing.
        ValueError: A precision that the format does not have.
    """
    check_export(options.format, options.precision)
    output_dir = Path(options.output_dir)
    refuse_filled(output_dir, overwrite=options.overwrite)
    started = time.monotonic()
    pictures = pictures_to_compare(options.images)
    texts = _texts(options.texts)
    with local_checkpoint(options.model) as source:
        model, processor = load_any_layout(source)
    model.float()
    export_model(model, output_dir, format=options.format, precision=options.precision)
    processor.save_pretrained(output_dir)
    exported = ExportedModel(output_dir)
    error = {
        "image": _error(embed_images(exported, processor, pictures), embed_images(model, processor, pictures)),
        "text": _error(embed_texts(exported, processor, texts), embed_texts(model, processor, texts)),
    }
    report = {
        "model": options.model,
        "format": options.format,
        "precision": options.precision,
        "error": error,
        "megabytes": round(sum(file.stat().st_size for file in output_dir.iterdir()) / 1e6),
        "seconds": round(time.monotonic() - started, 1),
        "versions": versions(),
    }
    write_json(output_dir / REPORT, report)
    return report


def _error(embeds: torch.Tensor, exact: torch.Tensor) -> dict[str, float | int]:
    cosines = (embeds.double() * exact.double()).sum(dim=1)
    return {"smallest_cosine": cosines.min().item(), "mean_cosine": cosines.mean().item(), "count": len(cosines)}


def _texts(path: str | None) -> list[str]:
    if path is None:
        return [TEMPLATE.format(label) for label in LABELS]
    if not Path(path).is_file():
        raise FileNotFoundError(f"--texts {path}: there is no such file.")
    texts = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if not texts:
        raise ValueError(f"--texts {path}: no texts there.")
    return texts
