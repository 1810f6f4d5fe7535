"""BiomedCLIP for transformers. Importing this package registers the model with the Auto classes and pipelines."""

from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    BertTokenizer,
    pipelines,
)

# Not from the top: there transformers 5.17 puts a stand-in that asks for torchvision, which we do not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor

from .configuration_biomedclip import (
    BiomedCLIPCoAttentionConfig,
    BiomedCLIPConfig,
    BiomedCLIPTextConfig,
    BiomedCLIPVisionConfig,
)
from .modeling_biomedclip import (
    BiomedCLIPForImageClassification,
    BiomedCLIPForVisualQuestionAnswering,
    BiomedCLIPModel,
    BiomedCLIPTextModel,
    BiomedCLIPTextModelWithProjection,
    BiomedCLIPVisionModel,
    BiomedCLIPVisionModelWithProjection,
)
from .pipeline_biomedclip import TASK, VisualQuestionAnsweringPipeline


if TYPE_CHECKING:
    from .contrastive_trainer import ContrastiveTrainer, ContrastiveTrainingArguments
    from .conversion import from_open_clip, to_open_clip
    from .embedding import embed_images, embed_texts
    from .export import export_model
    from .exported_model import ExportedModel
    from .zero_shot_classifier import ZeroShotClassifier

# Imported at first use: the trainer pulls in `datasets`, which nobody needs who embeds an image.
_LAZY = {
    "ContrastiveTrainer": "contrastive_trainer",
    "ContrastiveTrainingArguments": "contrastive_trainer",
    "ExportedModel": "exported_model",
    "ZeroShotClassifier": "zero_shot_classifier",
    "embed_images": "embedding",
    "embed_texts": "embedding",
    "export_model": "export",
    "from_open_clip": "conversion",
    "to_open_clip": "conversion",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def _register() -> None:
    for config_class, model_class in [
        (BiomedCLIPConfig, BiomedCLIPModel),
        (BiomedCLIPTextConfig, BiomedCLIPTextModel),
        (BiomedCLIPVisionConfig, BiomedCLIPVisionModel),
    ]:
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        # There is no video processor. Without this entry, transformers derives one from the image processor's
        # `auto_map` when a pipeline is built, and asks whether to run the code of the folder.
        AutoVideoProcessor.register(config_class, None, exist_ok=True)
        # Without this entry, transformers asks where `tokenizer_config.json` names code but no class of transformers.
        AutoTokenizer.register(config_class, BertTokenizer, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(BiomedCLIPConfig, BiomedCLIPModel, exist_ok=True)
    AutoModelForImageClassification.register(BiomedCLIPConfig, BiomedCLIPForImageClassification, exist_ok=True)
    AutoModelForVisualQuestionAnswering.register(BiomedCLIPConfig, BiomedCLIPForVisualQuestionAnswering, exist_ok=True)
    # transformers has taken its pipeline of this name out; 5.23 refuses the name before it looks for ours.
    getattr(pipelines, "REMOVED_TASKS", {}).pop(TASK, None)
    pipelines.PIPELINE_REGISTRY.register_pipeline(
        TASK, VisualQuestionAnsweringPipeline, pt_model=AutoModelForVisualQuestionAnswering, type="multimodal"
    )
    # Pillow whatever is installed: torchvision's own resampling gives other pixels.
    backends = dict.fromkeys(("pil", "torchvision"), BiomedCLIPImageProcessor)
    AutoImageProcessor.register(BiomedCLIPConfig, image_processor_classes=backends, exist_ok=True)
    AutoProcessor.register(BiomedCLIPConfig, BiomedCLIPProcessor, exist_ok=True)


_register()

__all__ = [
    "BiomedCLIPCoAttentionConfig",
    "BiomedCLIPConfig",
    "BiomedCLIPForImageClassification",
    "BiomedCLIPForVisualQuestionAnswering",
    "BiomedCLIPModel",
    "BiomedCLIPTextConfig",
    "BiomedCLIPTextModel",
    "BiomedCLIPTextModelWithProjection",
    "BiomedCLIPVisionConfig",
    "BiomedCLIPVisionModel",
    "BiomedCLIPVisionModelWithProjection",
    "ContrastiveTrainer",
    "ContrastiveTrainingArguments",
    "ExportedModel",
    "VisualQuestionAnsweringPipeline",
    "ZeroShotClassifier",
    "embed_images",
    "embed_texts",
    "export_model",
    "from_open_clip",
    "to_open_clip",
]
