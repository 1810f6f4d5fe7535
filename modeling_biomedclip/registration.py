"""Register BiomedCLIP with transformers when transformers is imported, and not before.

Importing transformers and torch takes seconds and hundreds of megabytes. The command line and every worker of a build
import this package without needing them. A finder on `sys.meta_path` therefore waits for imports of transformers.

Registration itself imports more of transformers, which fails while transformers is still being imported. The finder
therefore watches only the outermost import. `from transformers import AutoModel` imports dozens of modules, but
registration runs only once, when the outermost import is complete. It then covers every Auto class that has been
defined. Imports of our own modules are also watched, because they import transformers and must also be complete.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register_on_import() -> None:
    """Register BiomedCLIP with each Auto class and with the pipelines, as soon as transformers has defined them."""
    finder = _OutermostImports(("transformers.", f"{__package__}."), _register_with_loaded_modules)
    sys.meta_path.insert(0, finder)
    finder.notify()


class _OutermostImports:
    """Finder that calls `notify` after each outermost import of a watched package."""

    def __init__(self, prefixes: tuple[str, ...], callback: Callable[[], bool]):
        self.prefixes = prefixes
        self.callback = callback
        self.thread = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(self.prefixes) or getattr(self.thread, "importing", False):
            return None
        finders = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            self._notify_after(spec.loader)
        return spec

    def _notify_after(self, loader: Any) -> None:
        execute = loader.exec_module

        def execute_and_notify(module: ModuleType) -> None:
            self.thread.importing = True
            try:
                execute(module)
            finally:
                self.thread.importing = False
            self.notify()

        loader.exec_module = execute_and_notify

    def notify(self) -> None:
        """Call the callback without watching its imports. Stop watching when nothing is left to register."""
        self.thread.importing = True
        try:
            done = self.callback()
        finally:
            self.thread.importing = False
        if done and self in sys.meta_path:
            sys.meta_path.remove(self)


def _register_with_loaded_modules() -> bool:
    """Register with all loaded modules of transformers. Return whether nothing is left to register."""
    while loaded := [name for name in _PENDING if name in sys.modules]:
        for name in loaded:
            # Registration can import more of these modules, so repeat until none is left.
            _PENDING.pop(name)(sys.modules[name])
    return not _PENDING


def _configuration_classes() -> list[Any]:
    from .configuration_biomedclip import BiomedCLIPConfig, BiomedCLIPTextConfig, BiomedCLIPVisionConfig

    return [BiomedCLIPConfig, BiomedCLIPTextConfig, BiomedCLIPVisionConfig]


def _register_configurations(auto: ModuleType) -> None:
    from .configuration_few_shot import FewShotConfig
    from .configuration_panel_detection import PanelDetectionConfig

    for config_class in [*_configuration_classes(), FewShotConfig, PanelDetectionConfig]:
        auto.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    from . import modeling_biomedclip as ours
    from .configuration_biomedclip import BiomedCLIPConfig, BiomedCLIPTextConfig, BiomedCLIPVisionConfig
    from .configuration_few_shot import FewShotConfig
    from .configuration_panel_detection import PanelDetectionConfig
    from .modeling_few_shot import FewShotForImageClassification
    from .modeling_panel_detection import PanelDetectionModel

    models: list[tuple[Any, Any, Any]] = [
        (auto.AutoModel, BiomedCLIPConfig, ours.BiomedCLIPModel),
        (auto.AutoModel, BiomedCLIPTextConfig, ours.BiomedCLIPTextModel),
        (auto.AutoModel, BiomedCLIPVisionConfig, ours.BiomedCLIPVisionModel),
        (auto.AutoModelForZeroShotImageClassification, BiomedCLIPConfig, ours.BiomedCLIPModel),
        (auto.AutoModelForImageClassification, BiomedCLIPConfig, ours.BiomedCLIPForImageClassification),
        (auto.AutoModelForVisualQuestionAnswering, BiomedCLIPConfig, ours.BiomedCLIPForVisualQuestionAnswering),
        (auto.AutoModelForZeroShotImageClassification, FewShotConfig, FewShotForImageClassification),
        (auto.AutoModelForImageClassification, FewShotConfig, FewShotForImageClassification),
        (auto.AutoModelForObjectDetection, PanelDetectionConfig, PanelDetectionModel),
    ]
    for auto_class, config_class, model_class in models:
        auto_class.register(config_class, model_class, exist_ok=True)


def _register_tokenizers(auto: ModuleType) -> None:
    from transformers import BertTokenizer

    # Without this entry, transformers asks whether to run code if `tokenizer_config.json` refers to code but to no
    # class of transformers.
    for config_class in _configuration_classes():
        auto.AutoTokenizer.register(config_class, BertTokenizer, exist_ok=True)


def _register_image_processors(auto: ModuleType) -> None:
    from .configuration_biomedclip import BiomedCLIPConfig
    from .configuration_panel_detection import PanelDetectionConfig
    from .processing import BiomedCLIPImageProcessor, PanelDetectionImageProcessor

    for config_class, processor_class in [
        (BiomedCLIPConfig, BiomedCLIPImageProcessor),
        (PanelDetectionConfig, PanelDetectionImageProcessor),
    ]:
        # Both backends use Pillow, because torchvision's resampling produces different pixels.
        backends = dict.fromkeys(("pil", "torchvision"), processor_class)
        auto.AutoImageProcessor.register(config_class, image_processor_classes=backends, exist_ok=True)


def _register_video_processors(auto: ModuleType) -> None:
    # There is no video processor. Without this entry, transformers derives one from the image processor's `auto_map`
    # when a pipeline is built, and asks whether to run the code of the folder.
    for config_class in _configuration_classes():
        auto.AutoVideoProcessor.register(config_class, None, exist_ok=True)


def _register_processors(auto: ModuleType) -> None:
    from .configuration_biomedclip import BiomedCLIPConfig
    from .processing import BiomedCLIPProcessor

    auto.AutoProcessor.register(BiomedCLIPConfig, BiomedCLIPProcessor, exist_ok=True)


def _register_pipelines(pipelines: ModuleType) -> None:
    from transformers import AutoModelForVisualQuestionAnswering

    from .pipeline_biomedclip import TASK, VisualQuestionAnsweringPipeline

    # transformers removed its pipeline with this name. Version 5.23 rejects the name before it looks for our pipeline.
    getattr(pipelines, "REMOVED_TASKS", {}).pop(TASK, None)
    pipelines.PIPELINE_REGISTRY.register_pipeline(
        TASK, VisualQuestionAnsweringPipeline, pt_model=AutoModelForVisualQuestionAnswering, type="multimodal"
    )


_AUTO = "transformers.models.auto"
_PENDING: dict[str, Callable[[ModuleType], None]] = {
    f"{_AUTO}.configuration_auto": _register_configurations,
    f"{_AUTO}.modeling_auto": _register_models,
    f"{_AUTO}.tokenization_auto": _register_tokenizers,
    f"{_AUTO}.image_processing_auto": _register_image_processors,
    f"{_AUTO}.video_processing_auto": _register_video_processors,
    f"{_AUTO}.processing_auto": _register_processors,
    "transformers.pipelines": _register_pipelines,
}
