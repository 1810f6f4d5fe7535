"""Few-shot heads: classifiers on the normalized image embeddings of a frozen dual encoder.

| method | logits of an embedding x |
|---|---|
| zero-shot | s · x·w, with the embedding w of the prompts of a class |
| linear-probe | x·a + b |
| tip-adapter, tip-adapter-f | s · x·w + alpha · sum of exp(-beta · (1 - x·k)) over the cached images k of the class |
| clip-adapter | s · z·w, where z is (1 - ratio) · x + ratio · relu(B relu(A x)), normalized |
| coop | s · x·w, where w embeds learned context tokens and the name of the class |

`s` is the inverse temperature of the encoder. Sources: Tip-Adapter (Zhang et al. 2022, arXiv 2111.03930), CLIP-Adapter
(Gao et al. 2021, arXiv 2110.04544), CoOp (Zhou et al. 2022, arXiv 2109.01134).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional


# The tensors of each method.
TENSORS = {
    "zero-shot": ("class_embeds",),
    "linear-probe": ("weight", "bias"),
    "tip-adapter": ("class_embeds", "keys", "values"),
    "tip-adapter-f": ("class_embeds", "keys", "values"),
    "clip-adapter": ("class_embeds", "down", "up"),
    "coop": ("class_embeds", "context"),
}
# The numbers of each method.
SETTINGS = {
    "zero-shot": ("logit_scale",),
    "linear-probe": (),
    "tip-adapter": ("logit_scale", "alpha", "beta"),
    "tip-adapter-f": ("logit_scale", "alpha", "beta"),
    "clip-adapter": ("logit_scale", "ratio"),
    "coop": ("logit_scale",),
}
METHODS = tuple(TENSORS)


def cache_logits(embeds: Tensor, keys: Tensor, values: Tensor, beta: float, classes: int) -> Tensor:
    """Return the logits `(images, classes)` of Tip-Adapter's cache.

    Args:
        embeds: Normalized image embeddings, of shape `(images, dimension)`.
        keys: Embeddings of the cached images, of shape `(cached images, dimension)`.
        values: Class index of each cached image.
        beta: Sharpness of the affinities.
        classes: Number of classes.
    """
    affinities = torch.exp(-beta * (1 - embeds @ keys.t()))
    return affinities.new_zeros(len(embeds), classes).index_add(1, values, affinities)


def adapt_embeds(embeds: Tensor, down: Tensor, up: Tensor, ratio: float) -> Tensor:
    """Return the embeddings of CLIP-Adapter: a mixture with the output of a two-layer network, normalized."""
    adapted = functional.relu(functional.relu(embeds @ down.t()) @ up.t())
    return functional.normalize(ratio * adapted + (1 - ratio) * embeds, dim=-1)


class FewShotHead(nn.Module):
    """A classifier on normalized image embeddings.

    Args:
        method: One of `METHODS`.
        tensors: The tensors that `TENSORS` lists. `class_embeds` and `weight` have shape `(classes, dimension)`, `bias`
            `(classes,)`, `keys` `(cached images, dimension)`, `values` `(cached images,)`, `down` `(width, dimension)`,
            `up` `(dimension, width)`, and `context` `(tokens, width of the text tower)`.
        settings: The numbers that `SETTINGS` lists.

    Raises:
        ValueError: If the method is unknown, or if tensors or settings are missing, unknown or of the wrong shape.
    """

    def __init__(self, method: str, tensors: Mapping[str, Tensor], settings: Mapping[str, float]):
        super().__init__()
        if method not in METHODS:
            raise ValueError(f"The few-shot method {method!r} is unknown. Choose one of {', '.join(METHODS)}.")
        for what, given, expected in (("tensors", tensors, TENSORS), ("settings", settings, SETTINGS)):
            if sorted(given) != sorted(expected[method]):
                raise ValueError(
                    f"The {what} of {method} must be {', '.join(expected[method]) or 'none'}, not "
                    f"{', '.join(sorted(given)) or 'none'}."
                )
        self.method = method
        self.settings = {name: float(value) for name, value in settings.items()}
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self._check_shapes()

    def _check_shapes(self) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in self.named_buffers()}
        classes, dimension = self.num_classes, self.dimension
        expected: dict[str, tuple[int, ...]] = dict.fromkeys(("class_embeds", "weight"), (classes, dimension))
        expected |= {"bias": (classes,), "keys": (len(getattr(self, "keys", [])), dimension)}
        expected |= {"values": expected["keys"][:1]}
        width = shapes.get("down", (0,))[0]
        expected |= {"down": (width, dimension), "up": (dimension, width)}
        for name, shape in shapes.items():
            if shape != expected.get(name, shape) or len(shape) > 2:
                raise ValueError(f"The tensor {name} has the shape {shape}, not {expected.get(name)}.")
        values = getattr(self, "values", None)
        if values is not None and (values.dtype != torch.int64 or len(values) and not 0 <= int(values.min())):
            raise ValueError("The tensor values must contain class indices.")
        if values is not None and len(values) and int(values.max()) >= classes:
            raise ValueError(f"The tensor values contains class {int(values.max())}, but there are {classes} classes.")

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return self._of_classes.shape[0]

    @property
    def dimension(self) -> int:
        """Return the dimension of the embeddings."""
        return self._of_classes.shape[-1]

    @property
    def _of_classes(self) -> Tensor:
        return self.weight if self.method == "linear-probe" else self.class_embeds  # type: ignore[return-value]

    def with_classes(self, class_embeds: Tensor) -> "FewShotHead":
        """Return the head with the text embeddings of other classes, which the training did not contain.

        Cached images are dropped, because none is of these classes.
        """
        if self.method == "linear-probe":
            raise ValueError("A linear probe has no text embeddings, and cannot classify other classes.")
        tensors = dict(self.named_buffers()) | {"class_embeds": class_embeds}
        for name in ("keys", "values"):
            if name in tensors:
                tensors[name] = tensors[name][:0]
        return FewShotHead(self.method, tensors, self.settings)

    def forward(self, embeds: Tensor) -> Tensor:
        """Return the logits `(images, classes)` of normalized image embeddings `(images, dimension)`."""
        settings = self.settings
        if self.method == "linear-probe":
            return embeds @ self.weight.t() + self.bias
        if self.method == "clip-adapter":
            embeds = adapt_embeds(embeds, self.down, self.up, settings["ratio"])
        logits = settings["logit_scale"] * (embeds @ self.class_embeds.t())
        if "keys" in TENSORS[self.method]:
            cached = cache_logits(embeds, self.keys, self.values, settings["beta"], self.num_classes)
            logits = logits + settings["alpha"] * cached
        return logits
