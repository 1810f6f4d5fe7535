"""Export the panel detector as an ONNX graph that runs without PyTorch, in float32 or in 8 bits.

With int8, convolutions have one scale per output channel of their weights, and one per input, which is fitted to
calibration figures. The two finest stages and the outputs of the heads stay in float32. They have few weights, and the
8 bits would cost most accuracy there.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .export import (
    DESCRIPTION,
    ONNX_SUFFIXES,
    OPSET,
    PACKAGES_TO_EXPORT,
    check_packages,
    quiet_exporters,
    strip_metadata,
    write_json,
)
from .modeling_panel_detection import PanelDetectionModel, _ConvNorm


PRECISIONS = ("float32", "int8")
INPUT = "pixel_values"
OUTPUTS = (
    "logits",
    "pred_boxes",
    "type_logits",
    "label_logits",
    "label_boxes",
    "letter_logits",
    "compound_logits",
)
# Parts of the names of the weights that stay in float32.
_FLOAT32 = (".stages.0.", ".stages.1.", ".score.", ".distances.", ".classes.")


class _Graph(nn.Module):
    def __init__(self, model: PanelDetectionModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(pixel_values)
        return tuple(output[name] for name in OUTPUTS)


def export_panel_detector(
    model: PanelDetectionModel,
    folder: str | os.PathLike[str],
    *,
    precision: str | Sequence[str] = "float32",
    calibration: Iterable[torch.Tensor] | None = None,
) -> None:
    """Export a panel detector to `onnx/model.onnx`, and in 8 bits to `onnx/model_int8.onnx`.

    [`ExportedPanelDetector`] runs the graphs. `config.json` and `export.json` describe them.

    Args:
        model: The detector on the CPU.
        folder: Output folder.
        precision: `float32`, `int8`, or both.
        calibration: Inputs of the model, each of shape (figures, 3, image_size, image_size), to which the scales of
            int8 are fitted. Some 50 figures are enough.

    Raises:
        ValueError: If a precision is unknown, or if `calibration` does not fit the precision.
        ImportError: If a package is not installed.

    Example:
    ```python
    >>> from biomedclip import PanelDetectionModel, export_panel_detector

    >>> export_panel_detector(PanelDetectionModel.from_pretrained("detector"), "exported_detector")
    ```
    """
    precisions = [precision] if isinstance(precision, str) else list(precision)
    check_detector_precisions("onnx", precisions)
    batches = iter(() if calibration is None else calibration)
    first = next(batches, None)
    if ("int8" in precisions) != (first is not None):
        raise ValueError("`calibration` is required for the precision int8, and has no effect without it.")
    check_packages(PACKAGES_TO_EXPORT["onnx"])
    path = Path(folder)
    (path / "onnx").mkdir(parents=True, exist_ok=True)
    fused = _without_normalization(model)
    example = torch.zeros(2, 3, model.config.image_size, model.config.image_size)
    with quiet_exporters():
        program = torch.onnx.export(
            _Graph(fused).eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            verbose=False,
        )
        strip_metadata(program)
        if "float32" in precisions:
            program.save(str(path / detector_graph("float32")), external_data=False)
        if first is not None:
            _write_quantized(program, path / detector_graph("int8"), chain([first], batches))
    model.config.save_pretrained(path)
    description = {
        "model_type": model.config.model_type,
        "format": "onnx",
        "precision": precisions[0],
        "precisions": precisions,
    }
    write_json(path / DESCRIPTION, description)


def check_detector_precisions(format: str, precisions: Sequence[str]) -> None:
    """Raise `ValueError` if [`export_panel_detector`] does not support the format or one of the precisions."""
    if format != "onnx":
        raise ValueError(f"`format` is {format!r}, but panel detectors are exported to onnx only. Omit it.")
    if not precisions or not set(precisions) <= set(PRECISIONS):
        raise ValueError(
            f"`precision` is {', '.join(precisions) or 'empty'}, but panel detectors are exported in "
            f"{' and '.join(PRECISIONS)} only."
        )


def detector_graph(precision: str) -> str:
    """Return the file of a graph in the output folder."""
    return f"onnx/model{ONNX_SUFFIXES[precision]}.onnx"


def _without_normalization(model: PanelDetectionModel) -> PanelDetectionModel:
    """Return a copy in float32 whose convolutions contain the batch normalization after them."""
    fused = copy.deepcopy(model).float().eval()
    for module in fused.modules():
        if isinstance(module, _ConvNorm):
            module[0] = fuse_conv_bn_eval(module[0], module[1])
            module[1] = nn.Identity()
    return fused


def _write_quantized(program: Any, path: Path, calibration: Iterator[torch.Tensor]) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            batch = next(calibration, None)
            return None if batch is None else {INPUT: batch.numpy()}

    kept = [
        node.name
        for node in program.model.graph
        if node.op_type == "Conv" and any(part in f".{node.inputs[1].name}" for part in _FLOAT32)
    ]
    quantize_static(
        program.model_proto,
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=kept,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
