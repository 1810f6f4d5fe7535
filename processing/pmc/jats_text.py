"""Convert JATS elements (labels, captions, paragraphs) to plain text on one line.

- Texts are one line with single spaces. Typographic quotes, dashes and Greek letters are kept. Soft hyphens and
  zero-width characters are removed.
- Nested markup is converted to text, and blocks are separated by a space. Markers of list items, footnotes, images,
  tables, nested figures, supplements, alternative texts, paragraphs that are only a DOI and PMC's "Click here for
  additional data file." are omitted.
- Subscripts and superscripts are plain text (H2O, Ca2+). A caret is only inserted where a number would change (10^6).
- A formula is included once: from MathML on one line (x^2, x_i^(n+1), (a+b)/c, √x), or from TeX without its preamble.
  An image of a formula is omitted.
- Numeric references to the bibliography are removed with their brackets and commas. Footnote marks are removed too.
  Named citations, years, and references to figures and tables are kept.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from html.entities import html5

from lxml import etree


# Elements that are displayed on separate lines: their text must be separated from its neighbors.
_BLOCKS = frozenset(
    """
    array attrib break caption chem-struct-wrap code def def-item def-list disp-formula disp-formula-group disp-quote hr
    list list-item p preformat sec speech statement subtitle td term th title tr verse-group verse-line
    """.split()
)
# Elements that are not part of the running text: floating elements, images, notes and identifiers.
_FLOATS = frozenset(
    """
    boxed-text fig fig-group fn-group graphic media supplementary-material table table-wrap table-wrap-group
    """.split()
)
LEFT_OUT = _FLOATS | frozenset(
    """
    alt-text annotation annotation-xml fn glyph-data glyph-ref index-term index-term-range-end inline-graphic
    inline-media label long-desc object-id private-char
    """.split()
)
# The preferred renderings, best first. Renderings as an image are omitted.
_ALTERNATIVES = ("math", "tex-math", "textual-form", "chem-struct")
# Elements that need special handling. The empty name represents entities.
_SPECIAL = _BLOCKS | LEFT_OUT | {"", "alternatives", "math", "sup", "tex-math", "xref"}

_BIBLIOGRAPHY = frozenset(("bibr", "ref"))
_FOOTNOTES = frozenset(("fn", "table-fn", "aff", "corresp"))
DASHES = "‐‑–—−-"  # the ASCII hyphen is last, because it would otherwise define a range in a character class
_BARE_NUMBERS = re.compile(rf"(?:\d[a-z]?|[\s\[\](),;.^*{DASHES}])*")
_YEAR = re.compile(r"(?<!\d)(?:1[6-9]|20)\d\d(?!\d)")
_SIGNED_NUMBER = re.compile(rf"[+±{DASHES}]?\s?\d")
_IDENTIFIER = re.compile(r"(?:doi ?:? ?)?(?:https?://(?:dx\.)?doi\.org/)?10\.\d{4,9}/\S+", re.IGNORECASE)
# PMC's own sentence, and similar sentences with which publishers refer to a file.
_FILE_SENTENCE = re.compile(r" ?\bclick here for additional data files?\b(?: ?\(.{0,40}?\))?[.:]?", re.IGNORECASE)
_IN_FILE_SENTENCE = "here for add"  # a part of it, in letters of which Unicode has no other case
_PLACEHOLDER = re.compile(
    r"(?:please )?click here (?:to (?:view|see|open|access|download)|for (?:the |an? )?"
    r"(?:(?:additional|supplement(?:al|ary)|supporting) )?(?:data |information |material )?"
    r"(?:files?|data|information|materials?))\b[^.]{0,60}[.:]?(?: ?\(.{0,40}\))?\.?|additional data files?\.?",
    re.IGNORECASE,
)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")

# Placeholders for removed text, which remain until the text around them is cleaned. XML cannot contain these
# characters.
_GAP = "\x00"
_CITATION = f"{_GAP}\x01"
_BETWEEN_CITATIONS = f" ,;[](){DASHES}"
_CLOSING = (".", ",", ";", ":", ")", "]")

_TOKENS = frozenset(("mi", "mn", "mo", "ms", "mtext"))
_SCRIPTS = {"msub": "_", "munder": "_", "msup": "^", "mover": "^", "msubsup": "_^", "munderover": "_^"}
_PLAIN, _SIGNED, _COMPOUND = range(3)
_SHORT_SYMBOL = 8  # characters of the symbols that are kept in memory
_BRACKETS = {"(": ")", "[": "]", "{": "}", "|": "|", "⟨": "⟩"}
_PRIMES = frozenset("'′″‴")
_NO_OPERATORS = _PRIMES | frozenset("()[]{}|‖⟨⟩⌈⌉⌊⌋")


def plain_text(element: etree._Element) -> str:
    """Return the text of an element on one line, by the rules in the module docstring."""
    pieces: list[str] = []
    _collect(element, pieces)
    return _one_line(pieces)


def text_of_blocks(blocks: Iterable[etree._Element]) -> str:
    """Return the text of consecutive paragraphs, lists and captions on one line, without PMC's sentence."""
    pieces: list[str] = []
    for block in blocks:
        _collect_special(block, local_name(block.tag), pieces)
    text = _one_line(pieces)
    return _FILE_SENTENCE.sub("", text).strip() if _IN_FILE_SENTENCE in text.lower() else text


