"""BiomedCLIP for transformers.

`import biomedclip` registers the model with the Auto classes and pipelines of transformers. It does not import torch or
transformers: public names are imported when they are first used, and registration waits until transformers is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register_on_import


if TYPE_CHECKING:
    from .configuration_biomedclip import (
        BiomedCLIPCoAttentionConfig,
        BiomedCLIPConfig,
        BiomedCLIPTextConfig,
        BiomedCLIPVisionConfig,
    )
    from .configuration_few_shot import FewShotConfig
    from .configuration_panel_detection import PanelDetectionConfig
    from .contrastive_trainer import ContrastiveTrainer
    from .conversion import from_open_clip, to_open_clip
    from .embedding import embed_images, embed_texts
    from .embedding_index import EmbeddingIndex
    from .export import export_model
    from .exported_model import ExportedModel
    from .exported_panel_detector import ExportedPanelDetector
    from .modeling_biomedclip import (
        BiomedCLIPForImageClassification,
        BiomedCLIPForVisualQuestionAnswering,
        BiomedCLIPModel,
        BiomedCLIPTextModel,
        BiomedCLIPTextModelWithProjection,
        BiomedCLIPVisionModel,
        BiomedCLIPVisionModelWithProjection,
    )
    from .modeling_few_shot import FewShotForImageClassification
    from .modeling_panel_detection import PanelDetectionModel
    from .packed_texts import pack_texts
    from .panel_detector_export import export_panel_detector
    from .pipeline_biomedclip import VisualQuestionAnsweringPipeline
    from .processing import (
        BiomedCLIPImageProcessor,
        BiomedCLIPProcessor,
        ContrastiveCollator,
        PanelDetectionImageProcessor,
        PanelDetector,
        load_benchmark,
        load_pairs,
        load_pmc15m,
        read_image,
    )
    from .saliency import prompt_sensitivity, saliency_map
    from .training_arguments import ContrastiveTrainingArguments
    from .zero_shot_classifier import ZeroShotClassifier

_MODULE_OF = {
    "BiomedCLIPCoAttentionConfig": "configuration_biomedclip",
    "BiomedCLIPConfig": "configuration_biomedclip",
    "BiomedCLIPForImageClassification": "modeling_biomedclip",
    "BiomedCLIPForVisualQuestionAnswering": "modeling_biomedclip",
    "BiomedCLIPImageProcessor": "processing",
    "BiomedCLIPModel": "modeling_biomedclip",
    "BiomedCLIPProcessor": "processing",
    "BiomedCLIPTextConfig": "configuration_biomedclip",
    "BiomedCLIPTextModel": "modeling_biomedclip",
    "BiomedCLIPTextModelWithProjection": "modeling_biomedclip",
    "BiomedCLIPVisionConfig": "configuration_biomedclip",
    "BiomedCLIPVisionModel": "modeling_biomedclip",
    "BiomedCLIPVisionModelWithProjection": "modeling_biomedclip",
    "ContrastiveCollator": "processing",
    "ContrastiveTrainer": "contrastive_trainer",
    "ContrastiveTrainingArguments": "training_arguments",
    "EmbeddingIndex": "embedding_index",
    "ExportedModel": "exported_model",
    "ExportedPanelDetector": "exported_panel_detector",
    "FewShotConfig": "configuration_few_shot",
    "FewShotForImageClassification": "modeling_few_shot",
    "PanelDetectionConfig": "configuration_panel_detection",
    "PanelDetectionImageProcessor": "processing",
    "PanelDetectionModel": "modeling_panel_detection",
    "PanelDetector": "processing",
    "VisualQuestionAnsweringPipeline": "pipeline_biomedclip",
    "ZeroShotClassifier": "zero_shot_classifier",
    "embed_images": "embedding",
    "embed_texts": "embedding",
    "export_model": "export",
    "export_panel_detector": "panel_detector_export",
    "from_open_clip": "conversion",
    "load_benchmark": "processing",
    "load_pairs": "processing",
    "load_pmc15m": "processing",
    "pack_texts": "packed_texts",
    "prompt_sensitivity": "saliency",
    "read_image": "processing",
    "saliency_map": "saliency",
    "to_open_clip": "conversion",
}

__all__ = [
    "BiomedCLIPCoAttentionConfig",
    "BiomedCLIPConfig",
    "BiomedCLIPForImageClassification",
    "BiomedCLIPForVisualQuestionAnswering",
    "BiomedCLIPImageProcessor",
    "BiomedCLIPModel",
    "BiomedCLIPProcessor",
    "BiomedCLIPTextConfig",
    "BiomedCLIPTextModel",
    "BiomedCLIPTextModelWithProjection",
    "BiomedCLIPVisionConfig",
    "BiomedCLIPVisionModel",
    "BiomedCLIPVisionModelWithProjection",
    "ContrastiveCollator",
    "ContrastiveTrainer",
    "ContrastiveTrainingArguments",
    "EmbeddingIndex",
    "ExportedModel",
    "ExportedPanelDetector",
    "FewShotConfig",
    "FewShotForImageClassification",
    "PanelDetectionConfig",
    "PanelDetectionImageProcessor",
    "PanelDetectionModel",
    "PanelDetector",
    "VisualQuestionAnsweringPipeline",
    "ZeroShotClassifier",
    "embed_images",
    "embed_texts",
    "export_model",
    "export_panel_detector",
    "from_open_clip",
    "load_benchmark",
    "load_pairs",
    "load_pmc15m",
    "pack_texts",
    "prompt_sensitivity",
    "read_image",
    "saliency_map",
    "to_open_clip",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_on_import()
