"""Zero-shot classification with prompts."""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from .embedding import BATCH_SIZE, count_tokens, embed_texts, image_batches, normalize, text_limit


logger = logging.getLogger(__name__)

PROMPTS_AT_A_TIME = 256


class ZeroShotClassifier:
    """Classify images by the similarity of their embeddings to the embeddings of class names.

    The embedding of a class is the normalized mean of its prompt embeddings over all templates, as in CLIP and in the
    paper (suppl. table 10). With one template, the logits equal `logits_per_image` of the model to rounding, because no
    padding is computed.

    Args:
        model: A dual encoder with `get_image_features`, `get_text_features` and `logit_scale`, or an [`ExportedModel`].
        processor: Processor of the model.
        class_names: Names of the classes.
        templates: One or more templates with `{}` as the placeholder for the class name.
        max_length: Maximum number of tokens of a prompt. Longer prompts are truncated with a warning. The default is
            the limit of the tokenizer.

    Attributes:
        class_embeds: Embeddings of the classes, of shape `(classes, dimension)`, on the CPU.

    Raises:
        ValueError: If there are no class names or templates, or if a template has no `{}`.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPModel, BiomedCLIPProcessor, ZeroShotClassifier, read_image

    >>> model = BiomedCLIPModel.from_pretrained("out/model")
    >>> processor = BiomedCLIPProcessor.from_pretrained("out/model")
    >>> classifier = ZeroShotClassifier(model, processor, ["chest X-ray", "brain MRI"])
    >>> classifier([read_image("scan.png")])
    tensor([[0.98, 0.02]])
    ```
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        class_names: Sequence[str],
        templates: str | Sequence[str] = "this is a photo of {}",
        *,
        max_length: int | None = None,
    ):
        self.templates = [templates] if isinstance(templates, str) else list(templates)
        self.class_names = [class_names] if isinstance(class_names, str) else list(class_names)
        if not self.class_names or not self.templates:
            raise ValueError("`class_names` and `templates` must not be empty.")
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"The template {template!r} has no {{}} for the class name.")
        self.model = model
        self.processor = processor
        self.class_embeds = self._embed_classes(max_length)

    def _embed_classes(self, max_length: int | None) -> torch.Tensor:
        of_templates = []
        for template in self.templates:
            prompts = [template.replace("{}", name) for name in self.class_names]
            lengths = count_tokens(self.model, self.processor, prompts, max_length=max_length)
            self._warn_of_long(prompts, lengths, max_length or text_limit(self.model, self.processor))
            of_templates.append(
                embed_texts(self.model, self.processor, prompts, batch_size=PROMPTS_AT_A_TIME, max_length=max_length)
            )
        if len(of_templates) == 1:  # normalizing the mean of one embedding again would change the last bit
            return of_templates[0]
        return normalize(torch.stack(of_templates).mean(dim=0))

    def _warn_of_long(self, prompts: list[str], lengths: list[int], limit: int) -> None:
        long = [prompt for prompt, length in zip(prompts, lengths, strict=True) if length > limit]
        if long:
            logger.warning(
                "%d of %d prompts have more than %d tokens and are truncated, for example: %.60s...",
                len(long),
                len(prompts),
                limit,
                long[0],
            )

    def similarities(self, images: Sequence[Any], *, batch_size: int = BATCH_SIZE) -> torch.Tensor:
        """Return cosine similarities of shape `(images, classes)`, on the CPU.

        Args:
            images: Pillow images, or a sequence that loads each image on access.
            batch_size: Number of images per batch.
        """
        batches = image_batches(self.model, self.processor, images, batch_size)
        # Multiply texts by images batch by batch, as in the forward pass of the model. The last bit of the result
        # depends on the order.
        similarities = [(self.class_embeds @ image_embeds.t()).t() for image_embeds in batches]
        return torch.cat(similarities) if similarities else torch.empty(0, len(self.class_names))

    def logits(self, images: Sequence[Any], *, batch_size: int = BATCH_SIZE) -> torch.Tensor:
        """Return the similarities times the inverse temperature. See [`similarities`] for arguments and shape."""
        scale = self.model.logit_scale.detach().float().exp().cpu()
        return self.similarities(images, batch_size=batch_size) * scale

    def __call__(self, images: Sequence[Any], *, batch_size: int = BATCH_SIZE) -> torch.Tensor:
        """Return class probabilities (the softmax of the logits). See [`similarities`] for arguments and shape."""
        return self.logits(images, batch_size=batch_size).softmax(dim=-1)
