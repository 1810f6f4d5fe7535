"""Methods of few-shot learning against scikit-learn and finite differences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, normalize

from biomedclip.embedding import embed_texts
from biomedclip.few_shot_head import METHODS
from biomedclip.run_scripts.evaluation.dual_encoders import DualEncoder
from biomedclip.run_scripts.evaluation.few_shot import methods as module
from biomedclip.run_scripts.evaluation.few_shot.context import ContextEncoder
from biomedclip.run_scripts.evaluation.few_shot.methods import Images, Shots, fit


NAMES = ["chest x-ray", "brain mri", "line chart"]


@pytest.fixture
def encoder(small_model, small_processor) -> DualEncoder:
    return DualEncoder("small", "biomedclip", small_model, small_processor)


def clouds(classes: int, images: int, seed: int, apart: float = 0.5, dimension: int = 16) -> Images:
    generator = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(classes, dimension))
    labels = np.repeat(np.arange(classes), images)
    features = apart * centers[labels] + generator.normal(size=(len(labels), dimension)) / 2
    return Images(normalize(torch.tensor(features).float(), dim=-1), torch.tensor(labels))


def shots_of(classes: int, images: int, **options) -> Shots:
    texts = normalize(torch.randn(classes, 16, generator=torch.Generator().manual_seed(1)), dim=-1)
    train, validation = clouds(classes, images, 0), clouds(classes, images, 1)
    return Shots(train, validation, **({"class_embeds": texts, "logit_scale": 10.0} | options))


@pytest.mark.parametrize("classes", [2, 4])
def test_the_linear_probe_gives_what_scikit_learn_gives_by_hand(classes):
    # Noisy classes, so that the best strength on the validation images is not the best on the training images.
    shots, test = replace(shots_of(classes, 8), train=clouds(classes, 8, 0, 0.2)), clouds(classes, 50, 2)
    shots = replace(shots, validation=clouds(classes, 8, 1, 0.2))
    found = fit("linear-probe", shots)
    features, labels = shots.train.embeds.double().numpy(), shots.train.labels.numpy()
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    best = None
    for strength in module.STRENGTHS:
        fitted = LogisticRegression(C=strength, max_iter=1000).fit((features - mean) / deviation, labels)
        judged = (shots.validation.embeds.double().numpy() - mean) / deviation
        accuracy = fitted.score(judged, shots.validation.labels.numpy())
        chances = fitted.predict_proba(judged)
        entropy = -np.log(chances[np.arange(len(judged)), shots.validation.labels]).mean()
        if best is None or (accuracy, -entropy) > best[0]:
            best = (accuracy, -entropy), strength, fitted
    assert found.chosen["C"] == best[1] < max(module.STRENGTHS)
    expected = best[2].predict_proba((test.embeds.double().numpy() - mean) / deviation)
    np.testing.assert_allclose(found.head(test.embeds).softmax(-1).numpy(), expected, rtol=0, atol=1e-5)


def test_methods_learn_from_a_few_images(encoder):
    contexts = ContextEncoder(encoder, NAMES, ["this is a photo of {}"])
    texts = {"class_embeds": contexts(contexts.start).detach(), "contexts": contexts, "logit_scale": 10.0}
    shots, test = Shots(clouds(3, 4, 0, apart=1), clouds(3, 4, 1, apart=1), **texts), clouds(3, 40, 2, apart=1)
    # The vocabulary of the small tokenizer is not always the same, and with it the embeddings of its texts.
    fixed = replace(shots, class_embeds=shots_of(3, 4).class_embeds)
    by_method = {method: shots if method in ("zero-shot", "coop") else fixed for method in METHODS}
    accuracy = {
        method: float((fit(method, by_method[method]).head(test.embeds).argmax(-1) == test.labels).float().mean())
        for method in METHODS
    }
    assert min(value for method, value in accuracy.items() if method not in ("zero-shot", "coop")) > 0.6
    assert accuracy["coop"] > accuracy["zero-shot"], "two words of context turn the texts toward the images"


@pytest.mark.parametrize("method", ["linear-probe", "tip-adapter", "clip-adapter"])
def test_one_class_or_no_validation_images_are_errors_with_the_seed(method):
    shots = shots_of(2, 2, seed=7)
    nothing = Images(torch.zeros(0, 16), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="--seed 7: there are training images of a single class. Add images of each"):
        fit(method, replace(shots, train=Images(shots.train.embeds[:2], shots.train.labels[:2])))
    with pytest.raises(ValueError, match="--seed 7: there are no validation images of these classes.*another --seed"):
        fit(method, replace(shots, validation=nothing))


def test_settings_are_chosen_by_accuracy_then_by_cross_entropy():
    images = Images(torch.zeros(2, 1), torch.tensor([0, 1]))
    sure, unsure = torch.tensor([[3.0, 0], [0, 3]]), torch.tensor([[1.0, 0], [0, 1]])
    wrong, broken = torch.tensor([[9.0, 0], [9, 0]]), torch.tensor([[torch.nan, 0], [0, 1]])
    ranked = sorted([unsure, broken, sure, wrong], key=lambda logits: module._value(logits, images))
    assert [logits is expected for logits, expected in zip(ranked, [broken, wrong, unsure, sure], strict=True)] == [
        True
    ] * 4


def test_without_texts_tip_adapter_is_its_cache():
    shots = shots_of(3, 4, class_embeds=torch.zeros(3, 16))
    test = clouds(3, 40, 2)
    head = fit("tip-adapter", shots).head
    affinities = torch.exp(-head.settings["beta"] * (1 - test.embeds @ shots.train.embeds.t()))
    sums = torch.stack([affinities[:, shots.train.labels == number].sum(1) for number in range(3)], dim=1)
    assert torch.equal(head(test.embeds).argmax(-1), sums.argmax(-1))
    assert (sums.argmax(-1) == test.labels).float().mean() > 0.8


def test_a_fit_is_the_same_again_and_depends_on_its_seed():
    first, second, other = (fit("clip-adapter", shots_of(3, 2, seed=seed)).head for seed in (0, 0, 1))
    assert torch.equal(first.down, second.down) and not torch.equal(first.down, other.down)


def test_the_first_context_gives_the_embeddings_of_the_prompts(encoder):
    contexts = ContextEncoder(encoder, NAMES, ["{}", "this is a photo of {} ."])
    prompts = [f"this is a photo of {name} ." for name in NAMES]
    expected = embed_texts(encoder.model, encoder.processor, prompts)
    torch.testing.assert_close(contexts(contexts.start), expected, rtol=0, atol=2e-6)
    longest = contexts(contexts.start * 2)
    assert (longest - expected).abs().max() > 1e-3


def test_gradients_of_the_context_equal_finite_differences(encoder):
    encoder.model.double()
    contexts = ContextEncoder(encoder, NAMES, ["this is a photo of {}"])
    images = clouds(3, 2, 0)

    def loss(context: torch.Tensor) -> torch.Tensor:
        return cross_entropy(10 * images.embeds.double() @ contexts(context).t(), images.labels)

    context = contexts.start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(context), context)
    assert gradient.shape == contexts.start.shape and all(p.grad is None for p in encoder.model.parameters())
    for row, column in ((0, 0), (1, 5), (len(gradient) - 1, 31)):
        step = torch.zeros_like(contexts.start)
        step[row, column] = 1e-5
        with torch.no_grad():
            numeric = (loss(contexts.start + step) - loss(contexts.start - step)) / 2e-5
        assert float(gradient[row, column]) == pytest.approx(float(numeric), rel=1e-6, abs=1e-9)


def test_recomputed_activations_give_the_same_gradients(encoder, monkeypatch):
    def gradient() -> torch.Tensor:
        contexts = ContextEncoder(encoder, NAMES, ["this is a photo of {}"])
        context = contexts.start.clone().requires_grad_()
        weights = torch.arange(48.0).view(3, 16)
        return torch.autograd.grad((contexts(context) * weights).sum(), context)[0]

    whole = gradient()
    monkeypatch.setattr("biomedclip.run_scripts.evaluation.few_shot.context.PROMPTS_AT_A_TIME", 2)
    torch.testing.assert_close(gradient(), whole, rtol=1e-4, atol=1e-4)


def test_models_without_word_embeddings_and_prompts_without_words_are_handled(encoder, small_processor):
    closed = DualEncoder("other", "open_clip", torch.nn.Linear(2, 2), small_processor)
    with pytest.raises(ValueError, match="takes no learned tokens. Omit coop from --methods"):
        ContextEncoder(closed, NAMES, ["a {}"])
    assert ContextEncoder(encoder, NAMES, ["{}"]).template == "a photo of a {}."
    with pytest.raises(ValueError, match="leave no room for the class name within 4 tokens"):
        ContextEncoder(encoder, NAMES, ["this is a photo of {}"], max_length=4)


@pytest.mark.slow
def test_a_thousand_classes_are_learned(encoder, monkeypatch):
    monkeypatch.setattr(module, "STEPS", dict.fromkeys(module.STEPS, 2))
    monkeypatch.setattr(module, "STRENGTHS", (1.0,))
    names = [str(1000 + number % 100) + " " + str(1000 + number // 100) for number in range(1000)]
    contexts = ContextEncoder(encoder, names, ["this is a photo of {}"])
    shots = shots_of(1000, 1, class_embeds=contexts(contexts.start).detach(), contexts=contexts)
    for method in METHODS:
        assert fit(method, shots).head(shots.validation.embeds).shape == (1000, 1000), method
