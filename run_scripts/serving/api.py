"""The HTTP API of `biomedclip demo`."""

import asyncio
import base64
import binascii
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    field_validator,
    model_validator,
)
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from biomedclip.model_cards.escaping import one_line
from biomedclip.processing.images.errors import ImageError

from ..cli.fields import WORKERS
from ..cli.output import plain_value
from .batching import BusyError
from .engine import MAX_CHARACTERS, MAX_LABELS, Engine, InputError, prompts_of, read_upload
from .guard import Guard, RefusedError, hosts_of


logger = logging.getLogger(__name__)

MAX_IMAGES = 64
MAX_TEXTS = 2048  # as in the API of OpenAI
MAX_TOP_K = 1000
MAX_LABEL_CHARACTERS = 1000  # of a label, a template or a condition
MAX_FORM_FIELD = 50_000_000  # bytes of a field without a file, such as an image in base64
_SHOWN = 500  # characters of an error
_DATA_URL = re.compile(r"data:image/[\w.+-]{1,50};base64,")
_STATUS_TYPES = {404: "not_found", 405: "method_not_allowed"}
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True)
class Upload:
    """A file of a form."""

    content: bytes
    name: str


def _is_data_url(text: str) -> bool:
    return _DATA_URL.match(text) is not None


def _input(text: str) -> str:
    if not _is_data_url(text) and len(text) > MAX_CHARACTERS:
        raise ValueError(f"a text has at most {MAX_CHARACTERS:,} characters")
    return text


Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
ShortText = Annotated[str, Field(min_length=1, max_length=MAX_LABEL_CHARACTERS)]
ImageSource = str | InstanceOf[Upload]  # base64 or a data: URL, or a file of a form
Images = Annotated[list[ImageSource], Field(fail_fast=True, min_length=1, max_length=MAX_IMAGES)]
Texts = Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MAX_TEXTS)]
Labels = Annotated[list[ShortText], Field(fail_fast=True, max_length=MAX_LABELS)]
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K)]

