"""The drawn figures: enough of them, and what their attributes say can be seen at the size that is trained on."""

import numpy as np
import pytest
from PIL import Image

from biomedclip.processing.synthetic_corpus.canvas import LONGEST_SIDE, SHORTEST_SIDE
from biomedclip.processing.synthetic_corpus.figures import FIGURE_KINDS, FigureKind


EVERY_KIND = pytest.mark.parametrize("kind", FIGURE_KINDS.values(), ids=list(FIGURE_KINDS))


def as_trained_on(picture: Image.Image) -> np.ndarray:
    """The central square at 64 x 64 pixels."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(square.resize((64, 64), Image.Resampling.BICUBIC), dtype=np.int16)


def draw(kind: FigureKind, attributes: dict[str, str], seed: int = 0) -> Image.Image:
    return kind.draw(attributes, np.random.default_rng(seed))


def test_there_are_at_least_twelve_kinds():
    assert len(FIGURE_KINDS) >= 12
    assert all(kind.name == name for name, kind in FIGURE_KINDS.items())


@EVERY_KIND
def test_each_kind_has_at_least_four_hundred_combinations_all_different(kind: FigureKind):
    combinations = {tuple(kind.combination(number).items()) for number in range(kind.combinations)}

    assert len(combinations) == kind.combinations >= 400
    assert 2 <= len(kind.attributes) <= 4


@EVERY_KIND
def test_pictures_have_the_promised_size_and_modes(kind: FigureKind):
    pictures = [draw(kind, kind.combination(37 * seed % kind.combinations), seed) for seed in range(12)]

    assert all(SHORTEST_SIDE <= side <= LONGEST_SIDE for picture in pictures for side in picture.size)
    assert len({picture.size for picture in pictures}) > 6
    assert all(picture.mode in ("RGB", "L") for picture in pictures)


@EVERY_KIND
def test_one_generator_state_draws_one_picture(kind: FigureKind):
    attributes = kind.combination(kind.combinations // 2)

    assert draw(kind, attributes, seed=5).tobytes() == draw(kind, attributes, seed=5).tobytes()
    assert draw(kind, attributes, seed=5).tobytes() != draw(kind, attributes, seed=6).tobytes()


@EVERY_KIND
def test_each_two_values_of_an_attribute_look_different_at_64_pixels(kind: FigureKind):
    usual = {attribute: values[0] for attribute, values in kind.attributes.items()}
    for attribute, values in kind.attributes.items():
        pictures = {value: as_trained_on(draw(kind, {**usual, attribute: value})) for value in values}
        for number, value in enumerate(values):
            for other in values[:number]:
                changed = (np.abs(pictures[value] - pictures[other]).max(axis=2) > 25).sum()
                assert changed >= 20, f"{attribute}: {value!r} and {other!r} differ in {changed} pixels"
