"""Methods for saliency maps on synthetic images with two panels: does the map of a prompt point to its panel?

python tests/performance/saliency.py out/model --output saliency.json

Each image shows two kinds of figures of the synthetic corpus. The prompt of each panel should point to that panel. It
is the kind of the figure, or a caption with all attributes.
- pointing: fraction of maps with their maximum in the right panel, without and with smoothing. Chance is 0.5.
- correlation: Pearson correlation between the smoothed maps of both prompts.
- deletion and insertion: mean similarity to the prompt while the patches with the highest values of the smoothed map
  are removed from the image, or added to an empty image. Lower is better for deletion, higher for insertion.
- each panel alone: fraction of prompts that are more similar to an image with the right panel alone than to an image
  with the other panel alone.

Models with random weights should point at chance.
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
from biomedclip.saliency import patch_relevance, smoothed


SIDE = 128  # of an image with two panels, in pixels
BATCH = 16  # images at a time
WINDOW = 4  # patches on a side that occlusion hides
NEUTRAL_PROMPTS = ("an image", "a figure", "a photo", "this is a photo of", "a medical image")
STEPS = 4  # of deletion and insertion: a quarter, half and three quarters of the patches


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("model", help="folder of a model that the quickstart trained")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--seed", type=int, default=3, help="the method was chosen on the images of seeds 1 and 2")
    parser.add_argument("--random-models", type=int, default=2)
    options = parser.parse_args()
    model = BiomedCLIPModel.from_pretrained(options.model, attn_implementation="eager").eval()
    processor = BiomedCLIPProcessor.from_pretrained(options.model)
    images, kinds, captions, masks = two_panel_images(options.images, np.random.default_rng(options.seed))
    results: dict[str, Any] = {
        "trained, kinds": measure(model, processor, images, kinds, masks),
        "trained, captions": measure(model, processor, images, captions, masks),
    }
    config = BiomedCLIPConfig.from_pretrained(options.model, attn_implementation="eager")
    for seed in range(options.random_models):
        torch.manual_seed(seed)
        random = BiomedCLIPModel(config).eval()
        for name, prompts in (("kinds", kinds), ("captions", captions)):
            results[f"random {seed}, {name}"] = measure(random, processor, images, prompts, masks, METHODS[:1])
    rows = [
        (who, name, *(f"{values[column]:.3f}" if column in values else "" for column in COLUMNS))
        for who, measured in results.items()
        for name, values in measured.items()
    ]
    title = f"{options.images} images with two panels, seed {options.seed}"
    report({"results": results}, [(title, rows, ["weights and prompts", "method", *COLUMNS])], options.output)


COLUMNS = ("pointing", "pointing smoothed", "correlation", "deletion", "insertion")


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
    """Attention probabilities and hidden states of images, and gradients of the similarities to texts.

    `of_attentions` are the gradients of the similarity after the last layer. `of_own_attentions` are those of the
    similarity after each layer with respect to its attention of the class token.
    """

    def __init__(self, model: Any, pixel_values: torch.Tensor, text_embeds: torch.Tensor):
        """Take images of shape `(images, ...)` and embeddings of shape `(images, prompts, dimension)`."""
        self.prompts = text_embeds.shape[1]
        pixel_values, text_embeds = pixel_values.repeat_interleave(self.prompts, dim=0), text_embeds.flatten(0, 1)
        outputs = model.get_image_features(pixel_values=pixel_values, output_attentions=True, output_hidden_states=True)
        self.model, self.pixel_values, self.text_embeds = model, pixel_values, text_embeds
        self.attentions, self.hidden_states = outputs.attentions, outputs.hidden_states
        self.similarities = (normalize(outputs.pooler_output, dim=-1) * text_embeds).sum(dim=-1)
        self.of_attentions = torch.autograd.grad(self.similarities.sum(), self.attentions, retain_graph=True)
        self.of_own_attentions = []
        for attention, hidden_states in zip(self.attentions, self.hidden_states[1:], strict=True):
            similarities = (embeddings(model, hidden_states[:, 0]) * text_embeds).sum()
            (gradient,) = torch.autograd.grad(similarities, attention, retain_graph=True)
            self.of_own_attentions.append(gradient[:, :, 0, 1:])


def embeddings(model: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    return normalize(model.visual_projection(model.vision_model.post_layernorm(hidden_states)), dim=-1)


def shipped(derivatives: Derivatives) -> torch.Tensor:
    """The method of `saliency_map`: signed attention x gradient, with the similarity after each layer."""
    every = derivatives.prompts
    pairs = zip(derivatives.pixel_values[::every], derivatives.text_embeds.split(every), strict=True)
    return torch.cat([patch_relevance(derivatives.model, pixels[None], embeds) for pixels, embeds in pairs]).flatten(1)


def legrad(derivatives: Derivatives) -> torch.Tensor:
    """Bousselham et al. 2024, with the class token where their code pools the mean of all tokens."""
    return torch.stack([gradient.clamp(min=0).mean(dim=1) for gradient in derivatives.of_own_attentions]).sum(dim=0)


def rollout(derivatives: Derivatives) -> torch.Tensor:
    """Chefer et al. 2021: products of the positive parts of gradient x attention over all layers."""
    relevance = torch.eye(derivatives.attentions[0].shape[-1])
    for attention, gradient in zip(derivatives.attentions, derivatives.of_attentions, strict=True):
        relevance = relevance + (attention * gradient).clamp(min=0).mean(dim=1) @ relevance
    return relevance[:, 0, 1:]


def grad_eclip(derivatives: Derivatives) -> torch.Tensor:
    """Zhao et al. 2024, signed, with the similarity after each layer: weights from the cosine of queries and keys."""
    total = torch.zeros(())
    layers = derivatives.model.vision_model.layers
    for layer, states, gradient in zip(
        layers, derivatives.hidden_states[:-1], derivatives.of_own_attentions, strict=True
    ):
        states = layer.layer_norm1(states)
        query, key = (normalize(of(states), dim=-1) for of in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        cosine = (query[:, :1] * key).sum(dim=-1)[:, 1:]
        lowest, highest = cosine.amin(dim=-1, keepdim=True), cosine.amax(dim=-1, keepdim=True)
        total = total + (cosine - lowest) / (highest - lowest) * gradient.sum(dim=1)
    return total


def direct_contributions(derivatives: Derivatives) -> torch.Tensor:
    """Gandelsman et al. 2024: what attention adds to the embedding from each patch, summed over layers."""
    tower, total = derivatives.model.vision_model, torch.zeros(())
    norm, final = tower.post_layernorm, derivatives.hidden_states[-1][:, :1]
    for layer, states, attention in zip(
        tower.layers, derivatives.hidden_states[:-1], derivatives.attentions, strict=True
    ):
        values = layer.self_attn.v_proj(layer.layer_norm1(states)).unflatten(-1, (attention.shape[1], -1))
        attended = attention[:, :, 0].transpose(1, 2)[..., None] * values
        added = attended.flatten(2) @ layer.self_attn.out_proj.weight.t()
        added = added - added.mean(dim=-1, keepdim=True)
        added = added / (final.var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt() * norm.weight
        total = total + derivatives.model.visual_projection(added)[:, 1:] @ derivatives.text_embeds[..., None]
    return total[..., 0]


@torch.no_grad()
def occlusion(derivatives: Derivatives) -> torch.Tensor:
    """How much the similarity falls if a window of patches is hidden: the mean over the windows with a patch."""
    model, pixel_values = derivatives.model, derivatives.pixel_values[:: derivatives.prompts]
    side = int((derivatives.attentions[0].shape[-1] - 1) ** 0.5)
    places = torch.arange(side)
    total = windows = torch.zeros(())
    starts = range(-WINDOW // 2, side, WINDOW // 2)
    for top, left in [(top, left) for top in starts for left in starts]:
        rows, columns = ((places >= start) & (places < start + WINDOW) for start in (top, left))
        hidden = (rows[:, None] & columns).float()
        shown = torch.nn.functional.interpolate(1 - hidden[None, None], size=pixel_values.shape[-2:])
        image_embeds = normalize(model.get_image_features(pixel_values=pixel_values * shown).pooler_output, dim=-1)
        image_embeds = image_embeds.repeat_interleave(derivatives.prompts, dim=0)
        similarities = (image_embeds * derivatives.text_embeds).sum(dim=-1)
        total = total + (derivatives.similarities - similarities)[:, None] * hidden.flatten()
        windows = windows + hidden.flatten()
    return total / windows


def mask_clip(derivatives: Derivatives, attend: bool = False) -> torch.Tensor:
    """Zhou et al. 2022: the values of the last layer as embeddings of patches.

    With `attend`, patches attend to patches with similar values (CLIP Surgery, Li et al. 2023, in the last layer).
    """
    layer, heads = derivatives.model.vision_model.layers[-1], derivatives.attentions[-1].shape[1]
    values = layer.self_attn.v_proj(layer.layer_norm1(derivatives.hidden_states[-2]))
    if attend:
        split = values.unflatten(-1, (heads, -1)).transpose(1, 2)
        weights = (split @ split.transpose(-1, -2) * split.shape[-1] ** -0.5).softmax(dim=-1)
        values = (weights @ split).transpose(1, 2).flatten(2)
    patches = embeddings(derivatives.model, layer.self_attn.out_proj(values))[:, 1:]
    return (patches @ derivatives.text_embeds[..., None])[..., 0]


# Name, method, and whether the mean map of the neutral prompts is subtracted.
METHODS: list[tuple[str, Callable[[Derivatives], torch.Tensor], bool]] = [
    ("saliency_map (attention x gradient)", shipped, False),
    ("saliency_map - neutral", shipped, True),
    ("LeGrad", legrad, False),
    ("LeGrad - neutral", legrad, True),
    ("Grad-ECLIP", grad_eclip, False),
    ("direct contributions", direct_contributions, False),
    ("rollout (Chefer)", rollout, False),
    ("occlusion", occlusion, False),
    ("CLIP Surgery", lambda derivatives: mask_clip(derivatives, attend=True), False),
    ("MaskCLIP", mask_clip, False),
]


def measure(
    model: Any,
    processor: Any,
    images: Sequence[Image.Image],
    prompts: Sequence[Sequence[str]],
    masks: Sequence[torch.Tensor],
    methods: Sequence[tuple[str, Callable[[Derivatives], torch.Tensor], bool]] = (),
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
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        panels = torch.stack([_on_patches(masks[number], side) for number in batch])
        found = values.setdefault("each panel alone", {"pointing": []})
        found["pointing"] += _alone(model, pixel_values, panels, embeds[:, :2]).tolist()
        for name, method, subtract in methods or METHODS:
            maps = method(derivatives).detach().unflatten(0, (len(batch), derivatives.prompts))
            maps = maps[:, :2] - maps[:, 2:].mean(dim=1, keepdim=True) if subtract else maps[:, :2]
            smooth = smoothed(maps.reshape(-1, side, side)).reshape(maps.shape)
            found = values.setdefault(name, {column: [] for column in COLUMNS})
            for column, shown in (("pointing", maps), ("pointing smoothed", smooth)):
                found[column] += panels.gather(2, shown.argmax(dim=-1, keepdim=True)).flatten().tolist()
            found["correlation"] += [float(torch.corrcoef(pair)[0, 1]) for pair in smooth]
            for column, keep_best in (("deletion", False), ("insertion", True)):
                found[column] += _perturbed(model, pixel_values, smooth, embeds[:, :2], keep_best).tolist()
    return {name: {column: float(np.mean(of)) for column, of in found.items()} for name, found in values.items()}


def _on_patches(masks: torch.Tensor, side: int) -> torch.Tensor:
    """Return which patches lie in each panel, of shape `(2, side * side)`."""
    return torch.nn.functional.adaptive_avg_pool2d(masks.float(), side).flatten(1).gt(0.5)


@torch.no_grad()
def _alone(model: Any, pixel_values: torch.Tensor, panels: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """Return whether each prompt is more similar to the image with its panel alone than with the other panel alone."""
    side = int(panels.shape[-1] ** 0.5)
    kept = torch.nn.functional.interpolate(panels.float().unflatten(-1, (side, side)), size=pixel_values.shape[-2:])
    shown = (pixel_values[:, None] * kept[:, :, None]).flatten(0, 1)
    image_embeds = normalize(model.get_image_features(pixel_values=shown).pooler_output, dim=-1)
    similarities = text_embeds @ image_embeds.unflatten(0, (-1, 2)).transpose(1, 2)  # (images, prompts, panels)
    return (similarities.diagonal(dim1=1, dim2=2) > similarities.flip(2).diagonal(dim1=1, dim2=2)).flatten()


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
