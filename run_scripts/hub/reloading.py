"""What a model answers: run as a program, by a process that knows nothing of this package but what a folder carries.

python reloading.py FOLDER INPUTS ANSWERS
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
def answers(model: Any, processor: Any, inputs: Path) -> dict[str, torch.Tensor]:
    """Token ids, pixels and embeddings of fixed inputs, in float32 on the CPU.

    Args:
        model: The model.
        processor: Its processor.
        inputs: Folder of PNG files and of `texts.json`.
    """
    model = model.float().eval()
    pictures = [Image.open(path) for path in sorted(inputs.glob("*.png"))]
    texts = json.loads((inputs / TEXTS).read_text(encoding="utf-8"))
    batch = processor(text=texts, images=pictures, return_tensors="pt")
    output = model(**batch)
    return {
        "token ids": batch["input_ids"],
        "pixels": batch["pixel_values"],
        "image embeddings": output.image_embeds.contiguous(),
        "text embeddings": output.text_embeds.contiguous(),
        "logits": output.logits_per_image.contiguous(),
    }


if __name__ == "__main__":
    folder, inputs, output = sys.argv[1:]
    loaded = (
        AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True, trust_remote_code=True),
        AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=True),
    )
    save_file(answers(*loaded, Path(inputs)), output)
