"""Export both towers as graphs that run without PyTorch, in ONNX or OpenVINO format.

Each graph returns L2-normalized embeddings. Batch size and text length are dynamic. ONNX files have the names that
transformers.js expects. With int8, weights have one scale per output channel, and activations are quantized at run
time. ONNX Runtime uses one scale per tensor. OpenVINO uses one per token and group of channels, which is closer to
float32.
"""

import copy
import importlib.util
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .source_checks import read_json


logger = logging.getLogger(__name__)

FORMATS: dict[str, tuple[str, ...]] = {
    "onnx": ("float32", "float16", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
}
PACKAGES_TO_EXPORT = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("openvino",)}
PACKAGES_TO_RUN = {"onnx": ("onnxruntime",), "openvino": ("openvino",)}
GRAPHS = ("image", "text")
DESCRIPTION = "export.json"
# Names of files in transformers.js. It loads `_quantized` by default, which is the same file as `_int8` here.
_ONNX_NAMES = {"image": "vision_model", "text": "text_model"}
ONNX_SUFFIXES = {"float32": "", "float16": "_fp16", "int8": "_int8"}
_NOISY_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "nncf", "openvino", "root")
OPSET = 20  # the first with the operators LayerNormalization and Gelu
# Smaller matrices, such as the projections, stay in float32. They cost little time, and their error matters most.
SMALLEST_QUANTIZED = 500_000
_EXAMPLE_LENGTH = 16


class _Graph(nn.Module):
    def __init__(self, model: Any):
        super().__init__()
        self.model = model


class _ImageGraph(_Graph):
    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.model.get_image_features(pixel_values).pooler_output, dim=-1)


class _TextGraph(_Graph):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.model.get_text_features(input_ids, attention_mask).pooler_output, dim=-1)


def export_model(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    format: str = "onnx",
    precision: str | Sequence[str] = "float32",
) -> None:
    """Export the image tower and the text tower of a model as graphs. [`ExportedModel`] loads them.

    Args:
        model: A [`BiomedCLIPModel`] on the CPU.
        folder: Output folder. ONNX graphs have the names of transformers.js: `onnx/vision_model.onnx` and
            `onnx/text_model.onnx`, with the suffix `_fp16` for float16, and `_int8` and `_quantized` for int8.
            OpenVINO graphs are `image` and `text` (`.xml` and `.bin`). `config.json` and `export.json` describe them.
        format: `onnx` or `openvino`.
        precision: `float32`, `int8`, `float16` (ONNX) or `bfloat16` (OpenVINO). With ONNX, several precisions can be
            passed. float16 halves the size of the files. bfloat16 stores float32 weights and computes in bfloat16 if
            the CPU supports it.

    Raises:
        ValueError: If the format is unknown or does not support the precision.
        ImportError: If the package for the format is not installed.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPModel, export_model

    >>> export_model(BiomedCLIPModel.from_pretrained("out/model"), "exported", format="onnx")
    ```
    """
    precisions = [precision] if isinstance(precision, str) else list(precision)
    check_precisions(format, precisions)
    check_packages(PACKAGES_TO_EXPORT[format])
    if "int8" in precisions and not _largest_matrix(model) >= SMALLEST_QUANTIZED:
        raise ValueError(
            f"`precision` is 'int8', but matrices with fewer than {SMALLEST_QUANTIZED:,} entries stay in float32, and "
            f"the largest matrix of this model has {_largest_matrix(model):,}. Export it in float32."
        )
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    exported = model if model.dtype == torch.float32 else copy.deepcopy(model).float()
    was_training = exported.training
    exported.eval()
    try:
        with quiet_exporters():
            for name, graph, inputs, shapes in _graphs(exported):
                logger.info("Exporting the %s graph.", name)
                if format == "onnx":
                    _write_onnx(graph, inputs, shapes, path, name, precisions)
                else:
                    quantize = precisions == ["int8"]
                    _write_openvino(graph, inputs, shapes, path / f"{name}.xml", quantize=quantize)
    finally:
        exported.train(was_training)
    if format == "onnx":
        write_json(path / "config.json", _js_config(exported, precisions))
    description = {
        "format": format,
        "precision": precisions[0],
        "precisions": precisions,
        "logit_scale": exported.logit_scale.item(),
        "logit_bias": None if exported.logit_bias is None else exported.logit_bias.item(),
        "projection_dim": exported.config.projection_dim,
        "image_hidden_size": exported.config.vision_config.hidden_size,
        "text_hidden_size": exported.config.text_config.hidden_size,
    }
    write_json(path / DESCRIPTION, description)


