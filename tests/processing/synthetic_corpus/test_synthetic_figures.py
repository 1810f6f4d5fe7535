"""Synthetic figures and their captions."""

import itertools

import numpy as np
import pytest
from PIL import Image

from biomedclip.processing.synthetic_corpus import FIGURE_KINDS, ZERO_SHOT_TEMPLATES
from biomedclip.processing.synthetic_corpus.articles import write_caption
from biomedclip.processing.synthetic_corpus.canvas import LONGEST_SIDE, SHORTEST_SIDE


every_kind = pytest.mark.parametrize("name", FIGURE_KINDS)


def draw(name: str, attributes: dict[str, str], seed: int = 0) -> Image.Image:
    return FIGURE_KINDS[name].draw(attributes, np.random.default_rng(seed))


def as_trained_on(image: Image.Image) -> np.ndarray:
    """Return the central square at 64 x 64 pixels."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC), dtype=np.int16)


@every_kind
def test_each_kind_has_at_least_four_hundred_different_figures(name):
    kind = FIGURE_KINDS[name]
    combinations = {tuple(kind.combination(number).items()) for number in range(kind.combinations)}
    assert len(combinations) == kind.combinations >= 400


@every_kind
def test_images_have_different_sizes_and_depend_only_on_attributes_and_generator(name):
    kind = FIGURE_KINDS[name]
    images = [draw(name, kind.combination(37 * seed % kind.combinations), seed) for seed in range(12)]
    assert all(SHORTEST_SIDE <= side <= LONGEST_SIDE for image in images for side in image.size)
    assert len({image.size for image in images}) > 6
    assert draw(name, kind.combination(37), 1).tobytes() == images[1].tobytes()
    assert draw(name, kind.combination(37), 2).tobytes() != images[1].tobytes()


@every_kind
def test_any_two_values_of_an_attribute_look_different_at_64_pixels(name):
    kind = FIGURE_KINDS[name]
    for attribute, values in kind.attributes.items():
        images = {value: as_trained_on(draw(name, {**kind.combination(0), attribute: value})) for value in values}
        for value, other in itertools.combinations(values, 2):
            changed = (np.abs(images[value] - images[other]).max(axis=2) > 25).sum()
            assert changed >= 20, f"{attribute}: {value!r} and {other!r} differ in {changed} pixels"


@every_kind
def test_captions_name_the_kind_and_either_all_attributes_or_the_sample(name):
    kind = FIGURE_KINDS[name]
    rng = np.random.default_rng(0)
    captions = []
    for number in range(kind.combinations):
        caption = " ".join(write_caption(name, number, number, rng)).strip()
        short = caption.endswith(f" of sample {number}.")
        assert name in caption
        assert short or all(value in caption for value in kind.combination(number).values())
        captions.append((caption, short))
    assert len(set(captions)) == len(captions)
    assert 0.05 < np.mean([short for _, short in captions]) < 0.3
    for template in ZERO_SHOT_TEMPLATES:
        assert any(caption.startswith(template.format(name)) for caption, _ in captions)
