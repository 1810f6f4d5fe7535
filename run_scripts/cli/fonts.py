"""Choose installed fonts for plot text in any script, and wrap lines by their width."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import matplotlib
from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font


logger = logging.getLogger(__name__)

DEFAULT = "DejaVu Sans"  # comes with matplotlib
LAST_RESORT = "Last Resort High-Efficiency"  # comes with matplotlib, draws boxes
_reported: set[str] = set()  # characters that a warning has listed


@contextmanager
def fonts_for(text: str) -> Iterator[None]:
    """Make matplotlib draw each character of a text with an installed font that has it.

    Characters that no installed font has are drawn as boxes. A warning lists them once.
    """
    missing = set(text) - _characters(font_manager.findfont(DEFAULT))
    families = [DEFAULT]
    for family, path in _other_fonts():
        if missing & _characters(path):
            families.append(family)
            missing -= _characters(path)
    if missing - _reported:
        logger.warning(
            "No installed font has these characters, which are drawn as boxes: %s. Install one, such as Noto Sans CJK.",
            "".join(sorted(missing - _reported)[:10]),
        )
        _reported.update(missing)
    with matplotlib.rc_context({"font.family": [*families, LAST_RESORT] if missing else families}):
        yield


def wrap_text(text: str, inches: float, size: float, most_lines: int) -> list[str]:
    """Break a text into lines at spaces, in the fonts of [`fonts_for`]. The font size is in points.

    Words that are too long are broken between any two characters. A text of more than `most_lines` is cut and ends with
    "...". An empty text is one empty line.
    """
    families = tuple(matplotlib.rcParams["font.family"])

    def fits(line: str) -> bool:
        return sum(_width(character, size, families) for character in line) <= inches

    lines = [""]
    for word in text.split(" "):
        if not fits(f"{lines[-1]} {word}"):
            lines.append("")
        for character in word if not lines[-1] else f" {word}":
            if lines[-1] and not fits(lines[-1] + character):
                lines.append("")
            lines[-1] += character
    lines = lines[1:] if len(lines) > 1 and not lines[0] else lines
    if len(lines) > most_lines:
        last = lines[most_lines - 1]
        while last and not fits(f"{last} ..."):
            last = last[:-1]
        lines = [*lines[: most_lines - 1], f"{last.rstrip()} ..."]
    return lines


@lru_cache(maxsize=4096)
def _width(character: str, size: float, families: tuple[str, ...]) -> float:
    """Return the width of a character, in inches. Spaces have a width only between other characters."""
    renderer, font = RendererAgg(1, 1, 100), FontProperties(family=list(families), size=size)
    marked, bars = (renderer.get_text_width_height_descent(text, font, False)[0] for text in (f"|{character}|", "||"))
    return (marked - bars) / 100


@lru_cache(maxsize=256)
def _characters(path: str) -> frozenset[str]:
    """Return the characters of a font, or an empty set if its file cannot be read."""
    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@lru_cache(maxsize=1)
def _other_fonts() -> list[tuple[str, str]]:
    """Return the family and the file of every other installed font that is upright and regular."""
    found: dict[str, str] = {}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        if entry.style == "normal" and str(entry.weight) in ("400", "regular", "normal"):
            found.setdefault(entry.name, entry.fname)
    return [(name, path) for name, path in found.items() if name not in (DEFAULT, LAST_RESORT)]
