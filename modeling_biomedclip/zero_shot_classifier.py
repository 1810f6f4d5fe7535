"""Zero-shot classification with prompts: labels are embedded once, images in batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class ZeroShotClassifier:
    """
    Classifies images by the similarity of their embedding to those of the class names.

    A class is the normalised mean of its normalised template embeddings, as in CLIP and the paper (suppl. table 10).

    Args:
        model: A dual encoder with `get_image_features`, `get_text_features` and `logit_scale`.
        processor: Its processor.
        class_names: Names of the classes.
        templates: One or more sentences with `{}` in the place of the name.
        max_length: Longer prompts are cut; the tokenizer's limit when left out.

    Raises:
        ValueError: No class names or templates, or a template without `{}`.

    Example:

    ```python
    >>> classifier = ZeroShotClassifier(model, processor, ["chest X-ray", "brain MRI"])
    >>> classifier([read_image("scan.png")])
    tensor([[0.98, 0.02]])
    ```"""

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        class_names: Sequence[str],
        templates: Sequence[str] = ("this is a photo of {}",),
        *,
        max_length: int | None = None,
    ):
        if not class_names or not templates:
            raise ValueError("Zero-shot classification needs at least one class name and one template.")
        for template in templates:
            if "{}" not in template:
                raise ValueError(f"The template {template!r} has no {{}} for the class name.")
        self.model = model.eval()
        self.processor = processor
        self.class_names = list(class_names)
        self.class_embeds = self._embed_classes(templates, max_length)

    @torch.no_grad()
    def _embed_classes(self, templates: Sequence[str], max_length: int | None) -> torch.Tensor:
        """One embedding for each class, of shape `(classes, dimension)`."""
        of_templates = []
        for template in templates:
            texts = self.processor.tokenizer(
                [template.replace("{}", name) for name in self.class_names],
                # SigLIP pools the last position, so its texts must always have the same length.
                padding="max_length" if "siglip" in self.model.config.model_type else True,
                truncation=True,
                max_length=max_length,
                return_token_type_ids=False,
                return_tensors="pt",
            ).to(self.model.device)
            of_templates.append(_normalize(self.model.get_text_features(**texts).pooler_output))
        return _normalize(torch.stack(of_templates).mean(dim=0))

    @torch.no_grad()
    def logits(self, images: Sequence[Any], *, batch_size: int = 32) -> torch.Tensor:
        """
        Cosine similarities times the inverse temperature, of shape `(images, classes)`, on the CPU.

        Args:
            images: Pillow images.
            batch_size: Images at a time.
        """
        scale = self.model.logit_scale.exp()
        logits = []
        for start in range(0, len(images), batch_size):
            batch = list(images[start : start + batch_size])
            pixels = self.processor.image_processor(batch, return_tensors="pt").to(self.model.device)
            image_embeds = _normalize(self.model.get_image_features(**pixels).pooler_output)
            logits.append((scale * image_embeds @ self.class_embeds.t()).float().cpu())
        return torch.cat(logits) if logits else torch.empty(0, len(self.class_names))

    def __call__(self, images: Sequence[Any], *, batch_size: int = 32) -> torch.Tensor:
        """Probabilities of the classes for each image, of shape `(images, classes)`; arguments as in [`logits`]."""
        return self.logits(images, batch_size=batch_size).softmax(dim=-1)


def _normalize(features: torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(features, dim=-1)


__all__ = ["ZeroShotClassifier"]
