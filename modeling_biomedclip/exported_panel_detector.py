"""Run the exported graph of a panel detector with the interface of the model."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from .configuration_panel_detection import PanelDetectionConfig
from .export import PACKAGES_TO_RUN, check_packages, read_description
from .modeling_panel_detection import STRIDE, PanelDetectionOutput
from .panel_detector_export import INPUT, OUTPUTS, check_detector_precisions, detector_graph
from .source_checks import read_json


class ExportedPanelDetector:
    """Exported panel detector, run by ONNX Runtime on the CPU. It replaces the model in `PanelDetector`.

    The folder need not be trusted. Graphs that read other files are refused.

    Args:
        folder: Output folder of [`export_panel_detector`] or `biomedclip export`.
        precision: Precision of the graph to run, if the folder contains several. The default is the first one.
        threads: Number of threads. The default is that of PyTorch.

    Attributes:
        precision: Precision of the graph.
        fingerprint: Hash of the file of the graph, 16 hexadecimal digits.

    Raises:
        FileNotFoundError: If a file of the export is missing.
        ValueError: If the folder has no such precision, or if a file is damaged or belongs to another model.
        ImportError: If ONNX Runtime is not installed.

    Example:
    ```python
    >>> from biomedclip import ExportedPanelDetector, PanelDetectionImageProcessor, read_image
    >>> from biomedclip.processing.panels.detection import PanelDetector

    >>> model = ExportedPanelDetector("exported_detector")
    >>> detect = PanelDetector(model, PanelDetectionImageProcessor.from_pretrained("exported_detector"))
    >>> (figure,) = detect([read_image("figure.png")])
    ```
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | os.PathLike[str], *, precision: str | None = None, threads: int | None = None):
        path = Path(folder)
        description = read_description(path, PanelDetectionConfig.model_type)
        precisions = description["precisions"]
        check_detector_precisions(description["format"], precisions)
        self.precision = precision or precisions[0]
        if self.precision not in precisions:
            raise ValueError(f"{path} contains graphs in {', '.join(precisions)}, but `precision` is {precision!r}.")
        check_packages(PACKAGES_TO_RUN["onnx"])
        self.config = _read_config(path / "config.json")
        self._path = path / detector_graph(self.precision)
        content = _read_graph(self._path)
        self.fingerprint = hashlib.blake2b(content, digest_size=8).hexdigest()
        self._session = _start(self._path, content, threads or torch.get_num_threads())
        self._shapes = _shapes(self.config)
        side = self.config.image_size
        nodes = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._check({node.name: node.shape[1:] for node in nodes}, {INPUT: [3, side, side], **self._shapes})

    def eval(self) -> "ExportedPanelDetector":
        """Return the model. Exported graphs have no training mode."""
        return self

    def __call__(self, pixel_values: torch.Tensor) -> PanelDetectionOutput:
        """Find the panels of figures, as [`PanelDetectionModel`] without labels."""
        arrays = dict(zip(OUTPUTS, self._session.run(list(OUTPUTS), {INPUT: pixel_values.numpy()}), strict=True))
        shapes = {name: [len(pixel_values), *shape] for name, shape in self._shapes.items()}
        self._check({name: list(array.shape) for name, array in arrays.items()}, shapes)
        return PanelDetectionOutput(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def _check(self, found: dict[str, list[int]], expected: dict[str, list[int]]) -> None:
        """Check names and shapes. The outputs of another model would fail later, or be misread."""
        different = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        if different:
            raise ValueError(
                f"{self._path} is not the graph of the detector in config.json: {', '.join(different)} differ. Export "
                "the detector again."
            )


def _read_config(path: Path) -> PanelDetectionConfig:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Export the detector again.")
    content = read_json(path)
    try:
        return PanelDetectionConfig.from_dict(content)
    except Exception as error:  # each kind of a wrong value has its own
        raise ValueError(f"{path} is not the configuration of a panel detector ({error}). Export it again.") from error


def _read_graph(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Export the detector again.")
    content = path.read_bytes()
    # The key of the name of another file, from which the graph would read its weights.
    if b"location" in content:
        raise ValueError(f"{path} refers to other files, which are not read. Export the detector again.")
    return content


def _start(path: Path, content: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has many types, none of which is public
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged or no ONNX graph ({reason:.200}). Export the detector again.") from error


def _shapes(config: PanelDetectionConfig) -> dict[str, list[int]]:
    """Return the shapes of the outputs without their first dimension, the batch."""
    cells = (config.image_size // STRIDE) ** 2
    return {
        **{name: [cells, 1] for name in ("logits", "label_logits")},
        **{name: [cells, 4] for name in ("pred_boxes", "label_boxes")},
        "type_logits": [cells, max(1, len(config.image_types))],
        "letter_logits": [cells, max(1, len(config.printed_labels))],
        "compound_logits": [],
    }
