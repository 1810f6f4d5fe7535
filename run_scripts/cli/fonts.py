"""Choose installed fonts for text in any script, and break lines by its width, for the plots."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import matplotlib
from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font


DEFAULT = "DejaVu Sans"  # comes with matplotlib
_NOT_A_FONT_OF_TEXT = "Last Resort"  # comes with matplotlib, draws a box with the script for every character


@contextmanager
def fonts_for(text: str) -> Iterator[str]:
    """Make matplotlib draw each character of a text with an installed font that has it, where there is one.

    Args:
        text: The text to draw, in any script.

    Yields:
        The characters that no installed font has. They are drawn as boxes, without a warning of matplotlib for each.

    Example:
    ```python
    >>> from biomedclip.run_scripts.cli.fonts import fonts_for

    >>> with fonts_for("Σ") as missing:
    ...     print(missing == "")
    True
    ```
    """
    missing = {ord(character) for character in text} - _characters(font_manager.findfont(DEFAULT))
    families = [DEFAULT]
    for family, path in _other_fonts():
        if not missing:
            break
        if covered := missing & _characters(path):
            families.append(family)
            missing -= covered
    # matplotlib's last resort draws the characters that are left.
    families += [family for family in _last_resort() if missing]
    with matplotlib.rc_context({"font.family": families}):
        yield "".join(map(chr, sorted(missing)))


def wrap_text(text: str, inches: float, size: float, most_lines: int) -> list[str]:
    """Break a text into lines of a width, at spaces or, in words that are too long, between any characters.

    Args:
        text: One line of text.
        inches: Width of a line in a plot.
        size: Size of the font, in points. The fonts are those of [`fonts_for`].
        most_lines: Maximum number of lines. A text that needs more is cut and ends with "...".

    Returns:
        The lines. An empty text is one empty line.
    """
    renderer, font = RendererAgg(1, 1, 100), FontProperties(size=size)
    measured: dict[str, float] = {}

    def width(line: str) -> float:
        for character in set(line) - set(measured):
            both, bars = (
                renderer.get_text_width_height_descent(marked, font, False)[0] for marked in (f"|{character}|", "||")
            )
            measured[character] = (both - bars) / 100
        return sum(measured[character] for character in line)

    lines = [""]
    for word in text.split(" "):
        if lines[-1] and width(f"{lines[-1]} {word}") > inches:
            lines.append("")
        elif lines[-1]:
            lines[-1] += " "
        for character in word:
            if lines[-1] and width(lines[-1] + character) > inches:
                lines.append("")
            lines[-1] += character
        if len(lines) > most_lines:
            last = lines[most_lines - 1]
            while last and width(f"{last} ...") > inches:
                last = last[:-1]
            return [*lines[: most_lines - 1], f"{last.rstrip()} ..."]
    return lines


@lru_cache(maxsize=256)
def _characters(path: str) -> frozenset[int]:
    """Return the code points of a font, none if its file cannot be read."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@lru_cache(maxsize=1)
def _other_fonts() -> list[tuple[str, str]]:
    """Return family and file of the upright regular font of each other family, in alphabetical order."""
    found: dict[str, str] = {}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.name, entry.fname)):
        if entry.style == "normal" and str(entry.weight) in ("400", "regular", "normal"):
            found.setdefault(entry.name, entry.fname)
    return [(name, path) for name, path in found.items() if name != DEFAULT and _NOT_A_FONT_OF_TEXT not in name]


@lru_cache(maxsize=1)
def _last_resort() -> list[str]:
    return [entry.name for entry in font_manager.fontManager.ttflist if _NOT_A_FONT_OF_TEXT in entry.name][:1]
