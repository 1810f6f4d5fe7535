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
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor


TEXTS = "texts.json"


@torch.no_grad()
def outputs(model: Any, processor: Any, inputs: Path) -> dict[str, torch.Tensor]:
    """Return token ids, pixels, embeddings and logits in float32 on the CPU, for the images and texts of a folder."""
    model = model.float().eval()
    texts = json.loads((inputs / TEXTS).read_text(encoding="utf-8"))
    batch = processor(text=texts, images=_images(inputs), return_tensors="pt")
    output = model(**batch)
    return {
        "token ids": batch["input_ids"],
        "pixels": batch["pixel_values"],
        "image embeddings": output.image_embeds.contiguous(),
        "text embeddings": output.text_embeds.contiguous(),
        "logits": output.logits_per_image.contiguous(),
    }


@torch.no_grad()
def classifier_outputs(model: Any, processor: Any, inputs: Path) -> dict[str, torch.Tensor]:
    """Return the pixels and the logits of a classifier in float32 on the CPU, for the images of a folder."""
    pixels = processor([image.convert("RGB") for image in _images(inputs)], return_tensors="pt")["pixel_values"]
    return {"pixels": pixels, "logits": model.float().eval()(pixel_values=pixels).logits.contiguous()}


def _images(inputs: Path) -> list[Any]:
    return [Image.open(path) for path in sorted(inputs.glob("*.png"))]


def _load(auto_class: Any, folder: str, **options: Any) -> Any:
    return auto_class.from_pretrained(folder, local_files_only=True, trust_remote_code=True, **options)


if __name__ == "__main__":
    folder, inputs, result = sys.argv[1:]
    names = _load(AutoConfig, folder).architectures or [""]
    if names[0].endswith("ForImageClassification"):
        classifier = _load(AutoModelForImageClassification, folder, dtype=torch.float32)
        found = classifier_outputs(classifier, _load(AutoImageProcessor, folder, backend="pil"), Path(inputs))
    else:
        found = outputs(_load(AutoModel, folder, dtype=torch.float32), _load(AutoProcessor, folder), Path(inputs))
    save_file(found, result)
