"""The linear probe of ELEVATER's toolkit: a linear layer trained with SGD after a search for learning rate and decay.

The settings are those of `full_model_finetune.py` and of the configuration of CLIP in
https://github.com/Computer-Vision-in-the-Wild/Elevater_Toolkit_IC: batch normalization without parameters, then a
linear layer; cross-entropy, batches of 64, momentum 0.9, constant learning rate. 20 % of the training images of each
class are held out to choose among 6 learning rates and 97 weight decays, after up to 10 epochs each. The final training
uses all training images for 50 epochs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy


RATES = tuple(10.0**power for power in range(-6, 0))
DECAYS = tuple(np.logspace(-6, 6, 97).tolist())
FIRST_STEP = 16  # the search tries every 16th of `DECAYS`, then the neighbors of the best at half the distance
SEARCH_EPOCHS, EPOCHS = 10, 50
BATCH_SIZE, MOMENTUM = 64, 0.9
HELD_OUT = 0.2
Score = Callable[[np.ndarray, np.ndarray], float]


class Fit(NamedTuple):
    """The scores `(images, classes)` of the test images after the last epoch, and the chosen settings.

    `best_epoch` is the best metric on the test images after any epoch, which the toolkit reports.
    """

    scores: np.ndarray
    learning_rate: float
    weight_decay: float
    best_epoch: float | None


def fit_elevater(
    features: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    score: Score,
    seed: int,
) -> Fit:
    """Search for the best learning rate and weight decay, then train with them on all training images.

    `score` returns the metric of scores `(images, classes)` and labels. The test labels affect only `best_epoch`. The
    seed determines the initial weights and the order of the images.
    """
    held = held_out(labels)
    stay = np.setdiff1d(np.arange(len(labels)), held)
    held = held if len(held) else stay
    rate, decay = search(features[stay], labels[stay], features[held], labels[held], classes, score, seed)
    best = -math.inf
    scores = np.empty(0)
    for after in train_heads(features, labels, test, classes, [rate], [decay], epochs=EPOCHS, seed=seed):
        scores = after[0]
        best = max(best, score(scores, test_labels) if np.isfinite(scores).all() else -math.inf)
    return Fit(scores, rate, decay, best if math.isfinite(best) else None)


def held_out(labels: np.ndarray) -> np.ndarray:
    """Return the rows of the first 20 % of each class, rounded up. At least one image of each class is not held out."""
    members = (np.flatnonzero(labels == label) for label in np.unique(labels))
    return np.concatenate(
        [of_class[: min(math.ceil(HELD_OUT * len(of_class)), len(of_class) - 1)] for of_class in members]
    )


def search(
    features: np.ndarray,
    labels: np.ndarray,
    held: np.ndarray,
    held_labels: np.ndarray,
    classes: int,
    score: Score,
    seed: int,
) -> tuple[float, float]:
    """Return the learning rate and the weight decay with the best score on held-out images after any of 10 epochs.

    For each learning rate, the weight decay is searched from coarse to fine. If scores are equal, the first one is
    chosen. Runs that diverge are never chosen.
    """
    peaks = dict.fromkeys(RATES, (-math.inf, 0))
    tried = [(rate, place) for rate in RATES for place in range(0, len(DECAYS), FIRST_STEP)]
    step = FIRST_STEP
    while step:
        rates, decays = [rate for rate, _ in tried], [DECAYS[place] for _, place in tried]
        best = [-math.inf] * len(tried)
        for scores in train_heads(features, labels, held, classes, rates, decays, epochs=SEARCH_EPOCHS, seed=seed):
            for number, of_head in enumerate(scores):
                if np.isfinite(of_head).all():
                    best[number] = max(best[number], score(of_head, held_labels))
        for (rate, place), value in zip(tried, best, strict=True):
            if value > peaks[rate][0]:
                peaks[rate] = (value, place)
        step //= 2
        ends = [(rate, place + offset) for rate, (_, place) in peaks.items() for offset in (-step, step)]
        tried = [(rate, min(max(place, 0), len(DECAYS) - 1)) for rate, place in ends]
    rate = max(RATES, key=lambda rate: peaks[rate][0])
    return rate, DECAYS[peaks[rate][1]]


def train_heads(
    features: np.ndarray,
    labels: np.ndarray,
    judged: np.ndarray,
    classes: int,
    rates: Sequence[float],
    decays: Sequence[float],
    *,
    epochs: int,
    seed: int,
) -> Iterator[np.ndarray]:
    """Train several heads on the same batches, one for each learning rate and weight decay.

    Yield the scores of the images `judged` after each epoch, of shape `(heads, images, classes)`.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y, judged_x = torch.tensor(features).float(), torch.tensor(labels).long(), torch.tensor(judged).float()
    norm = torch.nn.BatchNorm1d(x.shape[1], affine=False)
    bound = x.shape[1] ** -0.5  # like the initialization of torch.nn.Linear
    shapes = (classes, x.shape[1]), (classes, 1)
    starts = [torch.empty(shape).uniform_(-bound, bound, generator=generator) for shape in shapes]
    weight, bias = parameters = [start.repeat(len(rates), 1, 1).requires_grad_() for start in starts]
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    rate, decay = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (rates, decays))
    for _ in range(epochs):
        norm.train()
        for batch in torch.randperm(len(y), generator=generator).split(BATCH_SIZE):
            if len(batch) == 1:
                continue  # a single image has no variance
            scores = norm(x[batch]) @ weight.mT + bias.mT
            loss = cross_entropy(scores.flatten(0, 1), y[batch].repeat(len(rates)), reduction="sum") / len(batch)
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, momentum, gradient in zip(parameters, momenta, gradients, strict=True):
                    momentum.mul_(MOMENTUM).add_(gradient + decay * parameter)
                    parameter.sub_(rate * momentum)
        norm.eval()
        with torch.no_grad():
            yield (norm(judged_x) @ weight.mT + bias.mT).numpy()
