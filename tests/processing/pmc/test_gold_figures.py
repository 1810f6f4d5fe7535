"""Comparison with `gold_figures.jsonl`, whose texts were typed by hand from the XML of real articles.

A row holds the whole label and caption, the graphics, the number of paragraphs that mention the figure, and the first
and last 80 characters of the first of them. Article, DOI and license in each row are its attribution.
"""

import json
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path

import pytest

from biomedclip.processing.pmc.jats import Figure, parse_figures


GOLD = [
    json.loads(line) for line in Path(__file__).with_name("gold_figures.jsonl").read_text(encoding="utf-8").splitlines()
]
COMPARED = ("label", "caption", "graphics", "mentions", "first_mention")
MENTION_EDGE = 80  # characters of a mention's start and of its end that a row holds
CONTEXT = 20  # characters shown on each side of a difference


@cache
def figures_of(path: Path) -> dict[str, Figure]:
    return {figure.figure_id: figure for figure in parse_figures(path.read_bytes())}


def row_of(figure: Figure) -> dict[str, object]:
    """Return a parsed figure in the form of a row."""
    first = figure.mentions[0] if figure.mentions else None
    return {
        "label": figure.label,
        "caption": figure.caption,
        "graphics": [{"hrefs": list(graphic.hrefs), "panel": graphic.panel} for graphic in figure.graphics],
        "mentions": len(figure.mentions),
        "first_mention": None if first is None else [first[:MENTION_EDGE], first[-MENTION_EDGE:]],
    }


def differences(parsed: object, gold: object) -> Iterator[str]:
    """Yield a line for each different value, and for each difference in a text with its context."""
    if isinstance(parsed, list) and isinstance(gold, list) and len(parsed) == len(gold):
        for pair in zip(parsed, gold, strict=True):
            yield from differences(*pair)
    elif isinstance(parsed, str) and isinstance(gold, str):
        for kind, start, end, gold_start, gold_end in SequenceMatcher(None, parsed, gold, autojunk=False).get_opcodes():
            if kind != "equal":
                before, after = parsed[max(start - CONTEXT, 0) : start], parsed[end : end + CONTEXT]
                yield f"{before!r} parsed {parsed[start:end]!r}, gold {gold[gold_start:gold_end]!r} {after!r}"
    elif parsed != gold:
        yield f"parsed {parsed!r}, gold {gold!r}"


@pytest.mark.parametrize("row", GOLD, ids=[f"{Path(row['article']).stem}-{row['figure_id']}" for row in GOLD])
def test_a_figure_of_a_real_article_equals_the_text_typed_by_hand(row, shared_data):
    article = shared_data / row["article"]
    if not article.is_file():
        pytest.skip(f"the article is not at {article}")
    figures = figures_of(article)
    assert row["figure_id"] in figures, f"the parser finds only {sorted(figures)}"
    parsed = row_of(figures[row["figure_id"]])
    found = [f"{field}: {line}" for field in COMPARED for line in differences(parsed[field], row[field])]
    assert not found, "\n".join([f"{row['article']} {row['figure_id']} ({row['why']})", *found])


def test_the_gold_figures_come_from_many_publishers_under_open_licenses():
    assert len({(row["article"], row["figure_id"]) for row in GOLD}) == len(GOLD) >= 60
    assert len({row["publisher"] for row in GOLD}) >= 12
    assert {row["license"] for row in GOLD} <= {"CC0", "CC BY", "CC BY 2.0", "CC BY 3.0", "CC BY 4.0"}
