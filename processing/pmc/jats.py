"""Figures out of JATS, the XML of journal articles (ANSI/NISO Z39.96).

Every figure of an article: in the body, in floats, appendices, boxes, supplements, sub-articles and figure groups. XML
comes from thousands of publishers and is not trusted: no DTD is loaded, no entity of its own expanded, nothing fetched;
size and depth are bounded, and time grows with size alone.

What the texts (label, caption, mentions) hold:

- One line with single spaces. Typographic quotes, dashes and Greek stay as they are; soft hyphens and characters
  without width go.
- A caption is its title and all its paragraphs, lists and formulae, and the paragraphs that follow it in the figure.
  Nested markup is kept as text; blocks are set apart by a space. The label, marks of list items, footnotes, pictures,
  tables, nested figures, supplements, alternative texts and a paragraph that is only a DOI are left out.
- A figure in a group takes the group's caption where it has none of its own, and never a neighbour's. Pictures that
  stand directly in a group are a figure with the group's id, label and caption.
- Scripts stand as plain text (H2O, Ca2+), with a caret only where a number would grow otherwise (10^6).
- A formula comes once: from MathML on one line (x^2, x_i^(n+1), (a+b)/c, √x), else as TeX without its preamble; a
  picture of a formula is left out.
- References to the bibliography that show bare numbers are dropped with their brackets and commas, and so are marks of
  footnotes. Named citations, years, and references to figures and tables stay.
- Mentions are the paragraphs outside figures that refer to the figure, by name or within a range (Figs 2–5), each once
  and whole, without the tables, boxes and footnotes inside them. Paragraphs of those count by themselves.
"""

import mimetypes
import re
from dataclasses import dataclass
from functools import lru_cache
from html.entities import html5

from lxml import etree


# The largest articles of PMC have some 20 MB. In memory a tag or an attribute takes 100 to 250 bytes, however short it
# is written: 30 MB of «<b a=""/>» took 1.2 GB. With both limits no kind of filling takes a process beyond 900 MiB.
MAX_XML_BYTES = 30_000_000
MAX_MARKS = 3_000_000  # of «<», «=» and «&»; of 393 articles the densest has one in 13 bytes, half have one in 20
MAX_FIGURES = 100_000
MAX_MENTIONS = 200_000  # pairs of a figure and a paragraph; a range names 200 figures in 60 bytes

_LONGEST_RANGE = 200  # figures; «Figs 1–9999» must not cost more than it says

_XML_ID = "{http://www.w3.org/XML/1998/namespace}id"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"

_PLAIN_NAME = re.compile("[a-z][a-z0-9-]*")

# Elements that end a line on a page: their text must not be glued to its neighbours.
_BLOCKS = frozenset(
    """
    array attrib break caption chem-struct-wrap code def def-item def-list disp-formula disp-formula-group disp-quote hr
    list list-item p preformat sec speech statement subtitle td term th title tr verse-group verse-line
    """.split()
)
# Elements that are not part of the running text: what floats beside it, and pictures, notes, identifiers within it.
_FLOATS = frozenset(
    """
    boxed-text fig fig-group fn-group graphic media supplementary-material table table-wrap table-wrap-group
    """.split()
)
_LEFT_OUT = _FLOATS | frozenset(
    """
    alt-text annotation annotation-xml fn glyph-data glyph-ref index-term index-term-range-end inline-graphic
    inline-media label long-desc object-id private-char
    """.split()
)
# Of several renderings of one thing the first of these is taken; pictures of it are left out.
_ALTERNATIVES = ("math", "tex-math", "textual-form", "chem-struct")
# All that needs more than to have its text taken as it stands; the empty name is that of entities.
_SPECIAL = _BLOCKS | _LEFT_OUT | {"", "alternatives", "math", "sup", "tex-math", "xref"}
# Parts of a figure in which a graphic is not a picture of it: a symbol, a formula, a logo, a figure of its own.
_WITHOUT_GRAPHICS = frozenset(
    "attrib caption disp-formula disp-formula-group fig fig-group inline-formula label permissions".split()
)
_LEGEND = frozenset(("p", "list", "def-list"))  # what may follow the caption inside a figure and is read with it

