"""Search embeddings by text, image or id, or list near-duplicates.

biomedclip search embeddings "pleural effusion" --where "license = 'CC BY' and year > 2020"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from biomedclip import EmbeddingIndex
from biomedclip.embedding_index import METHODS, TOP_K
from biomedclip.embedding_shards import MODALITIES

from .cli.fields import REQUIRED, option
from .cli.options import parse_options
from .cli.output import FORMAT_HELP, FORMATS, check_output_file, choose_format, write_rows
from .cli.reporting import show_stage
from .embedding.filters import EXAMPLE as FILTER
from .embedding.filters import parse_filter
from .embedding.pages import write_page
from .embedding.queries import check_query_model, image_query, known_query, load_query_model, text_query
from .embedding.recall import measured_recall
from .embedding.thumbnails import Thumbnails


EXAMPLE = """biomedclip search embeddings "pleural effusion"
  biomedclip search embeddings --image scan.png --top-k 20 --html hits.html
  biomedclip search embeddings --like scans/a.png --where "year > 2020"
  biomedclip search embeddings --duplicates 0.97 --output groups.csv"""
RESULT = ("rank", "id", "path", "similarity")
_FEW, _CAPTIONS, _LONGEST = 2, ("caption", "text", "report", "title"), 100  # of a table
GROUP = ("group", "id", "path", "similarity")


@dataclass(kw_only=True)
class SearchOptions:
    """Options of `biomedclip search`."""

    embeddings: str = option(REQUIRED, "Folder that biomedclip embed wrote. Can be the first positional argument.")
    text: str | None = option(None, "Text to search for. Can be the second positional argument.")
    image: str | None = option(None, "Image file to search for.")
    like: str | None = option(None, "Id whose embedding is searched for. The id itself is not listed.")
    duplicates: float | None = option(None, "List groups of near-duplicates with at least this similarity, e.g. 0.97.")
    top_k: int | None = option(None, f"Number of results (default: {TOP_K}).")
    where: str | None = option(None, f'Condition on the columns, such as "{FILTER}".')
    modality: str | None = option(None, "Embeddings to search (default: image if there are any).", list(MODALITIES))
    model: str | None = option(None, "Folder or Hub id of the model (default: the one that computed the embeddings).")
    format: str | None = option(None, FORMAT_HELP, FORMATS)
    output: str | None = option(None, "File for the results (default: stdout).")
    html: str | None = option(None, "Also write a page with thumbnails to this file.")
    images: list[str] = option(
        [], "Images or datasets that were embedded, for --html (default: paths below this folder and EMBEDDINGS)."
    )
    index: str = option("exact", "hnsw is approximate, and states its recall (default: exact).", METHODS)

    def __post_init__(self):
        given = [name for name in ("text", "image", "like", "duplicates") if getattr(self, name) is not None]
        if len(given) != 1:
            passed = f", not {' and '.join(given)}" if given else ""
            raise ValueError(f"Pass one of a text, --image, --like and --duplicates{passed}.")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"--top-k must be at least 1, not {self.top_k}.")
        if self.text is not None and not self.text.strip():
            raise ValueError("The text is empty.")
        if self.duplicates is not None:
            if not 0 < self.duplicates <= 1:
                raise ValueError(f"--duplicates must be above 0 and at most 1, not {self.duplicates}.")
            if self.top_k is not None or self.index != "exact":
                raise ValueError("--duplicates lists all groups exactly. Omit --top-k and --index.")
        if self.index == "hnsw" and self.where is not None:
            raise ValueError("--index hnsw does not support --where. Omit --index: the exact search supports it.")
        if self.images and self.html is None:
            raise ValueError("--images has no effect without --html.")


def main(arguments: Sequence[str]) -> None:
    """Run `biomedclip search`."""
    (options,) = parse_options(
        "search",
        [SearchOptions],
        arguments,
        description=__doc__.split("\n\n")[0],
        example=EXAMPLE,
        positionals=["embeddings", "text"],
    )
    search(options)


def search(options: SearchOptions) -> None:
    """Write the results of a search, or groups of near-duplicates."""
    output = Path(options.output) if options.output else None
    page = Path(options.html) if options.html else None
    form = choose_format(options.format, output)
    for file in (output, page):
        check_output_file(file)
    index = EmbeddingIndex(options.embeddings, modality=options.modality, method=options.index)
    where = parse_filter(options.where, index.schema) if options.where is not None else None
    thumbnails = Thumbnails(options.images, [Path.cwd(), index.folder]) if page else None
    total = f"{len(index):,} {MODALITIES[index.modality]}"
    if options.duplicates is not None:
        groups = index.near_duplicates(options.duplicates, where=where)
        rows = [{"group": number, **row} for number, group in enumerate(groups, start=1) for row in group]
        columns, title = GROUP, f"{len(groups):,} groups of near-duplicates among {total}"
    else:
        query, name = _query(options, index)
        exclude = [options.like] if options.like is not None else []
        rows = index.search(query, top_k=options.top_k or TOP_K, where=where, exclude=exclude)[0]
        columns, title = RESULT, f"{name}: the best of {total}"
    own = [name for name in (rows[0] if rows else index.columns) if name not in columns]
    shown = [*columns]
    if form == "table":  # the path of an image file is its id, and a terminal has room for few columns
        shown = [name for name in columns if name != "path" or any(row["path"] != row["id"] for row in rows)]
        shown = [name for name in shown if name != "path" or any(row["path"] is not None for row in rows)]
        own = own if len(own) <= _FEW else [name for name in own if name in _CAPTIONS][:1]
        rows_shown = [{name: _short(row[name]) for name in [*shown, *own]} for row in rows]
    else:
        rows_shown = rows
    write_rows(rows_shown, [*shown, *own], form, output, title)
    if not rows:
        show_stage("No results" + (": no row fulfills --where." if where is not None else "."))
    if page is not None and thumbnails is not None:
        count = write_page(page, title, rows, columns, thumbnails)
        left_out = f" {thumbnails.reason()}" if count < len(rows) else ""
        show_stage(f"Page with {count:,} of {len(rows):,} thumbnails: {page}.{left_out}")


def _short(value: Any) -> Any:
    return f"{value[:_LONGEST]}..." if isinstance(value, str) and len(value) > _LONGEST + 3 else value


def _query(options: SearchOptions, index: EmbeddingIndex) -> tuple[Any, str]:
    """Return the embedding of the query, and its name. The model is loaded only if it is needed."""
    model: Any = None
    if options.like is None or options.index == "hnsw":
        name = options.model or index.model
        check_query_model(name, options.model is not None)
    if options.image is not None and not Path(options.image).exists():
        raise FileNotFoundError(f"--image {options.image}: the file does not exist.")
    if options.like is None or options.index == "hnsw":
        model = load_query_model(name, index)
    if options.index == "hnsw":
        show_stage(measured_recall(index, model))
    if options.like is not None:
        return known_query(index, options.like), options.like
    if options.image is not None:
        return image_query(model, options.image), options.image
    return text_query(model, str(options.text)), str(options.text)
