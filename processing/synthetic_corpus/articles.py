"""Invented articles in JATS, with the many forms that figures take in the XML of publishers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from lxml import etree

from .randomness import pick


_XLINK = "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"
_DOCTYPES = (
    '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Archiving and Interchange DTD v1.1 20151215//EN" '
    '"JATS-archivearticle1.dtd">',
    '<!DOCTYPE article PUBLIC "-//NLM//DTD Journal Archiving and Interchange DTD v3.0 20080202//EN" '
    '"archivearticle3.dtd">',
)
JOURNALS = ("Journal of Drawn Biomedicine", "Annals of Drawn Pathology", "Drawn Medicine Letters")
_LICENSE_PATHS = {
    "CC0": "publicdomain/zero/1.0/",
    "CC BY": "licenses/by/4.0/",
    "CC BY-SA": "licenses/by-sa/4.0/",
    "CC BY-ND": "licenses/by-nd/4.0/",
    "CC BY-NC": "licenses/by-nc/4.0/",
    "CC BY-NC-SA": "licenses/by-nc-sa/4.0/",
    "CC BY-NC-ND": "licenses/by-nc-nd/4.0/",
}
_PLACEMENTS = ("section", "section", "paragraph", "floats-group", "fig-group", "app")
_FIGURE_IDS = ("F{}", "F{}", "fig{}", "Fig{}")
_LABELS = ("Figure {}", "Figure {}", "Fig. {}", "Fig.\u00a0{}")
_DECIMAL_REFERENCE = re.compile(rb"&#(\d+);")
_PANEL_LETTER = re.compile(r"\([AB]\)")
_FORMULA_NUMBER = re.compile(r"(?<=[A-Za-z])\d+")
_WORD = re.compile(r"[A-Za-z]{5,}")


@dataclass(frozen=True)
class ArticleFigure:
    """One figure as an article holds it.

    Args:
        figure_id: XML id of `<fig>`.
        kind: Name of its kind.
        sentences: The caption.
        stem: Name of its picture's files, without extension.
        extensions: Of these files.
    """

    figure_id: str
    kind: str
    sentences: tuple[str, ...]
    stem: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class Article:
    """One version of an article; `license_code` as PMC's metadata has it."""

    pmcid: str
    version: int
    title: str
    journal: str
    year: int
    license_code: str
    figures: tuple[ArticleFigure, ...]

    @property
    def name(self) -> str:
        return f"{self.pmcid}.{self.version}"

    @property
    def number(self) -> str:
        return self.pmcid.removeprefix("PMC")

    @property
    def doi(self) -> str:
        return f"10.5555/drawn.{self.number}"  # 10.5555 is the prefix for examples; it belongs to no publisher


def choose_figure_id_form(rng: np.random.Generator) -> str:
    """The form of all figure ids of one article, for `str.format` with the figure's number."""
    return pick(_FIGURE_IDS, rng)


def article_xml(article: Article, rng: np.random.Generator) -> tuple[bytes, str]:
    """Writes an article as JATS.

    Args:
        article: What it says.
        rng: Chooses among the forms that JATS allows.

    Returns:
        The XML, in ASCII with character references as PMC has it, and the plain text of it.
    """
    root = etree.Element("article", {"article-type": "research-article"}, nsmap={"xlink": _XLINK})
    _front(root, article, rng)
    body = etree.SubElement(root, "body")
    _section(body, "Introduction", "Pictures of this article are drawn, and so is what it says.")
    results = _section(body, "Results")
    placement = pick(_PLACEMENTS, rng)
    label_form = pick(_LABELS, rng)
    elements = [
        _figure(figure, label_form.format(number), rng) for number, figure in enumerate(article.figures, start=1)
    ]
    for number, (figure, element) in enumerate(zip(article.figures, elements, strict=True), start=1):
        paragraph = _mention(results, figure, label_form.format(number))
        if placement == "section":
            results.append(element)
        elif placement == "paragraph":
            paragraph.append(element)
    _section(body, "Discussion", "Nothing follows from these results.")
    if placement == "app":
        appendix = etree.SubElement(etree.SubElement(etree.SubElement(root, "back"), "app-group"), "app", id="app1")
        etree.SubElement(appendix, "title").text = "Appendix"
        appendix.extend(elements)
    elif placement == "floats-group":
        etree.SubElement(root, "floats-group").extend(elements)
    elif placement == "fig-group":
        group = etree.SubElement(results, "fig-group", id="FG1")
        group.extend(elements)
    xml = etree.tostring(root, encoding="us-ascii", xml_declaration=False, doctype=pick(_DOCTYPES, rng))
    # PMC writes hexadecimal character references of five digits.
    xml = _DECIMAL_REFERENCE.sub(lambda reference: b"&#x%05X;" % int(reference[1]), xml)
    return xml, " ".join(" ".join(map(str, root.itertext())).split())


