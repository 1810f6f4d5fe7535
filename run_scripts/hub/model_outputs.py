"""Compute the outputs of a saved model. Run as a program, it uses no code of this package except that in the folder.

python model_outputs.py FOLDER INPUTS OUTPUTS
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor


TEXTS = "texts.json"


@torch.no_grad()
def outputs(model: Any, processor: Any, inputs: Path) -> dict[str, torch.Tensor]:
    """Return token ids, pixels, embeddings and logits in float32 on the CPU, for the images and texts of a folder."""
    model = model.float().eval()
    images = [Image.open(path) for path in sorted(inputs.glob("*.png"))]
    texts = json.loads((inputs / TEXTS).read_text(encoding="utf-8"))
    batch = processor(text=texts, images=images, return_tensors="pt")
    output = model(**batch)
    return {
        "token ids": batch["input_ids"],
        "pixels": batch["pixel_values"],
        "image embeddings": output.image_embeds.contiguous(),
        "text embeddings": output.text_embeds.contiguous(),
        "logits": output.logits_per_image.contiguous(),
    }


if __name__ == "__main__":
    folder, inputs, result = sys.argv[1:]
    loaded = (
        AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True, trust_remote_code=True),
        AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=True),
    )
    save_file(outputs(*loaded, Path(inputs)), result)
