"""Saliency maps: which parts of an image raise its similarity to a text.

The relevance of a patch is its attention times the gradient of the similarity with respect to this attention. Let A be
the attention probabilities of the class token in a layer of the image tower, and S the cosine similarity of the text
and the class token after this layer (last LayerNorm, projection). The relevance is A * dS/dA, averaged over heads and
summed over layers.

- The similarity after each layer is that of LeGrad (Bousselham et al., "LeGrad: An Explainability Method for Vision
  Transformers via Feature Formation Sensitivity", arXiv 2404.03214), which sums the positive parts of dS/dA.
- Attention times gradient is that of Grad-SAM (Barkan et al. 2021, arXiv 2204.11073) and of Chefer et al. 2021 (arXiv
  2103.15679). It estimates how much the similarity falls if the class token ignores the patch. Both papers discard
  negative values. They are kept here: a patch that speaks against the text lowers the sum over heads and layers.
- The values of single patches are noisy, so a map is smoothed by the mean of 3 x 3 patches.

`tests/performance/saliency.py` compares the method with others.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import nn

from .embedding import embed_texts, in_evaluation


def saliency_map(
    model: Any,
    processor: Any,
    image: Image.Image,
    text: str | Sequence[str],
    *,
    neutral_prompts: Sequence[str] = (),
) -> torch.Tensor:
    """Return a map of how much each part of an image raises its similarity to a text.

    Maps of medical dual encoders can look the same for any prompt. Check this with [`prompt_sensitivity`]. A map does
    not show whether the model is right, and must not be used for clinical decisions.

    Args:
        model: [`BiomedCLIPModel`], or another dual encoder with a ViT and a class token, such as `CLIPModel`.
        processor: Processor of the model.
        image: Pillow image.
        text: One prompt, or several prompts for the same image.
        neutral_prompts: Prompts without content, such as "an image". Their mean map is subtracted (default: nothing).

    Returns:
        Map of shape `(height, width)` of the image, or `(texts, height, width)` for several prompts. float32, on the
        CPU. Positive where attention to the image raises the similarity, negative where it lowers the similarity. NaN
        outside the center crop that the model sees.

    Raises:
        TypeError: If the model cannot compute gradients, such as an [`ExportedModel`].
        ValueError: If `text` is an empty list, or if the image tower is not a ViT with a class token.

    Example:
    ```python
    >>> from biomedclip import BiomedCLIPModel, BiomedCLIPProcessor, read_image, saliency_map

    >>> model = BiomedCLIPModel.from_pretrained("out/model")
    >>> processor = BiomedCLIPProcessor.from_pretrained("out/model")
    >>> image = read_image("scan.png")
    >>> saliency_map(model, processor, image, "chest X-ray").shape == (image.height, image.width)
    True
    ```
    """
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError("`text` is empty. Pass one prompt or a list of prompts.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} computes no gradients, which saliency needs. Load the PyTorch model.")
    text_embeds = embed_texts(model, processor, [*texts, *neutral_prompts])
    pixel_values = processor.image_processor([image], return_tensors="pt")["pixel_values"]
    relevance = patch_relevance(model, pixel_values, text_embeds)
    maps, neutral_maps = relevance[: len(texts)], relevance[len(texts) :]
    if len(neutral_maps):
        maps = maps - neutral_maps.mean(dim=0)
    maps = to_image_resolution(smoothed(maps), processor.image_processor, image.size, pixel_values.shape[-2:])
    return maps[0] if isinstance(text, str) else maps


def prompt_sensitivity(maps: torch.Tensor) -> torch.Tensor:
    """Return the correlations between the maps of different prompts for the same image.

    Correlations near 1 mean that the maps do not depend on the prompt, so they show nothing about it.

    Args:
        maps: Maps of shape `(texts, height, width)` from [`saliency_map`]. Positions with NaN are ignored.

    Returns:
        Pearson correlations of shape `(texts, texts)`, float32. NaN for a map with the same value everywhere.

    Raises:
        ValueError: If `maps` has not three dimensions.

    Example:
    ```python
    >>> import torch
    >>> from biomedclip import prompt_sensitivity

    >>> one = torch.tensor([[0.0, 1.0], [2.0, float("nan")]])
    >>> prompt_sensitivity(torch.stack([one, -one]))
    tensor([[ 1., -1.],
            [-1.,  1.]])
    ```
    """
    if maps.ndim != 3:
        raise ValueError(f"`maps` has shape {tuple(maps.shape)}, but must have shape (texts, height, width).")
    values = maps.flatten(1)
    values = values[:, values.isfinite().all(dim=0)]
    return torch.corrcoef(values.double()).reshape(len(maps), len(maps)).float()


@torch.inference_mode(False)
@torch.enable_grad()
def patch_relevance(model: Any, pixel_values: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Return the relevance of each patch of one image, of shape `(texts, rows, columns)`, float32, on the CPU.

    Args:
        model: A dual encoder.
        pixel_values: Pixels of shape `(1, channels, height, width)`.
        text_embeds: Normalized embeddings of shape `(texts, dimension)`.
    """
    patch_size = model.config.vision_config.patch_size
    rows, columns = (side // patch_size for side in pixel_values.shape[-2:])
    relevance = torch.zeros(len(text_embeds), rows * columns)
    with in_evaluation(model), _eager_attention(model):
        # Ask for the gradient of the pixels, so that a graph is recorded even if all weights are frozen.
        pixel_values = pixel_values.to(model.device, copy=True).requires_grad_()
        text_embeds = text_embeds.to(model.device, copy=True)  # a tensor of inference mode cannot be part of a graph
        outputs = model.get_image_features(pixel_values=pixel_values, output_attentions=True, output_hidden_states=True)
        if not outputs.attentions or outputs.attentions[0].shape[-1] != rows * columns + 1:
            raise ValueError(
                f"Saliency needs a ViT with a class token and {rows} x {columns} patches, which the image tower of "
                f"{type(model).__name__} is not."
            )
        for attention, hidden_states in zip(outputs.attentions, outputs.hidden_states[1:], strict=True):
            pooled = model.vision_model.post_layernorm(hidden_states[:, 0])
            image_embeds = nn.functional.normalize(model.visual_projection(pooled).float(), dim=-1)
            for number, similarity in enumerate(text_embeds.float() @ image_embeds[0]):
                (gradient,) = torch.autograd.grad(similarity, attention, retain_graph=True)
                relevance[number] += (attention.detach() * gradient)[0, :, 0, 1:].float().mean(dim=0).cpu()
    return relevance.reshape(-1, rows, columns)


def smoothed(maps: torch.Tensor) -> torch.Tensor:
    """Return the mean of 3 x 3 patches around each patch, with repeated borders. Shape `(texts, rows, columns)`."""
    return nn.functional.avg_pool2d(nn.functional.pad(maps, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def to_image_resolution(
    maps: torch.Tensor, image_processor: Any, size: tuple[int, int], crop: Sequence[int]
) -> torch.Tensor:
    """Undo the resizing and the center crop of an image processor, with bilinear interpolation between patches.

    Args:
        maps: Maps of shape `(texts, rows, columns)`.
        image_processor: Image processor of the model.
        size: Width and height of the image.
        crop: Height and width of the pixels that the model sees.

    Returns:
        Maps of shape `(texts, height, width)`. NaN at pixels whose center is outside the crop.
    """
    resized = _resized(image_processor, *size)
    across, down = (
        _interpolation(*lengths)
        for lengths in zip(size, resized, reversed(crop), reversed(maps.shape[1:]), strict=True)
    )
    return down @ maps @ across.t()


def _interpolation(length: int, resized: int, crop: int, patches: int) -> torch.Tensor:
    """Return the weight of each patch for each pixel along one side, of shape `(length, patches)`."""
    spare = resized - crop
    offset = round(spare / 2) if spare >= 0 else -(-spare // 2)  # as in the image processor
    centers = (torch.arange(length, dtype=torch.float64) + 0.5) * resized / length - offset
    positions = (centers * patches / crop - 0.5).clamp(0, patches - 1)
    weights = (1 - (positions[:, None] - torch.arange(patches)).abs()).clamp(min=0)
    weights[(centers < 0) | (centers >= crop)] = torch.nan  # the products with all patches are NaN, too
    return weights.float()


def _resized(image_processor: Any, width: int, height: int) -> tuple[int, int]:
    """Return the width and height of an image after resizing, before the crop."""
    if not image_processor.do_resize:
        return width, height
    size = image_processor.size
    if shortest := size.get("shortest_edge"):
        longest = int(shortest * max(width, height) / min(width, height))
        return (shortest, longest) if width <= height else (longest, shortest)
    return size["width"], size["height"]


@contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """Compute attention probabilities in the image tower, and restore its attention implementation afterwards."""
    previous = model.config.vision_config._attn_implementation
    model.set_attn_implementation({"vision_config": "eager"})
    try:
        yield
    finally:
        model.set_attn_implementation({"vision_config": previous})