_Input = Annotated[str, Field(min_length=1), AfterValidator(_input)]
Inputs = Annotated[list[_Input], Field(fail_fast=True, max_length=MAX_TEXTS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class ClassifyBody(_Body):
    """Body of `POST /classify`."""

    images: Images
    labels: Labels = []
    template: ShortText | None = None
    top_k: TopK | None = None


class EmbedBody(_Body):
    """Body of `POST /embed`."""

    images: Images | None = None
    texts: Texts | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "EmbedBody":
        if (self.images is None) == (self.texts is None):
            raise ValueError("pass either `images` or `texts`")
        return self


class SearchBody(_Body):
    """Body of `POST /search`."""

    text: Text | None = None
    image: ImageSource | None = None
    top_k: TopK = 10
    where: ShortText | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "SearchBody":
        if (self.text is None) == (self.image is None):
            raise ValueError("pass either `text` or `image`")
        return self


class EmbeddingsBody(_Body):
    """Body of `POST /v1/embeddings`, which has the form of the embeddings API of OpenAI."""

    input: Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not values or not all(isinstance(item, str) for item in values):
            raise ValueError("pass a text or a list of texts. Token ids are not supported")
        return values


class Api:
    """Answer requests with an engine.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        # Decoding an image can take 700 MB, so only few are decoded at the same time.
        self.decoders = ThreadPoolExecutor(WORKERS, thread_name_prefix="decode")

    async def health(self, request: Request) -> dict[str, Any]:
        """Return what is served."""
        engine, index = self.engine, self.engine.index
        return {
            "status": "ok",
            "model": engine.name,
            "type": engine.encoder.type,
            "fingerprint": engine.encoder.weights,
            "precision": engine.encoder.precision,
            "device": str(engine.device),
            "dimension": engine.dimension,
            "labels": engine.labels,
            "index": None if index is None else {"size": len(index), "modality": index.modality},
            "waiting": engine.batcher.waiting,
        }

    async def classify(self, request: Request) -> dict[str, Any]:
        """Return the probabilities of labels for images."""
        body = await _read(request, ClassifyBody)
        labels = body.labels or self.engine.labels
        if not labels:
            raise _invalid("`labels` is missing. Pass it, or start the server with --labels.")
        prompts = prompts_of(labels, body.template, self.engine.prompts)
        image_embeds = await self._embed_images(body.images)
        flat = [prompt for texts in prompts.values() for prompt in texts]
        prompt_embeds = await _results(self.engine.submit_prompts(flat))
        results = await run_in_threadpool(self.engine.ranked, image_embeds, prompts, prompt_embeds, body.top_k)
        return {"model": self.engine.name, "results": [{"predictions": found} for found in results]}

    async def embed(self, request: Request) -> dict[str, Any]:
        """Return the embeddings of images or texts."""
        body = await _read(request, EmbedBody)
        if body.images is not None:
            embeds = await self._embed_images(body.images)
        else:
            embeds = await _results(self.engine.submit_texts(body.texts or []))
        values = await run_in_threadpool(_floats, embeds)
        return {"model": self.engine.name, "dimension": self.engine.dimension, "embeddings": values}

    async def search(self, request: Request) -> dict[str, Any]:
        """Return the rows of the index that are the most similar to a text or an image."""
        body = await _read(request, SearchBody)
        if self.engine.index is None:
            raise RefusedError(404, "not_found", "There is no index. Start biomedclip demo with --index.")
        condition = self.engine.condition(body.where)
        if body.image is not None:
            (embed,) = await self._embed_images([body.image])
        else:
            (embed,) = await _results(self.engine.submit_texts([body.text or ""]))
        (found,) = await _results([self.engine.submit_search(embed, body.top_k, condition)])
        return {"model": self.engine.name, "results": await run_in_threadpool(plain_value, found)}

    async def embeddings(self, request: Request) -> dict[str, Any]:
        """Return embeddings in the form of the embeddings API of OpenAI."""
        body = await _read(request, EmbeddingsBody)
        if body.model not in (None, self.engine.name):
            raise RefusedError(404, "model_not_found", f"The model of this server is {self.engine.name!r}.")
        if body.dimensions not in (None, self.engine.dimension):
            raise _invalid(f"`dimensions` must be {self.engine.dimension}, which cannot be changed.")
        if len(images := [value for value in body.input if _is_data_url(value)]) > MAX_IMAGES:
            raise _invalid(f"`input` has {len(images)} images, and {MAX_IMAGES} are allowed.")
        texts = [value for value in body.input if not _is_data_url(value)]
        of_images = iter(await self._embed_images(images))
        of_texts = iter(await _results(self.engine.submit_texts(texts)))
        embeds = [next(of_images if _is_data_url(value) else of_texts) for value in body.input]
        tokens = sum(await _results(self.engine.submit_token_counts(texts)))
        values: list[Any] = await run_in_threadpool(_base64 if body.encoding_format == "base64" else _floats, embeds)
        data = [{"object": "embedding", "index": at, "embedding": value} for at, value in enumerate(values)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return {"object": "list", "data": data, "model": self.engine.name, "usage": usage}

    async def _embed_images(self, images: Sequence[str | Upload]) -> list[np.ndarray]:
        loop = asyncio.get_running_loop()
        decoded = [
            loop.run_in_executor(self.decoders, self._decode, image, f"image {number}")
            for number, image in enumerate(images, start=1)
        ]
        try:
            pixels = await asyncio.gather(*decoded)
        finally:
            while decoded:
                # If one image fails, the others need not be decoded. Popped, because a finished future keeps its
                # result in memory as long as it is in a list.
                decoded.pop().cancel()
        return await _results(self.engine.submit_pixels(pixels))

    def _decode(self, image: str | Upload, name: str) -> torch.Tensor:
        if isinstance(image, str):
            image = Upload(_from_base64(image, name), name)
        try:
            return self.engine.prepare(read_upload(image.content, image.name), name)
        except ImageError as error:
            problem = (str(error), error.reason)
        # Another error, because the traceback of the first one keeps the decoded image in memory.
        raise ImageError(*problem)


def create_app(engine: Engine, *, max_request_mb: int = 32, host: str = "127.0.0.1") -> FastAPI:
    """Return the application of the API. The engine is closed when the application stops.

    Args:
        engine: The engine.
        max_request_mb: Largest size of the body of a request in MB (1,000,000 bytes).
        host: Address on which the server listens. On loopback, only requests to its names are accepted.
    """
    api = Api(engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        api.decoders.shutdown(wait=False, cancel_futures=True)
        engine.close()

    # The generated documentation would load scripts from another site.
    app = FastAPI(title="biomedclip", openapi_url=None, lifespan=lifespan)
    app.add_middleware(Guard, max_bytes=max_request_mb * 1_000_000, hosts=hosts_of(host))
    routes: list[tuple[str, str, Callable[[Request], Coroutine[Any, Any, dict[str, Any]]]]] = [
        ("GET", "/health", api.health),
        ("POST", "/classify", api.classify),
        ("POST", "/embed", api.embed),
        ("POST", "/search", api.search),
        ("POST", "/v1/embeddings", api.embeddings),
    ]
    for method, path, answer in routes:
        app.add_api_route(path, _in_json(answer), methods=[method], response_model=None)
    app.add_exception_handler(HTTPException, _not_served)
    app.add_exception_handler(Exception, _failed)
    return app


def _in_json(answer: Callable[[Request], Coroutine[Any, Any, dict[str, Any]]]) -> Callable[[Request], Any]:
    """Return a route that answers in JSON, also if the request is refused."""

    async def route(request: Request) -> JSONResponse:
        try:
            return await run_in_threadpool(JSONResponse, await answer(request))  # many embeddings take a second
        except RefusedError as error:  # copied, because its traceback keeps the request in memory
            refusal = RefusedError(error.status, error.kind, error.message)
        except BusyError as error:
            refusal = RefusedError(503, "busy", str(error))
        except ImageError as error:
            unknown = error.reason == "image of unknown format"
            refusal = RefusedError(415 if unknown else 422, "invalid_image", _shown(error))
        except InputError as error:
            refusal = _invalid(_shown(error))
        return JSONResponse(refusal.content, refusal.status, refusal.headers)

    return route


async def _not_served(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    refusal = RefusedError(error.status_code, _STATUS_TYPES.get(error.status_code, "invalid_request"), error.detail)
    return JSONResponse(refusal.content, refusal.status, error.headers)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """Answer without details. The server logs the traceback."""
    refusal = RefusedError(500, "internal_error", "The server failed. Its log has the details.")
    return JSONResponse(refusal.content, refusal.status)


async def _read(request: Request, kind: type[Body]) -> Body:
    """Read and check the body of a request, in JSON or as a form."""
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type == "application/json":
        content = await request.body()
        return await run_in_threadpool(lambda: _validated(kind, _parsed(content)))
    if content_type == "multipart/form-data":
        return _validated(kind, await _read_form(request, kind))
    raise RefusedError(
        415,
        "unsupported_media_type",
        "The body must be JSON with the header Content-Type: application/json, or multipart/form-data.",
    )


def _parsed(content: bytes) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        return json.loads(content.decode(), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise RefusedError(400, "invalid_json", f"The body is not UTF-8: {error.reason}.") from error
    except RecursionError as error:
        raise RefusedError(400, "invalid_json", "The body is nested too deeply.") from error
    except ValueError as error:
        raise RefusedError(400, "invalid_json", f"The body is not valid JSON: {_shown(error)}.") from error


async def _read_form(request: Request, kind: type[Body]) -> dict[str, Any]:
    lists = {name for name in ("images", "labels", "texts") if name in kind.model_fields}
    try:
        form = await request.form(max_files=MAX_IMAGES, max_fields=MAX_TEXTS, max_part_size=MAX_FORM_FIELD)
    except Exception as error:  # a damaged form raises many types
        problem = error.detail if isinstance(error, HTTPException) else "the form is damaged"
        raise RefusedError(400, "invalid_form", f"multipart/form-data: {_shown(problem)}") from error
    found: dict[str, Any] = {}
    try:
        for name in form:
            values: list[Any] = []
            for value in form.getlist(name):
                if isinstance(value, UploadFile):
                    values.append(Upload(await value.read(), value.filename or "image"))
                else:
                    values.append(int(value) if name == "top_k" and re.fullmatch(r"\d{1,9}", value) else value)
            if name not in lists and len(values) > 1:
                raise _invalid(f"`{_shown(name)}` is given {len(values)} times.")
            found[name] = values if name in lists else values[0]
    finally:
        await form.close()  # large files are on disk
    return found


def _validated(kind: type[Body], content: Any) -> Body:
    if not isinstance(content, dict):
        raise _invalid("The body must be an object of JSON.")
    # Before pydantic, which would make an error of each of a million names.
    if unknown := next((name for name in content if name not in kind.model_fields), None):
        raise _invalid(f"`{_shown(unknown)}`: unknown field. The fields are {', '.join(kind.model_fields)}.")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for at, part in enumerate(first["loc"]) if at == 0 or isinstance(part, int))
        message = first["msg"].removeprefix("Value error, ")
        raise _invalid(_shown(f"`{place}`: {message}." if place else f"{message}.")) from None


def _from_base64(text: str, name: str) -> bytes:
    match = _DATA_URL.match(text)
    try:
        return base64.b64decode("".join(text[match.end() if match else 0 :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid(
            f"{name} must be the base64 of a file, or a data: URL of base64. Paths and other URLs are not opened."
        ) from error


def _invalid(message: str) -> RefusedError:
    return RefusedError(422, "invalid_request", message)


def _shown(text: Any) -> str:
    shown = one_line(text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


async def _results(futures: Sequence[Future[Any]]) -> list[Any]:
    """Wait for results. A request that ends early must not cancel the embedding of a prompt that others wait for."""
    return await asyncio.gather(*(asyncio.shield(asyncio.wrap_future(future)) for future in futures))


def _floats(embeds: Sequence[np.ndarray]) -> list[list[float]]:
    return [embed.tolist() for embed in embeds]


def _base64(embeds: Sequence[np.ndarray]) -> list[str]:
    return [base64.b64encode(embed.astype("<f4").tobytes()).decode() for embed in embeds]
