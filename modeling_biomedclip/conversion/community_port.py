"""Load the community port `chuhac/BiomedCLIP-vit-bert-hf`, which has CLIP's model type and a different epsilon."""

import logging
from pathlib import Path

from transformers import BertConfig, BertTokenizer, ViTConfig

from .. import BiomedCLIPImageProcessor, BiomedCLIPProcessor
from ..configuration_biomedclip import BiomedCLIPConfig
from ..modeling_biomedclip import BiomedCLIPModel
from .files import read_json, read_tokenizer, read_weights
from .tensors import fill_model, from_port_tensors
from .vision_text import changed_epsilon, text_config_of, vision_config_of


logger = logging.getLogger(__name__)

CONTEXT_LENGTH = 256  # tokens per text in the training of BiomedCLIP, not stated in the files of the port


def read_port(folder: Path) -> tuple[BiomedCLIPModel, BiomedCLIPProcessor]:
    """Load a model and its processor from a folder in the layout of the port. The image tower uses timm's epsilon."""
    stored = read_json(folder / "config.json")
    if not isinstance(stored.get("projection_dim"), int):
        raise ValueError(f"{folder / 'config.json'}: projection_dim is missing or not a number.")
    vit_config = ViTConfig(**stored["vision_config"])
    if epsilon := changed_epsilon(vit_config):
        embeddings = "Image embeddings differ from those of the port in the fifth digit."
        logger.warning("%s: %s %s", folder / "config.json", epsilon, embeddings)
    config = BiomedCLIPConfig(
        vision_config=vision_config_of(vit_config),
        text_config=text_config_of(BertConfig(**stored["text_config"])),
        projection_dim=stored["projection_dim"],
    )
    model = fill_model(config, from_port_tensors, read_weights(folder), folder)
    image_processor = BiomedCLIPImageProcessor(size=vit_config.image_size, crop_size=vit_config.image_size)
    tokenizer = read_tokenizer(BertTokenizer, folder, CONTEXT_LENGTH)
    return model, BiomedCLIPProcessor(image_processor, tokenizer)


def is_port(folder: Path) -> bool:
    """Return whether a folder is in the layout of the port: model type CLIP, with a ViT and a BERT."""
    if not (folder / "config.json").is_file():
        return False
    stored = read_json(folder / "config.json")
    towers = [stored.get(name, {}).get("model_type") for name in ("vision_config", "text_config")]
    return stored.get("model_type") == "clip" and towers == ["vit", "bert"]