@lru_cache(maxsize=4096)
def local_name(tag: object) -> str:
    """Return a name without its namespace, or an empty string for an unexpanded entity."""
    return re.split("[}:]", tag)[-1].lower() if isinstance(tag, str) else ""


def _collect(element: etree._Element, pieces: list[str]) -> None:
    """Append the text inside `element`, including its whitespace and placeholders for removed text."""
    if text := element.text:
        pieces.append(text)
    for child in element:
        name = local_name(child.tag)
        if name in _SPECIAL:
            _collect_special(child, name, pieces)
        elif len(child):
            _collect(child, pieces)
        elif text := child.text:
            pieces.append(text)
        if tail := child.tail:
            pieces.append(tail)


def _collect_special(element: etree._Element, name: str, pieces: list[str]) -> None:
    """Append the text of an element that is listed in `_SPECIAL`."""
    start = len(pieces)
    if name == "xref":
        _collect(element, pieces)
        kind = element.get("ref-type")
        if (kind in _BIBLIOGRAPHY or kind in _FOOTNOTES) and len(pieces) - start <= 40:
            if _is_noise(kind, "".join(pieces[start:])):
                pieces[start:] = [_CITATION]
    elif name in _BLOCKS:
        pieces.append(" ")
        _collect(element, pieces)
        if name in ("p", "title") and len(pieces) - start < 9 and _is_no_text("".join(pieces[start:])):
            del pieces[start:]
        tail = element.tail
        pieces.append(_GAP if tail and tail.lstrip().startswith(_CLOSING) else " ")
    elif name in LEFT_OUT:
        pieces.append(f"{_GAP} " if name in _FLOATS else _GAP)
    elif name == "sup":
        follows_number = start and (pieces[-1][-1:].isdigit() or pieces[-1][-1:] in tuple(")]}"))
        _collect(element, pieces)
        if follows_number and _SIGNED_NUMBER.match("".join(pieces[start : start + 9]).lstrip()):
            pieces[start] = "^" + pieces[start].lstrip()
    elif name == "math":
        pieces.append(_math(element)[0])
    elif name == "tex-math":
        if not any(name_of(sibling) == "math" for sibling in (element.getprevious(), element.getnext())):
            source: list[str] = []
            _collect(element, source)
            before, begin, after = "".join(source).partition(r"\begin{document}")  # after a preamble
            formula = after.partition(r"\end{document}")[0] if begin else before
            pieces.append(re.sub(r"(?<!\\)\$", "", formula))
    elif name == "alternatives":
        children = {name_of(child): child for child in reversed(element)}
        names = (*_ALTERNATIVES, *reversed(children))
        chosen = next((children[each] for each in names if each in children and each not in LEFT_OUT), None)
        if chosen is None:
            pieces.append(_GAP)
        elif name_of(chosen) in _SPECIAL:
            _collect_special(chosen, name_of(chosen), pieces)
        else:
            _collect(chosen, pieces)
    else:
        pieces.append(html5.get((element.text or "").lstrip("&"), ""))


