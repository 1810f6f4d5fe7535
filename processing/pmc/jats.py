"""Figures out of JATS, the XML of journal articles (ANSI/NISO Z39.96).

Every figure of an article: in the body, in floats, appendices, boxes, sub-articles and figure groups. XML comes from
thousands of publishers and is not trusted: no DTD is loaded, no entity expanded, nothing fetched, and size is bounded.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lxml import etree


MAX_XML_BYTES = 100_000_000  # the largest articles of PMC have some 20 MB

_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"

# Elements that end a line on a page: their text must not be glued to its neighbours.
_BLOCKS = frozenset(
    """
    break caption def def-item disp-formula disp-quote list list-item p sec statement title verse-line
    """.split()
)
# Elements that are not part of the running text: pictures, floating objects, identifiers, duplicates of formulae.
_LEFT_OUT = frozenset(
    """
    alt-text annotation annotation-xml boxed-text fig fig-group fn graphic inline-graphic label long-desc media
    object-id supplementary-material table-wrap
    """.split()
)
# Of several renderings of one thing the first of these is taken; pictures of it are left out.
_ALTERNATIVES = ("math", "tex-math", "textual-form", "chem-struct")

_TEX_DOCUMENT = re.compile(r"\\begin\{document\}(.*?)\\end\{document\}", re.DOTALL)
_EXPONENT = re.compile(r"\s*[−–-]?\d")
_EMPTY_BRACKETS = re.compile(r"\s*(\[[\s,;–-]*\]|\([\s,;–-]*\))")
_SPACE_BEFORE_POINT = re.compile(r"\s+([.,;:](?:\s|$))")


class JatsError(ValueError):
    """An article whose XML cannot be read; the message says why."""


@dataclass(frozen=True)
class Graphic:
    """One picture of a figure: the names its file can have, best first, and its panel where the XML names one."""

    hrefs: tuple[str, ...]
    panel: str | None = None


@dataclass(frozen=True)
class Figure:
    """One `<fig>`: texts are plain, with single spaces; `caption` is empty where the figure has none."""

    figure_id: str
    label: str | None
    caption: str
    graphics: tuple[Graphic, ...]
    mentions: tuple[str, ...]


def parse_figures(xml: bytes) -> list[Figure]:
    """
    Reads all figures of an article, in the order of the document.

    Args:
        xml: The article, JATS of any version.

    Returns:
        A [`Figure`] for each `<fig>`. `figure_id` is its XML id, or `fig-<position>` where it has none, made distinct
        where two figures share one. `mentions` are the paragraphs that refer to it.

    Raises:
        JatsError: Not well-formed, not an article, or larger than `MAX_XML_BYTES`.
    """
    article = _parse(xml)
    mentions = _mentions(article)
    figures: list[Figure] = []
    taken: set[str] = set()
    for position, element in enumerate(article.iter("{*}fig"), start=1):
        xml_id = element.get("id") or ""
        figure_id = xml_id or f"fig-{position}"
        if figure_id in taken:
            figure_id = f"{figure_id}-{position}"
        taken.add(figure_id)
        figures.append(
            Figure(
                figure_id=figure_id,
                label=_label(element),
                caption=_caption(element),
                graphics=tuple(_graphics(element)),
                mentions=tuple(mentions.get(xml_id, ())),
            )
        )
    return figures


def plain_text(element: etree._Element) -> str:
    """
    The text of an element as a reader would see it on one line.

    Nested markup is kept as text, paragraphs and list items are set apart by spaces, a formula that stands there twice
    (as MathML and as TeX) comes once, bare citation numbers are dropped, and an exponent gets a caret after a digit
    (10^6, not 106).
    """
    pieces: list[str] = []
    _collect(element, pieces)
    text = " ".join("".join(pieces).split())
    without_brackets = _EMPTY_BRACKETS.sub("", text) if _has_citations(element) else text
    return _SPACE_BEFORE_POINT.sub(r"\1", without_brackets).strip()


def _parse(xml: bytes) -> etree._Element:
    if len(xml) > MAX_XML_BYTES:
        raise JatsError(f"the XML has {len(xml):,} bytes, more than {MAX_XML_BYTES:,}")
    # A parser each: lxml's are not safe to share between threads.
    parser = etree.XMLParser(
        resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False, remove_comments=True, remove_pis=True
    )
    try:
        root = etree.fromstring(xml, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise JatsError(f"the XML is not well-formed ({error})") from error
    if next(root.iter("{*}article"), None) is None:
        raise JatsError(f"the XML holds no <article>; its root is <{_name(root)}>")
    return root


def _name(element: etree._Element) -> str:
    """Local name; empty for comments, processing instructions and entities that are not expanded."""
    return etree.QName(element).localname if isinstance(element.tag, str) else ""


def _collect(element: etree._Element, pieces: list[str]) -> None:
    """Appends the text inside `element` to `pieces`, white space as it stands."""
    name = _name(element)
    if name == "math":
        pieces.append(_math(element))
        return
    if name == "alternatives":
        child = _chosen_alternative(element)
        if child is not None:
            _collect(child, pieces)
        return
    if name == "tex-math":
        pieces.append(_tex(element.text or ""))
        return
    if name == "sup" and _EXPONENT.match(element.text or "") and _last_character(pieces).isdigit():
        pieces.append("^")
    if name in _BLOCKS:
        pieces.append(" ")
    pieces.append(element.text or "")
    for child in element:
        if not (_name(child) in _LEFT_OUT or not _name(child) or _is_citation_number(child)):
            _collect(child, pieces)
        pieces.append(child.tail or "")
    if name in _BLOCKS:
        pieces.append(" ")


def _last_character(pieces: list[str]) -> str:
    return next((piece[-1] for piece in reversed(pieces) if piece), "")


def _math(element: etree._Element) -> str:
    """A MathML formula on one line: its tokens in a row, fractions with a slash."""
    if _name(element) in _LEFT_OUT:
        return ""
    separator = "/" if _name(element) == "mfrac" else ""
    return (element.text or "").strip() + separator.join(_math(child) for child in element)


def _chosen_alternative(element: etree._Element) -> etree._Element | None:
    children = {_name(child): child for child in reversed(element)}
    return next((children[name] for name in _ALTERNATIVES if name in children), None)


def _tex(source: str) -> str:
    """The formula of a `<tex-math>`, without the preamble that many publishers send along."""
    document = _TEX_DOCUMENT.search(source)
    return (document.group(1) if document else source).replace("$", " ").strip()


def _is_citation_number(element: etree._Element) -> bool:
    """A reference to the bibliography that shows a bare number, such as the 12 of «[12]»."""
    return (
        _name(element) == "xref"
        and element.get("ref-type") == "bibr"
        and not any(character.isalpha() for character in "".join(map(str, element.itertext())))
    )


def _has_citations(element: etree._Element) -> bool:
    return any(_is_citation_number(reference) for reference in element.iter("{*}xref"))


def _child(element: etree._Element, name: str) -> etree._Element | None:
    return next((child for child in element if _name(child) == name), None)


def _label(element: etree._Element) -> str | None:
    label = _child(element, "label")
    return (plain_text(label) or None) if label is not None else None


def _caption(figure: etree._Element) -> str:
    """The figure's own caption, or that of the group it stands in; never that of a neighbour."""
    caption = _child(figure, "caption")
    group = figure.getparent()
    if caption is None and group is not None and _name(group) == "fig-group":
        caption = _child(group, "caption")
    return plain_text(caption) if caption is not None else ""


