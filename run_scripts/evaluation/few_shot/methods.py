"""Fit few-shot heads on the embeddings of a few images. Settings are chosen on validation images only.

A method sees the training and validation images, but no test image. Of several settings, it takes the one with the
highest accuracy on the validation images, and of equally accurate ones the one with the smallest cross-entropy.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from biomedclip.few_shot_head import METHODS, FewShotHead, adapt_embeds, cache_logits

from ..linear_probe import ITERATIONS, STRENGTHS
from .context import ContextEncoder


TEXT_METHODS = ("zero-shot", "clip-adapter", "coop")  # need a text tower
TRANSFERABLE = ("zero-shot", "clip-adapter", "coop")  # can name classes that have no training images
# Tip-Adapter: values of alpha and beta that are tried. Alpha 0 is the zero-shot classifier.
ALPHAS = (0.0, *np.geomspace(0.1, 50, 15).round(3).tolist())
BETAS = tuple(np.geomspace(0.5, 20, 12).round(3).tolist())
RATIO = 0.2  # CLIP-Adapter: share of the adapted embedding, as published
REDUCTION = 4  # CLIP-Adapter: the dimension divided by the width of the bottleneck
# Learning rates that are tried, and the number of steps. AdamW with a cosine schedule.
RATES = {"tip-adapter-f": (0.001, 0.01), "clip-adapter": (0.001, 0.01), "coop": (0.002, 0.02)}
STEPS = {"tip-adapter-f": 100, "clip-adapter": 100, "coop": 100}
STEPS_BETWEEN_CHOICES = 10
BATCH_SIZE = 256
_ABSENT = -1e9  # bias of a class without training images


@dataclass(frozen=True)
class Images:
    """Normalized embeddings `(images, dimension)` and class indices."""

    embeds: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Shots:
    """Input of a method: training and validation images, and the texts of the classes.

    `class_embeds` are the embeddings of the prompts, or zeros if the encoder has no text tower. `contexts` embeds class
    names behind learned context tokens, and is only for CoOp. `seed` determines random weights and batches.
    """

    train: Images
    validation: Images
    class_embeds: Tensor
    logit_scale: float
    contexts: ContextEncoder | None = None
    seed: int = 0

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.class_embeds)


@dataclass(frozen=True)
class Fit:
    """A head, and the settings that were chosen on the validation images."""

    head: FewShotHead
    chosen: Mapping[str, Any]


def fit(method: str, shots: Shots) -> Fit:
    """Fit a head with one of `METHODS`. Raise `ValueError` as [`check_shots`] does."""
    if method != "zero-shot":
        check_shots(shots.train, shots.validation, f"--seed {shots.seed}")
    return _FITS[method](shots)


def check_shots(train: Images, validation: Images, where: str) -> None:
    """Raise `ValueError` if the training images are of fewer than two classes, or if there are no validation images."""
    what = "no validation images of these classes, on which the settings are chosen" if not len(validation) else ""
    if (classes := len(set(train.labels.tolist()))) < 2:
        what = f"training images of {('no class', 'a single class')[classes]}"
    if what:
        raise ValueError(f"{where}: there are {what}. Add images of each class, or pass another --seed.")


def _zero_shot(shots: Shots) -> Fit:
    return Fit(FewShotHead("zero-shot", {"class_embeds": shots.class_embeds}, {"logit_scale": shots.logit_scale}), {})


def _linear_probe(shots: Shots) -> Fit:
    """Fit a logistic regression on standardized features, like the probe of `evaluate linear-probe`."""
    features, labels = shots.train.embeds.double().numpy(), shots.train.labels.numpy()
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    deviation[deviation == 0] = 1  # constant features
    classifier = LogisticRegression(max_iter=ITERATIONS)
    best: tuple[tuple[float, float], FewShotHead, float] | None = None
    for strength in STRENGTHS:
        classifier.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # one image of each class
            classifier.fit((features - mean) / deviation, labels)
        head = _linear_head(classifier, mean, deviation, shots.classes)
        value = _value(head(shots.validation.embeds), shots.validation)
        if best is None or value > best[0]:
            best = value, head, strength
    assert best is not None
    return Fit(best[1], {"C": best[2]})


def _linear_head(classifier: LogisticRegression, mean: np.ndarray, deviation: np.ndarray, classes: int) -> FewShotHead:
    """Return a classifier of standardized features as one of the features themselves."""
    coefficients, intercepts = classifier.coef_, classifier.intercept_
    if len(classifier.classes_) == 2:  # scikit-learn has one decision function for two classes
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercepts = np.concatenate([np.zeros_like(intercepts), intercepts])
    weight, bias = np.zeros((classes, len(mean))), np.full(classes, _ABSENT)
    weight[classifier.classes_] = coefficients / deviation
    bias[classifier.classes_] = intercepts - weight[classifier.classes_] @ mean
    return FewShotHead("linear-probe", {"weight": torch.tensor(weight).float(), "bias": torch.tensor(bias).float()}, {})


def _tip_adapter(shots: Shots) -> Fit:
    alpha, beta = _search(shots, shots.train.embeds, ALPHAS)
    return Fit(_cache(shots, "tip-adapter", shots.train.embeds, alpha, beta), {"alpha": alpha, "beta": beta})


def _search(shots: Shots, keys: Tensor, alphas: Sequence[float]) -> tuple[float, float]:
    """Return the best alpha and beta on the validation images."""
    embeds, labels = shots.validation.embeds, shots.validation
    texts = shots.logit_scale * (embeds @ shots.class_embeds.t())
    best: tuple[tuple[float, float], float, float] | None = None
    for beta in BETAS:
        cached = cache_logits(embeds, keys, shots.train.labels, beta, shots.classes)
        for alpha in alphas:
            value = _value(texts + alpha * cached, labels)
            if best is None or value > best[0]:
                best = value, alpha, beta
    assert best is not None
    return best[1:]


def _cache(shots: Shots, method: str, keys: Tensor, alpha: float, beta: float) -> FewShotHead:
    tensors = {"class_embeds": shots.class_embeds, "keys": keys, "values": shots.train.labels}
    return FewShotHead(method, tensors, {"logit_scale": shots.logit_scale, "alpha": alpha, "beta": beta})


def _tip_adapter_f(shots: Shots) -> Fit:
    # With alpha 0, the keys would have no gradient.
    alpha, beta = _search(shots, shots.train.embeds, ALPHAS[1:])
    texts = shots.logit_scale * shots.class_embeds

    def logits(keys: Tensor, embeds: Tensor) -> Tensor:
        cached = cache_logits(embeds, keys, shots.train.labels, beta, shots.classes)
        return embeds @ texts.t() + alpha * cached

    (keys,), chosen = _descend("tip-adapter-f", [shots.train.embeds], logits, shots)
    alpha, beta = _search(shots, keys, ALPHAS)
    return Fit(_cache(shots, "tip-adapter-f", keys, alpha, beta), {"alpha": alpha, "beta": beta, **chosen})


def _clip_adapter(shots: Shots) -> Fit:
    generator = torch.Generator().manual_seed(shots.seed)
    dimension = shots.class_embeds.shape[1]
    width = max(1, dimension // REDUCTION)
    start = [
        # The initialization of torch.nn.Linear.
        torch.empty(rows, columns).uniform_(-(columns**-0.5), columns**-0.5, generator=generator)
        for rows, columns in ((width, dimension), (dimension, width))
    ]
    texts = shots.logit_scale * shots.class_embeds

    def logits(down: Tensor, up: Tensor, embeds: Tensor) -> Tensor:
        return adapt_embeds(embeds, down, up, RATIO) @ texts.t()

    (down, up), chosen = _descend("clip-adapter", start, logits, shots)
    tensors = {"class_embeds": shots.class_embeds, "down": down, "up": up}
    return Fit(FewShotHead("clip-adapter", tensors, {"logit_scale": shots.logit_scale, "ratio": RATIO}), chosen)


def _coop(shots: Shots) -> Fit:
    contexts = shots.contexts
    assert contexts is not None

    def logits(context: Tensor, embeds: Tensor) -> Tensor:
        return shots.logit_scale * (embeds @ contexts(context).to(embeds.device).t())

    (context,), chosen = _descend("coop", [contexts.start], logits, shots)
    with torch.no_grad():
        tensors = {"class_embeds": contexts(context).cpu(), "context": context.cpu()}
    return Fit(FewShotHead("coop", tensors, {"logit_scale": shots.logit_scale}), chosen)


def _descend(
    method: str, start: Sequence[Tensor], logits: Callable[..., Tensor], shots: Shots
) -> tuple[list[Tensor], dict[str, Any]]:
    """Minimize the cross-entropy of the training images with each learning rate.

    `logits` receives the parameters and the embeddings of a batch. Return the parameters that are best on the
    validation images after any tenth step, the first step included, with their learning rate and number of steps.
    """
    best: tuple[tuple[float, float], list[Tensor], dict[str, Any]] | None = None
    steps = STEPS[method]
    for rate in RATES[method]:
        generator = torch.Generator().manual_seed(shots.seed)
        parameters = [tensor.detach().clone().requires_grad_() for tensor in start]
        optimizer = torch.optim.AdamW(parameters, lr=rate, eps=1e-4)  # eps of Tip-Adapter-F
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps + 1):
            if step % STEPS_BETWEEN_CHOICES == 0:
                with torch.no_grad():
                    value = _value(logits(*parameters, shots.validation.embeds), shots.validation)
                if best is None or value > best[0]:
                    found = [parameter.detach().clone() for parameter in parameters]
                    best = value, found, {"learning_rate": rate, "steps": step}
            if step == steps:
                break
            batch = slice(None)
            if len(shots.train) > BATCH_SIZE:
                batch = torch.randperm(len(shots.train), generator=generator)[:BATCH_SIZE]  # type: ignore[assignment]
            loss = cross_entropy(logits(*parameters, shots.train.embeds[batch]), shots.train.labels[batch])
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            schedule.step()
    assert best is not None
    return best[1], best[2]


def _value(logits: Tensor, images: Images) -> tuple[float, float]:
    """Return what settings are compared by: the accuracy, then the negative cross-entropy.

    A setting whose logits are not finite is the worst.
    """
    if not bool(torch.isfinite(logits).all()):
        return -1.0, float("-inf")
    accuracy = (logits.argmax(dim=-1) == images.labels).double().mean()
    return float(accuracy), -float(cross_entropy(logits.double(), images.labels))


_FITS: dict[str, Callable[[Shots], Fit]] = {
    "zero-shot": _zero_shot,
    "linear-probe": _linear_probe,
    "tip-adapter": _tip_adapter,
    "tip-adapter-f": _tip_adapter_f,
    "clip-adapter": _clip_adapter,
    "coop": _coop,
}
assert tuple(_FITS) == METHODS
