"""Run exported graphs with the interface of the model."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .export import GRAPHS, PACKAGES_TO_RUN, check_export, check_packages, graph_files, read_description


class ExportedModel:
    """Exported towers, run by ONNX Runtime or OpenVINO on the CPU.

    It can be used instead of the model in [`ZeroShotClassifier`], [`embed_images`] and [`embed_texts`]. `pooler_output`
    is already normalized.

    Do not use it in a process that forks later. A data loader with workers can crash after OpenVINO has run.

    Args:
        folder: Output folder of [`export_model`] or `biomedclip export`.
        precision: Precision of the graphs to run, if the folder contains several. The default is the first one.
        threads: Number of threads. The default is that of PyTorch.

    Raises:
        FileNotFoundError: If a file of the export is missing.
        ValueError: If the folder does not contain graphs of this precision.
        ImportError: If the package that runs the format is not installed.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPProcessor, ExportedModel, ZeroShotClassifier

    >>> model = ExportedModel("exported")
    >>> processor = BiomedCLIPProcessor.from_pretrained("exported")
    >>> classifier = ZeroShotClassifier(model, processor, ["chest X-ray", "brain MRI"])
    ```
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | os.PathLike[str], *, precision: str | None = None, threads: int | None = None):
        path = Path(folder)
        self.description = read_description(path)
        format, precisions = self.description["format"], self.description["precisions"]
        precision = precision or precisions[0]
        check_export(format, precision)
        if precision not in precisions:
            raise ValueError(f"{path} contains graphs in {', '.join(precisions)}, but `precision` is {precision!r}.")
        check_packages(PACKAGES_TO_RUN[format])
        self.config = SimpleNamespace(
            model_type="biomedclip_exported", projection_dim=self.description["projection_dim"]
        )
        self.logit_scale = torch.tensor(self.description["logit_scale"])
        start = {"onnx": _start_onnx, "openvino": _start_openvino}[format]
        self._run = {}
        for name in GRAPHS:
            candidates = [path / file for file in graph_files(format, precision, name)]
            graph = next((candidate for candidate in candidates if candidate.is_file()), None)
            if graph is None:
                raise FileNotFoundError(f"{candidates[0]} is missing. Export the model again.")
            group = self.description[f"{name}_hidden_size"]
            self._run[name] = start(graph, precision, group, threads or torch.get_num_threads())

    def eval(self) -> "ExportedModel":
        """Return the model. Exported graphs have no training mode."""
        return self

    def get_image_features(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Embed images. `pooler_output` has shape `(images, projection_dim)`."""
        return self._features("image", pixel_values)

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Embed texts. `pooler_output` has shape `(texts, projection_dim)`."""
        return self._features(
            "text", input_ids, torch.ones_like(input_ids) if attention_mask is None else attention_mask
        )

    def _features(self, name: str, *inputs: torch.Tensor) -> BaseModelOutputWithPooling:
        embeds = self._run[name](*(tensor.numpy() for tensor in inputs))
        return BaseModelOutputWithPooling(pooler_output=torch.from_numpy(embeds))


def _start_onnx(path: Path, precision: str, group: int, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]


def _start_openvino(path: Path, precision: str, group: int, threads: int) -> Any:
    import openvino

    core = openvino.Core()
    half = precision != "float32" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
        # Number of channels of a token that share a scale. 0 disables the quantization of activations.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group if precision == "int8" else 0,
    }
    compiled = core.compile_model(path, "CPU", options)
    return lambda *inputs: compiled(inputs)[0].copy()  # the next call overwrites the buffer