def _front(root: etree._Element, article: Article, rng: np.random.Generator) -> None:
    front = etree.SubElement(root, "front")
    journal = etree.SubElement(front, "journal-meta")
    etree.SubElement(journal, "journal-id", {"journal-id-type": "nlm-ta"}).text = article.journal
    etree.SubElement(etree.SubElement(journal, "journal-title-group"), "journal-title").text = article.journal
    etree.SubElement(etree.SubElement(journal, "publisher"), "publisher-name").text = "Drawn Corpus"
    meta = etree.SubElement(front, "article-meta")
    for kind, value in (("pmcid", article.number), ("publisher-id", f"drawn-{article.number}"), ("doi", article.doi)):
        etree.SubElement(meta, "article-id", {"pub-id-type": kind}).text = value
    etree.SubElement(etree.SubElement(meta, "title-group"), "article-title").text = article.title
    if rng.random() < 0.5:
        contributor = etree.SubElement(etree.SubElement(meta, "contrib-group"), "contrib", {"contrib-type": "author"})
        etree.SubElement(contributor, "collab").text = "The Drawn Corpus Group"
    etree.SubElement(etree.SubElement(meta, "pub-date", {"pub-type": "epub"}), "year").text = str(article.year)
    _permissions(etree.SubElement(meta, "permissions"), article)
    abstract = etree.SubElement(meta, "abstract")
    etree.SubElement(abstract, "p").text = f"We drew {len(article.figures)} figures. No patient took part."


def _permissions(permissions: etree._Element, article: Article) -> None:
    etree.SubElement(permissions, "copyright-year").text = str(article.year)
    path = _LICENSE_PATHS.get(article.license_code)
    if path is None:
        etree.SubElement(permissions, "copyright-statement").text = f"\u00a9 {article.year} All rights reserved."
        return
    license_element = etree.SubElement(permissions, "license", {_HREF: f"https://creativecommons.org/{path}"})
    text = f"This article is distributed under the terms of the licence {article.license_code}."
    etree.SubElement(license_element, "license-p").text = text


def _section(parent: etree._Element, title: str, *paragraphs: str) -> etree._Element:
    section = etree.SubElement(parent, "sec")
    etree.SubElement(section, "title").text = title
    for paragraph in paragraphs:
        etree.SubElement(section, "p").text = paragraph
    return section


def _mention(section: etree._Element, figure: ArticleFigure, label: str) -> etree._Element:
    paragraph = etree.SubElement(section, "p")
    paragraph.text = f"The {figure.kind} in "
    reference = etree.SubElement(paragraph, "xref", {"ref-type": "fig", "rid": figure.figure_id})
    reference.text = label
    reference.tail = " was drawn as described."
    return paragraph


def _figure(figure: ArticleFigure, label: str, rng: np.random.Generator) -> etree._Element:
    element = etree.Element("fig", id=figure.figure_id)
    if rng.random() < 0.5:
        element.set("position", "float")
    etree.SubElement(element, "label").text = label
    _caption(etree.SubElement(element, "caption"), figure.sentences, rng)
    named = [figure.stem if rng.random() < 0.7 else f"{figure.stem}.{extension}" for extension in figure.extensions]
    parent = element
    if len(named) > 1 or rng.random() < 0.1:
        parent = etree.SubElement(element, "alternatives")
    for name in dict.fromkeys(named):
        etree.SubElement(parent, "graphic", {_HREF: name})
    return element


def _caption(caption: etree._Element, sentences: Sequence[str], rng: np.random.Generator) -> None:
    """A caption in one of its forms: with a title or without, in one paragraph or several."""
    blocks = [("p", " ".join(sentences))]
    form = pick(("paragraph", "paragraphs", "title"), rng)
    if len(sentences) > 1 and form == "paragraphs":
        blocks = [("p", sentence) for sentence in sentences]
    elif len(sentences) > 1 and form == "title":
        blocks = [("title", sentences[0]), ("p", " ".join(sentences[1:]))]
    for tag, text in blocks:
        _set_marked_text(etree.SubElement(caption, tag), text, rng)


def _set_marked_text(element: etree._Element, text: str, rng: np.random.Generator) -> None:
    """Puts text into an element, with bold panel letters, lowered numbers of formulae and here and there italics."""
    marks = [(match.span(), "bold") for match in _PANEL_LETTER.finditer(text)]
    marks += [(match.span(), "sub") for match in _FORMULA_NUMBER.finditer(text)]
    words = list(_WORD.finditer(text))
    if words and rng.random() < 0.3:
        marks.append((pick(words, rng).span(), "italic"))
    end, last = 0, None
    for (start, stop), tag in sorted(marks):
        if start < end:
            continue
        _append_text(element, last, text[end:start])
        last = etree.SubElement(element, tag)
        last.text = text[start:stop]
        end = stop
    _append_text(element, last, text[end:])


def _append_text(element: etree._Element, last: etree._Element | None, text: str) -> None:
    if last is None:
        element.text = text
    else:
        last.tail = text
