"""Split the caption of a compound figure into the captions of its panels.

A grammar finds markers such as `(A)`, `B,`, `c)`, `(D-F)` or `Left:`. Markers count only if they form a sequence from
the first label without gaps. Their text follows or precedes them. A caption without such a sequence is not split.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal


Match = Literal["labels", "some labels", "caption", "none"]
MAX_LENGTH = 20_000  # characters; the longest caption among 15,616 of PMC has fewer than 10,000
MAX_STARTS = 40  # markers at which a sequence may begin
MOST_WORK = 100_000  # characters in which the text of each marker may be split again
_SPACES = re.compile(r"\s{10,}")  # patterns with `\s` would take quadratic time for them


@dataclass(frozen=True)
class SplitCaption:
    """The caption of a figure, split by panels.

    Attributes:
        opening: Text for all panels at the beginning of the caption. Without a match, the whole caption.
        panels: Text of each panel by its label, in the order of the labels. Letters and Roman numerals are upper case,
            positions such as `left` are lower case.
        closing: Further text for all panels.
        match: `labels` if the labels are those that were passed, `some labels` if only most of them are, `caption` if
            none were passed, and `none` if the caption was not split.
    """

    opening: str
    panels: dict[str, str] = field(default_factory=dict)
    closing: str = ""
    match: Match = "none"

    @property
    def context(self) -> str:
        """Text for all panels."""
        return " ".join(filter(None, (self.opening, self.closing)))

    def with_context(self, label: str) -> str:
        """Return the text of a panel together with that for all panels, in the order of the caption."""
        return " ".join(filter(None, (self.opening, self.panels[label], self.closing)))


@dataclass(frozen=True)
class _Marker:
    """A place in the caption that names panels."""

    start: int
    end: int
    labels: tuple[str, ...]
    closed: bool  # in parentheses, so that its text may precede it


def split_caption(caption: str, labels: Iterable[str] | None = None) -> SplitCaption:
    """Split a caption by panels.

    Args:
        caption: Caption of one figure.
        labels: Labels that were read in the figure, in any case and order. With them, a caption that names other panels
            is not split.

    Returns:
        Shared text, and the text of each panel. A caption whose markers are no sequence is returned unsplit.

    Raises:
        TypeError: If the caption is no string.

    Example:
        >>> from biomedclip.processing.panels import split_caption
        >>> split = split_caption("Findings of the lesion. (a) Overlying epithelium and (b) adipose tissue.")
        >>> split.context, split.panels
        ('Findings of the lesion.', {'A': 'Overlying epithelium', 'B': 'adipose tissue.'})
    """
    if not isinstance(caption, str):
        raise TypeError(f"`caption` is {type(caption).__name__}, and must be a string")
    whole = _SPACES.sub(" ", caption)
    text = whole[:MAX_LENGTH]
    read = None if labels is None else {_as_found(label) for label in labels} - {""}
    best: tuple[tuple[float, ...], list[_Marker], Match] | None = None
    first = min(read, key=lambda label: (len(label), label)) if read and not any(map(_is_first, read)) else None
    for rank, markers in enumerate(_sequences(text, first)):
        names = {label for marker in markers for label in marker.labels}
        match = _agreement(names, read)
        quality = (match == "labels", not names & {"1"}, len(names), len(markers), -rank)
        if match != "none" and (best is None or quality > best[0]):
            best = quality, markers, match
    if best is None:
        return SplitCaption(caption.strip())
    opening, panels, closing = _cut(whole, best[1])
    return SplitCaption(opening, panels, closing, best[2])


def _as_found(label: str) -> str:
    """Return a label as [`SplitCaption`] has it: letters and numerals in upper case, positions in lower case."""
    label = label.strip()
    return label.lower() if label.lower() in _POSITION_NAMES else label.upper()


def _is_first(label: str) -> bool:
    return label.startswith("A") or label in ("I", "1") or label in _POSITION_NAMES


def _agreement(found: set[str], read: set[str] | None) -> Match:
    if read is None:
        return "caption"
    if found == read:
        return "labels"
    common = len(found & read)
    return "some labels" if common >= 2 and 2 * common > len(found | read) else "none"


# Markers

_DASH = r"[-\u2010-\u2015\u2212]"
_AND = rf"(?:\s*(?:,\s*and\b|,\s*&|,|;|/|&|\band\b|\bto\b|{_DASH})\s*)"
_KINDS = {
    "upper": r"[A-Z](?:\d{1,2}|['\u2032])?",
    "lower": r"[a-z](?:\d{1,2}|['\u2032])?",
    "roman": r"(?:x?(?:iv|ix|v?i{1,3}|v)|x)",
    "Roman": r"(?:X?(?:IV|IX|V?I{1,3}|V)|X)",
    "number": r"(?:1?\d|20)",
}
_POSITIONS = (
    ("left", "middle", "right"),
    ("left", "center", "right"),
    ("left", "centre", "right"),
    ("left", "right"),
    ("top", "middle", "bottom"),
    ("top", "bottom"),
    ("upper", "middle", "lower"),
    ("upper", "lower"),
)
_POSITION_NAMES = {name for names in _POSITIONS for name in names}
_BEGIN = r"(?:(?<=^)|(?<=[.;:,)\]\u201d]\s)|(?<=[.;:)])|(?<=\band\s))"
_PANEL = r"(?:(?:[Pp]anels?|[Ii]mages?|[Pp]arts?|[Ff]igs?\.?|[Ff]igures?)\s+)?"


# `group A` is no panel.
_NAMED = re.compile(
    r"\b(?:groups?|types?|classe?s?|grades?|stages?|vitamins?|hepatitis|influenza|proteins?|cohorts?|phases?|steps?|arms?|"
    r"sites?|clades?|strains?|subtypes?|clusters?|serotypes?|isoforms?|chains?|regions?|domains?|experiments?|patients?|"
    r"cases?|samples?|models?|methods?|equations?|tables?|factors?|complex|immunoglobulin|cytochrome)\s$",
    re.IGNORECASE,
)


def _styles(label: str, kind: str) -> dict[str, str]:
    """Return patterns of markers by name, each with a group `labels`. Those that look like words come last."""
    some = rf"(?P<labels>{label}(?:{_AND}{label}){{0,25}})"
    nested = rf"(?P<labels>\(?{label}\)?(?:{_AND}\(?{label}\)?){{0,25}})"
    styles = {
        "closed": rf"[(\[]\s*(?:[^()\[\]]{{1,60}}[,;]\s)??{_PANEL}{nested}(?:\s*[,;:]\s[^()]{{1,80}})?\s*[)\]]",
        "half": rf"(?:(?<=^)|(?<=\s)|(?<=[.;:,)\]])|(?<=[a-z](?=[A-Z]))){some}\)",
        "dot": rf"{_BEGIN}{_PANEL}{some}\s?[.:](?=\s)",
    }
    if kind != "number":
        styles["comma"] = rf"{_BEGIN}{_PANEL}{some}(?:,|\s?{_DASH})(?=\s)"
    if kind in ("upper", "lower"):
        before = rf"(?:{_BEGIN}|(?<=\())" if kind == "upper" else r"(?:(?<=^)|(?<=[\s(]))"
        styles["bare"] = rf"{before}{some}(?=\s\S)"
    return styles


def _sequences(text: str, first: str | None = None) -> Iterator[list[_Marker]]:
    """Yield the sequence of each style of markers, the safest style first."""
    depths = _depths(text)
    for kind, label in _KINDS.items():
        of_style = {
            name: list(_markers(text, name, pattern, kind, depths)) for name, pattern in _styles(label, kind).items()
        }
        safe = [marker for name in ("closed", "half", "dot") for marker in of_style[name]]
        for name, markers in (*of_style.items(), ("mixed", _without_overlaps(safe))):
            chain = _longest(markers, kind, first)
            count = sum(len(marker.labels) for marker in chain)
            if count >= (3 if kind == "number" else 2) and (len(chain) > 1 or chain[0].closed or name == "dot"):
                yield chain
    if first is None:
        yield from _positions(text)


def _markers(text: str, style: str, pattern: str, kind: str, depths: Sequence[int]) -> Iterator[_Marker]:
    for place in re.finditer(pattern, text):
        names = _expand(place["labels"], kind)
        inside = depths[place.start()] > 0 and style in ("half", "dot")
        named = style != "closed" and _NAMED.search(text, max(0, place.start() - 20), place.start())
        if names and not inside and not named:
            yield _Marker(place.start(), place.end(), names, style in ("closed", "half"))


def _depths(text: str) -> list[int]:
    """Return how many parentheses are open at each character."""
    depths, depth = [], 0
    for character in text:
        depths.append(depth)
        depth = max(0, depth + (character in "([") - (character in ")]"))
    return [*depths, depth]


def _without_overlaps(markers: Iterable[_Marker]) -> list[_Marker]:
    kept: list[_Marker] = []
    for marker in sorted(markers, key=lambda marker: (marker.start, -marker.end)):
        if not kept or marker.start >= kept[-1].end:
            kept.append(marker)
    return kept


def _expand(written: str, kind: str) -> tuple[str, ...]:
    """Return the labels of a marker: those of `A-C, E` are A, B, C and E."""
    words = re.findall(rf"{_DASH}|\bto\b|{_KINDS[kind]}", re.sub(r"\band\b", ",", written))
    names: list[str] = []
    through = False
    for word in words:
        if word == "to" or re.fullmatch(_DASH, word):
            through = True
            continue
        label = word.upper()
        if through and names:
            between = _between(names[-1], label, kind)
            if not between:
                return ()
            names += between
        else:
            names.append(label)
        through = False
    return () if through or len(set(names)) < len(names) else tuple(names)


def _between(first: str, last: str, kind: str) -> list[str]:
    """Return the labels after the first up to the last."""
    (start, begin), (stop, end) = _place(first, kind), _place(last, kind)
    if start == stop:
        return [f"{first[0]}{number}" for number in range(begin + 1, end + 1)]
    names = {"number": [str(number) for number in range(21)], "roman": ["", *ROMAN], "Roman": ["", *ROMAN]}
    return names.get(kind, ["", *_LETTERS])[start + 1 : stop + 1]


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ROMAN = "I II III IV V VI VII VIII IX X XI XII XIII XIV XV XVI XVII XVIII".split()


def _place(label: str, kind: str) -> tuple[int, int]:
    """Return the place of a label in the sequence, from 1 on, and the number behind its letter."""
    if kind == "number":
        return int(label), 0
    if kind in ("roman", "Roman"):
        return ROMAN.index(label) + 1 if label in ROMAN else 0, 0
    return _LETTERS.index(label[0]) + 1, int(label[1:]) if label[1:].isdigit() else len(label) - 1


def in_order(labels: Iterable[str]) -> list[str]:
    """Return labels in the order of their sequence: by value, by letter, or as they are if they are positions.

    Example:
        >>> from biomedclip.processing.panels.captions import in_order
        >>> in_order(["IV", "V", "I", "III", "II"]), in_order(["B", "A10", "A2"]), in_order(["10", "9"])
        (['I', 'II', 'III', 'IV', 'V'], ['A2', 'A10', 'B'], ['9', '10'])
    """
    names = list(labels)
    if set(names) <= _POSITION_NAMES:
        return names
    if set(names) <= set(ROMAN) and any(len(name) > 1 for name in names):  # otherwise they are letters
        return sorted(names, key=ROMAN.index)
    for kind in ("number", "upper"):
        if all(re.fullmatch(_KINDS[kind], name, re.ASCII) for name in names):
            return sorted(names, key=lambda name: _place(name, kind))
    return sorted(names, key=lambda name: (len(name), name))


def _longest(markers: Sequence[_Marker], kind: str, first: str | None) -> list[_Marker]:
    """Return the longest sequence of markers that name all labels from the first one on, each once."""
    begin = _place(first, kind)[0] if first and re.fullmatch(_KINDS[kind], first, re.IGNORECASE | re.ASCII) else 1
    best: list[_Marker] = []
    best_size = 0
    places_of = [[_place(label, kind) for label in marker.labels] for marker in markers]
    for start in range(min(len(markers), MAX_STARTS)):
        chain: list[_Marker] = []
        taken: set[tuple[int, int]] = set()
        used: set[int] = set()
        missing = begin  # the first place that is not taken
        for marker, places in zip(markers[start:], places_of[start:], strict=True):
            place, number = places[0]
            continues = (place == missing and number <= 1) or (number > 0 and (place, number - 1) in taken)
            if continues and not taken.intersection(places):
                chain.append(marker)
                taken.update(places)
                used.update(place for place, _ in places)
                while missing in used:
                    missing += 1
            elif not chain:
                break
        # Without gaps, all places before the first missing one are taken, and no other.
        if len(taken) > best_size and all(place < missing for place, _ in taken):
            best, best_size = chain, len(taken)
    return best


def _positions(text: str) -> Iterator[list[_Marker]]:
    """Yield a sequence of positions, such as `Left: ... Right: ...` or `(top) ... (bottom)`."""
    noun = r"(?:\s+(?:panels?|rows?|columns?|images?|figures?|side|part|half|plots?|graphs?|picture))?"
    for names in _POSITIONS:
        for pattern in (
            rf"[(\[](?:the\s+)?(NAME){noun}[)\]]",
            rf"{_BEGIN}(NAME){noun}\s?[:,\u2013-](?=\s)",
            rf"{_BEGIN}(?:the\s+)?(NAME){noun[:-1]}(?=\s)",
        ):
            places: list[_Marker] = []
            for name in names:
                start = places[-1].end if places else 0
                place = re.compile(pattern.replace("NAME", name), re.IGNORECASE).search(text, start)
                if place is None:
                    break
                places.append(_Marker(place.start(), place.end(), (name,), text[place.start()] in "(["))
            else:
                yield places


# Texts

_STOP = re.compile(r"(?<=[.!?])(?:\s+|(?=[(\[]))(?=[A-Z(\[\u2018\u201c*\u2217\d])")
_NO_STOP = re.compile(r"(?:\b(?:Fig|Figs|vs|et al|i\.e|e\.g|approx|Dr|No|St|sp|spp|cf)|(?<![^\s(])[A-Z])\.$")
_SHARED = re.compile(
    r"""(?:The\s+)?(?:Data|Values?|Results?|Error\s+bars?|Bars?\b|Scale|Asterisks?|Statistic|All\b|These\b|Abbreviations?|
    (?:Original\s+)?[Mm]agnification|(?:Black\s+|White\s+|Red\s+)?[Aa]rrow|Significan|Each\b|Mean|Horizontal|Insets?\b|
    n\s*=|N\s*=|[*\u2217\u2020#]|[Pp]\s*[<=]|H\s*&\s*E\b|Hematoxylin|Haematoxylin|Average|Note\s+that|Images?\b|
    [A-Z][\w/-]{0,7}\s*[:=,]\s|[A-Z]{2,}[\w/-]*\s+[a-z])""",
    re.VERBOSE,
)
_PREPOSITION = re.compile(
    r"\b(?:of|towards?|using|on|for|from|in|with|by|between|to|at|during|under|after|before|showing|shows?)\s+"
)


def _cut(caption: str, markers: Sequence[_Marker]) -> tuple[str, dict[str, str], str]:
    """Return the opening, the text of each panel, and the closing."""
    behind = all(marker.closed for marker in markers) and _texts_precede(caption, markers)
    before, texts, after = (_texts_before if behind else _texts_after)(caption, markers)
    panels: dict[str, str] = {}
    for marker, text in zip(markers, texts, strict=True):
        several = len(marker.labels) > 1 and len(markers) * len(text) < MOST_WORK
        parts = several and (_parts_of_a_range(text, marker.labels) or _respectively(text, marker.labels))
        for label in marker.labels:
            panels[label] = parts[label] if parts else text
    opening, closing = (" ".join(filter(None, part)) for part in (before, after))
    return opening, {label: panels[label] for label in in_order(panels)}, closing


def _parts_of_a_range(text: str, labels: tuple[str, ...]) -> dict[str, str] | None:
    """Split the text of several panels that names each of them again: `(B, C) Staining for AAT (B) and Akt (C)`."""
    for chain in _sequences(text, labels[0]):
        if {label for marker in chain for label in marker.labels} == set(labels) and len(chain) > 1:
            return _cut(text, chain)[1]
    return None


def _texts_precede(caption: str, markers: Sequence[_Marker]) -> bool:
    """Return whether markers stand behind their texts, as in `ATP (A), ADP (B)`."""
    behind = ahead = 0
    for marker in markers:
        following = caption[marker.end :].lstrip()
        leading = caption[: marker.start].rstrip()
        begins = not leading or leading[-1] in ".:;" or (leading[-1] in ",)" and following[:1] not in ",;.")
        behind += bool(leading) and (
            not following or following[0] in ",;." or bool(re.match(r"(?:and|or)\b", following))
        )
        ahead += begins and bool(re.match(r"[\w*\u2018\u201c\u2032(\[]", following))
    first = caption[: markers[0].start].rstrip()
    return behind > ahead or (behind == ahead > 0 and bool(first) and first[-1] not in ".:;")


def _texts_after(caption: str, markers: Sequence[_Marker]) -> tuple[list[str], list[str], list[str]]:
    """Return opening, texts of the panels, and closing. The texts follow their markers."""
    ends = [marker.start for marker in markers[1:]] + [len(caption)]
    texts = [caption[marker.end : end] for marker, end in zip(markers, ends, strict=True)]
    shared = []
    for number, text in enumerate(texts[:-1]):
        sentences = _sentences(text)
        # An unfinished sentence before a marker introduces it and those that follow.
        if len(sentences) > 1 and re.search(r"\b(?:in|of|for|by|with|on|from)$", sentences[-1]):
            shared.append(sentences[-1])
            texts[number] = " ".join(sentences[:-1])
    sentences = _sentences(texts[-1])
    most = max((len(_sentences(text)) for text in texts[:-1]), default=1)
    keep = 1
    while keep < len(sentences) and keep < most and not _SHARED.match(sentences[keep]):
        keep += 1
    if sentences:
        texts[-1] = " ".join(sentences[:keep])
        shared += sentences[keep:]
    # Markers without a text, as in `(A) and (B)`, share the next one.
    for number in reversed(range(len(texts) - 1)):
        if not _clean(texts[number]):
            texts[number] = texts[number + 1]
    context = caption[: markers[0].start].strip()
    if context.endswith("("):
        context = context[:-1].strip()
    return [context], [_clean(text) for text in texts], shared


def _texts_before(caption: str, markers: Sequence[_Marker]) -> tuple[list[str], list[str], list[str]]:
    """Return opening, texts of the panels, and closing. The texts precede their markers."""
    starts = [0] + [marker.end for marker in markers[:-1]]
    texts = [caption[start : marker.start] for start, marker in zip(starts, markers, strict=True)]
    context = []
    first = _sentences(texts[0])
    if len(first) > 1:
        context.append(" ".join(first[:-1]))
        texts[0] = first[-1]
    if ": " in texts[0]:
        head, texts[0] = texts[0].rsplit(": ", 1)
        context.append(f"{head.strip()}:")
    shared = []
    for number, text in enumerate(texts[1:], start=1):
        # What follows a marker without a separator ends the sentence before it.
        if not re.match(r"\s*(?:[,;.:)]|and\b|or\b)", text):
            sentences = _sentences(text)
            parts = [sentences[0], " ".join(sentences[1:])] if len(sentences) > 1 else _at_last_separator(text)
            if len(parts) == 2:
                shared.append(parts[0].strip())
                texts[number] = parts[1]
    cleaned = [_clean(text) for text in texts]
    head, cleaned[0] = _head(cleaned)
    rest = caption[markers[-1].end :].lstrip(" .;,").strip()
    return [*context, head], cleaned, [*shared, rest]


def _at_last_separator(text: str) -> list[str]:
    """Split a text at the last comma or semicolon before a space."""
    places = list(re.finditer(r"[;,]\s", text))
    return [text[: places[-1].start()], text[places[-1].end() :]] if places else [text]


def _head(texts: Sequence[str]) -> tuple[str, str]:
    """Return what the first text shares with the others, and its own part.

    These are `Spectra of` and `A` in `Spectra of A (a), B (b)`.
    """
    first, others = texts[0], [text for text in texts[1:] if text]
    if not others:
        return "", first
    word = others[0].split()[0]
    start = first.rfind(f" {word} ")
    if start > 0 and _PREPOSITION.match(f"{word} "):
        return first[:start].strip(), first[start:].strip()
    usual = median(len(text.split()) for text in others)
    if len(first.split()) <= 1.5 * usual + 1:
        return "", first
    places = [place.end() for place in _PREPOSITION.finditer(first) if place.end() < len(first)]
    if not places:
        return "", first
    words = [word.start() for word in re.finditer(r"\S+", first)]
    cut = min(reversed(places), key=lambda place: abs(len(words) - bisect_left(words, place) - usual))
    return first[:cut].strip(), first[cut:].strip()


def _respectively(text: str, labels: tuple[str, ...]) -> dict[str, str] | None:
    """Return the part of each panel of a text such as `liver, lung and skin, respectively`."""
    listed = re.search(r",?\s+respectively\b", text)
    if not listed:
        return None
    items = re.split(r",\s+and\s+|\s+and\s+|,\s+", text[: listed.start()])[-len(labels) :]
    if len(items) < len(labels):
        return None
    items[0] = _PREPOSITION.split(items[0])[-1].strip()
    return dict(zip(labels, items, strict=True)) if all(items) else None


def _sentences(text: str) -> list[str]:
    parts: list[str] = []
    for part in _STOP.split(text.strip()):
        if parts and _NO_STOP.search(parts[-1][-20:]):
            parts[-1] = f"{parts[-1]} {part}"
        elif part:
            parts.append(part)
    return parts


def _clean(text: str) -> str:
    """Remove separators and conjunctions at both ends."""
    text = re.sub(r"^[\s,;:.)\]]+", "", text)
    text = re.sub(r"^(?:and|or)\s+", "", text)
    text = _without_end(text, ",;([")
    for word in ("and", "or", "with"):
        rest = text.removesuffix(word)
        if rest != text and _without_end(rest, ",;") != rest:
            text = _without_end(rest, ",;")
            break
    return text.strip()


def _without_end(text: str, characters: str) -> str:
    """Remove spaces and other characters from the end of a text. A pattern would take quadratic time."""
    end = len(text)
    while end and (text[end - 1].isspace() or text[end - 1] in characters):
        end -= 1
    return text[:end]
