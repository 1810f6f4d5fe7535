"""Load dual encoders with a common interface: models and adapters of transformers, models of open_clip, and BioViL."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from PIL import Image
from torch import nn
from transformers import AutoModel, AutoProcessor, AutoTokenizer, CLIPImageProcessorPil, CLIPProcessor

from biomedclip import from_open_clip
from biomedclip.conversion.community_port import is_port
from biomedclip.conversion.files import read_json
from biomedclip.embedding import normalize
from biomedclip.source_checks import ADAPTER_CONFIG, check_source
from biomedclip.training_arguments import are_processes_on_cpu
from biomedclip.weights_fingerprint import weights_fingerprint

from ..cli.models import check_model_name, import_optional
from ..cli.trust import questions_are_errors
from .open_clip_folders import has_biomedclip_text_tower, is_open_clip_folder, load_with_open_clip


BIOVIL = ("biovil", "biovil-t")
BIOVIL_INSTALL = "pip install hi-ml-multimodal, or 'biomedclip[biovil]' (https://github.com/microsoft/hi-ml)"


@dataclass
class DualEncoder:
    """A model and its processor, with the interface of the dual encoders of transformers.

    `type` is the model type in transformers (`biomedclip`, `clip`, ...), `open_clip`, `biovil` or `biovil-t`. With the
    precision `bfloat16`, the towers use it for matrix products, but their outputs are always float32. `weights` and
    `processing` are fingerprints of the tensors, and of the settings of the image processor and the tokenizer.
    """

    name: str
    type: str
    model: Any
    processor: Any
    precision: str = "float32"
    weights: str = field(default="", init=False)
    processing: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.weights = weights_fingerprint(self.model)
        self.processing = processing_fingerprint(self.processor)

    @property
    def logit_scale(self) -> float:
        """Return the inverse temperature."""
        return float(self.model.logit_scale.detach().float().exp())

    def precise(self) -> AbstractContextManager[Any]:
        """Return a context manager that runs the towers in the chosen precision."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def embed_pixels(self, pixel_values: torch.Tensor, features: str = "embeds") -> torch.Tensor:
        """Return image features of pixels `(images, 3, height, width)`, in float32 on the CPU.

        They are L2-normalized embeddings for `embeds`, and the state before the projection for `hidden`. Raise
        `ValueError` if the model does not provide this state.
        """
        pixel_values = pixel_values.to(self.model.device)
        with self.precise():
            if features == "embeds":
                return normalize(self.model.get_image_features(pixel_values=pixel_values).pooler_output).cpu()
            tower = getattr(self.model, "vision_model", None)
            if tower is None:
                raise ValueError(
                    f"{self.name} does not provide the hidden state of its image tower. Use --probe-features embeds."
                )
            return tower(pixel_values=pixel_values).pooler_output.float().cpu()


@questions_are_errors()
def load_dual_encoder(name: str, *, precision: str = "float32", trust_remote_code: bool = False) -> DualEncoder:
    """Load a dual encoder in evaluation mode and float32 on the device of this process.

    `name` is a folder or Hub id in transformers' layout (also of a PEFT adapter), a folder in open_clip's layout, or
    `biovil` or `biovil-t`. Raise `FileNotFoundError` if it does not exist, `ValueError` if it is not a dual encoder,
    and `ImportError` if a package that it needs is not installed.
    """
    folder = Path(name)
    if name in BIOVIL:
        kind, model, processor = name, *_load_biovil(name)
    elif is_port(folder) or (is_open_clip_folder(folder) and has_biomedclip_text_tower(folder)):
        model, processor = from_open_clip(folder)
        kind = model.config.model_type
    elif is_open_clip_folder(folder):
        model, preprocess, tokenizer = load_with_open_clip(folder)
        kind, model, processor = "open_clip", OpenClipModel(model), _OpenClipProcessor(preprocess, tokenizer)
    else:
        model, processor = _load_transformers(name, trust_remote_code)
        kind = model.config.model_type
    device = PartialState(cpu=are_processes_on_cpu()).device
    return DualEncoder(name, kind, model.float().eval().to(device), processor, precision)


