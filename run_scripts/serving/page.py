"""The web page of `biomedclip demo`.

The page loads nothing from other servers. Uploaded files are in a temporary folder, which is deleted when the server
stops. Results are HTML with images as data URLs, so that no copies of them are written. All text in this HTML is
escaped, because captions come from other people.
"""

import logging
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from PIL import Image
from starlette.responses import RedirectResponse, Response

from biomedclip.processing.files import leads_out
from biomedclip.processing.images.errors import ImageError

from ..classification.labels import DEFAULT_TEMPLATE
from ..cli.html import literal
from ..embedding.filters import EXAMPLE as FILTER
from ..embedding.pages import article
from ..embedding.thumbnails import Thumbnails, data_url, jpeg
from .batching import BusyError
from .engine import MAX_CHARACTERS, Engine, InputError, read_upload


logger = logging.getLogger(__name__)

PATH = "/page"
LABELS = ("chest X-ray", "brain MRI", "histology", "photograph of skin", "bar chart")
MAX_RESULTS = 50
_LABELS_CHARACTERS = 100_000  # of all labels
_SIDE = 640  # pixels of the longer side of a preview
_COLUMNS = ("rank", "id", "path", "similarity")  # of results, without those of the input
_FIRST = ("caption", "text", "report", "title", "license", "citation")  # of many columns of the input
_MANY = 7
_HOUR = 3600
_WARNING = (
    "<strong>Not for clinical use.</strong> Probabilities are relative to the given labels: one of them is always the "
    "best, even if none is right."
)
_MAP_NOTE = (
    "Colors show what raised the similarity to the text. They do not show that the model is right, or where a finding "
    "is."
)
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
_STYLE = """
.warning, .problem { border-left: 4px solid #d97706; padding: .3rem .8rem; overflow-wrap: anywhere; }
.problem { border-color: #dc2626; }
.hint { opacity: .75; font-size: .85rem; overflow-wrap: anywhere; }
.picture { display: block; max-width: 100%; max-height: 70vh; margin: 0 auto .4rem; }
.predictions { list-style: none; margin: 0; padding: 0; }
.predictions li { display: grid; grid-template-columns: 1fr 4rem; gap: .1rem .8rem; margin: 0 0 .6rem; }
.predictions .label { overflow-wrap: anywhere; }
.predictions .value { text-align: right; font-weight: 600; font-variant-numeric: tabular-nums; }
.predictions .bar { height: .4rem; align-self: center; border-radius: .2rem; background: var(--border-color-primary); }
.predictions .bar div { height: 100%; border-radius: .2rem; background: var(--color-accent); }
.predictions .similarity { text-align: right; font-size: .8rem; opacity: .75; font-variant-numeric: tabular-nums; }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(12rem, 100%), 1fr)); gap: .8rem; }
.hits article { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .6rem; min-width: 0; }
.hits .image { height: 11rem; display: flex; align-items: center; justify-content: center; }
.hits .image img { max-width: 100%; max-height: 11rem; }
.hits .id { font-weight: 600; margin: .3rem 0; overflow-wrap: anywhere; }
.hits dl { margin: 0; }
.hits summary { cursor: pointer; opacity: .75; clear: left; }
.hits dt { float: left; clear: left; margin-right: .4rem; opacity: .75; }
.hits dd { margin: 0 0 .2rem; overflow-wrap: anywhere; }
"""


class _RequestError(Exception):
    """Raised for a form that is not complete."""


