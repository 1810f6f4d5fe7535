"""Seeded damage to articles, images and captions, like that of transmission errors, faulty software and attackers."""

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random


Mutation = Callable[[bytes, bytes, Random], bytes]

_EXTREMES = [b"\x00", b"\x01", b"\x7f", b"\x80", b"\xff"]
_EXTREMES += [extreme * width for extreme in (b"\x00", b"\xff") for width in (2, 4, 8)]
_EXTREMES += [b"\x7f\xff", b"\xff\x7f", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x01\x00\x00", b"\x40\x9c\x35"]

_TAG = re.compile(rb"</?[A-Za-z][^<>]*>")
_NAME = re.compile(rb"</?([A-Za-z][\w:.-]*)")
_ATTRIBUTE = re.compile(rb'\s([\w:.-]+)="([^"<]*)"')
_FIGURE = re.compile(rb"<fig[ >].*?</fig>", re.DOTALL)
_NAMES = b"""
    abstract alternatives app article back body bold boxed-text break caption disp-formula fig fig-group floats-group
    fn front graphic inline-formula inline-graphic italic label list list-item media mml:math mml:mi object-id p
    ref-list sec sub sub-article sup supplementary-material table-wrap tex-math title xref
""".split()
_VALUES = [b"", b"fig", b"bibr", b"F1", b"f1 f1 f2 f3", b"../../etc/passwd", b"file:///etc/passwd", b"&#x10FFFF;"]
_VALUES += [b"x" * 10**5, b"id " * 10**5]
_ILL_FORMED_TEXTS = [b"&undefined;", b"&#0;", b"&#xD800;", b"\xff\xfe", b"]]>", b"<!-- ", b"<?xml version='1.0'?>"]
_ILL_FORMED_TEXTS += [b"<a:b/>"]
_TEXTS = [
    b"&amp;" * 1000,
    b"<![CDATA[<fig id='F1'>]]>",
    b"<?pi?><!-- <fig> -->",
    b"[,,;" * 5000,
    b"10<sup>6</sup>" * 2000,
    b"<xref ref-type='bibr' rid='B1'>1</xref>," * 500,
    b"<xref ref-type='fig' rid='F1'/>" * 500,
    b"\\begin{document}" * 500,
    b" ." * 20_000,
    "\N{COMBINING ACUTE ACCENT}".encode() * 5000,
]
_DOCTYPES = [
    b"<!DOCTYPE article [<!ENTITY e 'text'>]>",
    b"<!DOCTYPE article [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>",
    b"<!DOCTYPE article SYSTEM 'http://localhost:9/no.dtd' [<!ENTITY % p SYSTEM 'http://localhost:9/x'> %p;]>",
    b"<!DOCTYPE article [<!ENTITY a 'aaaaaaaaaa'>"
    + b"".join(b"<!ENTITY %c '%s'>" % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(4))
    + b"]>",
    b"<!DOCTYPE article [<!ENTITY e '&e;'>]>",
    b"<!DOCTYPE article [<!ATTLIST fig id CDATA 'same'>]>",
    b"<!DOCTYPE article [<!ENTITY e '%s'>]>" % (b"x" * 100_000),
]


_MARKERS = """
    (A)|(B)|(C)|(a)|(b)|(c)|A,|B,|A:|B.|a)|b)|(i)|(ii)|(iii)|(1)|(2)|(3)|(A-C)|(B, C)|(a and b)|(A1)|(A2)|[a]|Left:|
    Right:|(left)|(right)|Top row|Lower panel,|(panel a)|((a) and (b))|(A–D)|(z-a)|(A-|B)|(A|and (|, respectively|
    group A|vitamin D (C)
""".split("|")
_MARKERS = [marker.strip() for marker in _MARKERS]
_PIECES = [
    "(",
    ")",
    "[",
    "]",
    ".",
    ";",
    ",",
    ":",
    "and",
    "-",
    "–",
    "to",
    "\n",
    "\t",
    "\u00a0",
    "\u2028",
    "\x00",
    "\u212a",
]
_PIECES += ["\u0130", "ß", "\u0301", "\U0001f600", "e.g.", "Fig. 1A", "Scale bars: 10 μm.", "P < 0.05", "n = 3;", "II"]


def damage_caption(content: bytes, other: bytes, random: Random) -> bytes:
    """Change words and markers of a caption in one to eight places. One of ten gets damaged bytes, too."""
    text = content.decode("utf-8", "replace")
    for _ in range(random.choice((1, 2, 4, 8))):
        text = random.choice(_ON_WORDS)(text, other.decode("utf-8", "replace"), random)
    content = text[:60_000].encode("utf-8", "surrogateescape")
    return random.choice(_ON_BYTES)(content, other, random) if random.random() < 0.1 else content


def _insert_word(text: str, other: str, random: Random) -> str:
    words = re.split(r"(\s+)", text)
    words.insert(random.randrange(len(words) + 1), random.choice((*_MARKERS, *_PIECES)))
    return random.choice(("", " ")).join(words)


def _repeat_pieces(text: str, other: str, random: Random) -> str:
    pieces = "".join(random.choices((*_MARKERS, *_PIECES), k=random.randint(1, 4))) + random.choice(("", " "))
    start = random.randrange(len(text) + 1)
    return text[:start] + pieces * random.choice((3, 3, 30, 30, 300, 3000)) + text[start:]


def _change_words(change: Callable[[list[str], Random], list[str]]) -> Callable[[str, str, Random], str]:
    return lambda text, other, random: " ".join(change(text.split(), random))


def _move_word(words: list[str], random: Random) -> list[str]:
    first, *rest = words or [""]
    place = random.randrange(len(rest) + 1)
    return [*rest[:place], first, *rest[place:]]


def _leave_out_words(words: list[str], random: Random) -> list[str]:
    start = random.randrange(len(words) + 1)
    return words[:start] + words[start + random.randint(1, 8) :]


def damage(content: bytes, other: bytes, random: Random) -> bytes:
    """Damage bytes in one to four places. `other` is a second file to splice from."""
    for _ in range(random.choice((1, 1, 2, 4))):
        content = random.choice(_ON_BYTES)(content, other, random)
    return content


def damage_picture(content: bytes, other: bytes, random: Random) -> bytes:
    """Damage an image, more often near its header. In half of the cases, PNG checksums are corrected."""
    for _ in range(random.choice((1, 1, 2, 4))):
        if random.random() < 0.7:
            content = random.choice(_ON_BYTES)(content, other, random)
        else:
            content = _extreme(content, other, random, within=random.choice((32, 64, 512)))
    return _with_png_checksums(content) if random.random() < 0.5 else content


def damage_article(content: bytes, other: bytes, random: Random) -> bytes:
    """Damage XML. In half of the cases, it stays well-formed."""
    for _ in range(random.choice((1, 2, 4, 8))):
        content = random.choice(_WELL_FORMED)(content, other, random)
    if random.random() < 0.5:
        content = random.choice((*_ILL_FORMED, *_ON_BYTES))(content, other, random)
    return content


def _place(content: bytes, random: Random, longest: int) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.randint(1, longest))


