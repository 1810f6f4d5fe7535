"""Galleries: thumbnails of images with captions. Only the images of a gallery are read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from biomedclip.processing.images.reading import read_row_image

from ...cli.html import literal
from ...embedding.thumbnails import data_url, jpeg


SHOWN = 25  # images in each gallery
SIDE = 180  # largest width and height of a thumbnail in pixels
_NARROW = 140  # the same in a strip


@dataclass(frozen=True)
class Entry:
    """An image of a gallery.

    Args:
        image: The image, in any form that [`read_row_image`] accepts, or None.
        alt: Text that replaces the image for people who do not see it.
        caption: HTML below the image.
        kind: `correct` for a green frame, or nothing.
    """

    image: Any
    alt: str
    caption: str
    kind: str = ""


def image_of(images: Sequence[Any], row: int) -> Any:
    """Return an image of a dataset, or None if its file was changed after it was classified."""
    try:
        return images[row]
    except (ValueError, OSError, IndexError):
        return None


def gallery(entries: Iterable[Entry], kind: str = "", side: int = SIDE) -> str:
    """Return thumbnails with their captions. `kind` is `large` or nothing, and `side` the pixels of a thumbnail."""
    figures = "".join(_figure(entry, side) for entry in entries)
    return f'<div class="{f"images {kind}".strip()}">{figures}</div>'


def strip(entries: Iterable[Entry], side: int = _NARROW) -> str:
    """Return up to four thumbnails in a row."""
    return f'<div class="strip">{"".join(_figure(entry, side) for entry in entries)}</div>'


def cards(contents: Iterable[str]) -> str:
    """Return boxes with HTML content, each wider than a thumbnail."""
    return f'<div class="cards">{"".join(f"""<div class="card">{content}</div>""" for content in contents)}</div>'


def _figure(entry: Entry, side: int) -> str:
    image = f'<div class="image">{thumbnail(entry.image, entry.alt, side)}</div>'
    kind = f' class="{entry.kind}"' if entry.kind else ""
    return f"<figure{kind}>{image}<figcaption>{entry.caption}</figcaption></figure>"


def thumbnail(image: Any, alt: str, side: int = SIDE) -> str:
    """Return a small image. Instead of one that cannot be read, for example because it was changed, return a text."""
    try:
        small = jpeg(read_row_image(image), side)
    except (ValueError, OSError, ImportError):
        return '<span class="muted">no image</span>'
    return f'<img src="{data_url(small)}" alt="{literal(alt)}">'


def ranked(answers: Iterable[tuple[Any, float]]) -> str:
    """Return a numbered list of answers with their scores."""
    return f"<ol>{''.join(f'<li>{literal(answer)}: {score:.3f}</li>' for answer, score in answers)}</ol>"


def verdict(right: bool) -> str:
    """Return the word right or wrong, in its color."""
    return '<span class="right">right</span>' if right else '<span class="wrong">wrong</span>'
