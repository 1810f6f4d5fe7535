"""Text embeddings of class names behind learned context tokens, as in CoOp (arXiv 2109.01134)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from biomedclip.embedding import padded_texts, text_limit, tokenize

from ..dual_encoders import DualEncoder


PUBLISHED_TEMPLATE = "a photo of a {}."  # the first context of CoOp
PROMPTS_AT_A_TIME = 64  # prompts whose activations are in memory at the same time


class ContextEncoder:
    """Embed class names behind context tokens with the frozen text tower of a dual encoder.

    The context takes the place of the words before `{}` in the first template that begins with words, or in CoOp's
    template. It has one vector for each of their tokens. Before training, it contains their word embeddings, so that
    the result equals the embeddings of these prompts.

    Args:
        encoder: A dual encoder of transformers, with word embeddings at `text_model.get_input_embeddings()`.
        class_names: Names of the classes.
        templates: Prompt templates with `{}`.
        max_length: Maximum number of tokens of a prompt (default: the limit of the tokenizer).

    Attributes:
        start: The context before training, of shape `(tokens, width of the text tower)`.

    Raises:
        ValueError: If the model has no such word embeddings, or if the tokens of the context cannot be located.
    """

    def __init__(
        self, encoder: DualEncoder, class_names: Sequence[str], templates: Sequence[str], max_length: int | None = None
    ):
        tower: Any = getattr(encoder.model, "text_model", None)
        if not hasattr(tower, "get_input_embeddings"):
            raise ValueError(
                f"{encoder.name} is of the type {encoder.type}, whose text encoder takes no learned tokens. Omit coop "
                "from --methods."
            )
        self.encoder = encoder
        self.embedding = tower.get_input_embeddings()
        self.template = next((text for text in templates if text.split("{}")[0].strip()), PUBLISHED_TEMPLATE)
        words = self.template.split("{}")[0].strip()
        prompts = [self.template.replace("{}", name) for name in class_names]
        self.token_ids, self.fixed_length = tokenize(encoder.model, encoder.processor, prompts, max_length)
        context_ids = encoder.processor.tokenizer(words, add_special_tokens=False)["input_ids"]
        self.place = self._place(context_ids, words, max_length or text_limit(encoder.model, encoder.processor))
        device = self.embedding.weight.device
        with torch.no_grad():
            self.start = self.embedding(torch.tensor(context_ids, device=device)).detach().clone()

    def _place(self, context_ids: Sequence[int], words: str, limit: int) -> int:
        """Return the position of the first context token, which is the same in all prompts."""
        count = len(context_ids)
        if count + 2 > limit:
            raise ValueError(f"The {count} tokens of {words!r} leave no room for the class name within {limit} tokens.")
        for place in (0, 1):
            if count and all(ids[place : place + count] == list(context_ids) for ids in self.token_ids):
                return place
        raise ValueError(
            f"The tokens of {words!r} are not at the beginning of the prompts {self.template!r}. Pass --templates with "
            "a template that begins with words, such as 'a photo of a {}.'."
        )

    def __call__(self, context: Tensor) -> Tensor:
        """Return normalized embeddings `(classes, dimension)`, differentiable with respect to the context."""
        parts = []
        for start in range(0, len(self.token_ids), PROMPTS_AT_A_TIME):
            ids = self.token_ids[start : start + PROMPTS_AT_A_TIME]
            if context.requires_grad and len(self.token_ids) > PROMPTS_AT_A_TIME:
                parts.append(checkpoint(self._embed, ids, context, use_reentrant=False))
            else:
                parts.append(self._embed(ids, context))
        return torch.cat(parts)

    def _embed(self, token_ids: list[list[int]], context: Tensor) -> Tensor:
        length = self.fixed_length or max(map(len, token_ids))
        model = self.encoder.model
        inputs = padded_texts(self.encoder.processor, token_ids, length)
        inputs = {name: value.to(self.embedding.weight.device) for name, value in inputs.items()}
        with self.encoder.precise(), self._replaced(context):
            features = model.get_text_features(**inputs).pooler_output
        return normalize(features.to(context.dtype), dim=-1)

    @contextmanager
    def _replaced(self, context: Tensor) -> Iterator[None]:
        """Replace the word embeddings at the positions of the context, and freeze the model."""
        end = self.place + len(context)

        def replace(module: Any, inputs: Any, output: Tensor) -> Tensor:
            vectors = context.to(output.dtype).expand(len(output), -1, -1)
            return torch.cat([output[:, : self.place], vectors, output[:, end:]], dim=1)

        frozen = [parameter for parameter in self.encoder.model.parameters() if parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        handle = self.embedding.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()
            for parameter in frozen:
                parameter.requires_grad_(True)
