"""Write a page, and its parts: paragraphs, tables and plots. All texts are escaped.

The page loads nothing from other files or servers and runs no scripts.
"""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from biomedclip.processing.files import write_text

from ...cli.html import document, literal
from ...cli.reporting import format_value


MOST_ROWS = 100  # of a table
_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 70rem; color: #1c1c1c;
  background: #fff; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #d0d0d0; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p, li { overflow-wrap: anywhere; }
td, th { overflow-wrap: break-word; max-width: 24rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
caption { text-align: left; font-weight: 600; padding: .2rem 0; }
th, td { border: 1px solid #d0d0d0; padding: .25rem .5rem; text-align: left; vertical-align: top; }
td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.matrix td { text-align: center; min-width: 2.2rem; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.notes { background: #fff6e0; border: 1px solid #e2c275; padding: .3rem 1rem; border-radius: 6px; }
.notes ul { padding-left: 1rem; }
.warning { color: #9a3412; font-weight: 600; }
img.plot { max-width: 100%; height: auto; }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .8rem; }
figure { margin: 0; border: 1px solid #d0d0d0; border-radius: 6px; padding: .5rem; break-inside: avoid; min-width: 0; }
figure .image { height: 9rem; display: flex; align-items: center; justify-content: center; background: #f3f3f3; }
figure img { width: 100%; height: 9rem; object-fit: contain; }
figcaption { font-size: .85rem; overflow-wrap: anywhere; }
figcaption ol { margin: .2rem 0 0; padding-left: 1.3rem; }
.large { grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); }
.large .image, .large img { height: 17rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); gap: .8rem; }
.card { border: 1px solid #d0d0d0; border-radius: 6px; padding: .5rem .8rem; break-inside: avoid; min-width: 0;
  overflow-wrap: anywhere; font-size: .9rem; }
.card p, .card ol { margin: .2rem 0 .5rem; }
.card ol { padding-left: 1.6rem; }
.card ol li { padding-left: .2rem; }
.beside { display: grid; grid-template-columns: 9rem minmax(0, 1fr); gap: .8rem; }
.beside img { max-width: 100%; max-height: 12rem; }
.strip { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .4rem; }
.strip figure { padding: .2rem; }
.strip .image, .strip img { height: 7rem; }
figure.correct { border: 2px solid #166534; }
.legend span { display: inline-block; width: 1.6rem; height: .7rem; border: 3px solid; margin-right: .3rem;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.right { color: #166534; }
.wrong { color: #9a3412; }
.muted { color: #595959; }
footer { margin-top: 2rem; color: #595959; font-size: .85rem; }
@media print { html { font-size: 11px; } body { max-width: none; padding: 0; font-size: 1rem; }
  h2, h2 + p { break-after: avoid; }
  table, img.plot { break-inside: avoid; } .images { grid-template-columns: repeat(5, 1fr); }
  .large { grid-template-columns: repeat(3, 1fr); } .cards { grid-template-columns: repeat(2, 1fr); }
  .wide { overflow: visible; } }
"""


def write_page(path: Path, title: str, sections: Iterable[str]) -> None:
    """Write a page. `title` is text, and `sections` are HTML. Empty ones are left out."""
    parts = [
        f"<h1>{literal(title)}</h1>",
        *sections,
        "<footer>Not for clinical use. Probabilities and images may be wrong.</footer>",
    ]
    write_text(path, document(title, "\n".join(filter(None, parts)), _STYLE))


def heading(text: str) -> str:
    """Return the heading of a section."""
    return f"<h2>{literal(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph. `kind` is `muted`, `warning` or nothing."""
    return f"<p{f' class={kind!r}' if kind else ''}>{literal(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    """Return a list of texts."""
    return f"<ul>{''.join(f'<li>{literal(text)}</li>' for text in texts)}</ul>"


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table whose first column has the names of the rows. Numbers are right-aligned. Long tables are cut."""
    found = [[*row] for row in rows]
    lines = []
    for row in found[:MOST_ROWS]:
        cells = "".join(
            f'<td class="number">{literal(format_value(value))}</td>'
            if isinstance(value, int | float | None)
            else f"<td>{literal(value)}</td>"
            for value in row[1:]
        )
        lines.append(f'<tr><th scope="row">{literal(row[0])}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{literal(column)}</th>' for column in columns)
    cut = paragraph(f"{len(found) - MOST_ROWS:,} more rows are in results.json.", "muted")
    return (
        f'<div class="wide"><table><caption>{literal(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{cut if len(found) > MOST_ROWS else ''}"
    )


def confusion_table(
    caption: str, classes: Sequence[str], matrix: Sequence[Sequence[int]], predicted: Sequence[str] | None = None
) -> str:
    """Return a confusion matrix with true classes in rows. The color of a cell is its fraction of the row.

    `predicted` are the classes of the columns if they are not those of the rows.
    """
    columns = classes if predicted is None else predicted
    head = "".join(f'<th scope="col">{literal(label)}</th>' for label in columns)
    lines = []
    for true, row in zip(classes, matrix, strict=True):
        total = sum(row)
        cells = ""
        for given, count in zip(columns, row, strict=True):
            share = count / total if total else 0
            color = "22, 101, 52" if true == given else "154, 52, 18"
            cells += f'<td style="background: rgba({color}, {0.45 * share:.2f})">{count:,}</td>'
        lines.append(f'<tr><th scope="row">{literal(true)}</th>{cells}</tr>')
    return (
        f'<div class="wide"><table class="matrix"><caption>{literal(caption)}</caption><thead><tr>'
        f'<th scope="col">true</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def plot(png: bytes | None, alt: str) -> str:
    """Return a plot, or nothing without one."""
    if png is None:
        return ""
    return f'<img class="plot" src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{literal(alt)}">'
