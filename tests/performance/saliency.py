"""Methods for saliency maps on synthetic images with two panels: does the map of a prompt point to its panel?

python tests/performance/saliency.py out/model --output saliency.json

Each image shows two kinds of figures of the synthetic corpus. The prompt of each panel should point to that panel. It
is the kind of the figure, or a caption with all attributes.
- pointing: fraction of maps with their maximum in the right panel. Chance is 0.5.
- correlation: Pearson correlation between the maps of both prompts.
- deletion and insertion: mean similarity to the prompt while the patches with the highest values are removed from the
  image, or added to an empty image. Lower is better for deletion, higher for insertion.

Pointing and correlation are given without and with subtraction of the mean map of neutral prompts. Models with random
weights should point at chance.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timing import parser_of, report
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from biomedclip import BiomedCLIPConfig, BiomedCLIPModel, BiomedCLIPProcessor, embed_texts
from biomedclip.processing.synthetic_corpus import FIGURE_KINDS, ZERO_SHOT_TEMPLATES
from biomedclip.saliency import NEUTRAL_PROMPTS, patch_relevance


SIDE = 128  # of an image with two panels, in pixels
BATCH = 16  # images at a time
STEPS = 4  # of deletion and insertion: a quarter, half and three quarters of the patches


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("model", help="folder of a model that the quickstart trained")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--random-models", type=int, default=5)
    options = parser.parse_args()
    model = BiomedCLIPModel.from_pretrained(options.model, attn_implementation="eager").eval()
    processor = BiomedCLIPProcessor.from_pretrained(options.model)
    images, kinds, captions, masks = two_panel_images(options.images, np.random.default_rng(0))
    results: dict[str, Any] = {
        "trained, kinds": measure(model, processor, images, kinds, masks),
        "trained, captions": measure(model, processor, images, captions, masks),
    }
    config = BiomedCLIPConfig.from_pretrained(options.model, attn_implementation="eager")
    for seed in range(options.random_models):
        torch.manual_seed(seed)
        random = BiomedCLIPModel(config).eval()
        results[f"random {seed}, captions"] = measure(random, processor, images, captions, masks, METHODS[:1])
    rows = [
        (who, name, *(f"{values[column]:.3f}" for column in COLUMNS))
        for who, measured in results.items()
        for name, values in measured.items()
    ]
    title = f"{options.images} images with two panels"
    report({"results": results}, [(title, rows, ["weights and prompts", "method", *COLUMNS])], options.output)


COLUMNS = (
    "pointing",
    "pointing - neutral",
    "correlation",
    "correlation - neutral",
    "deletion",
    "insertion",
)


def two_panel_images(
    count: int, rng: np.random.Generator
) -> tuple[list[Image.Image], list[list[str]], list[list[str]], list[torch.Tensor]]:
    """Return square images, the kinds and the captions of both panels, and masks `(2, SIDE, SIDE)` of both panels.

    A panel shows the central half of a figure, at the scale of training. Panels are beside or above each other.
    """
    images, kind_prompts, captions, masks = [], [], [], []
    quarter, half = SIDE // 4, SIDE // 2
    for number in range(count):
        image = Image.new("RGB", (SIDE, SIDE))
        mask = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
        beside = number % 2 == 0
        kind_prompts.append([])
        captions.append([])
        for panel, index in enumerate(rng.choice(len(FIGURE_KINDS), 2, replace=False)):
            kind, figure_kind = list(FIGURE_KINDS.items())[index]
            chosen = figure_kind.combination(int(rng.integers(figure_kind.combinations)))
            figure = _square(figure_kind.draw(chosen, rng))
            left, top = (panel * half, 0) if beside else (0, panel * half)
            right, bottom = (left + half, SIDE) if beside else (SIDE, top + half)
            shown = (quarter, 0, quarter + half, SIDE) if beside else (0, quarter, SIDE, quarter + half)
            image.paste(figure.crop(shown), (left, top))
            mask[panel, top:bottom, left:right] = True
            prompt = ZERO_SHOT_TEMPLATES[0].format(kind)
            kind_prompts[-1].append(prompt)
            captions[-1].append(f"{prompt} with {figure_kind.description.format(**chosen)}.")
        images.append(image)
        masks.append(mask)
    return images, kind_prompts, captions, masks


def _square(figure: Image.Image) -> Image.Image:
    shortest = min(figure.size)
    left, top = ((side - shortest) // 2 for side in figure.size)
    return figure.convert("RGB").crop((left, top, left + shortest, top + shortest)).resize((SIDE, SIDE))


class Derivatives:
    """Attention probabilities and hidden states of images, and their gradients of the similarities to texts."""

    def __init__(self, model: Any, pixel_values: torch.Tensor, text_embeds: torch.Tensor):
        """Take images of shape `(images, ...)` and embeddings of shape `(images, prompts, dimension)`."""
        self.prompts = text_embeds.shape[1]
        pixel_values, text_embeds = pixel_values.repeat_interleave(self.prompts, dim=0), text_embeds.flatten(0, 1)
        outputs = model.get_image_features(pixel_values=pixel_values, output_attentions=True, output_hidden_states=True)
        self.model, self.pixel_values, self.text_embeds = model, pixel_values, text_embeds
        self.attentions, self.hidden_states = outputs.attentions, outputs.hidden_states
        similarities = (normalize(outputs.pooler_output, dim=-1) * text_embeds).sum()
        inputs = [*self.attentions, *self.hidden_states[:-1]]
        gradients = torch.autograd.grad(similarities, inputs, retain_graph=True)
        layers = len(self.attentions)
        self.of_attentions, self.of_hidden_states = gradients[:layers], gradients[layers:]


def rollout(derivatives: Derivatives, layers: int = 0) -> torch.Tensor:
    """Chefer et al. 2021: products of the positive parts of gradient x attention over the last layers, or over all."""
    pairs = list(zip(derivatives.attentions, derivatives.of_attentions, strict=True))[-layers:]
    relevance = torch.eye(pairs[0][0].shape[-1])
    for attention, gradient in pairs:
        relevance = relevance + (attention * gradient).clamp(min=0).mean(dim=1) @ relevance
    return relevance[:, 0, 1:]


def mean_of_tokens(derivatives: Derivatives) -> torch.Tensor:
    """LeGrad as in the code of Bousselham et al. 2025: the mean of all tokens is pooled, not the class token."""
    model, total = derivatives.model, torch.zeros(())
    for attention, hidden_states in zip(derivatives.attentions, derivatives.hidden_states[1:], strict=True):
        pooled = model.vision_model.post_layernorm(hidden_states.mean(dim=1))
        similarities = (normalize(model.visual_projection(pooled), dim=-1) * derivatives.text_embeds).sum()
        (gradient,) = torch.autograd.grad(similarities, attention, retain_graph=True)
        total = total + gradient.clamp(min=0).mean(dim=(1, 2))[:, 1:]
    return total


def shipped(derivatives: Derivatives) -> torch.Tensor:
    """The method of `saliency_map`: LeGrad with the class token."""
    every = derivatives.prompts
    pairs = zip(derivatives.pixel_values[::every], derivatives.text_embeds.split(every), strict=True)
    return torch.cat([patch_relevance(derivatives.model, pixels[None], embeds) for pixels, embeds in pairs]).flatten(1)


def grad_cam(derivatives: Derivatives) -> torch.Tensor:
    """Selvaraju et al. 2017, on the patch tokens that enter the last layer."""
    tokens, gradients = derivatives.hidden_states[-2][:, 1:], derivatives.of_hidden_states[-1][:, 1:]
    return (tokens * gradients.mean(dim=1, keepdim=True)).sum(dim=-1).clamp(min=0)


METHODS: list[tuple[str, Callable[[Derivatives], torch.Tensor]]] = [
    ("saliency_map (LeGrad, class token)", shipped),
    ("LeGrad, mean of tokens", mean_of_tokens),
    ("attention rollout with gradients (Chefer)", rollout),
    ("gradient x attention, last layer", lambda derivatives: rollout(derivatives, layers=1)),
    ("Grad-CAM on patch tokens", grad_cam),
    ("attention, last layer, no gradient", lambda derivatives: derivatives.attentions[-1].mean(dim=1)[:, 0, 1:]),
]


def measure(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[Sequence[str]],
    masks: Sequence[torch.Tensor],
    methods: Sequence[tuple[str, Callable[[Derivatives], torch.Tensor]]] = (),
) -> dict[str, dict[str, float]]:
    """Return the values of each column for each method."""
    text_embeds = embed_texts(model, processor, [prompt for pair in prompts for prompt in pair])
    neutral_embeds = embed_texts(model, processor, NEUTRAL_PROMPTS)
    values: dict[str, dict[str, list[float]]] = {}
    for first in tqdm(range(0, len(images), BATCH)):
        batch = range(first, min(first + BATCH, len(images)))
        inputs = processor.image_processor([images[number] for number in batch], return_tensors="pt")
        pixel_values = inputs["pixel_values"]
        embeds = torch.stack([torch.cat([text_embeds[2 * number :][:2], neutral_embeds]) for number in batch])
        derivatives = Derivatives(model, pixel_values, embeds)
        for name, method in methods or METHODS:
            maps = method(derivatives).detach().unflatten(0, (len(batch), derivatives.prompts))
            contrasts = maps[:, :2] - maps[:, 2:].mean(dim=1, keepdim=True)
            found = values.setdefault(name, {column: [] for column in COLUMNS})
            for suffix, shown in (("", maps[:, :2]), (" - neutral", contrasts)):
                side = int(shown.shape[-1] ** 0.5)
                panels = torch.stack([_on_patches(masks[number], side) for number in batch])
                hits = panels.gather(2, shown.argmax(dim=-1, keepdim=True))
                found["pointing" + suffix] += hits.flatten().tolist()
                found["correlation" + suffix] += [float(torch.corrcoef(pair)[0, 1]) for pair in shown]
            for column, keep_best in (("deletion", False), ("insertion", True)):
                found[column] += _perturbed(model, pixel_values, contrasts, embeds[:, :2], keep_best).tolist()
    return {name: {column: float(np.mean(of)) for column, of in found.items()} for name, found in values.items()}


def _on_patches(masks: torch.Tensor, side: int) -> torch.Tensor:
    """Return which patches lie in each panel, of shape `(2, side * side)`."""
    return torch.nn.functional.adaptive_avg_pool2d(masks.float(), side).flatten(1).gt(0.5)


@torch.no_grad()
def _perturbed(
    model: Any, pixel_values: torch.Tensor, maps: torch.Tensor, text_embeds: torch.Tensor, keep_best: bool
) -> torch.Tensor:
    """Return the mean similarity over images that keep, or lack, a growing part of the patches with high values."""
    patches = maps.shape[-1]
    side = int(patches**0.5)
    ranks = maps.argsort(dim=-1, descending=True).argsort(dim=-1)  # 0 is the highest value
    similarities = []
    for step in range(1, STEPS):
        best = (ranks < patches * step / STEPS).float().unflatten(-1, (side, side))
        kept = best if keep_best else 1 - best
        kept = torch.nn.functional.interpolate(kept, size=pixel_values.shape[-2:])  # (images, prompts, height, width)
        changed = pixel_values[:, None] * kept[:, :, None]  # the mean color is 0
        embeds = model.get_image_features(pixel_values=changed.flatten(0, 1)).pooler_output
        similarities.append((normalize(embeds, dim=-1) * text_embeds.flatten(0, 1)).sum(dim=-1))
    return torch.stack(similarities).mean(dim=0)


if __name__ == "__main__":
    main()
