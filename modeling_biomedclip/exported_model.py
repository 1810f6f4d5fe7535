"""Exported graphs behind the interface of the model, so that whatever embeds with the one embeds with the other."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .export import DESCRIPTION, GRAPHS, PACKAGES_TO_RUN, SUFFIXES, check_export, check_packages


class ExportedModel:
    """The towers that [`export_model`] wrote, run by ONNX Runtime or OpenVINO on the CPU.

    Keep it out of a process that forks later: a data loader with workers has been seen to crash after OpenVINO had run.

    It takes the place of the model in [`ZeroShotClassifier`], `embed_images` and `embed_texts`. `pooler_output` holds
    embeddings that are normalised already.

    Args:
        folder: What `biomedclip export` wrote.
        threads: Threads to work with; as many as PyTorch when left out.

    Raises:
        FileNotFoundError: A file of the export is missing.
        ImportError: The package that runs its format is not installed.

    Example:
    ```python
    >>> from biomedclip import ExportedModel, ZeroShotClassifier

    >>> model = ExportedModel("exported")
    >>> classifier = ZeroShotClassifier(model, processor, ["chest X-ray", "brain MRI"])
    ```
    """

    device = torch.device("cpu")

    def __init__(self, folder: str | os.PathLike[str], *, threads: int | None = None):
        path = Path(folder)
        if not (path / DESCRIPTION).is_file():
            raise FileNotFoundError(f"{path}: no {DESCRIPTION} there. Write one with: biomedclip export --help")
        self.description = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        check_export(self.description["format"], self.description["precision"])
        check_packages(PACKAGES_TO_RUN[self.description["format"]])
        self.config = SimpleNamespace(
            model_type="biomedclip_exported", projection_dim=self.description["projection_dim"]
        )
        self.logit_scale = torch.tensor(self.description["logit_scale"])
        start = {"onnx": _start_onnx, "openvino": _start_openvino}[self.description["format"]]
        self._run = {}
        for name in GRAPHS:
            graph = path / f"{name}{SUFFIXES[self.description['format']]}"
            if not graph.is_file():
                raise FileNotFoundError(f"{graph}: missing. Export the model again.")
            group = self.description[f"{name}_hidden_size"]
            self._run[name] = start(graph, self.description["precision"], group, threads or torch.get_num_threads())

    def eval(self) -> "ExportedModel":
        """Does nothing: a graph has no training mode."""
        return self

    def get_image_features(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Embeddings of images, of shape `(images, projection_dim)`, as `pooler_output`."""
        return self._features("image", pixel_values)

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> BaseModelOutputWithPooling:
        """Embeddings of texts, of shape `(texts, projection_dim)`, as `pooler_output`."""
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
        # Channels of a token that share a scale; zero leaves activations as they are.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": group if precision == "int8" else 0,
    }
    compiled = core.compile_model(path, "CPU", options)
    return lambda *inputs: compiled(inputs)[0].copy()  # its own buffer is written over by the next call


__all__ = ["ExportedModel"]
