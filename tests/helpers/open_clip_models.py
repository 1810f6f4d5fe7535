"""open_clip's model with the published architecture and few layers, and our model with the same weights."""

from pathlib import Path

import open_clip
import torch
from transformers import BertConfig

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel
from biomedclip.conversion.tensors import from_open_clip_tensors


VISION = {"timm_model_name": "vit_base_patch16_224", "timm_pool": "", "timm_proj": "linear", "image_size": 224}


def open_clip_model(folder: Path, layers: int, **vision) -> open_clip.CustomTextCLIP:
    """Return the model with random weights. `folder` receives the configuration of the text tower."""
    BertConfig(num_hidden_layers=layers).save_pretrained(folder)
    torch.manual_seed(0)
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": str(folder), "hf_model_pretrained": False}
    text |= {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 256}
    model = open_clip.CustomTextCLIP(embed_dim=512, vision_cfg=VISION | vision, text_cfg=text)
    del model.visual.trunk.blocks[layers:]
    return model


def with_same_weights(theirs: open_clip.CustomTextCLIP, layers: int, **vision) -> BiomedCLIPModel:
    """Return our model with the weights of open_clip's."""
    layer = {"num_hidden_layers": layers}
    ours = BiomedCLIPModel(BiomedCLIPConfig(text_config=layer, vision_config=layer | vision))
    ours.load_state_dict(from_open_clip_tensors(theirs.state_dict(), list(ours.state_dict())))
    return ours
