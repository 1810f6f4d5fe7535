"""Splits and the order of pairs: the values must never change."""

from collections import Counter

import pytest

from biomedclip.processing.pmc import plan
from biomedclip.processing.pmc.splits import (
    PAPER_FRACTIONS,
    SMALL_FRACTIONS,
    assign_splits,
    default_fractions,
    hash_of,
    parse_fractions,
    split_by_hash,
)


# Hash, and the split of a small set, of one with the paper's fractions, and of one split 40/30/30.
ARTICLES = {
    "PMC1": (0xAA4582667C1BE119, "train", "train", "validation"),
    "PMC4": (0xD9C7D1EBA7438510, "validation", "train", "test"),
    "PMC5": (0xECA154437D473093, "test", "train", "test"),
    "PMC16": (0xF803C8F2DC6CBFC5, "test", "test", "test"),
    "PMC19": (0xD8C9DAB01605BAE2, "validation", "train", "test"),
    "PMC22": (0xDD6427B3E884C4EC, "validation", "train", "test"),
    "PMC29": (0xDE9573950FD90B5A, "validation", "train", "test"),
    "PMC38": (0xEF2965A21B0BE79B, "test", "train", "test"),
    "PMC43": (0xD43E4246EA99FB43, "validation", "train", "test"),
    "PMC1000": (0x8AD72813A7BD3986, "train", "train", "validation"),
    "PMC1084": (0xF33B52808D1BC707, "test", "validation", "test"),
    "PMC2803133": (0x8B8737D7F8A1AD01, "train", "train", "validation"),
    "PMC10009416": (0x1E4848F2D6A9215D, "train", "train", "train"),
}


@pytest.mark.parametrize("pmcid", ARTICLES)
def test_the_split_of_an_article_never_changes(pmcid):
    position, *splits = ARTICLES[pmcid]
    assert hash_of(f"split/{pmcid}") == position
    fractions = (SMALL_FRACTIONS, PAPER_FRACTIONS, (0.4, 0.3, 0.3))
    assert [split_by_hash(pmcid, choice) for choice in fractions] == splits


def test_an_article_on_the_edge_of_two_splits_is_in_the_second():
    edge = 0xAA4582667C1BE119 / 2**64
    assert split_by_hash("PMC1", (edge, 1 - edge, 0)) == "validation"
    assert split_by_hash("PMC1", (edge + 1e-12, 1 - edge - 1e-12, 0)) == "train"


@pytest.mark.parametrize(
    ("fractions", "splits", "moved"),
    [
        (SMALL_FRACTIONS, "train validation test", {"PMC101": "validation", "PMC102": "test"}),
        (SMALL_FRACTIONS, "train validation train test", {"PMC101": "validation"}),
        (SMALL_FRACTIONS, "train train train test test validation", {}),
        ((0, 0.02, 0.98), "test validation test", {"PMC101": "validation"}),
        # From the largest split: PMC101 has a smaller hash, but is the only article of train.
        ((0.1, 0.002, 0.898), "test train validation test", {"PMC102": "validation"}),
        ((0.5, 0.5, 0), "validation train train", {}),
        ((1, 0, 0), "train train train", {}),
    ],
)
def test_an_empty_split_is_filled_by_the_article_with_the_smallest_hash(fractions, splits, moved):
    pmcids = [f"PMC{number}" for number in range(100, 100 + len(splits.split()))]
    assert assign_splits(pmcids, fractions) == (splits.split(), moved)
    # The order of the articles does not matter.
    backwards, moved_backwards = assign_splits(pmcids[::-1], fractions)
    assert (backwards[::-1], moved_backwards) == (splits.split(), moved)


def test_a_moved_article_stays_in_its_split_while_both_exist():
    pmcids = [f"PMC{number}" for number in range(100, 104)]
    moved_before = {"PMC100": "validation", "PMC999": "test"}
    assert assign_splits(pmcids, SMALL_FRACTIONS, moved_before) == (
        ["validation", "train", "train", "test"],
        {"PMC100": "validation"},
    )
    assert assign_splits(pmcids, (0.5, 0.5, 0), {"PMC101": "test"})[1] == {}


def test_the_fractions_of_the_paper_are_used_for_10_000_articles_or_more():
    assert default_fractions(9_999) == (0.8, 0.1, 0.1)
    assert default_fractions(10_000) == (0.9495, 0.0009, 0.0496)


@pytest.mark.parametrize(
    ("seed", "pair_id", "key"),
    [
        (0, "PMC1000.1/F1/g1", 0x7A9D934B7374C0D7),
        (1, "PMC1000.1/F1/g1", 0xFED3BAD8C0F9FBD6),
        (0, "PMC2803133.1/fig1/jcbn09-52f01", 0xF12F64E12F1426B3),
    ],
)
def test_the_sort_key_of_a_pair_never_changes(seed, pair_id, key):
    assert plan._key(seed, pair_id) == key


@pytest.mark.parametrize(
    ("rows", "split", "shards", "sizes"),
    [
        (1, "train", 1, [1]),
        (24, "train", 1, [24]),
        (50, "train", 1, [25, 25]),
        (53, "train", 1, [26, 27]),
        (10_000, "train", 1, [625] * 16),
        (10_000, "train", 40, [250] * 40),
        (10_000, "test", 1, [10_000]),
        (7, "test", 3, [2, 2, 3]),
        (2, "test", 5, [1, 1]),
    ],
)
def test_the_sizes_of_shards_never_change(rows, split, shards, sizes):
    edges = plan._shard_edges(rows, split, shards)
    assert [end - start for start, end in zip(edges, edges[1:], strict=False)] == sizes


def test_the_splits_of_many_articles_follow_the_fractions():
    counts = Counter(split_by_hash(f"PMC{number}", (0.8, 0.1, 0.1)) for number in range(20_000))
    # Three standard deviations of a binomial count are 170 for train and 127 for the others.
    assert abs(counts["train"] - 16_000) < 170
    assert abs(counts["validation"] - 2_000) < 127 and abs(counts["test"] - 2_000) < 127


def test_fractions_are_three_numbers_that_add_up_to_1():
    for choice in ("0.8,0.1,0.1", "1,0,0", " 0.5, 0.25 ,0.25", "0.3333333,0.3333333,0.3333333"):
        assert parse_fractions(choice) == tuple(map(float, choice.split(",")))
    for choice in ("0.8,0.1", "0.8,0.1,0.1,0", "a,b,c", "", "0.8,0.1,0.2", "0.5,0.2,0.2", "1.5,-0.5,0"):
        with pytest.raises(ValueError, match=f"`split_fractions` must be .*not '{choice}'"):
            parse_fractions(choice)
    with pytest.raises(ValueError):
        assign_splits(["PMC1", "PMC4"], (0.5, 0.5))