def _flip_bits(content: bytes, other: bytes, random: Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(min(len(content), random.choice((1, 8, 64)))):
        damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    return bytes(damaged)


def _overwrite_run(content: bytes, other: bytes, random: Random) -> bytes:
    start, end = _place(content, random, 200)
    run = random.randbytes(end - start) if random.random() < 0.5 else random.choice(_EXTREMES)[:1] * (end - start)
    return content[:start] + run + content[end:]


def _leave_out(content: bytes, other: bytes, random: Random) -> bytes:
    start, end = _place(content, random, 2000)
    return content[:start] + content[end:]


def _repeat(content: bytes, other: bytes, random: Random) -> bytes:
    start, end = _place(content, random, 2000)
    return content[:end] + content[start:end] * random.choice((1, 1, 20)) + content[end:]


def _extreme(content: bytes, other: bytes, random: Random, within: int | None = None) -> bytes:
    extreme = random.choice(_EXTREMES)
    start = random.randrange(min(len(content), within or len(content)) + 1)
    return content[:start] + extreme + content[start + len(extreme) :]


def _with_png_checksums(content: bytes) -> bytes:
    """Return a PNG with correct checksums."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content
    pieces, position = [content[:8]], 8
    while position + 12 <= len(content):
        end = position + 8 + struct.unpack_from(">I", content, position)[0]
        if end + 4 > len(content):
            break
        pieces += [content[position:end], struct.pack(">I", zlib.crc32(content[position + 4 : end]))]
        position = end + 4
    return b"".join([*pieces, content[position:]])


def _a_tag(content: bytes, random: Random) -> re.Match[bytes] | None:
    """Return a tag near a random place."""
    return _TAG.search(content, random.randrange(len(content) + 1)) or _TAG.search(content)


def _change_tag(change: Callable[[bytes, Random], bytes]) -> Mutation:
    def mutation(content: bytes, other: bytes, random: Random) -> bytes:
        tag = _a_tag(content, random)
        return content[: tag.start()] + change(tag.group(), random) + content[tag.end() :] if tag else content

    return mutation


def _rename_tag(tag: bytes, random: Random) -> bytes:
    return _NAME.sub(lambda match: match.group()[: -len(match.group(1))] + random.choice(_NAMES), tag, count=1)


def _rename_element_everywhere(content: bytes, other: bytes, random: Random) -> bytes:
    tag = _a_tag(content, random)
    name = _NAME.match(tag.group()) if tag else None
    if name is None:
        return content
    new = random.choice(_NAMES)
    return re.sub(rb"(</?)" + re.escape(name.group(1)) + rb"(?=[\s/>])", lambda match: match.group(1) + new, content)


def _unwrap_element_everywhere(content: bytes, other: bytes, random: Random) -> bytes:
    name = random.choice(_NAMES)
    return re.sub(rb"</?" + re.escape(name) + rb"(?=[\s/>])[^<>]*>", b"", content)


def _change_attribute(content: bytes, other: bytes, random: Random) -> bytes:
    start = random.randrange(len(content) + 1)
    attribute = _ATTRIBUTE.search(content, start) or _ATTRIBUTE.search(content)
    if attribute is None:
        return content
    return content[: attribute.start(2)] + random.choice(_VALUES) + content[attribute.end(2) :]


def _insert(content: bytes, piece: bytes, random: Random) -> bytes:
    tag = _a_tag(content, random)
    place = tag.end() if tag else 0
    return content[:place] + piece + content[place:]


def _insert_nesting(content: bytes, other: bytes, random: Random) -> bytes:
    name, depth = random.choice(_NAMES), random.choice((3, 50, 200))
    return _insert(content, b"<%s>" % name * depth + b"x" + b"</%s>" % name * depth, random)


def _insert_deep_nesting(content: bytes, other: bytes, random: Random) -> bytes:
    name, depth = random.choice(_NAMES), random.choice((250, 300, 5000, 100_000))
    return _insert(content, b"<%s>" % name * depth + b"</%s>" % name * (depth - random.randrange(2)), random)


def _insert_figure(content: bytes, other: bytes, random: Random) -> bytes:
    """Insert a figure at a random place, such as a caption, a formula or another figure."""
    source = random.choice((content, other))
    figure = _FIGURE.search(source, random.randrange(len(source) + 1)) or _FIGURE.search(source)
    return _insert(content, figure.group() * random.choice((1, 1, 30)) if figure else b"<fig/>", random)


def _insert_doctype(content: bytes, other: bytes, random: Random) -> bytes:
    """Replace the declaration by one with entities, and use them."""
    root = max(content.find(b"<article"), 0)
    return b"<?xml version='1.0'?>" + random.choice(_DOCTYPES) + _insert(content[root:], b"&e;" * 1000, random)


def _declare_encoding(content: bytes, other: bytes, random: Random) -> bytes:
    encoding = random.choice((b"UTF-16", b"ISO-8859-1", b"US-ASCII", b"EBCDIC-CP-US", b"UCS-4", b"no such"))
    body = content[content.find(b"?>") + 2 :] if content.startswith(b"<?xml") else content
    return b"<?xml version='1.0' encoding='" + encoding + b"'?>" + body


_ON_BYTES: Sequence[Mutation] = (
    _flip_bits,
    _overwrite_run,
    lambda content, other, random: content[: random.randrange(len(content) + 1)],
    _leave_out,
    lambda content, other, random: (
        content[: random.randrange(len(content) + 1)] + other[random.randrange(len(other) + 1) :]
    ),
    _repeat,
    _extreme,
)
_ON_WORDS: Sequence[Callable[[str, str, Random], str]] = (
    _insert_word,
    _insert_word,
    _repeat_pieces,
    _change_words(_move_word),
    _change_words(_leave_out_words),
    lambda text, other, random: text[: random.randrange(len(text) + 1)] + other[random.randrange(len(other) + 1) :],
    lambda text, other, random: f"{text} {other}",
    lambda text, other, random: random.choice((str.upper, str.lower, str.title))(text),
    lambda text, other, random: text.replace(random.choice(" ().,:"), random.choice(("", " ", "\n", "((", "."))),
)
_WELL_FORMED: Sequence[Mutation] = (
    _rename_element_everywhere,
    _unwrap_element_everywhere,
    _change_attribute,
    lambda content, other, random: _insert(content, random.choice(_TEXTS), random),
    _insert_nesting,
    _insert_figure,
)
_ILL_FORMED: Sequence[Mutation] = (
    _change_tag(lambda tag, random: b""),
    _change_tag(lambda tag, random: tag * 2),
    _change_tag(_rename_tag),
    lambda content, other, random: _insert(content, random.choice(_ILL_FORMED_TEXTS), random),
    _insert_deep_nesting,
    _insert_doctype,
    _declare_encoding,
)