def _one_line(pieces: list[str]) -> str:
    """Join the collected text, with single spaces and without placeholders."""
    text = "".join(pieces)
    has_gaps = _GAP in text
    # Printable text has no zero-width characters, and no whitespace other than spaces. This check is faster than both.
    is_plain = (text.replace(_GAP, "").replace(_CITATION[1:], "") if has_gaps else text).isprintable()
    text = text.strip() if is_plain and "  " not in text else " ".join(text.split())
    if has_gaps:
        text = _close_gaps(text).strip()
    if not is_plain and not text.isprintable():
        text = " ".join(_INVISIBLE.sub("", text).split())
    return text


def _close_gaps(text: str) -> str:
    """Remove the placeholders, and the brackets, commas and spaces around them that are no longer needed."""
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


def _is_noise(kind: str, text: str) -> bool:
    """Return whether an element is a numeric reference to the bibliography, such as «[12]», or a footnote mark."""
    if kind in _FOOTNOTES:
        return len(text.strip()) <= 2
    return _BARE_NUMBERS.fullmatch(text) is not None and not _YEAR.search(text)


def _is_no_text(text: str) -> bool:
    """Return whether a paragraph contains only a DOI or the text that PMC inserts for a file."""
    text = " ".join(text.split())
    return bool(_IDENTIFIER.fullmatch(text) or _PLACEHOLDER.fullmatch(text))


def _math(element: etree._Element) -> tuple[str, int]:
    """Return a MathML formula on one line, and its operators: none, only a sign, or an operator between its parts."""
    name = local_name(element.tag)
    if name in _TOKENS:
        text = element.text or ""
        if len(element):
            pieces: list[str] = []
            _collect(element, pieces)
            text = "".join(pieces)
        if text.isalnum():
            return text, _PLAIN
        return _symbol(name, text) if len(text) <= _SHORT_SYMBOL else _symbol.__wrapped__(name, text)
    if name in LEFT_OUT or name == "mphantom":
        return "", _PLAIN
    children = [_math(each) for each in element]
    if name in _SCRIPTS and len(children) == len(_SCRIPTS[name]) + 1:
        return _scripted(name, children)
    if name == "mfrac" and len(children) == 2:
        return f"{_bracketed(children[0])}/{_bracketed(children[1])}", _COMPOUND
    if name == "mroot" and len(children) == 2:
        return f"√[{children[1][0]}]{_bracketed(children[0])}", _PLAIN
    if name == "mfenced":
        separators = "".join(element.get("separators", ",").split())
        text = ""
        for position, (child, _) in enumerate(children):
            text += separators[min(position, len(separators)) - 1] if position and separators else ""
            text += child
        return element.get("open", "(") + text + element.get("close", ")"), _PLAIN
    if name in ("mtable", "mtr", "mlabeledtr"):
        return " ".join(text for text, _ in children), _COMPOUND
    row = _row(children) if children else ((element.text or "").strip(), _PLAIN)
    return (f"√{_bracketed(row)}", _PLAIN) if name == "msqrt" else row


@lru_cache(maxsize=4096)
def _symbol(name: str, text: str) -> tuple[str, int]:
    """Return the text of a `<mo>` or another token that is not one name or number."""
    if not text.isprintable():
        text = _INVISIBLE.sub("", text)
    # Letters in a formula are joined. Only an <mtext> keeps its leading and trailing spaces.
    text = re.sub(r"\s+", " ", text) if name == "mtext" else " ".join(text.split())
    is_operator = name == "mo" and text and not text.isalnum() and _NO_OPERATORS.isdisjoint(text)
    return text, _SIGNED if is_operator else _PLAIN


def _row(parts: list[tuple[str, int]]) -> tuple[str, int]:
    if len(parts) == 1 and parts[0][0]:
        return parts[0]
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
    """Add brackets to a formula that has an operator but no brackets yet."""
    text, holds = part
    closing = _BRACKETS.get(text[:1])
    if holds != _COMPOUND or (closing and text.endswith(closing) and closing not in text[1:-1]):
        return text
    return f"({text})"


def name_of(element: etree._Element | None) -> str:
    """Return the local name of an element, or an empty string for None."""
    return "" if element is None else local_name(element.tag)
