"""Galleries: thumbnails of images with captions. Only the images of a gallery are read."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from biomedclip.processing.images.reading import read_row_image

from ...cli.html import literal
from ...embedding.thumbnails import data_url, jpeg


SHOWN = 25  # images in each gallery
_SIDE = 180  # pixels of a thumbnail


@dataclass(frozen=True)
class Entry:
    """An image of a gallery.

    Args:
        image: The image, in any form that [`read_row_image`] accepts, or None.
        alt: Text that replaces the image for people who do not see it.
        caption: HTML below the image.
    """

    image: Any
    alt: str
    caption: str


def gallery(entries: Iterable[Entry]) -> str:
    """Return thumbnails with their captions."""
    return f'<div class="images">{"".join(map(_figure, entries))}</div>'


def _figure(entry: Entry) -> str:
    image = f'<div class="image">{thumbnail(entry.image, entry.alt)}</div>'
    return f"<figure>{image}<figcaption>{entry.caption}</figcaption></figure>"


def thumbnail(image: Any, alt: str) -> str:
    """Return a small image. Instead of one that cannot be read, for example because it was changed, return a text."""
    try:
        small = jpeg(read_row_image(image), _SIDE)
    except (ValueError, OSError, ImportError):
        return '<span class="muted">no image</span>'
    return f'<img src="{data_url(small)}" alt="{literal(alt)}">'


def ranked(answers: Iterable[tuple[Any, float]]) -> str:
    """Return a numbered list of answers with their scores."""
    return f"<ol>{''.join(f'<li>{literal(answer)}: {score:.3f}</li>' for answer, score in answers)}</ol>"


def verdict(right: bool) -> str:
    """Return the word right or wrong, in its color."""
    return '<span class="right">right</span>' if right else '<span class="wrong">wrong</span>'
