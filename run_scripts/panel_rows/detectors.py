"""Detectors of panels: the recursive X-Y cut, or an object detector of transformers."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from biomedclip import ExportedPanelDetector
from biomedclip.processing import PanelDetectionImageProcessor
from biomedclip.processing.panels import cut_panels
from biomedclip.processing.panels.detection import PanelDetector
from biomedclip.processing.panels.figure_panels import FigurePanels, Panel
from biomedclip.source_checks import check_source
from biomedclip.weights_fingerprint import weights_fingerprint

from ..cli.errors import UsageError
from ..cli.models import check_model_name
from ..embedding.encoders import is_exported


X_Y_CUT = "x-y-cut"
PACKAGED = "detector of the package"  # its name in records
DETECTOR_HELP = (
    "Folder or Hub id of an object detector of transformers, or x-y-cut for cuts at empty stripes (default: the "
    "detector of this package)."
)


class Detector(Protocol):
    """Finds the panels of figures. Captions, if they are known, may help."""

    def __call__(
        self, images: Sequence[Image.Image], captions: Sequence[str | None] | None = None
    ) -> list[FigurePanels]:
        """Return the panels of each figure."""
        ...


def load_detector(
    name: str | None, *, device: Any = "cpu", threads: int | None = None, trust_remote_code: bool = False
) -> Detector:
    """Return the detector in a folder or on the Hub, the recursive X-Y cut, or the detector of this package.

    `threads` is the number of threads of an exported detector, by default that of PyTorch. It runs on the CPU.
    """
    if name == X_Y_CUT:
        return cut_figures
    if name is not None and is_exported(name):
        model, processor = _load_exported(name, threads)
        return PanelDetector(model, processor)
    return PanelDetector.from_pretrained(name, device=device, trust_remote_code=trust_remote_code)


def _load_exported(name: str, threads: int | None) -> tuple[ExportedPanelDetector, PanelDetectionImageProcessor]:
    model = ExportedPanelDetector(name, threads=threads)
    try:
        processor = PanelDetectionImageProcessor.from_pretrained(name, trust_remote_code=False)
        side = processor.size["height"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--detector {name}: its image processor cannot be loaded ({error}). Export again.") from error
    if side != model.config.image_size:
        raise ValueError(
            f"--detector {name}: preprocessor_config.json makes figures of {side} pixels, but the graph reads "
            f"{model.config.image_size}. Export the detector again."
        )
    return model, processor


def weights_of(model: Any) -> str:
    """Return a fingerprint of the weights of a detector, or of its exported graph."""
    return model.fingerprint if isinstance(model, ExportedPanelDetector) else weights_fingerprint(model)


def check_detector(name: str | None, *, device: str = "auto", trust_remote_code: bool = False) -> None:
    """Check the name and the source of a detector before anything is read.

    Raise `UsageError` if the detector is exported, and an option has no effect on it.
    """
    if name is not None and name != X_Y_CUT:
        check_model_name(name, "--detector")
        check_source(name, trust_remote_code=trust_remote_code)
        if is_exported(name) and trust_remote_code:
            raise UsageError(f"--detector {name} is exported, and contains no code. Omit --trust-remote-code.")
        if is_exported(name) and device not in ("auto", "cpu"):
            raise UsageError(f"--detector {name} is exported, and runs only on the CPU. Omit --device.")


def cut_figures(images: Sequence[Image.Image], captions: Sequence[str | None] | None = None) -> list[FigurePanels]:
    """Return the panels of each figure by the recursive X-Y cut, which tells no labels, types and scores.

    It needs no captions.
    """
    figures = []
    for image in images:
        boxes = cut_panels(image)
        panels = tuple(Panel((float(a), float(b), float(c), float(d)), 1.0) for a, b, c, d in boxes)
        figures.append(FigurePanels(len(panels) > 1, float(len(panels) > 1), panels))
    return figures
