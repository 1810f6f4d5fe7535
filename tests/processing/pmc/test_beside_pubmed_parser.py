"""Comparison with pubmed_parser: every difference of the figures of real articles is explained.

python tests/processing/pmc/test_beside_pubmed_parser.py

The text of pubmed_parser is first derived from the XML in its own way. Then it is repaired step by step. A cause
counts for a figure if its repair changes the text. After all repairs, the text must equal ours, so that a difference
without a cause fails.
"""

import copy
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from biomedclip.processing.pmc.jats import Figure, parse_figures, plain_text


SHARED_DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
FOLDERS = ("pmc_mirror/PMC*/*.xml", "jats_xml/**/*.*xml", "jats_with_images/**/*.*xml")

NO_CAPTION = "figure without caption gets that of another figure"
NESTED = "text below the second level of markup lost"
LEGEND = "paragraphs behind the caption lost"
IDENTIFIER = "paragraph that is only a DOI (convention: dropped)"
LEFT_OUT = "label, note or supplement inside the caption (convention: left out)"
FORMULA = "formula: tokens apart, scripts and fractions flat"
CITATION = "citation numbers (convention: dropped)"
SURROUNDINGS = "brackets, commas and spaces around what is dropped (convention)"
CARET = "exponent reads as a part of its number"
WHITE_SPACE = "line breaks, runs of spaces, spaces at the ends, no-break and soft characters"
OTHER_ATTRIBUTE = "first attribute taken for the reference"
NO_GRAPHIC = "picture not found"

DROPPED = "\ue000"  # placeholder for removed text. No article contains it
NUMBERS = re.compile(r"[\s\[\](),;.–-]*(?:\d+[a-z]?[\s\[\](),;.–-]*)+")


def read_two_levels(element: etree._Element) -> str:
    """Read like pubmed_parser's `stringify_children`: the texts of the element and its children, and its tail."""
    texts = [element.text, *(text for child in element for text in (child.text, child.tail)), element.tail]
    return "".join(text for text in texts if text)


def read_all(element: etree._Element) -> str:
    return "".join(map(str, element.itertext())) + (element.tail or "")


def replace(element: etree._Element, text: str) -> None:
    """Replace an element by text."""
    text += element.tail or ""
    parent, before = element.getparent(), element.getprevious()
    if before is None:
        parent.text = (parent.text or "") + text
    else:
        before.tail = (before.tail or "") + text
    element.tail = None
    parent.remove(element)


class Reader:
    """The caption of a figure. `causes` are the repairs that changed it."""

    def __init__(self, figure: etree._Element) -> None:
        root = copy.deepcopy(figure)
        root.tail = None
        self.figure = root
        self.children = list(root.find("caption")) if root.find("caption") is not None else []
        self.text = " ".join(read_two_levels(child) for child in self.children)
        self.causes: list[str] = []

    def repair(self, cause: str, edit: Callable[[], None] = lambda: None) -> None:
        edit()
        self.accept(cause, " ".join(read_all(child) for child in self.children))

    def accept(self, cause: str, text: str) -> None:
        if text != self.text:
            self.causes.append(cause)
        self.text = text

    def add_legend(self) -> None:
        self.children += self.figure.findall("p")

    def drop_identifiers(self) -> None:
        self.children = [child for child in self.children if not re.fullmatch(r"\s*DOI:\s*http\S+\s*", read_all(child))]

    def drop(self, *paths: str) -> None:
        for path in paths:
            for child in self.children:
                for element in child.findall(f".//{path}"):
                    replace(element, DROPPED)

    def write_formulae(self) -> None:
        """Write formulas with our function, which has its own tests."""
        for child in self.children:
            for element in list(child.iter("inline-formula", "disp-formula")):
                holder = etree.Element("p")
                holder.append(copy.deepcopy(element))
                holder[0].tail = None
                replace(element, plain_text(holder) or DROPPED)

    def drop_citations(self) -> None:
        for child in self.children:
            for element in list(child.iter("xref")):
                shown = "".join(map(str, element.itertext()))
                if element.get("ref-type") in ("bibr", "ref") and NUMBERS.fullmatch(shown):
                    if not re.search(r"\b(1[6-9]|20)\d\d\b", shown):
                        replace(element, DROPPED)

    def write_carets(self) -> None:
        for child in self.children:
            for element in child.iter("sup"):
                parent, before = element.getparent(), element.getprevious()
                left = (parent.text if before is None else before.tail or "".join(map(str, before.itertext()))) or ""
                shown = "".join(map(str, element.itertext()))
                if re.search(r"[\d)\]]$", left) and re.match(r"[−–-]?\d", shown):
                    element.text = "^" + (element.text or "")


