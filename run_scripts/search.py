"""Search embeddings by text, image or id, or list near-duplicates.

biomedclip search embeddings "pleural effusion" --where "license = 'CC BY' and year > 2020"
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biomedclip import EmbeddingIndex
from biomedclip.embedding_index import TOP_K
from biomedclip.embedding_shards import MODALITIES

from .cli.devices import use_device
from .cli.options import parse_options
from .cli.output import check_output_file, choose_format, write_rows
from .cli.reporting import show_stage
from .embedding.filters import parse_filter
from .embedding.pages import write_page
from .embedding.queries import check_query_model, image_query, known_query, load_query_model, text_query
from .embedding.recall import measured_recall
from .embedding.search_options import SearchOptions
from .embedding.thumbnails import Thumbnails


EXAMPLE = """biomedclip search embeddings "pleural effusion"
  biomedclip search embeddings --image scan.png --top-k 20 --html hits.html
  biomedclip search embeddings --like scans/a.png --where "year > 2020"
  biomedclip search embeddings --duplicates 0.97 --output groups.csv"""
RESULT = ("rank", "id", "path", "similarity")
_FEW, _CAPTIONS, _LONGEST = 2, ("caption", "text", "report", "title"), 100  # of a table
GROUP = ("group", "id", "path", "similarity")


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
    for option, file in (("--output", output), ("--html", page)):
        check_output_file(file, option)
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
    if options.needs_model:
        name = options.model or index.model
        settings: Any = {"precision": options.precision, "trust_remote_code": options.trust_remote_code}
        check_query_model(name, options.model is not None, device=options.device, **settings)
    if options.image is not None and not Path(options.image).exists():
        raise FileNotFoundError(f"--image {options.image}: the file does not exist.")
    if options.needs_model:
        use_device(options.device)
        model = load_query_model(name, index, **settings)
    if options.index == "hnsw":
        show_stage(measured_recall(index, model))
    if options.like is not None:
        return known_query(index, options.like), options.like
    if options.image is not None:
        return image_query(model, options.image), options.image
    return text_query(model, str(options.text)), str(options.text)