_BIBLIOGRAPHY = frozenset(("bibr", "ref"))
_FOOTNOTES = frozenset(("fn", "table-fn", "aff", "corresp"))
_DASHES = "‐‑–—−-"  # the plain one last: in a set of characters it would make a range
_BARE_NUMBERS = re.compile(rf"(?:\d[a-z]?|[\s\[\](),;.^*{_DASHES}])*")
_RANGE = frozenset(_DASHES)
_YEAR = re.compile(r"(?<!\d)(?:1[6-9]|20)\d\d(?!\d)")
_SIGNED_NUMBER = re.compile(rf"[+±{_DASHES}]?\s?\d")
_IDENTIFIER = re.compile(r"(?:doi ?:? ?)?(?:https?://(?:dx\.)?doi\.org/)?10\.\d{4,9}/\S+", re.IGNORECASE)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")

# Marks that stand in a text for what was left out until its surroundings are tidied; XML cannot contain them.
_GAP = "\x00"
_CITATION = f"{_GAP}\x01"
_BETWEEN_CITATIONS = f" ,;[](){_DASHES}"
_CLOSING = (".", ",", ";", ":", ")", "]")

_TOKENS = frozenset(("mi", "mn", "mo", "ms", "mtext"))
_SCRIPTS = {"msub": "_", "munder": "_", "msup": "^", "mover": "^", "msubsup": "_^", "munderover": "_^"}
_PLAIN, _SIGNED, _COMPOUND = range(3)
_BRACKETS = {"(": ")", "[": "]", "{": "}", "|": "|", "⟨": "⟩"}
_PRIMES = frozenset("'′″‴")
_NO_OPERATORS = _PRIMES | frozenset("()[]{}|‖⟨⟩⌈⌉⌊⌋")


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
        A [`Figure`] for each `<fig>`, and for each `<fig-group>` with pictures of its own. `figure_id` is its XML id,
        or `fig-<position>` where it has none, made distinct where two figures share one. `mentions` are the paragraphs
        that refer to it.

    Raises:
        JatsError: Not well-formed, not an article, or beyond one of the limits `MAX_XML_BYTES`, `MAX_MARKS`,
            `MAX_FIGURES`, `MAX_MENTIONS`.
    """
    elements: list[etree._Element] = []
    graphics: list[list[Graphic]] = []
    references: list[etree._Element] = []
    # One pass: it costs as much as all that is done with what it finds.
    for element in _parse(xml).iter("{*}xref", "{*}fig", "{*}fig-group"):
        if element.get("ref-type") == "fig":
            references.append(element)
        elif (name := _local_name(element.tag)) != "xref":
            pictures: list[Graphic] = []
            _collect_graphics(element, pictures)
            if pictures or name == "fig":
                elements.append(element)
                graphics.append(pictures)
                if len(elements) > MAX_FIGURES:
                    raise JatsError(f"the XML holds more than {MAX_FIGURES:,} figures")

    xml_ids = [(element.get("id") or element.get(_XML_ID) or "").strip() for element in elements]
    mentions = _mentions(references, xml_ids)
    captions: dict[etree._Element, str] = {}
    return [
        Figure(figure_id, _label(element), _caption(element, captions), tuple(pictures), mentions.get(xml_id, ()))
        for figure_id, xml_id, element, pictures in zip(_distinct(xml_ids), xml_ids, elements, graphics, strict=True)
    ]


def plain_text(element: etree._Element) -> str:
    """The text inside an element as a reader would see it on one line; the module says what is kept."""
    pieces: list[str] = []
    _collect(element, pieces)
    return _one_line(pieces)


def _parse(xml: bytes) -> etree._Element:
    if len(xml) > MAX_XML_BYTES:
        raise JatsError(f"the XML has {len(xml):,} bytes, more than {MAX_XML_BYTES:,}")
    if sum(map(xml.count, (b"<", b"=", b"&"))) > MAX_MARKS:
        raise JatsError(f"the XML has more than {MAX_MARKS:,} tags, attributes and entities")
    parser = _parser()
    try:
        root = etree.fromstring(xml, parser)
    except (etree.LxmlError, ValueError) as error:
        if {entry.type_name for entry in parser.error_log} != {"NS_ERR_UNDEFINED_NAMESPACE"}:
            raise JatsError(f"the XML is not well-formed ({error})") from error
        root = etree.fromstring(xml, _parser(recover=True))  # nothing but prefixes without declaration to recover from
    if next(root.iter("{*}article"), None) is None:
        _normalise_names(root)
        if next(root.iter("article"), None) is None:
            raise JatsError(f"the XML holds no <article>; its root is <{_local_name(root.tag)}>")
    return root


def _parser(*, recover: bool = False) -> etree.XMLParser:
    """
    A parser for each article: lxml's are not safe to share between threads.

    Without `huge_tree` it refuses more than 256 levels, which bounds all recursion here. `collect_ids=False`, which
    would be faster, makes it ask for the DTD.
    """
    return etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
        recover=recover,
    )


def _normalise_names(root: etree._Element) -> None:
    """Names in capitals, or with a prefix that nothing declares, become what JATS calls them."""
    for element in root.iter(etree.Element):
        for name, value in element.items():
            if _PLAIN_NAME.fullmatch(local := _local_name(name)):
                del element.attrib[name]
                element.set(local, value)
        if _PLAIN_NAME.fullmatch(local := _local_name(element.tag)):
            element.tag = local


@lru_cache(maxsize=4096)
def _local_name(tag: object) -> str:
    """The name without namespace; empty for an entity that is not expanded."""
    return re.split("[}:]", tag)[-1].lower() if isinstance(tag, str) else ""


def _distinct(xml_ids: list[str]) -> list[str]:
    """Names for figures that may share an id or have none, by their positions from 1."""
    taken: dict[str, None] = {}
    for position, xml_id in enumerate(xml_ids, start=1):
        figure_id = xml_id or f"fig-{position}"
        while figure_id in taken:
            figure_id += f"-{position}"
        taken[figure_id] = None
    return list(taken)


def _collect(element: etree._Element, pieces: list[str]) -> None:
    """Appends the text inside `element`, white space as it stands and a mark for what is left out."""
    if text := element.text:
        pieces.append(text)
    for child in element:
        name = _local_name(child.tag)
        if name in _SPECIAL:
            _collect_special(child, name, pieces)
        elif len(child):
            _collect(child, pieces)
        elif text := child.text:
            pieces.append(text)
        if tail := child.tail:
            pieces.append(tail)


def _collect_special(element: etree._Element, name: str, pieces: list[str]) -> None:
    """Appends the text of an element of the kinds that `_SPECIAL` names."""
    start = len(pieces)
    if name == "xref":
        _collect(element, pieces)
        kind = element.get("ref-type")
        if (kind in _BIBLIOGRAPHY or kind in _FOOTNOTES) and _is_noise(kind, pieces[start : start + 41]):
            pieces[start:] = [_CITATION]
    elif name in _BLOCKS:
        pieces.append(" ")
        _collect(element, pieces)
        if name == "p" and _is_identifier(pieces[start : start + 9]):
            del pieces[start:]
        pieces.append(_GAP if (element.tail or "").lstrip().startswith(_CLOSING) else " ")
    elif name in _LEFT_OUT:
        pieces.append(f"{_GAP} " if name in _FLOATS else _GAP)
    elif name == "sup":
        follows_number = start and (pieces[-1][-1:].isdigit() or pieces[-1][-1:] in tuple(")]}"))
        _collect(element, pieces)
        if follows_number and _SIGNED_NUMBER.match("".join(pieces[start : start + 9]).lstrip()):
            pieces[start] = "^" + pieces[start].lstrip()
    elif name == "math":
        pieces.append(_math(element)[0])
    elif name == "tex-math":
        if not any(_name(sibling) == "math" for sibling in (element.getprevious(), element.getnext())):
            source: list[str] = []
            _collect(element, source)
            pieces.append(_tex("".join(source)))
    elif name == "alternatives":
        chosen = _chosen_rendering(element)
        if chosen is None:
            pieces.append(_GAP)
        elif _name(chosen) in _SPECIAL:
            _collect_special(chosen, _name(chosen), pieces)
        else:
            _collect(chosen, pieces)
    else:
        pieces.append(html5.get((element.text or "").lstrip("&"), ""))


def _one_line(pieces: list[str]) -> str:
    """Joins collected text, with single spaces and without the marks of what was left out."""
    text = " ".join("".join(pieces).split())
    if _GAP in text:
        text = _close_gaps(text).strip()
    if not text.isprintable():  # cheaper than to look for each of the characters without width
        text = " ".join(_INVISIBLE.sub("", text).split())
    return text


def _close_gaps(text: str) -> str:
    """Takes the marks out, with the brackets, commas and spaces that make no sense without what was left out."""
    left, *segments = text.split(_GAP)
    are_citations = [segment.startswith("\x01") for segment in segments]
    kept: list[str] = []
    for right, is_citation, next_is_citation in zip(segments, are_citations, [*are_citations[1:], False], strict=True):
        right = right.removeprefix("\x01")
        if not right or (is_citation and next_is_citation and right.strip(_BETWEEN_CITATIONS) in ("", "and", "&")):
            continue
        before, after = left.rstrip(" "), right.lstrip(" ")
        for _ in range(3):  # brackets within brackets
            if before[-1:] + after[:1] in ("()", "[]"):
                left, right = before[:-1], after[1:]
                before, after = left.rstrip(" "), right.lstrip(" ")
        if not left and kept:
            left = kept.pop()
            before = left.rstrip(" ")
        if before.endswith(("(", "[")):
            left, right = before, after.lstrip(" ,;")
        elif after.startswith(_CLOSING) and not after[1:2].isdigit():
            left, right = before, after
            if left.endswith((",", ";")):
                left = left[:-1]
            elif left.endswith(".") and right.startswith("."):
                right = right[1:]
        elif left.endswith(" "):
            right = after
        elif is_citation and left[-1:].isalnum() and right[:1].isalnum():
            right = f" {right}"
        if right:
            kept.append(left)
            left = right
    return "".join(kept) + left


def _is_noise(kind: str, pieces: list[str]) -> bool:
    """A reference to the bibliography that shows bare numbers, such as the 12 of «[12]», or the mark of a footnote."""
    text = "".join(pieces)
    if len(pieces) > 40:
        return False
    if kind in _FOOTNOTES:
        return len(text.strip()) <= 2
    return _BARE_NUMBERS.fullmatch(text) is not None and not _YEAR.search(text)


def _is_identifier(pieces: list[str]) -> bool:
    return len(pieces) < 9 and _IDENTIFIER.fullmatch(" ".join("".join(pieces).split())) is not None


def _chosen_rendering(alternatives: etree._Element) -> etree._Element | None:
    children = {_name(child): child for child in reversed(alternatives)}
    names = (*_ALTERNATIVES, *reversed(children))
    return next((children[name] for name in names if name in children and name not in _LEFT_OUT), None)


def _tex(source: str) -> str:
    """The formula of a `<tex-math>`, without the preamble that many publishers send along."""
    before, begin, after = source.partition(r"\begin{document}")
    return re.sub(r"(?<!\\)\$", "", after.partition(r"\end{document}")[0] if begin else before)


def _math(element: etree._Element) -> tuple[str, int]:
    """A MathML formula on one line, and whether it holds an operator: none, only as its sign, or between its parts."""
    name = _local_name(element.tag)
    if name in _TOKENS:
        return _math_token(element, name)
    if name in _LEFT_OUT or name == "mphantom":
        return "", _PLAIN
    children = [_math(child) for child in element]
    if name in _SCRIPTS and len(children) == len(_SCRIPTS[name]) + 1:
        return _scripted(name, children)
    if name == "mfrac" and len(children) == 2:
        return f"{_bracketed(children[0])}/{_bracketed(children[1])}", _COMPOUND
    if name == "mroot" and len(children) == 2:
        return f"√[{children[1][0]}]{_bracketed(children[0])}", _PLAIN
    if name == "mfenced":
        return _fenced(element, children), _PLAIN
    if name in ("mtable", "mtr", "mlabeledtr"):
        return " ".join(text for text, _ in children), _COMPOUND
    row = _row(children) if children else ((element.text or "").strip(), _PLAIN)
    return (f"√{_bracketed(row)}", _PLAIN) if name == "msqrt" else row


def _math_token(element: etree._Element, name: str) -> tuple[str, int]:
    text = element.text or ""
    if len(element):
        pieces: list[str] = []
        _collect(element, pieces)
        text = "".join(pieces)
    if text.isalnum():
        return text, _PLAIN
    text = _INVISIBLE.sub("", text)
    # Letters in a formula touch, words do not: only the text of an <mtext> keeps a space at its ends.
    text = re.sub(r"\s+", " ", text) if name == "mtext" else " ".join(text.split())
    is_operator = name == "mo" and text and not text.isalnum() and _NO_OPERATORS.isdisjoint(text)
    return text, _SIGNED if is_operator else _PLAIN


def _row(parts: list[tuple[str, int]]) -> tuple[str, int]:
    row, holds = "", _PLAIN
    for text, operator in parts:
        if operator and text:
            holds = _COMPOUND if row else operator
        row += text
    return row, holds


def _scripted(name: str, parts: list[tuple[str, int]]) -> tuple[str, int]:
    text = parts[0][0]
    for mark, script in zip(_SCRIPTS[name], parts[1:], strict=True):
        is_accent = name in ("munder", "mover") and len(script[0]) == 1 and not script[0].isalnum()
        touches = is_accent or _PRIMES.issuperset(script[0])
        text += script[0] if touches else mark + _bracketed(script)
    return text, parts[0][1]


def _bracketed(part: tuple[str, int]) -> str:
    """In brackets if it holds an operator and does not stand in brackets yet."""
    text, holds = part
    closing = _BRACKETS.get(text[:1])
    if holds != _COMPOUND or (closing and text.endswith(closing) and closing not in text[1:-1]):
        return text
    return f"({text})"


def _fenced(element: etree._Element, children: list[tuple[str, int]]) -> str:
    separators = "".join(element.get("separators", ",").split())
    text = ""
    for position, (child, _) in enumerate(children):
        text += separators[min(position, len(separators)) - 1] if position and separators else ""
        text += child
    return element.get("open", "(") + text + element.get("close", ")")


def _name(element: etree._Element | None) -> str:
    return "" if element is None else _local_name(element.tag)


def _label(element: etree._Element) -> str | None:
    return next((text for child in element if _name(child) == "label" and (text := plain_text(child))), None)


def _caption(figure: etree._Element, known: dict[etree._Element, str]) -> str:
    """The figure's own caption, or that of the group it stands in; `known` holds those of groups."""
    caption = _own_caption(figure)
    group = figure.getparent()
    while not caption and group is not None and _name(group) == "fig-group":
        if group not in known:
            known[group] = _own_caption(group)
        caption = known[group]
        group = group.getparent()
    return caption