def create_page(engine: Engine, thumbnails: Thumbnails) -> gr.Blocks:
    """Return the page.

    Args:
        engine: The engine. If it has an index, the page has a search.
        thumbnails: Where the images of search results are read.
    """
    with gr.Blocks(title="BiomedCLIP", analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as page:
        gr.HTML(f'<h1>BiomedCLIP</h1><p>Model: {literal(engine.name)}</p><p class="warning" role="note">{_WARNING}</p>')
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                file = gr.File(label="Image", elem_id="file")
                preview = gr.HTML(elem_id="preview")
            with gr.Column(scale=3, min_width=280):
                with gr.Tab("Classify"):
                    names = "\n".join(engine.labels or LABELS)
                    labels = _textbox("Labels, one per line", "labels", names, limit=_LABELS_CHARACTERS, lines=5)
                    template = _textbox(
                        "Prompt with {} for the label (optional)", "template", placeholder=DEFAULT_TEMPLATE
                    )
                    classify = gr.Button("Classify", variant="primary", elem_id="classify")
                    predictions = gr.HTML(elem_id="predictions")
                with gr.Tab("Saliency"):
                    prompt = _textbox("Text", "prompt", placeholder="this is a photo of chest X-ray")
                    explain = gr.Button("Show saliency", variant="primary", elem_id="explain")
                    overlay = gr.HTML(elem_id="overlay")
                if engine.index is not None:
                    with gr.Tab("Search"):
                        text = _textbox("Text", "text", placeholder="pleural effusion")
                        where = _textbox("Condition on the columns (optional)", "where", placeholder=FILTER)
                        count = gr.Slider(1, MAX_RESULTS, 12, step=1, label="Number of results", elem_id="count")
                        with gr.Row():
                            by_text = gr.Button("Search by text", variant="primary", elem_id="by-text")
                            by_image = gr.Button("Search by image", elem_id="by-image")
                        hits = gr.HTML(elem_id="hits")

        def on(
            triggers: Any,
            function: Callable[..., str],
            inputs: list[gr.components.Component],
            output: Any,
            trigger_mode: str = "once",
        ) -> None:
            # The limit is shared, so that only one image of the page is decoded at a time.
            gr.on(
                triggers,
                _answering(function, inputs),
                inputs,
                output,
                concurrency_limit=1,
                concurrency_id="engine",
                api_visibility="private",
                show_progress="minimal",
                trigger_mode=trigger_mode,
            )

        # A file may be replaced while it is read.
        on([file.upload, file.clear], _preview, [file], preview, trigger_mode="always_last")
        on([classify.click, template.submit], _classifying(engine), [file, labels, template], predictions)
        on([explain.click, prompt.submit], _explaining(engine), [file, prompt], overlay)
        if engine.index is not None:
            on([by_text.click, text.submit], _searching(engine, thumbnails), [text, where, count], hits)
            on([by_image.click], _searching_by_image(engine, thumbnails), [file, where, count], hits)
    return page


def mount_page(app: FastAPI, engine: Engine, thumbnails: Thumbnails, *, max_file_size: int) -> None:
    """Add the page to an application, and redirect visitors of `/` to it.

    Args:
        app: The application.
        engine: The engine.
        thumbnails: Where the images of search results are read.
        max_file_size: Largest size of an uploaded file in bytes.
    """
    folder = tempfile.TemporaryDirectory(prefix="biomedclip-", ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    app.add_api_route("/", lambda: RedirectResponse(f"{PATH}/"), include_in_schema=False)
    app.add_api_route("/favicon.ico", lambda: Response(status_code=204), include_in_schema=False)
    app.add_middleware(_Policy)
    page = create_page(engine, thumbnails)
    _accept_only_uploads(page)
    gr.mount_gradio_app(
        app,
        page,
        PATH,
        allowed_paths=[],
        max_file_size=max_file_size,
        show_error=False,
        footer_links=[],
        run_history=False,
        theme=_theme(),
        css=_STYLE,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
    )
    lifespan = app.router.lifespan_context

    @asynccontextmanager
    async def with_uploads(app: FastAPI) -> AsyncIterator[Any]:
        with folder:
            async with lifespan(app) as state:
                yield state

    app.router.lifespan_context = with_uploads


def _accept_only_uploads(page: gr.Blocks) -> None:
    """Refuse paths and URLs in requests.

    The value of any component can name a file. Gradio copies it to where it can be read, or downloads it. It checks
    paths only if it has started the server itself, and never refuses URLs.
    """
    page.has_launched = True
    for component in page.blocks.values():
        move = component.async_move_resource_to_block_cache

        async def move_upload(path: Any, move: Callable[[str], Awaitable[str]] = move) -> str:
            return await move(_uploaded(path))

        component.async_move_resource_to_block_cache = move_upload


def _uploaded(path: Any) -> str:
    if leads_out(path, os.environ["GRADIO_TEMP_DIR"]):
        raise InputError("The file was not uploaded.")
    return str(path)


class _Policy:
    """ASGI middleware that lets pages load only from this server."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [("content-security-policy", _POLICY), ("referrer-policy", "no-referrer")]
                message["headers"] = [*message["headers"], *((n.encode(), v.encode()) for n, v in headers)]
            await send(message)

        await self._app(scope, receive, send_with_policy)


def _theme() -> gr.themes.Base:
    """Return a theme whose fonts are installed: Gradio's own theme loads fonts from Google."""
    return gr.themes.Default(
        primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def _textbox(label: str, name: str, value: str = "", *, limit: int = MAX_CHARACTERS, **options: Any) -> gr.Textbox:
    return gr.Textbox(value, label=label, elem_id=name, max_length=max(limit, len(value)), **options)


def _check_lengths(inputs: Sequence[gr.components.Component], values: Sequence[Any]) -> None:
    """Check the lengths of texts. The limits of text fields hold only in the browser."""
    for field, value in zip(inputs, values, strict=True):
        if isinstance(field, gr.Textbox) and (limit := field.max_length) and len(value or "") > limit:
            found = f"{len(value):,} characters, and {limit:,} are allowed"
            raise _RequestError(f"{field.label}: {found}. Shorten the text.")


def _answering(function: Callable[..., str], inputs: Sequence[gr.components.Component]) -> Callable[..., str]:
    """Return a function that answers with a message instead of raising an error."""

    def answer(*values: Any) -> str:
        try:
            _check_lengths(inputs, values)
            return function(*values)
        except (_RequestError, InputError, ImageError, BusyError) as error:
            message = str(error)
        except Exception:
            logger.exception("The page could not answer.")
            message = "The server failed. Its log has the details."
        return f'<p class="problem" role="alert">{literal(message.replace("`", ""))}</p>'

    return answer


def _read(path: str | None) -> Image.Image:
    if path is None:
        raise _RequestError("Upload an image first.")
    file = Path(_uploaded(path))
    return read_upload(file.read_bytes(), file.name)


def _preview(path: str | None) -> str:
    if path is None:
        return ""
    image = _read(path)
    size = f"{image.width:,} x {image.height:,} pixels"
    return f"{_picture(image, 'Uploaded image')}<p class='hint'>{literal(Path(path).name)}, {size}</p>"


def _picture(image: Image.Image, description: str) -> str:
    return f'<img class="picture" src="{data_url(jpeg(image, _SIDE))}" alt="{description}">'


def _classifying(engine: Engine) -> Callable[..., str]:
    def classify(path: str | None, labels: str, template: str) -> str:
        image = _read(path)
        names = list(dict.fromkeys(line.strip() for line in labels.splitlines() if line.strip()))
        return _bars(engine.classify(image, names, template.strip() or None))

    return classify


def _bars(predictions: Sequence[Mapping[str, Any]]) -> str:
    items = "".join(
        f"<li><span class='label'>{literal(row['label'])}</span>"
        f"<span class='value'>{row['probability']:.1%}</span>"
        f"<div class='bar'><div style='width: {row['probability']:.2%}'></div></div>"
        f"<span class='similarity'>{row['similarity']:.3f}</span></li>"
        for row in predictions
    )
    note = "Probability, and below it the cosine similarity of the image and the prompt."
    return f"<ol class='predictions'>{items}</ol><p class='hint'>{note}</p>"


def _explaining(engine: Engine) -> Callable[..., str]:
    def explain(path: str | None, text: str) -> str:
        image = _read(path)
        if not text.strip():
            raise _RequestError("Enter a text.")
        try:
            overlay = engine.saliency(image, text)
        except (TypeError, ValueError) as error:  # the model cannot compute it
            raise _RequestError(str(error)) from error
        return f"{_picture(overlay, 'Saliency map')}<p class='hint'>{_MAP_NOTE}</p>"

    return explain


def _searching(engine: Engine, thumbnails: Thumbnails) -> Callable[..., str]:
    def search(text: str, where: str, count: float) -> str:
        if not text.strip():
            raise _RequestError("Enter a text.")
        return _hits(engine, thumbnails, text, where, count)

    return search


def _searching_by_image(engine: Engine, thumbnails: Thumbnails) -> Callable[..., str]:
    def search(path: str | None, where: str, count: float) -> str:
        return _hits(engine, thumbnails, _read(path), where, count)

    return search


def _hits(engine: Engine, thumbnails: Thumbnails, query: str | Image.Image, where: str, count: float) -> str:
    rows = engine.search(query, min(max(int(count), 1), MAX_RESULTS), where.strip() or None)
    if not rows:
        raise _RequestError("No row fulfills the condition." if where.strip() else "No results.")
    images = thumbnails.of_rows(rows)
    names = [name for name in rows[0] if name not in _COLUMNS]
    folded = [name for name in names if name not in _FIRST] if len(names) >= _MANY else []
    articles = "".join(article(row, _COLUMNS, image, folded=folded) for row, image in zip(rows, images, strict=True))
    left_out = "" if all(images) else f"<p class='hint'>{literal(thumbnails.reason())}</p>"
    return f"<div class='hits'>{articles}</div>{left_out}"