def graph_files(format: str, precision: str, name: str) -> list[str]:
    """Return the files of a graph: the one that [`export_model`] writes, and the one of earlier versions."""
    if format == "openvino":
        return [f"{name}.xml"]
    return [f"onnx/{_ONNX_NAMES[name]}{ONNX_SUFFIXES[precision]}.onnx", f"{name}.onnx"]


def check_precisions(format: str, precisions: Sequence[str]) -> None:
    """Raise `ValueError` if [`export_model`] does not support the format or one of the precisions."""
    if not precisions:
        raise ValueError("`precision` is empty. Pass at least one precision.")
    for precision in precisions:
        check_export(format, precision)
    if format == "openvino" and len(precisions) > 1:
        raise ValueError("With openvino, pass one `precision`. Export each one into its own folder.")


def check_export(format: str, precision: str) -> None:
    """Raise `ValueError` if [`export_model`] does not support the format or the precision."""
    if format not in FORMATS:
        raise ValueError(f"`format` is {format!r}. Use one of: {', '.join(FORMATS)}.")
    if precision not in FORMATS[format]:
        remedy = {
            "bfloat16": " ONNX Runtime has no bfloat16 on a CPU. Use openvino.",
            "float16": " Use bfloat16, or onnx.",
        }.get(precision, "")
        raise ValueError(
            f"`precision` is {precision!r}, but {format} supports {', '.join(FORMATS[format])} only.{remedy}"
        )


def check_packages(packages: tuple[str, ...]) -> None:
    """Raise `ImportError` if one of the packages is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(f"{package} is not installed. Install it with: pip install 'biomedclip[export]'")


def _largest_matrix(model: Any) -> int:
    return max(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def _graphs(model: Any) -> list[tuple[str, nn.Module, tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]]:
    """Return the name, the module, the example inputs and the dynamic dimensions of each graph."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    length = torch.export.Dim("length", min=2, max=model.config.text_config.max_position_embeddings)
    size = model.config.vision_config.image_size
    pixel_values = torch.zeros(2, model.config.vision_config.num_channels, size, size)
    input_ids = torch.ones(2, _EXAMPLE_LENGTH, dtype=torch.long)
    text_shape = {0: batch, 1: length}
    return [
        ("image", _ImageGraph(model), (pixel_values,), ({0: batch},)),
        ("text", _TextGraph(model), (input_ids, torch.ones_like(input_ids)), (text_shape, text_shape)),
    ]


def _write_onnx(graph: nn.Module, inputs: Any, shapes: Any, folder: Path, name: str, precisions: Sequence[str]) -> None:
    """Write a graph once for each precision."""
    program = torch.onnx.export(
        graph,
        inputs,
        dynamo=True,
        dynamic_shapes=shapes,
        output_names=[f"{name}_embeds"],
        opset_version=OPSET,
        verbose=False,
    )
    strip_metadata(program)
    (folder / "onnx").mkdir(exist_ok=True)
    for precision in precisions:
        path = folder / graph_files("onnx", precision, name)[0]
        if precision == "float32":
            program.save(str(path), external_data=False)
        elif precision == "float16":
            import onnx
            from onnxruntime.transformers.float16 import convert_float_to_float16

            onnx.save(convert_float_to_float16(program.model_proto, keep_io_types=True), str(path))
        else:
            _write_quantized(program, path)
            shutil.copyfile(path, path.with_name(f"{_ONNX_NAMES[name]}_quantized.onnx"))


