"""Figures per second of the panel detector: PyTorch, exported graphs, and the recursive X-Y cut, with all cores.

OMP_WAIT_POLICY=PASSIVE python tests/performance/panel_detection.py --detector detector --images figures

A round is what `biomedclip panels` does: read and decode the figures, resize them, run the network, and find the panels
in its output. The network alone runs on prepared figures. Without --detector, its weights are random, and it finds no
panels. Without --images, the figures are drawn, and saved as JPEG.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import median_ratio, parser_of, report, take_turns
from tqdm.auto import tqdm

from biomedclip import (
    ExportedPanelDetector,
    PanelDetectionConfig,
    PanelDetectionImageProcessor,
    PanelDetectionModel,
    export_panel_detector,
)
from biomedclip.panel_detector_export import PRECISIONS
from biomedclip.processing.images.inputs import find_inputs
from biomedclip.processing.images.reading import read_image
from biomedclip.processing.panels.detection import PanelDetector
from biomedclip.processing.panels.image_types import IMAGE_TYPES
from biomedclip.processing.panels.synthesis.drawn_singles import figures_without_data
from biomedclip.processing.panels.synthesis.labels import CLASSES
from biomedclip.run_scripts.cli.fields import WORKERS
from biomedclip.run_scripts.panel_rows.detectors import X_Y_CUT, cut_figures
from biomedclip.run_scripts.panel_rows.exports import measure_errors
from biomedclip.run_scripts.panel_rows.rows import find_panels


FLOAT32, BFLOAT16 = "torch float32", "torch bfloat16"
QUALITY = 90  # of the JPEG files of drawn figures
COLUMNS = ["", "figures/s", "ms of processor", "x float32", "network alone/s", "score error", "same number"]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--detector", help="folder of a panel detector")
    parser.add_argument("--images", type=Path, help="folder of figures")
    parser.add_argument("--figures", type=int, default=128, help="number of figures of a round, at most")
    parser.add_argument("--calibration", type=int, default=64, help="number of drawn figures to calibrate int8 on")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=WORKERS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.images or draw(Path(scratch), options.figures)
        files = [str(row.path) for row in find_inputs([str(folder)]).rows(0, options.figures)]
        model, processor = load(options.detector)
        detectors = detectors_of(model, processor, Path(scratch), options.calibration)
        results = measure(detectors, files, options)
    threads = f"{torch.get_num_threads()} threads, batches of {options.batch_size}, {options.workers} readers"
    title = f"{len(files)} {'' if options.images else 'drawn '}figures, {threads}"
    rows = [[name, *found.values()] for name, found in results.items()]
    report({"panel_detection": results}, [(title, rows, COLUMNS)], options.output)


def draw(folder: Path, count: int) -> Path:
    """Write drawn figures, with another seed than those of the calibration."""
    drawn = figures_without_data(count, seed=1)
    for number in tqdm(range(count), desc="figures"):
        drawn.figure(number).image.convert("RGB").save(folder / f"{number:06}.jpg", quality=QUALITY)
    return folder


def load(name: str | None) -> tuple[PanelDetectionModel, PanelDetectionImageProcessor]:
    if name is None:
        torch.manual_seed(0)
        config = PanelDetectionConfig(printed_labels=list(CLASSES), image_types=list(IMAGE_TYPES))
        return PanelDetectionModel(config).eval(), PanelDetectionImageProcessor()
    processor = PanelDetectionImageProcessor.from_pretrained(name, trust_remote_code=False)
    return PanelDetectionModel.from_pretrained(name, trust_remote_code=False).eval(), processor


class HalfPrecision(torch.nn.Module):
    """A detector that computes in bfloat16."""

    device = torch.device("cpu")

    def __init__(self, model: PanelDetectionModel):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, pixel_values: torch.Tensor) -> Any:
        """Run the detector."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.model(pixel_values)


def detectors_of(
    model: PanelDetectionModel, processor: PanelDetectionImageProcessor, scratch: Path, calibration: int
) -> dict[str, PanelDetector]:
    """Return the detector in each precision, in PyTorch and exported."""
    drawn = figures_without_data(calibration)
    pixels = [
        processor(drawn.figure(number).image, return_tensors="pt")["pixel_values"]
        for number in tqdm(range(calibration), desc="calibration")
    ]
    exported = scratch / "exported"
    export_panel_detector(model, exported, precision=PRECISIONS, calibration=pixels)
    return {
        FLOAT32: PanelDetector(model, processor),
        BFLOAT16: PanelDetector(HalfPrecision(model), processor),
        **{
            f"exported {precision}": PanelDetector(ExportedPanelDetector(exported, precision=precision), processor)
            for precision in PRECISIONS
        },
    }


def measure(detectors: dict[str, PanelDetector], files: Sequence[str], options: Any) -> dict[str, dict[str, Any]]:
    """Return the rates and the errors of all detectors, and the rate of the X-Y cut."""
    clock = lambda: np.array([time.perf_counter(), time.process_time()])  # noqa: E731
    everything: dict[str, Callable[[], Any]] = {
        name: lambda detect=detect: read_and_find(detect, files, options)
        for name, detect in {**detectors, X_Y_CUT: cut_figures}.items()
    }
    seconds, _ = take_turns(everything, options.rounds, clock)
    images = [read_image(file) for file in files]
    first = next(iter(detectors.values()))
    batches = [
        first.image_processor(images[start : start + options.batch_size], return_tensors="pt")["pixel_values"]
        for start in range(0, len(images), options.batch_size)
    ]
    networks = {name: lambda detect=detect: run_network(detect, batches) for name, detect in detectors.items()}
    alone, _ = take_turns(networks, options.rounds)
    others = {name: detect for name, detect in detectors.items() if name != FLOAT32}
    errors = measure_errors(detectors[FLOAT32], others, images)
    return {
        name: {
            "figures_per_second": len(files) / statistics.median(wall for wall, _ in of_rounds),
            "processor_milliseconds": 1000 * statistics.median(work for _, work in of_rounds) / len(files),
            "times_float32": median_ratio([wall for wall, _ in seconds[FLOAT32]], [wall for wall, _ in of_rounds]),
            "network_per_second": len(files) / statistics.median(alone[name]) if name in alone else None,
            "largest_score_difference": errors[name]["largest_score_difference"] if name in errors else None,
            "same_number_of_panels": errors[name]["same_number_of_panels"] if name in errors else None,
        }
        for name, of_rounds in seconds.items()
    }


def read_and_find(detect: Callable[[Sequence[Image.Image]], Any], files: Sequence[str], options: Any) -> int:
    """Find the panels of all figures as the command does, and return their number."""
    inputs = find_inputs(list(files))
    rows = inputs.rows(0, len(inputs))
    found = find_panels(detect, rows, {}, batch_size=options.batch_size, workers=options.workers)
    return sum(len(figure.figure.panels) for figure in found if figure.figure is not None)


@torch.inference_mode()
def run_network(detect: PanelDetector, batches: Sequence[torch.Tensor]) -> None:
    for batch in batches:
        detect.model(batch)


if __name__ == "__main__":
    main()