def _graphics(figure: etree._Element) -> Iterator[Graphic]:
    """The pictures of a figure; several renderings in `<alternatives>` are one picture."""
    for child in figure:
        name = _name(child)
        if name in ("graphic", "alternatives"):
            graphics = [graphic for graphic in child.iter("{*}graphic") if graphic.get(_XLINK_HREF)]
            if graphics:
                hrefs = tuple(dict.fromkeys(graphic.get(_XLINK_HREF, "") for graphic in graphics))
                yield Graphic(hrefs, next((label for label in map(_label, graphics) if label), None))
        elif name not in ("caption", "fig", "label"):
            yield from _graphics(child)


def _mentions(article: etree._Element) -> dict[str, list[str]]:
    """Paragraphs by the ids of the figures they refer to, those inside figures left out."""
    mentions: dict[str, list[str]] = {}
    for paragraph in article.iter("{*}p"):
        figure_ids = [
            figure_id
            for reference in paragraph.iter("{*}xref")
            if reference.get("ref-type") == "fig"
            for figure_id in (reference.get("rid") or "").split()
        ]
        if not figure_ids or any(_name(ancestor) in ("fig", "p") for ancestor in paragraph.iterancestors()):
            continue
        text = plain_text(paragraph)
        for figure_id in dict.fromkeys(figure_ids):
            if text:
                mentions.setdefault(figure_id, []).append(text)
    return mentions