def _write_quantized(program: Any, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = [
        node.name
        for node in program.model.graph
        if node.op_type == "MatMul"
        and node.inputs[1].const_value is not None
        and node.inputs[1].const_value.size >= SMALLEST_QUANTIZED
    ]
    quantize_dynamic(
        program.model_proto, str(path), nodes_to_quantize=names, weight_type=QuantType.QInt8, per_channel=True
    )


def _js_config(model: Any, precisions: Sequence[str]) -> dict[str, Any]:
    """Return a configuration that transformers.js accepts, with a description of the graphs."""
    size, channels = model.config.vision_config.image_size, model.config.vision_config.num_channels
    embeds = ["batch", model.config.projection_dim]
    return {
        "model_type": "clip",
        "projection_dim": model.config.projection_dim,
        "logit_scale": model.logit_scale.item(),
        "logit_bias": None if model.logit_bias is None else model.logit_bias.item(),
        "logits_per_image": "exp(logit_scale) * image_embeds @ text_embeds.T + (logit_bias or 0)",
        "vision_config": {"model_type": "clip_vision_model", "image_size": size, "num_channels": channels},
        "text_config": {
            "model_type": "clip_text_model",
            "max_position_embeddings": model.config.text_config.max_position_embeddings,
        },
        "graphs": {
            "vision_model": {
                "inputs": {"pixel_values": {"type": "float32", "shape": ["batch", channels, size, size]}},
                "outputs": {"image_embeds": {"type": "float32", "shape": embeds, "normalized": True}},
            },
            "text_model": {
                "inputs": {
                    name: {"type": "int64", "shape": ["batch", "length"]} for name in ("input_ids", "attention_mask")
                },
                "outputs": {"text_embeds": {"type": "float32", "shape": embeds, "normalized": True}},
            },
        },
        "precisions": list(precisions),
    }


def strip_metadata(program: Any) -> None:
    """Remove the metadata of an ONNX program. It names files of this machine."""
    for node in program.model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()


def read_description(folder: Path, model_type: str | None = None) -> dict[str, Any]:
    """Return the description of an export, with its `precisions`.

    Args:
        folder: Output folder of an export.
        model_type: Model type of a panel detector, or None for a dual encoder.

    Raises:
        FileNotFoundError: If the folder has no description.
        ValueError: If it is damaged, or describes another kind of model.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Export the model with `biomedclip export`.")
    description = read_json(path)
    if not isinstance(description, dict):
        raise ValueError(f"{path} does not describe an export. Export the model again.")
    found, wanted = description.get("model_type") or "dual encoder", model_type or "dual encoder"
    if found != wanted:
        raise ValueError(f"{folder} contains an exported {found}. Pass an exported {wanted} instead.")
    precisions = description.setdefault("precisions", [description.get("precision")])
    texts = [description.get("format"), *(precisions if isinstance(precisions, list) else [None])]
    if len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path}: format or precisions is missing. Export the model again.")
    for precision in precisions:
        check_export(description["format"], precision)
    return description


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Hide warnings of exporters. They are about their own code and about steps that are not needed."""
    loggers = [logging.getLogger(None if name == "root" else name) for name in _NOISY_LOGGERS]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)


def _write_openvino(graph: nn.Module, inputs: Any, shapes: Any, path: Path, *, quantize: bool) -> None:
    import openvino

    program = torch.export.export(graph, inputs, dynamic_shapes=shapes, strict=False)
    model = openvino.convert_model(program)
    if quantize:
        _compress_weights(model)
    openvino.save_model(model, path, compress_to_fp16=False)


def _compress_weights(model: Any) -> None:
    """Convert large matrices to 8 bits with one scale per output channel, in the form that OpenVINO detects."""
    from openvino import Type
    from openvino import opset13 as opset

    for operation in model.get_ops():
        weights = operation.input_value(1).get_node() if operation.get_type_name() == "MatMul" else None
        if weights is None or weights.get_type_name() != "Constant" or weights.data.size < SMALLEST_QUANTIZED:
            continue
        transposed = operation.get_attributes()["transpose_b"]  # if true, output channels are rows, otherwise columns
        scales = np.abs(weights.data).max(axis=1 if transposed else 0, keepdims=True) / 127
        quantized = np.round(weights.data / np.maximum(scales, np.finfo(np.float32).tiny)).astype(np.int8)
        restored = opset.multiply(
            opset.convert(opset.constant(quantized, dtype=Type.i8), Type.f32),
            opset.constant(scales.astype(np.float32)),
        )
        operation.input(1).replace_source_output(restored.output(0))
