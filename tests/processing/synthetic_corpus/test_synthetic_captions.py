"""The captions of drawn figures: every attribute in words, and never the same words for two pictures."""

import numpy as np
import pytest

from biomedclip.processing.synthetic_corpus import KIND_NAMES, ZERO_SHOT_TEMPLATES
from biomedclip.processing.synthetic_corpus.captions import _SYNONYMS, write_caption, write_short_caption
from biomedclip.processing.synthetic_corpus.figures import FIGURE_KINDS


EVERY_KIND = pytest.mark.parametrize("name", KIND_NAMES)


def captions_of(name: str) -> list[str]:
    kind = FIGURE_KINDS[name]
    rng = np.random.default_rng(0)
    return [" ".join(write_caption(name, kind.combination(number), rng)) for number in range(kind.combinations)]


@EVERY_KIND
def test_captions_of_different_pictures_differ(name: str):
    captions = captions_of(name)

    assert len(set(captions)) == len(captions)


@EVERY_KIND
def test_captions_name_their_kind_and_are_of_readable_length(name: str):
    captions = captions_of(name)

    assert all(name in caption for caption in captions)
    assert all(8 <= len(caption.split()) <= 45 for caption in captions)
    assert all(" ".join(caption.split()) == caption for caption in captions)


@EVERY_KIND
def test_each_attribute_is_in_the_caption_in_one_of_its_words(name: str):
    kind = FIGURE_KINDS[name]
    rng = np.random.default_rng(1)
    for number in range(0, kind.combinations, 7):
        attributes = kind.combination(number)
        caption = " ".join(write_caption(name, attributes, rng)).lower()
        for value in attributes.values():
            assert any(word.lower() in caption for word in _SYNONYMS.get(value, (value,)))


@EVERY_KIND
def test_no_word_stands_for_two_values_of_one_attribute(name: str):
    for values in FIGURE_KINDS[name].attributes.values():
        words = [word for value in values for word in _SYNONYMS.get(value, (value,))]
        assert len(set(words)) == len(words)


def test_synonyms_belong_to_values_that_exist():
    values = {value for kind in FIGURE_KINDS.values() for group in kind.attributes.values() for value in group}

    assert set(_SYNONYMS) <= values


@EVERY_KIND
def test_the_prompts_of_zero_shot_classification_occur_in_captions(name: str):
    captions = captions_of(name)

    for template in ZERO_SHOT_TEMPLATES:
        assert any(caption.startswith(template.format(name)) for caption in captions)


def test_a_caption_depends_on_the_generator_alone():
    attributes = FIGURE_KINDS["pie chart"].combination(0)
    captions = [write_caption("pie chart", attributes, np.random.default_rng(4)) for _ in range(2)]

    assert captions[0] == captions[1]


@pytest.mark.parametrize("name", KIND_NAMES)
def test_short_captions_are_prompts_set_apart_by_a_number(name: str):
    rng = np.random.default_rng(5)
    captions = {" ".join(write_short_caption(name, number, rng)) for number in range(40)}
    assert len(captions) == 40
    for template in ZERO_SHOT_TEMPLATES:
        assert any(caption.startswith(template.format(name) + " of sample") for caption in captions)
