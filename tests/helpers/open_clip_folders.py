"""Folders in open_clip's layout, written by open_clip's own model."""

import json
from pathlib import Path

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import save_file
from transformers import BertConfig, BertTokenizer, CLIPTokenizer


WORDS = ["caption of article figure chest x-ray brain mri line chart this is a photo of , ! ."] * 9


def published_clip_tokenizer() -> CLIPTokenizer:
    """Return CLIP's tokenizer with the 49,408 entries of open_clip's own."""
    vocabulary = SimpleTokenizer()
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    return CLIPTokenizer(
        vocab={named.get(word, word): number for word, number in vocabulary.encoder.items()},
        merges=sorted(vocabulary.bpe_ranks, key=vocabulary.bpe_ranks.__getitem__),
        model_max_length=77,
    )


def write_open_clip_folder(root: Path) -> Path:
    """
    Write a small model with BiomedCLIP's architecture, with the tokenizer next to the weights.

    Its text tower is described in `root / "bert"`, so that nothing is asked of the Hub.
    """
    BertConfig(
        vocab_size=96, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128
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
                "hf_pooler_type": "cls_last_hidden_state_pooler",
                "context_length": 40,
            },
        },
        "preprocess_cfg": {},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**config["model_cfg"])
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder
