"""Find the figures of an article in JATS, the XML format of journal articles (ANSI/NISO Z39.96).

Figures are found in the body, in floats, appendices, boxes, supplements, sub-articles and figure groups. The XML comes
from thousands of publishers and is not trusted: no DTD is loaded, no entity is expanded, and nothing is downloaded.
Size and depth are limited, and the run time is linear in the size. [`jats_text`] converts elements to text.

A figure is a `<fig>`, a `<fig-group>` that directly contains images, or a captioned `<graphic>` outside these.
Publishers put captions and images at different levels, so a caption is looked up in this order:

1. In the figure itself: its caption (title, paragraphs, lists, formulas), and the paragraphs and lists next to it.
2. In its `<graphic>` and `<media>` elements.
3. In the figures inside it that have a caption but no image. These are not separate figures.
4. In the boxes, quotes and videos inside it.
5. In the groups around it, nearest first: `<fig-group>`, an outer `<fig>`, `<supplementary-material>`. An outer `<fig>`
   that only contains other figures is a group and not a figure.

A caption is never taken from a neighboring figure. If there are several captions, the one in the language of the
article is used, or else the first. The same applies to paragraphs of one caption in different languages. `<fig>`
elements of a group that differ only in language are one figure.

A mention is a paragraph outside figures that refers to a figure, one of its images or a group around it, or to a range
that includes it (Figs 2–5). Only the target of an `<xref>` counts, not its `ref-type`. Each paragraph is returned once
and in full, without the tables, boxes and footnotes inside it. Paragraphs inside these are separate mentions.
"""

import mimetypes
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from lxml import etree

from .jats_text import DASHES, LEFT_OUT, local_name, name_of, plain_text, text_of_blocks


# The largest articles of PMC have about 20 MB. In memory, a tag or an attribute takes 100 to 250 bytes, however short
# it is: 30 MB of «<b a=""/>» take 1.2 GB. With both limits, a process stays below 900 MiB.
MAX_XML_BYTES = 30_000_000
MAX_MARKS = 3_000_000  # of «<», «=» and «&». The densest of 393 articles has one per 13 bytes
MAX_FIGURES = 100_000
MAX_MENTIONS = 200_000  # pairs of a figure and a paragraph. A range can name 200 figures in 60 bytes

# Separators between several ids in one reference.
_BETWEEN_IDS = re.compile(r"[\s,;#]+")
_MAX_RANGE = 200  # figures, to limit the cost of «Figs 1–9999»
_RANGE = frozenset(DASHES)

_XML_ID = "{http://www.w3.org/XML/1998/namespace}id"
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
# Some publishers use three-letter codes for elements and a two-letter code for the article.
_SHORT_LANGUAGES = dict(pair.split("-") for pair in "eng-en spa-es por-pt fra-fr fre-fr deu-de ger-de ita-it".split())
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"

_PLAIN_NAME = re.compile("[a-z][a-z0-9-]*")

# Elements whose caption and references also apply to the figures inside them.
_GROUPS = frozenset(("fig", "fig-group", "supplementary-material"))
_ARTICLES = frozenset(("article", "sub-article", "response"))
# Elements at which the search for a group around a figure ends.
_GROUP_BOUNDARIES = _ARTICLES | frozenset("app back body boxed-text caption floats-group sec table-wrap".split())
# Parts of a figure in which a graphic is not an image of the figure, but a symbol, a formula, a logo or a separate
# figure.
_WITHOUT_GRAPHICS = frozenset(
    "attrib caption disp-formula disp-formula-group fig fig-group inline-formula label permissions".split()
)
# A captioned graphic inside one of these is not a separate figure.
_HOLDERS_OF_GRAPHICS = _GROUPS | _WITHOUT_GRAPHICS | frozenset(("chem-struct-wrap", "table-wrap"))
_LEGEND = frozenset(("p", "list", "def-list"))  # elements that may follow the caption in a figure and belong to it


class JatsError(ValueError):
    """Raised if the XML of an article cannot be read. The message states the reason."""


@dataclass(frozen=True)
class Graphic:
    """An image of a figure: the possible names of its file, best first, and its panel if the XML contains one."""

    hrefs: tuple[str, ...]
    panel: str | None = None


@dataclass(frozen=True)
class Figure:
    """A figure. Texts are plain, with single spaces. `caption` is empty if the figure has none."""

    figure_id: str
    label: str | None
    caption: str
    graphics: tuple[Graphic, ...]
    mentions: tuple[str, ...]


@dataclass(eq=False)
class _Candidate:
    """An element that may be a figure, while the structure of the article is being resolved."""

    element: etree._Element  # <fig>, <fig-group>, <graphic> or <media>
    pictures: list[etree._Element]  # <graphic>, <media> or <alternatives>
    captioned: list[etree._Element] = field(default_factory=list)  # inner elements with the caption, if it has none
    xml_ids: list[str] = field(default_factory=list)  # by which an <xref> can refer to the figure
    _files: set[tuple[str, ...]] = field(init=False)

    def __post_init__(self) -> None:
        self._files = set(map(_hrefs, self.pictures))
        parts = [child for child in self.element if name_of(child) in ("label", "caption")]
        self.xml_ids += filter(None, map(_xml_id, (self.element, *parts, *_with_alternatives(self.pictures))))

    def merge(self, other: "_Candidate") -> None:
        """Add the images and XML ids of another candidate for the same figure."""
        new = [picture for picture in other.pictures if _hrefs(picture) not in self._files]
        self.pictures += new
        self._files.update(map(_hrefs, new))
        self.xml_ids += other.xml_ids


_Candidates = dict[etree._Element, _Candidate]
_Reference = tuple[etree._Element, list[str]]  # an <xref>, and the XML ids that it names
_Value = TypeVar("_Value")


class _Inherited(Generic[_Value]):
    """A property that elements inherit from the nearest ancestor that defines it, computed in linear time.

    `read` returns the value that an element defines, or None to continue with its parent.
    """

    def __init__(self, read: Callable[[etree._Element], _Value | None], otherwise: _Value):
        self._read = read
        self._otherwise = otherwise
        self._known: dict[etree._Element, _Value] = {}

    def of(self, element: etree._Element | None) -> _Value:
        """Return the value that an element or its nearest ancestor defines. The value of None is the default."""
        if element is None:
            return self._otherwise
        if element not in self._known:
            value = self._read(element)
            self._known[element] = self.of(element.getparent()) if value is None else value
        return self._known[element]


class _Context:
    """Groups, languages and captions of elements. Each is read only once."""

    def __init__(self) -> None:
        self._groups: _Inherited[etree._Element | Literal[False]] = _Inherited(_read_group, False)
        self._languages = _Inherited(_read_language, "")
        self._articles: _Inherited[etree._Element | Literal[False]] = _Inherited(
            lambda element: element if name_of(element) in _ARTICLES else None, False
        )
        self._holders = _Inherited(lambda element: name_of(element) in _HOLDERS_OF_GRAPHICS or None, False)
        self._own: dict[etree._Element, str] = {}
        self._around: dict[etree._Element, str] = {}

    def group(self, element: etree._Element) -> etree._Element | None:
        """Return the nearest group around an element, across paragraphs and lists but not across sections."""
        group = self._groups.of(element.getparent())
        return None if group is False else group

    def is_held(self, graphic: etree._Element) -> bool:
        """Return whether a graphic is part of a figure, a table, a formula or a supplement."""
        return self._holders.of(graphic.getparent())

    def language(self, element: etree._Element) -> str:
        """Return the language of an element as a primary subtag such as `en`, or an empty string if undefined."""
        return self._languages.of(element)

    def preferred(self, languages: list[str], element: etree._Element) -> str:
        """Return the language of the article around an element if it is in `languages`, or else the first of these."""
        article = self._articles.of(element)
        language = "" if article is False else self.language(article)
        return language if language in languages else languages[0]

    def caption_language(self, element: etree._Element) -> str:
        """Return the language of the caption of an element, or else the language of the element."""
        caption = self.caption(element)
        return self.language(element if caption is None else caption)

    def in_one_language(self, elements: list[etree._Element]) -> list[etree._Element]:
        """Return the elements in the language of the article, or else those in the language of the first element."""
        languages = list(map(self.caption_language, elements))
        if len(set(languages)) < 2:
            return elements
        kept = self.preferred(languages, elements[0])
        return [element for element, language in zip(elements, languages, strict=True) if language == kept]

    def caption(self, element: etree._Element) -> etree._Element | None:
        """Return the caption of an element. If several have text, the one in the language of the article is used."""
        captions = [child for child in element if name_of(child) == "caption"]
        if len(captions) > 1:
            captions = self.in_one_language([caption for caption in captions if text_of_blocks([caption])])
        return next(iter(captions), None)

    def caption_blocks(self, caption: etree._Element) -> list[etree._Element]:
        """Return the caption, or only its blocks in one language if the blocks have several languages."""
        stated = [block for block in caption if self.language(block)] if any(map(_read_language, caption)) else []
        left_out = set(stated).difference(self.in_one_language(stated))
        return [block for block in caption if block not in left_out] if left_out else [caption]

    def caption_of(self, candidate: _Candidate) -> str:
        """Return the caption of a figure. The module docstring lists where it is looked up."""
        return (
            self.own(candidate.element)
            or self.of_pictures(candidate)
            or " ".join(self._captions(candidate.captioned))
            or " ".join(self._captions(_wrappers(candidate.element)))
            or self._of_groups(candidate.element)
        )

    def own(self, element: etree._Element) -> str:
        """Return the caption that is a child of an element."""
        if element not in self._own:
            caption = self.caption(element)
            has_legend = name_of(element) in ("fig", "fig-group")
            blocks: list[etree._Element] = []
            for child in element:
                if child is caption:
                    blocks += self.caption_blocks(child)
                elif has_legend and name_of(child) in _LEGEND:
                    blocks.append(child)
            self._own[element] = text_of_blocks(blocks)
        return self._own[element]

    def of_pictures(self, candidate: _Candidate) -> str:
        """Return the unique captions inside the images of a figure."""
        return " ".join(dict.fromkeys(self._captions(_with_alternatives(candidate.pictures))))

    def _captions(self, elements: Iterable[etree._Element]) -> Iterator[str]:
        return map(self.own, self.in_one_language([element for element in elements if self.own(element)]))

    def _of_groups(self, element: etree._Element) -> str:
        """Return the caption of the nearest group that has one."""
        group = self.group(element)
        if group is None:
            return ""
        if group not in self._around:
            self._around[group] = self.own(group) or self._of_groups(group)
        return self._around[group]


def _read_group(element: etree._Element) -> etree._Element | Literal[False] | None:
    name = name_of(element)
    if name in _GROUPS:
        return element
    return False if name in _GROUP_BOUNDARIES else None


def _read_language(element: etree._Element) -> str | None:
    code = element.get(_XML_LANG)
    if not code:
        return None
    language = re.split("[-_]", code)[0].strip().lower()
    return _SHORT_LANGUAGES.get(language, language) or None


def parse_figures(xml: bytes) -> list[Figure]:
    """Read all figures of an article, in document order.

    Args:
        xml: The article, in any version of JATS.

    Returns:
        The figures. `figure_id` is the XML id of the figure, or `fig-<position>` if it has none. Shared ids are made
        unique. `mentions` are the paragraphs that refer to it.

    Raises:
        JatsError: If the XML is not well-formed, is not an article, or exceeds one of the limits `MAX_XML_BYTES`,
            `MAX_MARKS`, `MAX_FIGURES`, `MAX_MENTIONS`.
    """
    return find_figures(parse_article(xml))


def find_figures(article: etree._Element) -> list[Figure]:
    """Find all figures of an article from [`parse_article`], which is modified in place, for [`parse_figures`]."""
    context = _Context()
    candidates: _Candidates = {}
    references: list[_Reference] = []
    named_ids: dict[str | None, list[str]] = {}  # by `rid`, because articles cite a reference several times
    figure_ids: set[str] = set()
    # Only one pass over the tree, because iterating takes as long as all other steps together.
    for element in article.iter(*(f"{{*}}{name}" for name in ("xref", "graphic", "media", *_GROUPS))):
        name = local_name(element.tag)
        if name == "xref":
            rid = element.get("rid")
            if rid not in named_ids:
                named_ids[rid] = _named_ids(element)
            references.append((element, named_ids[rid]))
            continue
        if name in _GROUPS:
            figure_ids.add(_xml_id(element))
        if name != "supplementary-material" and (candidate := _candidate(element, name, context)) is not None:
            candidates[element] = candidate
            if len(candidates) > MAX_FIGURES:
                raise JatsError(f"the XML contains more than {MAX_FIGURES:,} figures")

    figure_ids.update(xml_id for candidate in candidates.values() for xml_id in candidate.xml_ids)
    _mark_figure_references(references, figure_ids)
    _merge_translations(candidates, context)
    _join_inner_captions(candidates, context)
    groups = _groups_around(candidates, context)
    for group in groups:
        if group in candidates and not candidates[group].pictures:
            del candidates[group]
    mentions = _mentions(references, list(candidates.values()), groups)
    # The id and label are those of the figure itself or of its inner captions, not of its images.
    parts = [(candidate.element, *candidate.captioned) for candidate in candidates.values()]
    unique_ids = _distinct([_first(map(_xml_id, elements)) or "" for elements in parts])
    labels = [_first(map(_own_label, elements)) for elements in parts]
    return [
        Figure(figure_id, label, context.caption_of(candidate), tuple(_graphics(candidate)), paragraphs)
        for figure_id, label, candidate, paragraphs in zip(
            unique_ids, labels, candidates.values(), mentions, strict=True
        )
    ]


def parse_article(xml: bytes) -> etree._Element:
    """Parse the XML of an article, and return the root, which is an `<article>` or contains one.

    Raises:
        JatsError: If the XML is not well-formed, is not an article, or exceeds one of the limits `MAX_XML_BYTES`,
            `MAX_MARKS`.
    """
    if len(xml) > MAX_XML_BYTES:
        raise JatsError(f"the XML has {len(xml):,} bytes, more than {MAX_XML_BYTES:,}")
    if len(xml) > MAX_MARKS and sum(map(xml.count, (b"<", b"=", b"&"))) > MAX_MARKS:
        raise JatsError(f"the XML has more than {MAX_MARKS:,} tags, attributes and entities")
    parser = _parser()
    try:
        root = etree.fromstring(xml, parser)
    except (etree.LxmlError, ValueError) as error:
        if {entry.type_name for entry in parser.error_log} != {"NS_ERR_UNDEFINED_NAMESPACE"}:
            raise JatsError(f"the XML is not well-formed ({error})") from error
        root = etree.fromstring(xml, _parser(recover=True))  # only undeclared prefixes need recovery
    # The root is checked first, because an iterator looks for the next element before it returns the first.
    if root.tag.rpartition("}")[2] != "article" and next(root.iter("{*}article"), None) is None:
        _normalize_names(root)
        if next(root.iter("article"), None) is None:
            raise JatsError(f"the XML has no <article> element; its root is <{local_name(root.tag)}>")
    return root


