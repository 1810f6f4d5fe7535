"""Data processing, from articles and images to tensors. This package does not depend on the model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .benchmarks import load_benchmark
    from .collator import ContrastiveCollator, FindingCollator, LabelCollator, VisualQuestionCollator
    from .image_processing_biomedclip import BiomedCLIPImageProcessor
    from .image_processing_panel_detection import PanelDetectionImageProcessor
    from .images.labeled import read_labeled_images
    from .images.reading import read_image
    from .pairs import load_pairs
    from .panels.detection import PanelDetector
    from .pmc15m import load_pmc15m
    from .processing_biomedclip import BiomedCLIPProcessor
    from .streaming import PairStream

# Imported at first use, so that build workers do not import torch or transformers.
_MODULE_OF = {
    "BiomedCLIPImageProcessor": "image_processing_biomedclip",
    "BiomedCLIPProcessor": "processing_biomedclip",
    "ContrastiveCollator": "collator",
    "FindingCollator": "collator",
    "LabelCollator": "collator",
    "PairStream": "streaming",
    "PanelDetectionImageProcessor": "image_processing_panel_detection",
    "PanelDetector": "panels.detection",
    "VisualQuestionCollator": "collator",
    "load_benchmark": "benchmarks",
    "load_pairs": "pairs",
    "load_pmc15m": "pmc15m",
    "read_image": "images.reading",
    "read_labeled_images": "images.labeled",
}

__all__ = [
    "BiomedCLIPImageProcessor",
    "BiomedCLIPProcessor",
    "ContrastiveCollator",
    "FindingCollator",
    "LabelCollator",
    "PairStream",
    "PanelDetectionImageProcessor",
    "PanelDetector",
    "VisualQuestionCollator",
    "load_benchmark",
    "load_pairs",
    "load_pmc15m",
    "read_image",
    "read_labeled_images",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