def processing_fingerprint(processor: Any) -> str:
    """Return a hash of the settings of a processor that pixels and tokens depend on."""
    tokenizer = processor.tokenizer
    vocabulary = sorted(tokenizer.get_vocab().items()) if hasattr(tokenizer, "get_vocab") else repr(tokenizer)
    image_processor = processor.image_processor
    settings = image_processor.to_dict() if hasattr(image_processor, "to_dict") else repr(image_processor)
    limit = getattr(tokenizer, "model_max_length", None)
    text = json.dumps([settings, vocabulary, limit], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _load_transformers(name: str, trust_remote_code: bool) -> tuple[Any, Any]:
    check_model_name(name)
    check_source(name, trust_remote_code=trust_remote_code)
    model = AutoModel.from_pretrained(name, dtype=torch.float32, trust_remote_code=trust_remote_code)
    for method in ("get_image_features", "get_text_features", "logit_scale"):
        if not hasattr(model, method):
            raise ValueError(f"{name} is a {type(model).__name__}, not a dual encoder: it has no {method}.")
    base = name
    if (Path(name) / ADAPTER_CONFIG).is_file() and not (Path(name) / "processor_config.json").is_file():
        base = read_json(Path(name) / ADAPTER_CONFIG)["base_model_name_or_path"]
    return model, _load_processor(base, model, trust_remote_code)


def _load_processor(name: str, model: Any, trust_remote_code: bool) -> Any:
    try:
        # torchvision resamples differently, so Pillow is used even if torchvision is installed.
        return AutoProcessor.from_pretrained(name, backend="pil", trust_remote_code=trust_remote_code)
    except ValueError:
        settings, _ = CLIPImageProcessorPil.get_image_processor_dict(name, trust_remote_code=False)
        # Checkpoints of transformers 4 name this class. The AutoProcessor of transformers 5 fails on it.
        if model.config.model_type != "clip" or settings.get("image_processor_type") != "CLIPFeatureExtractor":
            raise
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        return CLIPProcessor(CLIPImageProcessorPil.from_dict(settings), tokenizer)


class OpenClipModel(nn.Module):
    """A model of open_clip with the interface of transformers."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        self.config = SimpleNamespace(model_type="open_clip")

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.parameters()).device

    @property
    def logit_scale(self) -> torch.Tensor:
        """Return the logarithm of the inverse temperature."""
        return self.model.logit_scale

    def get_image_features(self, pixel_values: torch.Tensor) -> Any:
        """Return image embeddings, not normalized."""
        return SimpleNamespace(pooler_output=self.model.encode_image(pixel_values))

    def get_text_features(self, input_ids: torch.Tensor) -> Any:
        """Return text embeddings, not normalized."""
        return SimpleNamespace(pooler_output=self.model.encode_text(input_ids))


class _Transform:
    """A transform of single images with the interface of an image processor. Its text is its fingerprint."""

    def __init__(self, transform: Callable[[Image.Image], torch.Tensor], description: str):
        self.transform = transform
        self.description = description

    def __call__(self, images: Sequence[Any], return_tensors: str = "pt") -> dict[str, torch.Tensor]:
        return {"pixel_values": torch.stack([self.transform(image) for image in images])}

    def __repr__(self) -> str:
        return self.description


class _OpenClipProcessor:
    """Transform and tokenizer of open_clip with the interface of transformers. All texts are padded to full length."""

    def __init__(self, transform: Any, tokenizer: Any):
        self.image_processor = _Transform(lambda image: transform(image.convert("RGB")), f"RGB {transform}")
        self.open_clip_tokenizer = tokenizer
        # The model has no attention mask. It recognizes padding by the token ids.
        self.tokenizer = SimpleNamespace(
            model_max_length=tokenizer.context_length, pad_token_id=0, model_input_names=["input_ids"]
        )

    def __call__(self, text: Sequence[str], max_length: int | None = None, **kwargs: Any) -> dict[str, Any]:
        length = max_length or self.tokenizer.model_max_length
        return {"input_ids": self.open_clip_tokenizer(list(text), context_length=length).tolist()}


def _load_biovil(name: str) -> tuple[Any, Any]:
    """Load BioViL or BioViL-T from Microsoft's `health_multimodal`, which has one inference engine for each tower.

    The temperature is not published, so logits are similarities. Ranks and accuracy do not depend on it.
    """
    image, text = (
        import_optional(f"health_multimodal.{part}.utils", f"--model {name}", BIOVIL_INSTALL)
        for part in ("image", "text")
    )
    of_images, of_texts = ("BIOVIL_T", "BIOVIL_T_BERT") if name == "biovil-t" else ("BIOVIL", "CXR_BERT")
    image_engine = image.get_image_inference(getattr(image.ImageModelType, of_images))
    text_engine = text.get_bert_inference(getattr(text.BertEncoderType, of_texts))
    processor = _BioVilProcessor(image_engine.transform, text_engine.tokenizer)
    return _BioVilModel(image_engine.model, text_engine.model, name), processor


class _BioVilModel(nn.Module):
    """The two towers of BioViL with the interface of transformers."""

    def __init__(self, image_model: nn.Module, text_model: nn.Module, name: str):
        super().__init__()
        self.image_model = image_model
        self.text_model = text_model
        self.register_buffer("logit_scale", torch.zeros(()), persistent=False)
        self.config = SimpleNamespace(model_type=name)

    @property
    def device(self) -> torch.device:
        return self.logit_scale.device

    def get_image_features(self, pixel_values: torch.Tensor) -> Any:
        return SimpleNamespace(pooler_output=self.image_model(pixel_values).projected_global_embedding)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        embeds = self.text_model.get_projected_text_embeddings(input_ids=input_ids, attention_mask=attention_mask)
        return SimpleNamespace(pooler_output=embeds)


def _scaled(image: Image.Image) -> Image.Image:
    """Scale an image to values from 0 to 255, as the package does. An image with a single value is unchanged."""
    values = np.asarray(image if image.mode == "L" else image.convert("RGB"), dtype=float)
    smallest, largest = values.min(), values.max()
    if smallest == largest:
        return image
    return Image.fromarray(((values - smallest) / (largest - smallest) * 255).astype(np.uint8))


class _BioVilProcessor:
    """Transform and tokenizer of BioViL with the interface of transformers."""

    def __init__(self, transform: Any, tokenizer: Any):
        self.image_processor = _Transform(lambda image: transform(_scaled(image).convert("L")), f"scaled L {transform}")
        self.tokenizer = tokenizer

    def __call__(self, text: Sequence[str], **kwargs: Any) -> Any:
        # The package removes punctuation at the end of a text.
        return self.tokenizer([item.rstrip("!?.") for item in text], **kwargs)