def _own_caption(element: etree._Element) -> str:
    pieces: list[str] = []
    has_caption = False  # a second one is a translation
    for child in element:
        name = _name(child)
        if name in _LEGEND or (name == "caption" and not has_caption):
            _collect_special(child, name, pieces)
            has_caption |= name == "caption"
    return _one_line(pieces)


def _collect_graphics(element: etree._Element, graphics: list[Graphic]) -> None:
    """Appends the pictures of a figure; several renderings in `<alternatives>` are one picture."""
    for child in element:
        name = _name(child)
        if name in ("graphic", "media", "alternatives"):
            pictures = [each for each in (child if name == "alternatives" else (child,)) if _is_picture(each)]
            hrefs = tuple(dict.fromkeys(href for href in map(_href, pictures) if href))
            if hrefs:
                graphics.append(Graphic(hrefs, next((label for label in map(_label, pictures) if label), None)))
        elif name not in _WITHOUT_GRAPHICS:
            _collect_graphics(child, graphics)


def _is_picture(element: etree._Element) -> bool:
    name = _name(element)
    if name == "media":
        kind = element.get("mimetype") or mimetypes.guess_type(_href(element))[0] or ""
        return kind.lower().startswith("image")
    return name == "graphic"


def _href(element: etree._Element) -> str:
    """`xlink:href` as written, also where its prefix is declared as something else or not at all."""
    href = element.get(_XLINK_HREF)
    if href is None:
        href = next((str(value) for name, value in element.items() if _local_name(name) == "href"), "")
    return href if href.strip() else ""


