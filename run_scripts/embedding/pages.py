"""Write search results as one HTML page with thumbnails. It loads nothing from other files or servers."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from biomedclip.processing.files import write_text

from ..cli.html import document, literal
from .thumbnails import Thumbnails, data_url


_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #1c1c1c; background: #fff; }
h1 { font-size: 1.2rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
article { border: 1px solid #d0d0d0; border-radius: 6px; padding: .7rem; min-width: 0; }
.image { height: 14rem; display: flex; align-items: center; justify-content: center; background: #f3f3f3; }
.image img { max-width: 100%; max-height: 14rem; }
.image span { color: #666; }
.id { font-weight: 600; overflow-wrap: anywhere; }
dl { margin: .3rem 0 0; overflow-wrap: anywhere; }
dt { color: #666; font-size: .85rem; }
dd { margin: 0 0 .3rem; }
footer { margin-top: 1.5rem; color: #666; font-size: .85rem; }
"""


def write_page(
    path: Path, title: str, rows: Sequence[Mapping[str, Any]], columns: Collection[str], thumbnails: Thumbnails
) -> int:
    """Write a page, and return the number of thumbnails.

    Args:
        path: The HTML file.
        title: Title of the page.
        rows: Results of a search, or rows of groups with the column `group`.
        columns: Columns of the search. The others belong to the input.
        thumbnails: Where the images are read.
    """
    images = thumbnails.of_rows(rows)
    parts: list[str] = []
    group = None
    for row, image in zip(rows, images, strict=True):
        if row.get("group") != group:
            parts.append(f'{"</div>" if group is not None else ""}<h2>Group {row["group"]}</h2><div class="hits">')
            group = row["group"]
        parts.append(article(row, columns, image))
    body = "\n".join(parts)
    body = f"{body}</div>" if group is not None else f'<div class="hits">\n{body}</div>'
    content = document(
        title,
        f"""<h1>{literal(title)}</h1>
{body if rows else "<p>No results.</p>"}
<footer>Similarity is the dot product of normalized embeddings. Not for clinical use.</footer>""",
        _STYLE,
    )
    write_text(path, content)
    return sum(image is not None for image in images)


def article(
    row: Mapping[str, Any], columns: Collection[str], image: bytes | None, *, folded: Collection[str] = ()
) -> str:
    """Return a result as HTML.

    Args:
        row: The result.
        columns: Columns of the search. The others belong to the input.
        image: Thumbnail as JPEG, or None.
        folded: Columns of the input that a click shows.
    """
    shown = f'<img src="{data_url(image)}" alt="">' if image is not None else "<span>no image</span>"
    rank = f"{row['rank']}. " if "rank" in row else ""
    own = {
        name: f"<dt>{literal(name)}</dt><dd>{literal(value)}</dd>"
        for name, value in row.items()
        if name not in columns and value not in (None, "") and not isinstance(value, bytes)
    }
    more = "".join(text for name, text in own.items() if name in folded)
    return (
        f'<article><div class="image">{shown}</div>'
        f'<p class="id">{rank}{literal(row["id"])}</p>'
        f"<dl><dt>similarity</dt><dd>{row['similarity']:.4f}</dd>"
        f"{''.join(text for name, text in own.items() if name not in folded)}</dl>"
        f"{f'<details><summary>more</summary><dl>{more}</dl></details>' if more else ''}</article>"
    )
