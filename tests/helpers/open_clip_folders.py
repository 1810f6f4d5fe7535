"""Folders in open_clip's layout, written by open_clip's own model."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from transformers import BertConfig, BertTokenizer, CLIPTokenizer

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel
from biomedclip.processing import BiomedCLIPImageProcessor, BiomedCLIPProcessor


WORDS = ["caption of article figure chest x-ray brain mri line chart this is a photo of , ! ."] * 9
TRAINED_LOGIT_SCALE = 4.4454


def published_clip_tokenizer() -> CLIPTokenizer:
    """Return CLIP's tokenizer with the 49,408 entries of open_clip's own."""
    vocabulary = SimpleTokenizer()
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return CLIPTokenizer(
        vocab={named.get(word, word): number for word, number in vocabulary.encoder.items()},
        merges=sorted(vocabulary.bpe_ranks, key=vocabulary.bpe_ranks.__getitem__),
        model_max_length=77,
    )


def convertible_model(tokenizer: Any, **text_config: Any) -> tuple[BiomedCLIPModel, BiomedCLIPProcessor]:
    """Return a small model with towers that open_clip supports, and its processor."""
    torch.manual_seed(0)
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}  # timm's vit_tiny
    text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4} | text_config
    model = BiomedCLIPModel(BiomedCLIPConfig(projection_dim=32, vision_config=vision, text_config=text))
    return model, BiomedCLIPProcessor(BiomedCLIPImageProcessor(), tokenizer)


def write_open_clip_folder(root: Path) -> Path:
    """Write a small model with BiomedCLIP's architecture, with the tokenizer next to the weights.

    The configuration of its text tower is in `root / "bert"`, so nothing is requested from the Hub.
    """
    BertConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    ).save_pretrained(root / "bert")
    folder = root / "folder"
    BertTokenizer().train_new_from_iterator(WORDS, vocab_size=96, show_progress=False).save_pretrained(folder)
    config = {
        "model_cfg": {
            "embed_dim": 32,
            "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "", "image_size": 224},
            "text_cfg": {
                "hf_model_name": str(root / "bert"),
                "hf_tokenizer_name": str(root / "bert"),
                "hf_model_pretrained": False,
                "hf_proj_type": "mlp",
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": 40,
            },
        },
        "preprocess_cfg": {"mean": [0.4, 0.45, 0.5], "std": [0.2, 0.25, 0.3]},
    }
    return write_model(folder, open_clip.CustomTextCLIP, config)


def write_model(folder: Path, model_class: type[torch.nn.Module], config: dict[str, Any]) -> Path:
    """Write a configuration and a model of open_clip with random weights. Norms and biases are not ones and zeros."""
    torch.manual_seed(0)
    model = model_class(**config["model_cfg"])
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.mean() > 0.5), std=0.1)
    torch.nn.init.constant_(model.logit_scale, TRAINED_LOGIT_SCALE)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "open_clip_config.json").read_text())


def change_config(folder: Path, section: str, **values: Any) -> None:
    """Change settings in a section of `open_clip_config.json`."""
    config = read_config(folder)
    place = config if section in config else config["model_cfg"]
    place[section] = place[section] | values
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