def _parser(*, recover: bool = False) -> etree.XMLParser:
    """Return a new parser. Each article needs its own, because lxml parsers cannot be shared between threads.

    Without `huge_tree`, the parser refuses more than 256 levels, which limits all recursion in this module.
    `collect_ids=False` would be faster, but makes the parser request the DTD.
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


def _normalize_names(root: etree._Element) -> None:
    """Convert names in capitals or with an undeclared prefix to JATS names."""
    for element in root.iter(etree.Element):
        for name, value in element.items():
            if _PLAIN_NAME.fullmatch(local := local_name(name)):
                del element.attrib[name]
                element.set(local, value)
        if _PLAIN_NAME.fullmatch(local := local_name(element.tag)):
            element.tag = local


def _distinct(xml_ids: list[str]) -> list[str]:
    """Return unique ids for figures that share an id or have none, by their 1-based positions."""
    taken: dict[str, None] = {}
    for position, xml_id in enumerate(xml_ids, start=1):
        figure_id = xml_id or f"fig-{position}"
        while figure_id in taken:
            figure_id += f"-{position}"
        taken[figure_id] = None
    return list(taken)


def _candidate(element: etree._Element, name: str, context: _Context) -> _Candidate | None:
    """Return the candidate that an element starts, or None."""
    if name in ("graphic", "media"):
        if (
            not text_of_blocks(child for child in element if name_of(child) == "caption")
            or not _hrefs(element)
            or context.is_held(element)
        ):
            return None
        return _Candidate(element, [element])
    pictures = list(_pictures(element, _WITHOUT_GRAPHICS))
    if not pictures and name == "fig":
        # An image inside the caption is treated as a symbol, unless the figure has no other image.
        captions = (child for child in element if name_of(child) == "caption")
        pictures = [picture for caption in captions for picture in _pictures(caption, _WITHOUT_GRAPHICS)]
    return _Candidate(element, pictures) if pictures or name == "fig" else None


def _pictures(element: etree._Element, excluded: frozenset[str]) -> Iterator[etree._Element]:
    """Return the images inside an element. Several renderings in `<alternatives>` count as one image."""
    for child in element:
        name = name_of(child)
        if name in ("graphic", "media", "alternatives") and _hrefs(child):
            yield child
        elif name not in excluded:
            yield from _pictures(child, excluded)


def _wrappers(element: etree._Element) -> Iterator[etree._Element]:
    """Return the elements inside a figure, except those inside inner figures, tables and supplements."""
    for child in element.iterchildren(etree.Element):
        if name_of(child) not in _HOLDERS_OF_GRAPHICS:
            yield child
            yield from _wrappers(child)


def _graphics(candidate: _Candidate) -> Iterator[Graphic]:
    for picture in candidate.pictures:
        labels = (_own_label(rendering) for rendering in _renderings(picture) if rendering is not candidate.element)
        yield Graphic(_hrefs(picture), _first(labels))


def _first(texts: Iterable[str | None]) -> str | None:
    """Return the first text that is not empty."""
    return next(filter(None, texts), None)


def _hrefs(picture: etree._Element) -> tuple[str, ...]:
    """Return the unique file names of an image. The result is empty if the element is not an image."""
    return tuple(dict.fromkeys(href for rendering in _renderings(picture) if (href := _href(rendering))))


def _renderings(picture: etree._Element) -> Iterator[etree._Element]:
    for rendering in picture if name_of(picture) == "alternatives" else (picture,):
        if _is_picture(rendering):
            yield rendering


def _with_alternatives(pictures: Iterable[etree._Element]) -> Iterator[etree._Element]:
    for picture in pictures:
        yield picture
        if name_of(picture) == "alternatives":
            yield from picture


def _is_picture(element: etree._Element) -> bool:
    name = name_of(element)
    if name == "media":
        kind = element.get("mimetype") or mimetypes.guess_type(_href(element))[0] or ""
        return kind.lower().startswith("image")
    return name == "graphic"


def _href(element: etree._Element) -> str:
    """Return `xlink:href` as written, even if its prefix is undeclared or declared differently."""
    href = element.get(_XLINK_HREF)
    if href is None:
        href = next((str(value) for name, value in element.items() if local_name(name) == "href"), "")
    return href if href.strip() else ""


def _xml_id(element: etree._Element) -> str:
    return (element.get("id") or element.get(_XML_ID) or "").strip()


def _groups_around(candidates: _Candidates, context: _Context) -> dict[etree._Element, None]:
    """Return all groups around the candidates that have images."""
    groups: dict[etree._Element, None] = {}
    for candidate in candidates.values():
        group = context.group(candidate.element) if candidate.pictures else None
        while group is not None and group not in groups:
            groups[group] = None
            group = context.group(group)
    return groups


def _merge_translations(candidates: _Candidates, context: _Context) -> None:
    """Merge the figures of a group that are translations of each other into the one in the preferred language."""
    groups: dict[etree._Element, dict[str, list[_Candidate]]] = {}
    for candidate in candidates.values():
        group = context.group(candidate.element)
        if group is not None and name_of(group) == "fig-group" and _read_language(group):
            outer = context.group(group)  # a <fig-group> with a language inside a group is itself a translation
            group = group if outer is None else outer
        if group is not None and name_of(group) in ("fig", "fig-group"):
            language = context.caption_language(candidate.element)
            groups.setdefault(group, {}).setdefault(language, []).append(candidate)
    for group, by_language in groups.items():
        if len(by_language) < 2:
            continue
        with_caption = [
            language for language, figures in by_language.items() if any(context.own(each.element) for each in figures)
        ]
        if not with_caption:
            continue
        kept = by_language.pop(context.preferred(with_caption, group))
        for figures in by_language.values():
            for figure, translation in zip(kept, figures, strict=False):
                figure.merge(translation)
                del candidates[translation.element]


def _join_inner_captions(candidates: _Candidates, context: _Context) -> None:
    """Use the captions of inner figures without images for an outer figure that has images but no caption."""

    def read(element: etree._Element) -> etree._Element | Literal[False] | None:
        group = _read_group(element)
        if group is None or group is False:
            return group
        candidate = candidates.get(element)
        return element if context.own(element) or (candidate and candidate.pictures) else None

    holders: _Inherited[etree._Element | Literal[False]] = _Inherited(read, False)
    has_caption: dict[etree._Element, bool] = {}
    passed: set[etree._Element] = set()
    for candidate in [each for each in candidates.values() if not each.pictures]:
        holder = holders.of(candidate.element.getparent()) if context.own(candidate.element) else False
        outer = None if holder is False else candidates.get(holder)
        if holder is False or outer is None:
            continue
        if holder not in has_caption:
            has_caption[holder] = bool(context.own(holder) or context.of_pictures(outer))
        if has_caption[holder]:
            continue
        outer.captioned.append(candidate.element)
        outer.merge(candidate)
        element: etree._Element | None = candidate.element
        while element is not None and element is not holder and element not in passed:
            passed.add(element)
            candidates.pop(element, None)
            element = context.group(element)


def _own_label(element: etree._Element) -> str | None:
    return _first(plain_text(child) for child in element if name_of(child) == "label")


def _named_ids(reference: etree._Element) -> list[str]:
    """Return the XML ids in an `<xref>`: the whole `rid`, because an id may contain a space, and its parts."""
    rid = (reference.get("rid") or "").strip()
    parts = _BETWEEN_IDS.split(rid)
    if len(parts) == 1:
        return parts if rid else []
    return [xml_id for xml_id in dict.fromkeys((rid, *parts)) if xml_id]


def _mark_figure_references(references: Iterable[_Reference], figure_ids: set[str]) -> None:
    """Set the type of references to figures to `fig`, because numeric references to the bibliography are removed."""
    for reference, ids in references:
        if not figure_ids.isdisjoint(ids):
            reference.set("ref-type", "fig")


class _Targets:
    """The figures that each `<xref>` refers to, as their positions in document order."""

    def __init__(self, candidates: list[_Candidate], groups: Iterable[etree._Element]) -> None:
        self._positions = {candidate.element: position for position, candidate in enumerate(candidates)}
        self._groups = {xml_id: group for group in groups if (xml_id := _xml_id(group))}
        self._by_id: dict[str, list[int]] = {}
        for position, candidate in enumerate(candidates):
            for xml_id in dict.fromkeys(candidate.xml_ids):
                self._by_id.setdefault(xml_id, []).append(position)

    def named_by(self, ids: list[str]) -> list[int]:
        """Return the figures that the ids of a reference name. The result is empty if none of them names a figure."""
        if len(ids) == 1:
            return self._named(ids[0])
        return list(dict.fromkeys(position for xml_id in ids for position in self._named(xml_id)))

    def _named(self, xml_id: str) -> list[int]:
        if (group := self._groups.pop(xml_id, None)) is not None:
            inner = (self._positions.get(each) for each in group.iter("{*}fig", "{*}fig-group"))
            known = self._by_id.setdefault(xml_id, [])
            known += [position for position in inner if position is not None and position not in known]
        return self._by_id.get(xml_id, [])


def _mentions(
    references: list[_Reference], candidates: list[_Candidate], groups: Iterable[etree._Element]
) -> list[tuple[str, ...]]:
    """Return the texts of the paragraphs that refer to each figure."""
    targets = _Targets(candidates, groups)
    places: dict[etree._Element, etree._Element | None] = {}
    citing: list[dict[etree._Element, None]] = [{} for _ in candidates]
    count = 0
    for reference, ids in references:
        cited = targets.named_by(ids)
        if not cited:
            continue
        cited = _with_range(cited, reference, targets)
        paragraph = _place(reference.getparent(), places)
        if paragraph is not None and name_of(paragraph) == "p":
            count += len(cited)
            if count > MAX_MENTIONS:
                raise JatsError(f"the XML refers to figures more than {MAX_MENTIONS:,} times")
            for position in cited:
                citing[position][paragraph] = None
    texts = {paragraph: plain_text(paragraph) for paragraph in dict.fromkeys(p for each in citing for p in each)}
    return [tuple(text for paragraph in paragraphs if (text := texts[paragraph])) for paragraphs in citing]


def _with_range(cited: list[int], reference: etree._Element, targets: _Targets) -> list[int]:
    """Return the figures of a reference, and of the range to the next reference if only a dash separates them."""
    if (reference.tail or "").strip() in _RANGE:
        following = reference.getnext()
        if following is not None and name_of(following) == "xref":
            upto = targets.named_by(_named_ids(following))
            start = cited[0] + 1
            while start in cited:
                start += 1
            between = range(start, upto[0] if upto else 0)
            if len(between) <= _MAX_RANGE:
                cited = [*cited, *between]
    return cited


def _place(
    element: etree._Element | None, places: dict[etree._Element, etree._Element | None]
) -> etree._Element | None:
    """Return the figure or else the outermost `<p>` to which the text of an element belongs. `places` is a cache."""
    if element is None:
        return None
    if element not in places:
        place, name = _place(element.getparent(), places), name_of(element)
        if name_of(place) in ("", "p"):
            if name in ("fig", "fig-group"):
                place = element
            elif name in LEFT_OUT:
                place = None
            elif name == "p" and place is None:
                place = element
        places[element] = place
    return places[element]
