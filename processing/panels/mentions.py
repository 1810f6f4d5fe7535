"""Find the panels of a figure that a paragraph cites, such as `Fig. 2B` or `Figures 3(a)–3(d)`."""

import re
from collections.abc import Sequence

from .captions import ROMAN


_DASH = r"[-\u2010-\u2015\u2212]"
_FIGURE = re.compile(r"\b(?:figures?|figs?)\b\.?\s*", re.IGNORECASE)
# Figures of a supplement have numbers of their own.
_SUPPLEMENT = re.compile(r"(?:supp(?:l|lement\w*)?\.?|additional|extended data)\s+$", re.IGNORECASE)
_LABEL = r"(?:[A-Za-z](?:\d{1,2}|['\u2032])?|[ivxIVX]{2,5}|[A-Z][ivx]{1,4})"
# What may follow a letter that stands alone: `Fig. 2, a patient` cites no panel, and neither does `Fig. 2B, p < 0.05`.
_END = rf"(?=\s*(?:$|[,;.:)\]/&]|{_DASH}|and\b|or\b|to\s))"
_TOKEN = re.compile(
    rf"""(?P<number>S?\d{{1,3}})(?!\d|\.\d|\s?%)
    |(?P<label>{_LABEL})(?![\w'\u2032])(?!\s*[=<>\u2264\u2265])
    |(?P<parenthesis>\s?[(\[]\s?|\s?[)\]])
    |(?P<through>\s?{_DASH}\s?|\s(?:to|through)\s)
    |(?P<between>\s?(?:,\s?and\b|,\s?panels?\b|[,;/&]|\b(?:and|or|panels?)\b)\s?|\s)""",
    re.VERBOSE,
)
_ALONE = re.compile(_END)
_REACH = 200  # characters after the word `Figure`


def mentions_of_panels(figure: str | None, labels: Sequence[str | None], mentions: Sequence[str]) -> list[list[str]]:
    """Return the mentions of each panel of a figure.

    Args:
        figure: Label of the figure, such as `Figure 2`.
        labels: Labels of its panels. A panel without a label has no mentions.
        mentions: Paragraphs that cite the figure.

    Example:
        >>> from biomedclip.processing.panels.mentions import mentions_of_panels
        >>> mentions_of_panels("Figure 2", ["A", "B"], ["Cells grew (Fig. 2A).", "See Figure 2A,B.", "See Fig. 2."])
        [['Cells grew (Fig. 2A).', 'See Figure 2A,B.'], ['See Figure 2A,B.']]
    """
    cited = [cited_panels(mention, figure) for mention in mentions]
    return [
        [
            mention
            for mention, panels in zip(mentions, cited, strict=True)
            if label is not None and _cites(panels, label)
        ]
        for label in labels
    ]


def cited_panels(text: str, figure: str | None) -> set[str]:
    """Return the labels, in upper case, of the panels of a figure that a text cites.

    If the label of the figure has no number or several, none are found.

    Args:
        text: A paragraph.
        figure: Label of the figure, such as `Fig. 2` or `Figure S1`.
    """
    numbers = re.findall(r"S?\d+", figure or "")
    if len(numbers) != 1:
        return set()
    in_supplement = _SUPPLEMENT.search(_FIGURE.split(figure or "")[0]) is not None
    found: set[str] = set()
    for place in _FIGURE.finditer(text):
        if (_SUPPLEMENT.search(text, max(0, place.start() - 30), place.start()) is not None) == in_supplement:
            found |= _labels_after(text[place.end() : place.end() + _REACH], numbers[0])
    return found


def _cites(cited: set[str], label: str) -> bool:
    """Return whether a panel is cited. `B` is part of `B1` in some figures, and `B1` of `B` in others."""
    if label in cited or label in ROMAN:
        return label in cited
    return label[0] in cited if len(label) > 1 else any(name[0] == label for name in cited - {*ROMAN})


def _labels_after(text: str, number: str) -> set[str]:
    """Return the labels after one word `Figure` that belong to the figure with this number."""
    found: set[str] = set()
    current, last, through = "", "", False
    position = 0
    while (token := _TOKEN.match(text, position)) is not None:
        alone = position > 0 and text[position - 1].isspace()
        position = token.end()
        if token["number"]:
            current = token["number"]
        elif token["label"]:
            label = token["label"].upper().replace("\u2032", "'")
            of_words = label in ("A", "I") or (len(label) > 1 and label.isalpha() and label not in ROMAN)
            if not current or (alone and of_words and _ALONE.match(text, position) is None):
                break
            label = label[0] if of_words else label  # `Aii` is a part of A
            if current == number:
                found |= _between(last, label) if through and last else {label}
            last, through = label, False
        elif token["through"]:
            through = True
        elif token["between"] and token["between"].strip():
            through = False
    return found


def _between(first: str, last: str) -> set[str]:
    """Return all labels from the first to the last."""
    if first in ROMAN and last in ROMAN and (len(first) > 1 or len(last) > 1):
        return set(ROMAN[ROMAN.index(first) : ROMAN.index(last) + 1]) | {first, last}
    letters = range(ord(first[0]), ord(last[0]) + 1)
    return {first, last, *map(chr, letters)} if len(letters) > 1 else {first, last}
