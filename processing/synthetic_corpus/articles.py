"""Captions and articles (JATS XML) for synthetic figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

from .figures import FIGURE_KINDS


ZERO_SHOT_TEMPLATES = ("this is a photo of {}", "{} presented in image")
_SHORT_CAPTIONS = 0.15  # fraction of captions that mention only the kind of the figure
LICENSES = ("CC0", "CC BY", "CC BY-SA", "CC BY-ND", "CC BY-NC", "CC BY-NC-SA", "CC BY-NC-ND")
_ARTICLE = """\
<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Archiving and Interchange DTD v1.1 20151215//EN" \
"JATS-archivearticle1.dtd">
<article article-type="research-article" xmlns:xlink="http://www.w3.org/1999/xlink">
<front><journal-meta><journal-title-group><journal-title>{journal}</journal-title></journal-title-group></journal-meta>
<article-meta><article-id pub-id-type="pmcid">{number}</article-id><article-id pub-id-type="doi">{doi}</article-id>
<title-group><article-title>{title}</article-title></title-group>
<pub-date pub-type="epub"><year>{year}</year></pub-date>
<permissions>{permissions}</permissions>
<abstract><p>A synthetic article with {count} figures.</p></abstract></article-meta></front>
<body><sec><title>Results</title>{results}</sec></body>
{floats}</article>
"""


@dataclass(frozen=True)
class ArticleFigure:
    """A figure of an article. `figure_id` is its id in the XML. The title in its caption may be empty."""

    figure_id: str
    kind: str
    caption: tuple[str, str]
    file: str


@dataclass(frozen=True)
class Article:
    """A version of an article. `license_code` is the one in the metadata of PubMed Central."""

    number: int
    version: int
    title: str
    year: int
    license_code: str
    figures: Sequence[ArticleFigure]

    journal = "Journal of Synthetic Data"

    @property
    def name(self) -> str:
        """Name of the folder, such as `PMC9000001.1`."""
        return f"PMC{self.number}.{self.version}"

    @property
    def doi(self) -> str:
        """The DOI, with the prefix for examples."""
        return f"10.5555/synthetic.{self.number}"


def write_caption(kind: str, combination: int, number: int, rng: np.random.Generator) -> tuple[str, str]:
    """Return the title (or an empty string) and the text of a caption for a figure.

    Most captions mention all attributes of the figure. The others mention only its kind and the number of the sample.
    They teach a model the names of the kinds, because a long caption can be matched by its attributes alone.
    """
    figure_kind = FIGURE_KINDS[kind]
    prompt = ZERO_SHOT_TEMPLATES[int(rng.integers(2))].format(kind)
    if rng.random() < _SHORT_CAPTIONS:
        return "", f"{prompt} of sample {number}."
    description = figure_kind.description.format(**figure_kind.combination(combination))
    if rng.random() < 0.5:
        return "", f"{prompt} with {description}."
    return f"{figure_kind.topic}.", f"The {kind} shows {description}."


def article_xml(article: Article, *, floats: bool) -> bytes:
    """Return an article as JATS XML, in ASCII with character references as in PubMed Central.

    Each figure follows the paragraph that cites it. With `floats`, all figures are in `<floats-group>`.
    """
    cited, figures = [], []
    for number, figure in enumerate(article.figures, 1):
        reference = f'<xref ref-type="fig" rid="{figure.figure_id}">Figure {number}</xref>'
        cited.append(f"<p>The {figure.kind} in {reference} shows the result.</p>")
        title, text = map(escape, figure.caption)
        caption = f"<title>{title}</title>" * bool(title) + f"<p>{text}</p>"
        figures.append(
            f'<fig id="{figure.figure_id}"><label>Figure {number}</label><caption>{caption}</caption>'
            f'<graphic xlink:href="{figure.file}"/></fig>'
        )
    permissions = "<copyright-statement>All rights reserved.</copyright-statement>"
    if article.license_code in LICENSES:
        terms = article.license_code.removeprefix("CC ").lower()
        url = "publicdomain/zero/1.0/" if terms == "cc0" else f"licenses/{terms}/4.0/"
        permissions = f'<license xlink:href="https://creativecommons.org/{url}"/>'
    inline = cited if floats else [text for pair in zip(cited, figures, strict=True) for text in pair]
    return _ARTICLE.format(
        journal=article.journal,
        number=article.number,
        doi=article.doi,
        title=escape(article.title),
        year=article.year,
        permissions=permissions,
        count=len(article.figures),
        results="".join(inline),
        floats=f"<floats-group>{''.join(figures)}</floats-group>" if floats else "",
    ).encode("ascii", "xmlcharrefreplace")
