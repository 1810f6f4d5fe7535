"""Everything that turns raw material into tensors: articles, images and captions. Nothing here knows the model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .benchmarks import load_benchmark
    from .collator import ContrastiveCollator, LabelCollator, VisualQuestionCollator
    from .image_processing_biomedclip import BiomedCLIPImageProcessor
    from .images.labeled import read_labeled_images
    from .images.reading import read_image
    from .processing_biomedclip import BiomedCLIPProcessor
    from .streaming import PairStream, load_pmc15m

# Imported at first use, so that reading articles does not import torch, nor an image processor `datasets`.
_LAZY = {
    "BiomedCLIPImageProcessor": "image_processing_biomedclip",
    "BiomedCLIPProcessor": "processing_biomedclip",
    "ContrastiveCollator": "collator",
    "LabelCollator": "collator",
    "PairStream": "streaming",
    "VisualQuestionCollator": "collator",
    "load_benchmark": "benchmarks",
    "load_pmc15m": "streaming",
    "read_image": "images.reading",
    "read_labeled_images": "images.labeled",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


__all__ = [
    "BiomedCLIPImageProcessor",
    "BiomedCLIPProcessor",
    "ContrastiveCollator",
    "LabelCollator",
    "PairStream",
    "VisualQuestionCollator",
    "load_benchmark",
    "load_pmc15m",
    "read_image",
    "read_labeled_images",
]