def spaces(text: str) -> str:
    return " ".join(re.sub("[\u00ad\u200b\u2061\u2062\ufeff]", "", text).split())


def essence(text: str) -> str:
    """Return a text without the punctuation that may be removed together with a citation."""
    return re.sub(rf"[\s\[\](),;.:{DROPPED}–-]|\band\b", "", text)


def causes_of_caption(figure: etree._Element, inherited: str, theirs: str, ours: str) -> Iterator[str]:
    """Yield the causes. Fail if one is missing."""
    reader = Reader(figure)
    if figure.find("caption") is None:
        assert theirs == inherited
        reader.causes.append(NO_CAPTION)
        reader.text = ""
    else:
        assert theirs == reader.text
    reader.repair(NESTED)
    reader.repair(LEGEND, reader.add_legend)
    reader.repair(IDENTIFIER, reader.drop_identifiers)
    reader.repair(LEFT_OUT, lambda: reader.drop("label", "fn", "supplementary-material", "object-id", "alt-text"))
    reader.repair(FORMULA, reader.write_formulae)
    reader.repair(CITATION, reader.drop_citations)
    reader.repair(CARET, reader.write_carets)
    reader.accept(WHITE_SPACE, spaces(reader.text))
    if DROPPED in reader.text:
        assert essence(reader.text) == essence(ours), (reader.text, ours)
        reader.accept(SURROUNDINGS, ours)
    assert reader.text == ours, (reader.text, ours)
    yield from reader.causes


def causes_of_label(figure: etree._Element, theirs: str | None, ours: str | None) -> Iterator[str]:
    label = figure.find("label")
    if label is None:
        assert theirs is None and ours is None
        return
    assert theirs == read_two_levels(label)
    text = read_all(label)
    if text != theirs:
        yield NESTED
    if spaces(text) != text:
        yield WHITE_SPACE
    assert (spaces(text) or None) == ours


def causes_of_graphic(figure: etree._Element, theirs: str | None, ours: Figure) -> Iterator[str]:
    first = ours.graphics[0].hrefs[0] if ours.graphics else None
    if theirs == first:
        return
    graphic = figure.find("graphic")
    if graphic is None:
        assert theirs is None
        yield NO_GRAPHIC
    else:
        assert theirs == graphic.attrib.values()[0]
        assert first == graphic.get("{http://www.w3.org/1999/xlink}href")
        yield OTHER_ATTRIBUTE


def compare(shared_data: Path) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """Return the counts, and the causes of the differences by field."""
    import pubmed_parser

    seen: Counter[str] = Counter()
    causes: dict[str, Counter[str]] = {name: Counter() for name in ("label", "caption", "graphic")}
    for path in sorted(path for folder in FOLDERS for path in shared_data.glob(folder)):
        theirs: list[dict[str, Any]] = pubmed_parser.parse_pubmed_caption(str(path)) or []
        ours = parse_figures(path.read_bytes())
        elements = list(etree.parse(str(path), etree.XMLParser(resolve_entities=False, load_dtd=False)).iter("fig"))
        assert [each["fig_id"] for each in theirs] == [each.figure_id for each in ours], path
        inherited = ""
        for element, their, our in zip(elements, theirs, ours, strict=True):
            caption = their["fig_caption"]
            found = {
                "label": list(causes_of_label(element, their["fig_label"], our.label)),
                "caption": list(causes_of_caption(element, inherited, caption, our.caption)),
                "graphic": list(causes_of_graphic(element, their["graphic_ref"], our)),
            }
            inherited = caption
            seen["figures"] += 1
            for field, names in found.items():
                causes[field].update(names)
                seen[f"{field}s that differ"] += bool(names)
        seen["articles"] += 1
    return seen, causes


def table(seen: Counter[str], causes: dict[str, Counter[str]]) -> str:
    lines = [f"{seen['articles']} articles, {seen['figures']} figures; all ids are equal", ""]
    lines += ["| field | cause of the difference | figures |", "|---|---|---:|"]
    for field, counts in causes.items():
        lines.append(f"| {field} | none | {seen['figures'] - seen[f'{field}s that differ']} |")
        lines += [f"| {field} | {cause} | {count} |" for cause, count in counts.most_common()]
    return "\n".join(lines) + "\n"


def test_every_difference_from_pubmed_parser_is_explained(shared_data):
    pytest.importorskip("pubmed_parser", reason="pubmed_parser is not installed: pip install pubmed_parser")
    seen, causes = compare(shared_data)
    sys.stdout.write(table(seen, causes))
    assert seen["articles"] == 269 and seen["figures"] == 1259
    assert causes["caption"][NESTED] > 0 and causes["caption"][NO_CAPTION] > 0


if __name__ == "__main__":
    sys.stdout.write(table(*compare(SHARED_DATA)))