def _mentions(references: list[etree._Element], xml_ids: list[str]) -> dict[str, tuple[str, ...]]:
    """Texts of paragraphs by the ids of the figures they refer to."""
    positions = {xml_id: position for position, xml_id in reversed(list(enumerate(xml_ids))) if xml_id}
    places: dict[etree._Element, etree._Element | None] = {}
    citing: dict[str, dict[etree._Element, None]] = {}
    count = 0
    for reference in references:
        cited = _cited_ids(reference, xml_ids, positions)
        paragraph = _paragraph(reference, places) if cited else None
        if paragraph is not None:
            count += len(cited)
            if count > MAX_MENTIONS:
                raise JatsError(f"the XML refers to figures more than {MAX_MENTIONS:,} times")
            for xml_id in cited:
                citing.setdefault(xml_id, {})[paragraph] = None
    texts = {paragraph: plain_text(paragraph) for paragraphs in citing.values() for paragraph in paragraphs}
    return {
        xml_id: tuple(text for paragraph in paragraphs if (text := texts[paragraph]))
        for xml_id, paragraphs in citing.items()
    }


def _cited_ids(reference: etree._Element, xml_ids: list[str], positions: dict[str, int]) -> list[str]:
    """The ids of figures that a reference names, and those up to the next reference if only a dash stands between."""
    cited = _named_ids(reference, positions)
    if cited and (reference.tail or "").strip() in _RANGE:
        following = reference.getnext()
        if following is not None and following.get("ref-type") == "fig":
            upto = _named_ids(following, positions)
            between = range(positions[cited[-1]] + 1, positions[upto[0]] if upto else 0)
            if len(between) <= _LONGEST_RANGE:
                cited += filter(None, xml_ids[between.start : between.stop])
    return cited


def _named_ids(reference: etree._Element, positions: dict[str, int]) -> list[str]:
    rid = (reference.get("rid") or "").strip()
    return [rid] if rid in positions else [xml_id for xml_id in rid.split() if xml_id in positions]


def _paragraph(reference: etree._Element, places: dict[etree._Element, etree._Element | None]) -> etree._Element | None:
    """
    The outermost `<p>` whose text holds the reference; None inside a figure, or where no paragraph holds it.

    `places` holds for each element that was passed what its text belongs to: a paragraph, a figure or nothing.
    """
    path = []
    element = reference.getparent()
    while element is not None and element not in places:
        path.append(element)
        element = element.getparent()
    place = None if element is None else places[element]
    for element in reversed(path):
        name = _name(element)
        if _name(place) in ("", "p"):
            if name in ("fig", "fig-group"):
                place = element
            elif name in _LEFT_OUT:
                place = None
            elif name == "p" and place is None:
                place = element
        places[element] = place
    return place if _name(place) == "p" else None
